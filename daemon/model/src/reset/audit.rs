//! Whether a reset really took away what it should: noted before it, looked for after it.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::partitions::Partition;

/// What was there before a reset, as far as it must not be there after it. Nothing in it opens or reveals anything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Survey {
    /// LUKS UUID of the overlay's volume; `None` if it had no header any more.
    pub volume: Option<Uuid>,
    /// Its key slots.
    #[serde(default)]
    pub key_slots: Vec<Fingerprint>,
    /// UUIDs of the file systems on partitions of their own.
    #[serde(default)]
    pub file_systems: Vec<FileSystem>,
}

/// Bytes of a device, known again by their hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// First byte.
    pub offset: u64,
    /// How many.
    pub size: u64,
    /// Their SHA-256, in hexadecimal.
    pub sha256: String,
}

/// A file system, known again by its UUID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    /// Where it is.
    pub partition: Partition,
    /// Its UUID.
    pub uuid: Uuid,
}

/// What was found after a reset, read from the disk, past every cache.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// LUKS UUIDs of all headers in the area of headers and key slots, wherever in it a copy can be.
    pub headers: Vec<Uuid>,
    /// What is where the surveyed key slots were.
    pub key_slots: Vec<Fingerprint>,
    /// UUIDs of the file systems on partitions of their own.
    pub file_systems: Vec<FileSystem>,
    /// Whether kept data still waits somewhere.
    pub stage: bool,
}

/// The outcome, check by check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Each check.
    pub checks: Vec<Check>,
}

/// A check, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was checked.
    pub check: Subject,
    /// Whether it is as it should be.
    pub passed: bool,
    /// What was seen.
    pub seen: String,
}

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// No copy of the old volume's header is left.
    OldHeader,
    /// Nothing of the old key slots is left: no passphrase or token leads to the old volume key.
    OldKeySlots,
    /// The file systems that were to go are others now.
    FileSystems,
    /// No copy of kept data is left where it waited.
    Stage,
}

impl Subject {
    /// The name used in files and on the bus.
    pub const fn name(self) -> &'static str {
        match self {
            Subject::OldHeader => "old-header",
            Subject::OldKeySlots => "old-key-slots",
            Subject::FileSystems => "file-systems",
            Subject::Stage => "stage",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Audit {
    /// Compares what was there with what is there. `erased` are the partitions that were to be erased.
    pub fn new(survey: &Survey, found: &Found, erased: &[Partition]) -> Self {
        let old_headers = found.headers.iter().filter(|uuid| survey.volume == Some(**uuid)).count();
        let header = match survey.volume {
            None => "there was none".to_owned(),
            Some(uuid) => format!("{old_headers} of {} headers are of the old volume {uuid}", found.headers.len()),
        };
        let old_slots = survey.key_slots.iter().filter(|slot| found.key_slots.contains(slot)).count();
        let slots = format!("{old_slots} of {} are still there", survey.key_slots.len());
        let surveyed: Vec<_> = survey.file_systems.iter().filter(|old| erased.contains(&old.partition)).collect();
        let old_systems: Vec<_> = surveyed.iter().filter(|old| found.file_systems.contains(old)).collect();
        let systems = format!("{} of {} are still the old ones", old_systems.len(), surveyed.len());
        let stage = if found.stage { "it is still there" } else { "nothing is there" };
        let checks = [
            (Subject::OldHeader, old_headers == 0, header),
            (Subject::OldKeySlots, old_slots == 0, slots),
            (Subject::FileSystems, old_systems.is_empty(), systems),
            (Subject::Stage, !found.stage, stage.to_owned()),
        ];
        Audit { checks: checks.into_iter().map(|(check, passed, seen)| Check { check, passed, seen }).collect() }
    }

    /// Whether everything is as it should be.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.passed)
    }
}

impl fmt::Display for Audit {
    /// What is not as it should be.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed = self.checks.iter().filter(|check| !check.passed);
        let failed: Vec<String> = failed.map(|check| format!("{}: {}", check.check, check.seen)).collect();
        f.write_str(&failed.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Uuid = Uuid::from_u128(1);
    const NEW: Uuid = Uuid::from_u128(2);

    fn slot(sha256: &str) -> Fingerprint {
        Fingerprint { offset: 32768, size: 65536, sha256: sha256.into() }
    }

    fn home(uuid: Uuid) -> FileSystem {
        FileSystem { partition: Partition::Home, uuid }
    }

    fn survey() -> Survey {
        Survey { volume: Some(OLD), key_slots: vec![slot("old")], file_systems: vec![home(OLD)] }
    }

    fn found() -> Found {
        Found { headers: vec![NEW, NEW], key_slots: vec![slot("new")], file_systems: vec![home(NEW)], stage: false }
    }

    fn failed(found: &Found, erased: &[Partition]) -> Vec<Subject> {
        let checks = Audit::new(&survey(), found, erased).checks;
        checks.into_iter().filter(|check| !check.passed).map(|check| check.check).collect()
    }

    #[test]
    fn a_device_with_nothing_of_the_old_passes() {
        assert!(Audit::new(&survey(), &found(), &[Partition::Home]).passed());
    }

    #[test]
    fn whatever_is_left_of_the_old_is_named() {
        let all = [Partition::Home];
        assert_eq!(failed(&Found { headers: vec![NEW, OLD], ..found() }, &all), [Subject::OldHeader]);
        assert_eq!(failed(&Found { key_slots: vec![slot("old")], ..found() }, &all), [Subject::OldKeySlots]);
        assert_eq!(failed(&Found { file_systems: vec![home(OLD)], ..found() }, &all), [Subject::FileSystems]);
        assert_eq!(failed(&Found { stage: true, ..found() }, &all), [Subject::Stage]);
    }

    #[test]
    fn a_file_system_that_was_to_stay_may_stay() {
        assert_eq!(failed(&Found { file_systems: vec![home(OLD)], ..found() }, &[Partition::Root]), []);
    }
}
