//! `nemosctl overlay`.

use std::path::PathBuf;

use clap::Subcommand;

use crate::text::parse_seconds;

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
