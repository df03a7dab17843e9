//! `nemosctl reset`.

use std::path::PathBuf;

use clap::Subcommand;
use nemos_model::reset::Scope;

#[allow(clippy::struct_excessive_bools, reason = "they are what one types")]
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    group = clap::ArgGroup::new("scope").required(true).args(["overlay", "factory"]),
    after_help = "Examples:
  nemosctl reset --factory --dry-run       say what would go and what would stay, change nothing
  nemosctl reset --factory                 the same, ask, and reboot into the reset
  nemosctl reset --overlay --keep /etc/hostname --keep /etc/systemd/network
                                           take back all changes to the system but these; containers and home stay
  nemosctl reset --overlay --keep-all      a new volume key for the same contents; --dry-run says where they wait meanwhile
  nemosctl reset --factory --keep-set identity --at 03:00
                                           tonight, and it is still the same device to its fleet
  nemosctl reset --factory --yes --key ticket-17 --label 'returned by the customer'
                                           for scripts: asked twice with one key, it is done once"
)]
pub struct Reset {
    /// Erase all changes to the system; containers and home stay
    #[arg(long)]
    pub overlay: bool,
    /// Erase everything that was made on this device
    #[arg(long)]
    pub factory: bool,
    /// Keep this file or folder, with its owner, mode, times and extended attributes
    #[arg(long, value_name = "PATH")]
    pub keep: Vec<String>,
    /// Keep what this set names; sets ship with the image, in /usr/share/nemos/keep.d
    #[arg(long, value_name = "NAME")]
    pub keep_set: Vec<String>,
    /// Keep everything on the overlay's volume as it is, and make a new volume key for it: the device stays what it is. Keys begin
    /// anew, as at its first boot: no recovery key, passphrase or TPM key of the old volume opens the new one
    #[arg(long, conflicts_with_all = ["factory", "keep", "keep_set"])]
    pub keep_all: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Say what would go and what would stay, and change nothing
    #[arg(long, visible_alias = "plan", conflicts_with = "yes")]
    pub dry_run: bool,
    /// Do it only if the plan is still the one with this name, as --dry-run told it
    #[arg(long, value_name = "PLAN", requires = "yes")]
    pub if_plan: Option<String>,
    /// Do not reboot: the next boot resets the device, whoever causes it
    #[arg(long)]
    pub no_reboot: bool,
    /// Not before this time: `03:00`, `2027-01-31 03:00`, `2027-01-31T03:00:00Z`, or `+2h`
    #[arg(long, visible_alias = "not-before", value_name = "TIME")]
    pub at: Option<String>,
    /// A text for your own records, kept with the job
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// Idempotency key: asking again with it gives back the same job, never a second one
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    #[command(subcommand)]
    pub command: Option<ResetCommand>,
}

impl Reset {
    /// The scope that was typed.
    pub const fn scope(&self) -> Scope {
        if self.overlay { Scope::Overlay } else { Scope::Factory }
    }
}

#[derive(Debug, Subcommand)]
pub enum ResetCommand {
    /// List the resets of this device: when, who asked, how they ended, what became of each partition
    History,
    #[command(flatten)]
    Certificate(Certificate),
}

#[derive(Debug, Subcommand)]
pub enum Certificate {
    /// Have the device certify a reset that is done: what was erased and how, who asked, when, signed with its own key
    #[command(
        name = "certificate",
        after_help = "Examples:
  nemosctl reset history                                          tells the ids
  nemosctl reset certificate 5f0c... --output reset.jws
  nemosctl reset verify-certificate reset.jws --key device.pem    anywhere, without the device"
    )]
    Issue {
        /// Job of the reset
        id: String,
        /// Write it to a file
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Print the key that this device's certificates are verified with; it stays the same after every reset
    ///
    /// Its secret half is in the device's TPM and never leaves it. Without a TPM it is in a file on the device's disk, and
    /// whoever could read the disk can sign with it: `kept_in` of --json says which.
    #[command(
        name = "certificate-key",
        after_help = "Example: before the device goes out, over a way that you trust
  nemosctl reset certificate-key --output device.pem"
    )]
    Key {
        /// Write it to a file
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Verify a certificate, anywhere: no device and no nemosd is asked
    ///
    /// Exits with 0 if the certificate holds, with 1 and the reason if it does not, with 2 if it cannot be verified.
    #[command(
        name = "verify-certificate",
        after_help = "Example:
  nemosctl reset verify-certificate reset.jws --key device.pem"
    )]
    Verify {
        /// The certificate
        file: PathBuf,
        /// The key of the device that should have signed it, as `nemosctl reset certificate-key` gave it
        #[arg(long, value_name = "PUB")]
        key: PathBuf,
    },
}
