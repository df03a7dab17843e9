//! The partition table: GPT, and in front of it a hybrid MBR as `sgdisk -h 1:2:3` makes it.

use std::io::{self, Seek, SeekFrom, Write};

use gptman::{GPT, GPTPartitionEntry};
use thiserror::Error;

use super::ids::Ids;
use crate::layout::{Extent, Layout, SECTOR};

/// The table could not be written.
#[derive(Debug, Error)]
pub enum TableError {
    /// The crate that makes it refuses.
    #[error("the partition table: {0}")]
    Gpt(#[from] gptman::Error),
    /// The disk cannot be written.
    #[error("the partition table: {0}")]
    Io(#[from] io::Error),
}

/// Partitions that the MBR shows as well, besides the entry that covers the GPT.
const MIRRORED: usize = 3;

/// MBR types: the cover of a GPT, an EFI system partition, Linux.
const COVER: u8 = 0xee;
const EFI: u8 = 0xef;
const LINUX: u8 = 0x83;

/// Writes both copies of the GPT and the MBR to a disk that has its full size already.
pub fn write(disk: &mut (impl io::Read + Write + Seek), layout: &Layout, ids: &Ids) -> Result<(), TableError> {
    let mut gpt = GPT::new_from(disk, SECTOR, ids.uuid("disk").to_bytes_le())?;
    for (number, extent) in (1..).zip(&layout.extents) {
        gpt[number] = GPTPartitionEntry {
            partition_type_guid: extent.partition.type_guid().to_bytes_le(),
            unique_partition_guid: ids.uuid(extent.partition.label()).to_bytes_le(),
            starting_lba: extent.first_sector(),
            ending_lba: extent.last_sector(),
            attribute_bits: 0,
            partition_name: extent.partition.label().into(),
        };
    }
    gpt.write_into(disk)?;
    disk.seek(SeekFrom::Start(0))?;
    disk.write_all(&hybrid_mbr(&layout.extents))?;
    Ok(())
}

/// The first sector. sgdisk's own rule: the cover first, so that who looks for a GPT finds it.
fn hybrid_mbr(extents: &[Extent]) -> [u8; 512] {
    let mut mbr = [0; 512];
    let shown = &extents[..MIRRORED.min(extents.len())];
    let first = shown.first().map_or(u64::MAX, Extent::first_sector);
    let mut entries = vec![entry(COVER, 1, first - 1)];
    for (at, extent) in shown.iter().enumerate() {
        entries.push(entry(if at == 0 { EFI } else { LINUX }, extent.first_sector(), extent.size / SECTOR));
    }
    mbr[446..446 + 16 * entries.len()].copy_from_slice(&entries.concat());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr
}

fn entry(kind: u8, start: u64, sectors: u64) -> [u8; 16] {
    let clamped = |value| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    let mut entry = [0; 16];
    entry[1..4].copy_from_slice(&cylinder_head_sector(start));
    entry[4] = kind;
    entry[5..8].copy_from_slice(&cylinder_head_sector(start + sectors - 1));
    entry[8..12].copy_from_slice(&clamped(start));
    entry[12..].copy_from_slice(&clamped(sectors));
    entry
}

/// The address in the geometry that everybody pretends: 255 heads, 63 sectors. What lies beyond cylinder 1023 has none.
fn cylinder_head_sector(lba: u64) -> [u8; 3] {
    let (cylinder, rest) = (lba / (255 * 63), lba % (255 * 63));
    if cylinder > 1023 {
        return [0xfe, 0xff, 0xff];
    }
    let low = |value: u64| value.to_le_bytes()[0];
    [low(rest / 63), low(rest % 63 + 1) | low(cylinder >> 8) << 6, low(cylinder)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::cache::Digest;
    use crate::build::tool::Tool;
    use std::fs::File;
    use std::io::Read;

    fn written() -> (tempfile::NamedTempFile, Layout) {
        let layout = Layout::new(|_| 20 << 20);
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(layout.disk_size).expect("its size");
        write(file.as_file_mut(), &layout, &Ids::new(Digest::of([]))).expect("a table");
        (file, layout)
    }

    #[test]
    fn sgdisk_and_sfdisk_find_no_fault() {
        let (file, _) = written();
        let said = Tool::new("sgdisk").arg("-v").arg(file.path()).output().expect("sgdisk runs");
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("No problems found"), "{said}");
        Tool::new("sfdisk").arg("--verify").arg(file.path()).run().expect("sfdisk agrees");
    }

    #[test]
    fn the_mbr_is_the_one_that_sgdisk_makes() {
        let (file, _) = written();
        let mut ours = [0; 512];
        File::open(file.path()).and_then(|mut disk| disk.read_exact(&mut ours)).expect("our MBR");
        Tool::new("sgdisk").args(["-h", "1:2:3"]).arg(file.path()).output().expect("sgdisk runs");
        let mut theirs = [0; 512];
        File::open(file.path()).and_then(|mut disk| disk.read_exact(&mut theirs)).expect("their MBR");
        assert_eq!(ours[446..], theirs[446..]);
    }
}
