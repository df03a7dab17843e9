//! What one types.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use nemos_model::reset::Scope;

use crate::text::parse_seconds;

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

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nemosctl integrity                           each volume: how it is, what it was compared with, its last scrub
  nemosctl integrity events                    what was damaged, where, how often, and of which file
  nemosctl integrity acknowledge 7             event 7 is known of: health does not tell of it any more
  nemosctl integrity scrub                     read the root and the overlay through, and show how far it is
  nemosctl integrity scrub luks --rate 8M --no-wait

Exit status: 0 done; 1 refused, or a scrub failed or found damage; 2 wrong usage, or something is damaged (without a command);
3 nemosd cannot be reached.")]
pub struct Integrity {
    #[command(subcommand)]
    pub command: Option<IntegrityCommand>,
}

#[derive(Debug, Subcommand)]
pub enum IntegrityCommand {
    /// List the events that the device remembers, the one that was seen last at the end
    Events {
        /// Only those that nobody has acknowledged
        #[arg(long)]
        open: bool,
    },
    /// Say that events are known of, until they are seen again
    Acknowledge {
        /// Their numbers
        #[arg(required_unless_present = "all", value_name = "EVENT")]
        ids: Vec<u64>,
        /// All that there are
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Read volumes through, to find what is damaged
    Scrub {
        /// `verityRoot` or `luks`; both if not given
        #[arg(value_name = "VOLUME")]
        volumes: Vec<String>,
        /// Bytes a second to read at most, as 500K, 8M or 1G; as many as nobody else wants if not given
        #[arg(long, value_parser = bytes)]
        rate: Option<u64>,
        /// Do not wait for its end
        #[arg(long)]
        no_wait: bool,
        /// Stop scrubs instead
        #[arg(long, conflicts_with_all = ["rate", "no_wait"])]
        cancel: bool,
    },
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nemosctl overlay                     where changes go, and how much room they take
  nemosctl overlay usage               what takes the room, and what is left
  nemosctl overlay mode                where changes go at this boot, and at the next
  nemosctl overlay mode volatile --once
                                       the next boot has the root as the image has it, and forgets what is changed there
  nemosctl overlay mode readonly       from the next boot on, nothing but /etc and /var takes changes, in memory
  nemosctl overlay diff                what differs from the factory image
  nemosctl overlay diff /etc --json
  nemosctl overlay diff /etc --content line by line
  nemosctl overlay diff --shadowed     what hides files that this image has changed since
  nemosctl overlay revert /etc/ssh     at the next boot it is as the image has it; says what goes, and asks
  nemosctl overlay export site site.tar
  nemosctl overlay import site.tar     on another device
  nemosctl overlay diff --stat         how many changes, and how large, by folder
  nemosctl overlay save site-7         the next boot saves the changes under that name
  nemosctl overlay apply site-7 --confirm-within 10m
                                       reboot into them, and back again unless `overlay confirm` comes in time
  nemosctl overlay apply factory       the image as it was shipped; what is saved stays

A file that was only copied up, and is as the image has it, is no change.")]
pub struct Overlay {
    #[command(subcommand)]
    pub command: Option<OverlayCommand>,
}

#[derive(Debug, Subcommand)]
pub enum OverlayCommand {
    /// Say where changes go at this boot and the next, or set it, from the next boot on
    Mode {
        /// persistent: they stay; volatile: they are gone at the next boot; readonly: only /etc and /var take any, for that boot
        #[arg(value_parser = ["persistent", "volatile", "readonly"])]
        mode: Option<String>,
        /// For the next boot alone
        #[arg(long, requires = "mode")]
        once: bool,
        /// Go back by itself, unless `confirm` comes within this time from the beginning of the next boot: 90s, 10m, 2h
        #[arg(long, value_name = "TIME", value_parser = parse_seconds, requires = "mode", conflicts_with = "once")]
        confirm_within: Option<u32>,
    },
    #[command(flatten)]
    Configuration(Configuration),
    /// Take the changes at and below paths back: the next boot has there what the image has
    Revert {
        /// Files or folders
        #[arg(required = true)]
        paths: Vec<String>,
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        /// Do not ask
        #[arg(long, conflicts_with = "dry_run")]
        yes: bool,
        /// Leave it to the next boot, whenever that is
        #[arg(long)]
        no_reboot: bool,
    },
    /// Say what takes room on the overlay's volume, and how much room there is in memory
    Usage,
    /// Write a saved configuration into a file, for other devices: an OCI archive, as podman and skopeo read it
    Export {
        /// The configuration
        name: String,
        /// The file, or `-` for standard output
        file: PathBuf,
    },
    /// Make a saved configuration of a file; nothing that is in use changes
    Import(Import),
    /// Sign a file that was exported, anywhere: no device and no nemosd is asked. The signature is left in FILE.sig
    #[command(after_help = "Example: where the fleet's key is
  nemosctl overlay sign site.tar --key fleet
The same by hand:
  tar -xOf site.tar index.json | ssh-keygen -Y sign -n nemos-configuration -f fleet > site.tar.sig")]
    Sign {
        /// The file
        file: PathBuf,
        /// An Ed25519 key of ssh-keygen(1), or the public half of one that an agent has
        #[arg(long)]
        key: PathBuf,
    },
    /// List what differs from the factory image: added, changed, metadata, deleted, replaced, renamed, type
    Diff {
        /// Only at and below this path
        path: Option<String>,
        /// Only totals, by folder
        #[arg(long)]
        stat: bool,
        /// Also what differs inside of files of text, as `diff --unified` tells it; whoever asks must be able to read them
        #[arg(long, conflicts_with_all = ["stat", "configuration"])]
        content: bool,
        /// Of this saved configuration, instead of what the root has
        #[arg(long, value_name = "NAME")]
        configuration: Option<String>,
        /// Only those that hide what a newer image has changed since they were made
        #[arg(long, conflicts_with = "configuration")]
        shadowed: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum Configuration {
    /// Save the changes to the root under a name: the next boot does it
    Save {
        /// Letters, digits, `.`, `_` and `-`, 64 at most
        name: String,
        /// Take the place of what has the name
        #[arg(long)]
        replace: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Leave it to the next boot, whenever that is
        #[arg(long)]
        no_reboot: bool,
    },
    /// Put saved changes in the place of those that there are: the next boot does it
    Apply {
        /// A saved configuration, or `factory`
        name: String,
        /// Go back by itself, unless `confirm` comes within this time from the beginning of that boot: 90s, 10m, 2h
        #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
        confirm_within: Option<u32>,
        /// Also if it was made on another image
        #[arg(long)]
        force: bool,
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        /// Do not ask
        #[arg(long, conflicts_with = "dry_run")]
        yes: bool,
        /// Leave it to the next boot, whenever that is
        #[arg(long)]
        no_reboot: bool,
    },
    /// List the configurations that there are; the one that was applied last has a star
    List,
    /// Show one: when and on which image it was made, and how much it changes
    Show {
        /// Its name
        name: String,
    },
    /// Delete a saved configuration
    Delete {
        /// Its name
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Give a saved configuration another name
    Rename {
        /// Its name
        from: String,
        /// The new one
        to: String,
    },
    /// Keep what is on trial at this boot
    Confirm,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nemosctl overlay import site.tar                 with the signature in site.tar.sig, if it is there
  nemosctl overlay import site.tar --dry-run       read it through and say what is in it
  curl -s https://example.com/site.tar | nemosctl overlay import - --signature site.tar.sig

It is refused if the image wants a signature and there is none, and if whoever signed it is none of the image's signers.")]
pub struct Import {
    /// The file, or `-` for standard input
    pub file: PathBuf,
    /// What it is to be called; without it, as it was where it was exported
    #[arg(long)]
    pub name: Option<String>,
    /// Its signature, if it is not in FILE.sig
    #[arg(long, value_name = "SIG")]
    pub signature: Option<PathBuf>,
    /// In place of the configuration that has the name
    #[arg(long)]
    pub replace: bool,
    /// Only read it through
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nemosctl keys                                  the key slots that are in use, and what opens each
  nemosctl keys enroll recovery-key              a key to write down, shown once
  nemosctl keys enroll recovery-key --recipient age1... > escrow.age
                                                 one that only the fleet can read (age --decrypt)
  nemosctl keys recovery show > escrow.age       the one that the image's policy had sealed
  nemosctl keys enroll tpm2                      the boot needs nobody as long as Secure Boot stays as it is
  nemosctl keys enroll key-file --device LABEL=KEYS --path /nemos.key
                                                 a new key in that file, on a USB stick that is mounted now and is
                                                 plugged in at boot
  nemosctl keys rotate key-file                  the next one, in a file beside it
  nemosctl keys enroll pkcs11 --token-uri 'pkcs11:token=device;object=disk' --pin-file pin
                                                 kept by a security key, a smart card or OP-TEE, which has an RSA key and its
                                                 certificate
  nemosctl keys enroll passphrase                asks for it, twice
  nemosctl keys rotate passphrase --secret-file new --unlock-file old
                                                 the old one goes once a boot did not need it
  nemosctl keys remove 0                         as of the demo key, when there is another
  nemosctl keys forecast                         will the next boot open the overlay by itself?

Exit status: 0 done; 1 refused; 2 wrong usage; 3 nemosd cannot be reached.
`forecast` exits with 0 if the next boot needs nobody, 1 if somebody has to type something, 2 if nothing known opens it.")]
pub struct Keys {
    #[command(subcommand)]
    pub command: Option<KeysCommand>,
}

#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// List the key slots that are in use
    List,
    /// Add a key; it is there once it was seen to open the overlay's volume
    Enroll(NewKey),
    /// Recovery keys, by the name of what they are for
    #[command(subcommand)]
    Recovery(Recovery),
    /// Add a key in place of the one of its provider, which goes once a boot did not need it
    Rotate(NewKey),
    /// Destroy the key in a slot; the last one that is known to open the volume stays
    Remove {
        /// Its number
        slot: u32,
        /// Do not ask, even if somebody has to be at the console of the next boot
        #[arg(long)]
        yes: bool,
    },
    /// Say whether the next boot opens the overlay by itself, by which key, and why not by the others
    Forecast,
}

#[derive(Debug, Subcommand)]
pub enum Recovery {
    /// Have the device make one: `keys enroll recovery-key`
    Create {
        /// Encrypt it for this age key (age1...), so that nobody else ever sees it; may be given more than once
        #[arg(long, value_name = "KEY")]
        recipient: Vec<String>,
        /// In place of the one that there is: `keys rotate recovery-key`
        #[arg(long)]
        rotate: bool,
        /// A key that opens the volume now; not needed as long as the demo key does
        #[arg(long, value_name = "FILE")]
        unlock_file: Option<PathBuf>,
    },
    /// Print the one that was made for the fleet, which only its recipients can read: `age --decrypt` opens it
    Show,
}

#[derive(Debug, Default, clap::Args)]
pub struct NewKey {
    /// What it is: `tpm2`, which the device's TPM keeps, `pkcs11`, which another token keeps, `key-file`, on another device,
    /// `recovery-key`, which the device makes, or `passphrase`
    #[arg(value_parser = ["tpm2", "pkcs11", "key-file", "recovery-key", "passphrase"])]
    pub provider: String,
    /// Take the passphrase, or what a key file has already, from this file; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// The device with the key file, as udev knows it: PARTUUID=..., UUID=... or LABEL=..., with ext4 or vfat on it
    #[arg(long, value_name = "DEVICE", requires = "path")]
    pub device: Option<String>,
    /// The key file, from the root of its device
    #[arg(long, value_name = "FILE", requires = "device")]
    pub path: Option<String>,
    /// The PKCS#11 token and the key on it, as `p11tool --list-tokens` and `--list-all` name them, without a PIN
    #[arg(long, value_name = "URI")]
    pub token_uri: Option<String>,
    /// Take the PIN of the token from this file; `-` is standard input. A token that has none needs none
    #[arg(long, value_name = "FILE")]
    pub pin_file: Option<PathBuf>,
    /// A key that opens the volume now; not needed as long as the demo key does
    #[arg(long, value_name = "FILE")]
    pub unlock_file: Option<PathBuf>,
    /// Encrypt a recovery key for this age key (age1...), so that nobody else ever sees it; may be given more than once
    #[arg(long, value_name = "KEY")]
    pub recipient: Vec<String>,
}

/// A number of bytes, with or without a unit.
fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.chars().last() {
        Some('K') => (&text[..text.len() - 1], 10),
        Some('M') => (&text[..text.len() - 1], 20),
        Some('G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    number.filter(|number| *number > 0).ok_or_else(|| "a number of bytes from 1 on, as 500K, 8M or 1G".to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_rate_has_a_unit_and_is_not_nothing() {
        assert_eq!(["7", "500K", "8M", "1G"].map(bytes), [Ok(7), Ok(500 << 10), Ok(8 << 20), Ok(1 << 30)]);
        for wrong in ["", "0", "M", "0K", "-1", "1T", "99999999999999G"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
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
