//! The volumes whose integrity is watched, and how the kernel names them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::boot::BootReport;
use crate::integrity::kernel_log::{Driver, Report};
use crate::integrity::{PRELOADED_MAPPING, VERITY_MAPPING};
use crate::overlay::{INTEGRITY_MAPPING, LUKS_MAPPING};
use crate::partitions::Partition;

/// A layer of the storage that can tell of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Volume {
    /// The read-only root under dm-verity.
    Root,
    /// The overlay, encrypted and authenticated by dm-crypt, and the XFS in it.
    Overlay,
    /// The dm-integrity mapping that keeps the overlay's tags.
    OverlayTags,
    /// Containers shipped with the image: a squashfs under dm-verity. Without that, it notices damage when it unpacks.
    Preloaded,
    /// Containers pulled on the device: XFS, with checksums of its metadata.
    Storage,
    /// Home directories: ext4.
    Home,
    /// What outlives a reset, this ledger too: ext4.
    State,
}

/// A name that no volume has.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("there is no volume `{0}`; the volumes are {list}", list = Volume::ALL.map(Volume::name).join(", "))]
pub struct UnknownVolume(pub String);

impl Volume {
    /// All of them, the root first.
    pub const ALL: [Volume; 7] = [
        Volume::Root,
        Volume::Overlay,
        Volume::OverlayTags,
        Volume::Preloaded,
        Volume::Storage,
        Volume::Home,
        Volume::State,
    ];

    /// Its mapping, or the label of its partition.
    pub const fn name(self) -> &'static str {
        match self {
            Volume::Root => VERITY_MAPPING,
            Volume::Overlay => LUKS_MAPPING,
            Volume::OverlayTags => INTEGRITY_MAPPING,
            Volume::Preloaded => Partition::OciPreloaded.label(),
            Volume::Storage => Partition::OciStorage.label(),
            Volume::Home => Partition::Home.label(),
            Volume::State => Partition::State.label(),
        }
    }

    /// Its mapping under dm-verity.
    pub const fn verity_mapping(self) -> Option<&'static str> {
        match self {
            Volume::Root => Some(VERITY_MAPPING),
            Volume::Preloaded => Some(PRELOADED_MAPPING),
            _ => None,
        }
    }

    /// The partition that it lies on.
    pub const fn partition(self) -> Partition {
        match self {
            Volume::Root => Partition::Readonly,
            Volume::Overlay | Volume::OverlayTags => Partition::Root,
            Volume::Preloaded => Partition::OciPreloaded,
            Volume::Storage => Partition::OciStorage,
            Volume::Home => Partition::Home,
            Volume::State => Partition::State,
        }
    }

    /// Which one of those that this device had under that name: another image has another root, and a reset makes all that is the
    /// device's own anew, the overlay's volume first. Damage of a former one is history.
    pub fn incarnation(self, report: Option<&BootReport>) -> String {
        let Some(report) = report else { return String::new() };
        match self {
            Volume::Root => report.root_hash.to_string(),
            Volume::Preloaded => report.preloaded_hash.map(|hash| hash.to_string()).unwrap_or_default(),
            Volume::Overlay | Volume::OverlayTags | Volume::Storage | Volume::Home => {
                report.volume.as_ref().map(|volume| volume.uuid.to_string()).unwrap_or_default()
            }
            Volume::State => String::new(),
        }
    }

    /// What watches over it.
    pub const fn kind(self) -> &'static str {
        match self {
            Volume::Root => "dm-verity",
            Volume::Overlay => "dm-crypt",
            Volume::OverlayTags => "dm-integrity",
            Volume::Preloaded => "squashfs",
            Volume::Storage => "xfs",
            Volume::Home | Volume::State => "ext4",
        }
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Volume {
    type Err = UnknownVolume;

    fn from_str(name: &str) -> Result<Self, UnknownVolume> {
        let unknown = || UnknownVolume(name.chars().take(80).collect());
        Volume::ALL.into_iter().find(|volume| volume.name() == name).ok_or_else(unknown)
    }
}

impl TryFrom<String> for Volume {
    type Error = UnknownVolume;

    fn try_from(name: String) -> Result<Self, UnknownVolume> {
        name.parse()
    }
}

impl From<Volume> for String {
    fn from(volume: Volume) -> String {
        volume.name().to_owned()
    }
}

/// What the kernel calls the devices of this boot: `254:6` and `vda6`, `dm-0`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names(Vec<(String, Volume)>);

impl Names {
    /// Adds a name of a mapping, or of the partition that a volume lies on.
    pub fn add(&mut self, name: impl Into<String>, volume: Volume) {
        self.0.push((name.into(), volume));
    }

    /// The volume that a report is about; `None` if it is none of ours.
    ///
    /// squashfs does not say which of its file systems it speaks of. The one under dm-verity never unpacks a damaged block,
    /// since it is not given any: that one's damage is dm-verity's to report. dm-crypt names the mapping below its own.
    pub fn volume(&self, report: &Report) -> Option<Volume> {
        let Some(device) = &report.device else {
            return (report.driver == Driver::Squashfs).then_some(Volume::Preloaded);
        };
        let volume = self.0.iter().find(|(name, _)| name == device).map(|(_, volume)| *volume)?;
        let is_above = report.driver == Driver::Crypt && volume == Volume::OverlayTags;
        Some(if is_above { Volume::Overlay } else { volume })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_back_to_its_volume() {
        for volume in Volume::ALL {
            assert_eq!(volume.name().parse(), Ok(volume));
        }
        let unknown = "p.lxswap".parse::<Volume>().unwrap_err().to_string();
        assert!(unknown.starts_with("there is no volume `p.lxswap`; the volumes are verityRoot, luks, "), "{unknown}");
    }
}
