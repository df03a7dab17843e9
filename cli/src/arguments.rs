//! What one types.

mod integrity;
mod job;
mod keys;
mod overlay;
mod reset;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

pub use self::integrity::{Integrity, IntegrityCommand};
pub use self::job::Job;
pub use self::keys::{Keys, KeysCommand, NewKey, Recovery};
pub use self::overlay::{Configuration, Import, Overlay, OverlayCommand};
pub use self::reset::{Certificate, Reset, ResetCommand};

/// Looks after the device: its storage, its health, and the way back to its factory state.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  nemosctl status                  draw the storage stack, with what is not as it should be
  nemosctl reset --factory         say what would go, ask, reboot, come back clean
  nemosctl health                  one line and an exit status, for monitoring
  nemosctl keys forecast           will the next boot open the overlay by itself?
  nemosctl integrity events        what was damaged, where, how often, and of which file

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
    Status(Status),
    /// Print the health in one line; exit with 0 ok, 1 warning, 2 critical, 3 unknown
    Health,
    /// Take the device back to the state it was shipped in, all of it or its system only
    Reset(Reset),
    /// Print the device in numbers, for Prometheus
    Metrics(Metrics),
    /// See what is damaged, and read the storage through to find what is
    Integrity(Integrity),
    /// See what differs from the factory image
    Overlay(Overlay),
    /// See and change the keys that open the overlay
    Keys(Keys),
    /// See or take back what was asked of the device
    #[command(subcommand)]
    Job(Job),
}

#[derive(Debug, clap::Args)]
pub struct Status {
    /// Instead, compare what this device runs to the manifest that the builder left next to its image: exit with 0 if
    /// nothing differs, else with 1. Without FILE, to the manifest in the image, which has no root hash
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = nemos_model::manifest::FILE)]
    pub against_manifest: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nemosctl metrics
  nemosctl metrics --output /var/lib/prometheus/node-exporter/nemos.prom   for node exporter's textfile collector

Exit status: 0 done; 1 not written; 3 nemosd cannot be reached (nemos_health is 3 then).")]
pub struct Metrics {
    /// Replace this file instead of printing
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
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
        assert!(Arguments::try_parse_from(["nemosctl", "reset", "--overlay", "--keep", "/a", "--keep", "/b"]).is_ok());
        assert!(Arguments::try_parse_from(["nemosctl", "reset", "--overlay", "--factory"]).is_err());
        assert!(Arguments::try_parse_from(["nemosctl", "reset", "history"]).is_ok());
        assert!(Arguments::try_parse_from(["nemosctl", "reset", "certificate", "7"]).is_ok());
    }
}
