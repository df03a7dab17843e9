//! `nemosctl job`.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Job {
    /// List all jobs that the device remembers
    List,
    /// Show one job, step by step
    Show {
        /// The job
        id: String,
    },
    /// Take a job back that has not begun, or was given up
    Cancel {
        /// The job
        id: String,
    },
    /// Let the next boot go on with a job that was given up, at the step that failed
    Retry {
        /// The job
        id: String,
        /// Reboot now
        #[arg(long)]
        reboot: bool,
    },
}
