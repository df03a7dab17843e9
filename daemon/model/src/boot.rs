//! A boot, seen from the initrd: what it was told, and what it reports.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::Timestamp;
use crate::integrity::protection::{InvalidProtection, PROTECTION_OPTION};
use crate::integrity::{Protection, RootHash};
use crate::job::JobId;
use crate::keys::{KeyslotId, Provider, Slot};
use crate::overlay::{Mode, Tried};
use crate::partitions::Partition;
use crate::reset::Step;

/// Where the initrd leaves its report for the daemon.
pub const REPORT_FILE: &str = "/run/nemos/boot.json";

/// Version of the report. Writer and reader are of one image, so there is no other.
pub const REPORT_VERSION: u32 = 1;

/// The word of the kernel's command line with the root hash of the containers that are shipped.
pub const PRELOADED_HASH_OPTION: &str = "nemos.preloadedhash";

/// What the kernel's command line says to nemos.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandLine {
    /// `roothash=`: the only thing that makes a root ours.
    pub root_hash: RootHash,
    /// `systemd.verity_root_options=`: how the root is protected beyond that.
    pub protection: Protection,
    /// `nemos.preloadedhash=`: the root hash of the containers that are shipped, if they are under dm-verity.
    pub preloaded_hash: Option<RootHash>,
    /// `systemd.factory_reset=1`: whoever boots asks for a factory reset, as systemd-repart(8) has it.
    pub factory_reset: bool,
}

/// A command line that nemos cannot boot with.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadCommandLine {
    /// No `roothash=`.
    #[error("the kernel command line has no roothash=; boot the unified kernel image that nemos-image made")]
    NoRootHash,
    /// One that is not a hash.
    #[error("a hash on the kernel command line: {0}")]
    RootHash(#[from] crate::integrity::InvalidRootHash),
    /// Two of what there can be one.
    #[error("the kernel command line has more than one {0}=")]
    Ambiguous(&'static str),
    /// Protection that nemos cannot give.
    #[error("{PROTECTION_OPTION}= on the kernel command line: {0}")]
    Protection(#[from] InvalidProtection),
}

impl CommandLine {
    /// Reads `/proc/cmdline`.
    pub fn parse(text: &str) -> Result<Self, BadCommandLine> {
        Ok(CommandLine {
            root_hash: value(text, "roothash")?.ok_or(BadCommandLine::NoRootHash)?.parse()?,
            protection: value(text, PROTECTION_OPTION)?.unwrap_or_default().parse()?,
            preloaded_hash: value(text, PRELOADED_HASH_OPTION)?.map(str::parse).transpose()?,
            factory_reset: asks(text, "systemd.factory_reset"),
        })
    }
}

/// The value of a word of the command line that is there once, if at all.
fn value<'a>(text: &'a str, name: &'static str) -> Result<Option<&'a str>, BadCommandLine> {
    let value = |word: &'a str| word.strip_prefix(name)?.strip_prefix('=');
    let mut values = text.split_ascii_whitespace().filter_map(value);
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(BadCommandLine::Ambiguous(name)),
    }
}

/// Whether a word of the command line is true; the last one counts. Source: `parse_boolean` of systemd, which takes a name
/// without a value for true as well.
fn asks(text: &str, name: &str) -> bool {
    let value = |word: &'_ str| match word.strip_prefix(name)? {
        "" => Some(true),
        rest => rest.strip_prefix('=').map(|value| matches!(value, "1" | "yes" | "y" | "true" | "t" | "on")),
    };
    text.split_ascii_whitespace().filter_map(value).next_back().unwrap_or(false)
}

/// Why a boot is degraded. The device is up, but not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Reason {
    /// `p.lxstate` cannot be mounted or its document not read: nothing was carried out.
    StateUnreadable {
        /// What was seen.
        error: String,
    },
    /// The overlay's volume cannot be opened or mounted, and no request explains it. Nothing was erased.
    OverlayDamaged {
        /// What was seen.
        error: String,
    },
    /// The volume on the overlay's partition is not the one that this device made. It was not opened, and nothing was erased.
    OverlayForeign {
        /// The LUKS UUID of the one that was found.
        uuid: Uuid,
    },
    /// A job's step failed.
    JobFailed {
        /// The job.
        job: JobId,
        /// The step.
        step: Step,
        /// What was seen.
        error: String,
        /// Whether the next boot tries again.
        retry: bool,
    },
    /// The overlay was erased and could not be made again.
    OverlayMissing,
    /// The overlay's volume that the image's builder made could not be taken over. Nothing was erased.
    OverlayNotTakenOver,
    /// A partition is not there, or cannot be mounted.
    NotMounted {
        /// Which.
        partition: Partition,
        /// What was seen.
        error: String,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::StateUnreadable { error } => {
                write!(f, "the device's state on {} cannot be used: {error}", Partition::State)
            }
            Reason::OverlayDamaged { error } => write!(
                f,
                "the overlay on {} cannot be used: {error}. Nothing was erased; changes made now are lost at the next boot; `nemosctl reset --factory` makes it anew",
                Partition::Root
            ),
            Reason::OverlayForeign { uuid } => write!(
                f,
                "the volume on {}, with UUID {uuid}, is not the one that this device made: somebody has put it there, and it was not opened. Nothing was erased; `nemosctl reset --factory` makes one anew",
                Partition::Root
            ),
            Reason::JobFailed { job, step, error, retry } => {
                let next = if *retry {
                    format!("the next boot tries again; `nemosctl job cancel {job}` stops that")
                } else {
                    format!("it was given up; `nemosctl job retry {job}` tries again")
                };
                write!(f, "job {job} failed at {step}: {error}; {next}")
            }
            Reason::OverlayMissing => write!(
                f,
                "there is no overlay on {}: it was erased, and making it anew failed; `nemosctl reset --factory` tries again",
                Partition::Root
            ),
            Reason::OverlayNotTakenOver => write!(
                f,
                "the overlay that came with the image on {} could not be taken over. Nothing was erased; `nemosctl reset --factory` makes one anew",
                Partition::Root
            ),
            Reason::NotMounted { partition, error } => write!(f, "{partition} is not mounted: {error}"),
        }
    }
}

/// A copy of the header of an encrypted volume that was damaged. libcryptsetup makes it anew from the other one, if that is
/// sound, and says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedHeader {
    /// Where it begins on the partition, in bytes.
    pub start: u64,
    /// Whether it is whole again.
    pub repaired: bool,
}

/// The overlay's volume, as a boot has opened it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenVolume {
    /// Its LUKS UUID.
    pub uuid: Uuid,
    /// Whether it came with the image, and its volume key with it.
    pub built: bool,
    /// What opened it.
    pub provider: Provider,
    /// The key slot that it was opened by.
    pub keyslot: KeyslotId,
    /// When that slot was made, as far as that was recorded: it tells whether it is still the same.
    pub keyslot_created: Option<Timestamp>,
    /// Whether somebody was asked for the key: then nothing that needs nobody had opened it.
    pub somebody_was_asked: bool,
    /// Why the TPM does not vouch for it; `None` if it does, or there is no TPM.
    pub unbound: Option<String>,
}

/// What the initrd found and did. The daemon reads it; nobody writes it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootReport {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// Whole disk that was booted, as `/dev/vda`.
    pub disk: String,
    /// Root hash that verityRoot was opened with.
    pub root_hash: RootHash,
    /// Root hash of the containers that are shipped, if they are under dm-verity.
    pub preloaded_hash: Option<RootHash>,
    /// Where changes to the root go.
    pub mode: Mode,
    /// The overlay's volume, if it is open.
    pub volume: Option<OpenVolume>,
    /// The job that this boot carried out, or tried to.
    pub job: Option<JobId>,
    /// What nobody had confirmed, and this boot went back from.
    pub went_back: Option<Tried>,
    /// Copies of the header of the overlay's volume that were damaged when it was opened.
    pub headers: Vec<DamagedHeader>,
    /// File systems that could be mounted only after a repair.
    pub repaired: Vec<Partition>,
    /// Why the boot is degraded; empty if it is not.
    pub degraded: Vec<Reason>,
}

impl BootReport {
    /// The key slot that opened this boot, if it is one of these, and not another that was put in its place since.
    pub fn opened_by(&self, slots: &[Slot]) -> Option<KeyslotId> {
        let OpenVolume { keyslot, keyslot_created, .. } = self.volume.as_ref()?;
        let slot = slots.iter().find(|slot| slot.id == *keyslot)?;
        (slot.created() == *keyslot_created).then_some(slot.id)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Opened by the demo key, in slot 0.
    pub(crate) fn open_volume() -> OpenVolume {
        OpenVolume {
            uuid: Uuid::from_u128(1),
            built: false,
            provider: Provider::DemoKey,
            keyslot: 0.try_into().unwrap(),
            keyslot_created: Some(Timestamp(7)),
            somebody_was_asked: false,
            unbound: None,
        }
    }

    /// Of a boot of which nothing else is known.
    pub(crate) fn report() -> BootReport {
        BootReport {
            version: REPORT_VERSION,
            disk: "/dev/vda".into(),
            root_hash: HASH.parse().unwrap(),
            preloaded_hash: None,
            mode: Mode::Persistent,
            volume: None,
            job: None,
            went_back: None,
            headers: Vec::new(),
            repaired: Vec::new(),
            degraded: Vec::new(),
        }
    }

    const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn the_root_hash_is_found_among_other_words() {
        let line = CommandLine::parse(&format!("quiet roothash={HASH} console=ttyS0\n")).unwrap();
        assert_eq!(line.root_hash.to_string(), HASH);
    }

    #[test]
    fn a_factory_reset_is_asked_for_in_systemds_words_only() {
        let asked = |words: &str| CommandLine::parse(&format!("roothash={HASH} {words}")).unwrap().factory_reset;
        for words in ["systemd.factory_reset=1", "systemd.factory_reset", "systemd.factory_reset=yes quiet"] {
            assert!(asked(words), "{words}");
        }
        for words in [
            "",
            "systemd.factory_reset=0",
            "systemd.factory_reset=please",
            "systemd.factory_resets=1",
            "factory_reset=1",
            "systemd.factory_reset=1 systemd.factory_reset=0",
        ] {
            assert!(!asked(words), "{words}");
        }
    }

    #[test]
    fn a_command_line_without_one_root_hash_is_refused() {
        assert_eq!(CommandLine::parse("quiet"), Err(BadCommandLine::NoRootHash));
        assert!(matches!(CommandLine::parse("roothash=beef"), Err(BadCommandLine::RootHash(_))));
        let twice = format!("roothash={HASH} roothash={HASH}");
        assert_eq!(CommandLine::parse(&twice), Err(BadCommandLine::Ambiguous("roothash")));
    }

    #[test]
    fn the_protection_is_what_the_command_line_says() {
        let parse = |words: &str| CommandLine::parse(&format!("roothash={HASH} {words}"));
        assert_eq!(parse("quiet").unwrap().protection, Protection::default());
        assert_eq!(parse("quiet").unwrap().preloaded_hash, None);
        let line =
            parse(&format!("nemos.preloadedhash={HASH} systemd.verity_root_options=panic-on-corruption")).unwrap();
        assert_eq!(line.protection.to_string(), "panic-on-corruption");
        assert_eq!(line.preloaded_hash, Some(line.root_hash));
        assert!(matches!(parse("systemd.verity_root_options=ignore-corruption"), Err(BadCommandLine::Protection(_))));
    }
}
