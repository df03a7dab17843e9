//! Looks at what is on a disk, below every file system and past every cache: before a reset and after it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use nemos_model::partitions::Partition;
use nemos_model::reset::audit::{FileSystem, Fingerprint, Found, Survey};
use nemos_model::reset::header::{BINARY_SIZE, Header, SlotArea, file_system_uuid, slot_areas};
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use tracing::warn;

use super::{APPEAR, StepError};
use crate::overlay::LUKS2_AREA;
use crate::partitions::Disk;

/// What direct reads are aligned to: no device of ours has larger blocks.
const ALIGNMENT: usize = 4096;
/// Bytes read at once.
const CHUNK: usize = 1 << 20;
/// Partitions with a file system of their own that a reset can take away.
const FILE_SYSTEMS: [Partition; 2] = [Partition::OciStorage, Partition::Home];

/// Notes what is there. What cannot be read is not there: a damaged device can be reset too.
pub(super) fn survey(disk: &Disk) -> Survey {
    let mut survey = Survey::default();
    match Device::open(disk, Partition::Root).and_then(|device| device.volume()) {
        Ok(Some((header, areas))) => {
            survey.volume = Some(header.uuid);
            survey.key_slots = areas;
        }
        Ok(None) => {}
        Err(error) => warn!("the overlay's header cannot be surveyed: {error}"),
    }
    for partition in FILE_SYSTEMS {
        match Device::open(disk, partition).and_then(|device| device.file_system()) {
            Ok(found) => survey.file_systems.extend(found),
            Err(error) => warn!("the file system on {partition} cannot be surveyed: {error}"),
        }
    }
    survey
}

/// Looks for what was surveyed; whether kept data still waits is known.
pub(super) fn find(disk: &Disk, survey: &Survey, stage: bool) -> Result<Found, StepError> {
    let root = Device::open(disk, Partition::Root)?;
    let headers = root.headers()?.into_iter().map(|(_, header)| header.uuid).collect();
    let areas = survey.key_slots.iter().map(|slot| SlotArea { offset: slot.offset, size: slot.size });
    let key_slots = areas.map(|area| root.fingerprint(area)).collect::<Result<_, _>>()?;
    let mut file_systems = Vec::new();
    for partition in FILE_SYSTEMS {
        file_systems.extend(Device::open(disk, partition)?.file_system()?);
    }
    Ok(Found { headers, key_slots, file_systems, stage })
}

/// A partition, read without a cache.
struct Device {
    partition: Partition,
    path: std::path::PathBuf,
    file: File,
}

impl Device {
    fn open(disk: &Disk, partition: Partition) -> Result<Device, StepError> {
        let path = disk.partition(partition, APPEAR)?;
        let flags = OFlags::DIRECT.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&path);
        let file = file.map_err(|source| StepError::Look { path: path.clone(), source })?;
        Ok(Device { partition, path, file })
    }

    /// The first header, and the fingerprints of its key slots.
    fn volume(&self) -> Result<Option<(Header, Vec<Fingerprint>)>, StepError> {
        let Some((offset, header)) = self.headers()?.into_iter().next() else { return Ok(None) };
        let json = self.read(offset + BINARY_SIZE as u64, header.size - BINARY_SIZE as u64)?;
        let areas = slot_areas(&json).unwrap_or_default();
        let fingerprints = areas.into_iter().map(|area| self.fingerprint(area)).collect::<Result<_, _>>()?;
        Ok(Some((header, fingerprints)))
    }

    /// Everything that is a LUKS2 header, and where it is: wherever a copy can be, and in between.
    fn headers(&self) -> Result<Vec<(u64, Header)>, StepError> {
        let mut headers = Vec::new();
        for begin in (0..LUKS2_AREA).step_by(CHUNK) {
            let chunk = self.read(begin, CHUNK as u64)?;
            let blocks = (begin..).step_by(BINARY_SIZE).zip(chunk.chunks(BINARY_SIZE));
            headers.extend(blocks.filter_map(|(offset, block)| Some((offset, Header::parse(block)?))));
        }
        Ok(headers)
    }

    fn fingerprint(&self, area: SlotArea) -> Result<Fingerprint, StepError> {
        let bytes = self.read(area.offset, area.size.min(LUKS2_AREA))?;
        let sha256 = Sha256::digest(&bytes).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        Ok(Fingerprint { offset: area.offset, size: area.size, sha256 })
    }

    fn file_system(&self) -> Result<Option<FileSystem>, StepError> {
        let uuid = file_system_uuid(&self.read(0, ALIGNMENT as u64)?);
        Ok(uuid.map(|uuid| FileSystem { partition: self.partition, uuid }))
    }

    /// Bytes of the device, or as many of them as there are.
    fn read(&self, offset: u64, size: u64) -> Result<Vec<u8>, StepError> {
        self.read_direct(offset, size).map_err(|source| StepError::Look { path: self.path.clone(), source })
    }

    fn read_direct(&self, offset: u64, size: u64) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; CHUNK + ALIGNMENT];
        let begin = buffer.as_ptr().align_offset(ALIGNMENT);
        let buffer = &mut buffer[begin..begin + CHUNK];
        let (end, mut at) = (offset.saturating_add(size), offset / ALIGNMENT as u64 * ALIGNMENT as u64);
        let mut bytes = Vec::new();
        while at < end {
            let read = self.file.read_at(buffer, at)?;
            if read == 0 {
                break;
            }
            bytes.extend_from_slice(&buffer[..read]);
            at += read as u64;
        }
        let skipped = usize::try_from(offset % ALIGNMENT as u64).map_err(io::Error::other)?;
        let mut bytes = bytes.split_off(skipped.min(bytes.len()));
        bytes.truncate(usize::try_from(size).map_err(io::Error::other)?);
        Ok(bytes)
    }
}
