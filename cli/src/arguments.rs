//! What one types.

use clap::{Parser, Subcommand, ValueEnum};

/// Looks after the device: its storage, its health, and the way back to its factory state.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  nemosctl status                  draw the storage stack, with what is not as it should be
  nemosctl reset --factory         say what would go, ask, reboot, come back clean
  nemosctl health                  one line and an exit status, for monitoring

Exit status: 0 done; 1 refused; 2 wrong usage; 3 nemosd cannot be reached.
`status` exits with 2 if the health is critical; `health` exits with 1 for a warning, 2 for critical."
)]
pub struct Arguments {
    /// Colour the output
    #[arg(long, value_enum, default_value_t, global = true, value_name = "WHEN")]
    pub color: When,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

/// When to use colour. `Auto`: on a terminal, unless `NO_COLOR` is set.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum When {
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Draw the storage stack with its live states, the health and what it follows from
    Status,
    /// Print the health in one line; exit with 0 ok, 1 warning, 2 critical, 3 unknown
    Health,
    /// Take the device back to its factory state
    Reset(Reset),
    /// See or take back what was asked of the device
    #[command(subcommand)]
    Job(Job),
}

#[allow(clippy::struct_excessive_bools, reason = "they are what one types")]
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:
  nemosctl reset --factory --dry-run       say what would go and what would stay, change nothing
  nemosctl reset --factory                 the same, ask, and reboot into the reset
  nemosctl reset --factory --yes --key ticket-17 --label 'returned by the customer'
                                           for scripts: asked twice with one key, it is done once"
)]
pub struct Reset {
    /// Erase everything that was made on this device
    #[arg(long, required = true)]
    pub factory: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Say what would go and what would stay, and change nothing
    #[arg(long, visible_alias = "plan", conflicts_with = "yes")]
    pub dry_run: bool,
    /// Do not reboot: the next boot resets the device, whoever causes it
    #[arg(long)]
    pub no_reboot: bool,
    /// A text for your own records, kept with the job
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// Idempotency key: asking again with it gives back the same job, never a second one
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    #[command(subcommand)]
    pub command: Option<ResetCommand>,
}

#[derive(Debug, Subcommand)]
pub enum ResetCommand {
    /// List the resets of this device: when, who asked, how they ended
    History,
}

#[derive(Debug, Subcommand)]
pub enum Job {
    /// List all jobs that the device remembers
    List,
    /// Show one job, step by step
    Show {
        /// The job
        id: String,
    },
    /// Take a job back that has not begun
    Cancel {
        /// The job
        id: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_reset_without_a_scope_is_wrong_usage() {
        assert!(Arguments::try_parse_from(["nemosctl", "reset"]).is_err());
        assert!(Arguments::try_parse_from(["nemosctl", "reset", "--factory"]).is_ok());
        assert!(Arguments::try_parse_from(["nemosctl", "reset", "history"]).is_ok());
    }
}
