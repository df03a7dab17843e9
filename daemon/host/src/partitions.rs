//! The disk that was booted, and its partitions.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nemos_model::partitions::Partition;
use nemos_model::stack::SeenPartition;
use thiserror::Error;

use crate::time::wait_for;

/// Where the boot loader says which ESP it came from.
///
/// Source: systemd's Boot Loader Interface, `LoaderDevicePartUUID`; systemd-stub sets it as well.
const LOADER_VARIABLE: &str = "/sys/firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
const BLOCK_CLASS: &str = "/sys/class/block";
/// Bytes of a sector in sysfs, whatever the device's own sectors are.
const SYSFS_SECTOR: u64 = 512;

/// The disk cannot be told.
#[derive(Debug, Error)]
pub enum DiskError {
    /// None appeared.
    #[error(
        "no disk with a partition {label} appeared within {seconds} s; is the disk connected, and its driver in the initrd?"
    )]
    NotFound {
        /// The label that was looked for.
        label: Partition,
        /// How long it was waited.
        seconds: u64,
    },
    /// The firmware's ESP did not appear.
    #[error("the disk that the firmware booted from (ESP with PARTUUID {part_uuid}) did not appear within {seconds} s")]
    BootDiskMissing {
        /// The ESP's partition UUID.
        part_uuid: String,
        /// How long it was waited.
        seconds: u64,
    },
    /// Several disks could be it.
    #[error("{} disks have a partition {}: {}; remove all but one, or boot by UEFI, which names its disk", disks.len(), Partition::Readonly, disks.join(", "))]
    Ambiguous {
        /// Their device nodes.
        disks: Vec<String>,
    },
}

/// A disk and the nemos partitions on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Device node of the whole disk.
    pub device: PathBuf,
    /// Kernel name of the whole disk: `vda`.
    name: String,
}

/// A partition as sysfs shows it.
struct Found {
    disk: String,
    device: String,
    label: String,
    size: u64,
}

impl Disk {
    /// The disk that was booted: the one with the ESP that the firmware used, or, where the firmware does not say,
    /// the only one that has a root of ours. Waits for it to appear.
    pub fn booted(limit: Duration) -> Result<Disk, DiskError> {
        match loader_part_uuid() {
            Some(part_uuid) => wait_for(limit, || disk_with(&part_uuid))
                .ok_or(DiskError::BootDiskMissing { part_uuid, seconds: limit.as_secs() }),
            None => only_disk(limit),
        }
    }

    /// The disk of that device node, as a boot report names it.
    pub fn named(device: &str) -> Disk {
        let name = device.rsplit('/').next().unwrap_or(device).to_owned();
        Disk { device: device.into(), name }
    }

    /// The device node of a partition; waits for it to appear.
    pub fn partition(&self, partition: Partition, limit: Duration) -> Result<PathBuf, DiskError> {
        let find = || {
            let seen = self.partitions().into_iter().find(|seen| seen.partition == partition)?;
            let device = PathBuf::from(seen.device);
            device.exists().then_some(device)
        };
        wait_for(limit, find).ok_or(DiskError::NotFound { label: partition, seconds: limit.as_secs() })
    }

    /// All nemos partitions of the disk that are there now.
    pub fn partitions(&self) -> Vec<SeenPartition> {
        let ours = found().into_iter().filter(|found| found.disk == self.name);
        let seen = ours.filter_map(|found| {
            let partition = found.label.parse().ok()?;
            Some(SeenPartition { partition, device: found.device, size: found.size })
        });
        seen.collect()
    }
}

fn only_disk(limit: Duration) -> Result<Disk, DiskError> {
    let candidates = wait_for(limit, || {
        let roots = found().into_iter().filter(|found| found.label == Partition::Readonly.label());
        let disks: Vec<String> = roots.map(|found| format!("/dev/{}", found.disk)).collect();
        (!disks.is_empty()).then_some(disks)
    });
    match candidates.as_deref() {
        None => Err(DiskError::NotFound { label: Partition::Readonly, seconds: limit.as_secs() }),
        Some([disk]) => Ok(Disk::named(disk)),
        Some(several) => Err(DiskError::Ambiguous { disks: several.to_vec() }),
    }
}

/// The disk that a partition UUID is on, by udev's link.
fn disk_with(part_uuid: &str) -> Option<Disk> {
    let esp = fs::canonicalize(format!("/dev/disk/by-partuuid/{part_uuid}")).ok()?;
    let esp = esp.to_str()?.to_owned();
    let found = found().into_iter().find(|found| found.device == esp)?;
    Some(Disk::named(&format!("/dev/{}", found.disk)))
}

/// The ESP's PARTUUID, lower case. An efivarfs file is four bytes of attributes and then the value, here UTF-16.
fn loader_part_uuid() -> Option<String> {
    let content = fs::read(LOADER_VARIABLE).ok()?;
    let units = content.get(4..)?.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let text: String = char::decode_utf16(units).collect::<Result<_, _>>().ok()?;
    let uuid = text.trim_end_matches('\0').to_lowercase();
    uuid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-').then_some(uuid).filter(|uuid| !uuid.is_empty())
}

/// The whole disk that a partition is on, or that it is itself.
pub fn disk_of(device: &Path) -> Option<PathBuf> {
    let folder = fs::canonicalize(Path::new(BLOCK_CLASS).join(device.file_name()?)).ok()?;
    let disk = if folder.join("partition").exists() { folder.parent()? } else { &folder };
    Some(Path::new("/dev").join(disk.file_name()?))
}

fn found() -> Vec<Found> {
    let Ok(entries) = fs::read_dir(BLOCK_CLASS) else { return Vec::new() };
    let mut found: Vec<Found> =
        entries.flatten().filter_map(|entry| read_partition(&entry.path()).ok().flatten()).collect();
    found.sort_by(|one, other| one.device.cmp(&other.device));
    found
}

/// Reads a block device's folder in sysfs; `None` if it is not a partition with a name.
fn read_partition(link: &Path) -> io::Result<Option<Found>> {
    let uevent = fs::read_to_string(link.join("uevent"))?;
    let field =
        |name: &str| uevent.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned);
    let (Some("partition"), Some(node), Some(label)) =
        (field("DEVTYPE").as_deref(), field("DEVNAME"), field("PARTNAME"))
    else {
        return Ok(None);
    };
    let folder = fs::canonicalize(link)?;
    let disk = folder.parent().and_then(Path::file_name).and_then(|name| name.to_str()).map(str::to_owned);
    let sectors: u64 = fs::read_to_string(link.join("size"))?.trim().parse().map_err(io::Error::other)?;
    let size = sectors * SYSFS_SECTOR;
    Ok(disk.map(|disk| Found { disk, device: format!("/dev/{node}"), label, size }))
}
