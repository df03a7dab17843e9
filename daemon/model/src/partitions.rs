//! The partitions of a nemos disk: their labels, types and order.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::{Uuid, uuid};

/// A partition of the disk, by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Partition {
    /// EFI system partition: the unified kernel image, on the removable-media path.
    Esp,
    /// `/home`, ext4.
    Home,
    /// Containers pulled or built on the device, XFS.
    OciStorage,
    /// Containers shipped with the image, squashfs.
    OciPreloaded,
    /// What outlives a reset: requests, jobs, history. ext4.
    State,
    /// The root: squashfs, its dm-verity hash tree behind it.
    Readonly,
    /// The overlay: LUKS2 with integrity, XFS in it. Last, so that it can grow.
    Root,
}

/// A GPT partition name that is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is not the label of a nemos partition")]
pub struct UnknownLabel(pub String);

impl Partition {
    /// All partitions, in their order on the disk.
    pub const ALL: [Partition; 7] = [
        Partition::Esp,
        Partition::Home,
        Partition::OciStorage,
        Partition::OciPreloaded,
        Partition::State,
        Partition::Readonly,
        Partition::Root,
    ];

    /// The GPT partition name. Other people's scripts rely on these.
    pub const fn label(self) -> &'static str {
        match self {
            Partition::Esp => "p.UEFI",
            Partition::Home => "p.lxhome",
            Partition::OciStorage => "p.lxoci-storage",
            Partition::OciPreloaded => "p.lxoci-preloaded",
            Partition::State => "p.lxstate",
            Partition::Readonly => "p.lxreadonly",
            Partition::Root => "p.lxroot",
        }
    }

    /// The GPT partition type: sgdisk's EF00 for the ESP, 8300 (Linux file system data) for the rest, as Kiwi has it.
    ///
    /// Deliberately not the types of the Discoverable Partitions Specification: systemd-gpt-auto-generator would
    /// mount by itself what `nemos-initrd` has to open first.
    pub const fn type_guid(self) -> Uuid {
        const EFI_SYSTEM: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        const LINUX_DATA: Uuid = uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4");
        if matches!(self, Partition::Esp) { EFI_SYSTEM } else { LINUX_DATA }
    }

    /// What is in it, for people.
    pub const fn holds(self) -> &'static str {
        match self {
            Partition::Esp => "boot program",
            Partition::Home => "home directories",
            Partition::OciStorage => "containers pulled or built on this device",
            Partition::OciPreloaded => "containers shipped with the image",
            Partition::State => "jobs and history of this device",
            Partition::Readonly => "system as shipped",
            Partition::Root => "changes to the system: settings, accounts, software, logs",
        }
    }

    /// Which file system is in it, or in the volume that it has.
    pub const fn file_system(self) -> &'static str {
        match self {
            Partition::Esp => "vfat",
            Partition::Home | Partition::State => "ext4",
            Partition::OciStorage | Partition::Root => "xfs",
            Partition::OciPreloaded | Partition::Readonly => "squashfs",
        }
    }

    /// Where it is mounted on the running system; `None` for what others build on.
    pub const fn mount_point(self) -> Option<&'static str> {
        match self {
            Partition::Home => Some("/home"),
            Partition::OciStorage => Some("/var/lib/containers/storage"),
            Partition::OciPreloaded => Some("/var/lib/containers/loaded"),
            Partition::State => Some("/var/lib/nemos"),
            Partition::Esp | Partition::Readonly | Partition::Root => None,
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl FromStr for Partition {
    type Err = UnknownLabel;

    fn from_str(label: &str) -> Result<Self, UnknownLabel> {
        Partition::ALL
            .into_iter()
            .find(|partition| partition.label() == label)
            .ok_or_else(|| UnknownLabel(label.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_leads_back_to_its_partition() {
        for partition in Partition::ALL {
            assert_eq!(partition.label().parse(), Ok(partition));
        }
        assert_eq!("p.lxswap".parse::<Partition>(), Err(UnknownLabel("p.lxswap".into())));
    }
}
