//! Where partitions are on a disk: just enough of a GPT, read independently of the program that wrote it.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use libtest_mimic::Failed;
use nemos_model::partitions::Partition;

const SECTOR: u64 = 512;

/// The bytes of the disk that a partition has.
pub(crate) fn extent(disk: &File, partition: Partition) -> Result<Range<u64>, Failed> {
    let mut header = [0; 92];
    disk.read_exact_at(&mut header, SECTOR)?;
    let first = u64_at(&header, 72) * SECTOR;
    let (count, size) = (u32_at(&header, 80), u32_at(&header, 84));
    for index in 0..u64::from(count.min(128)) {
        let mut entry = vec![0; usize::try_from(size.clamp(128, 4096))?];
        disk.read_exact_at(&mut entry, first + index * u64::from(size))?;
        if name(&entry[56..128]) == partition.label() {
            return Ok(u64_at(&entry, 32) * SECTOR..(u64_at(&entry, 40) + 1) * SECTOR);
        }
    }
    Err(format!("the disk has no partition {partition}").into())
}

fn name(utf16: &[u8]) -> String {
    let units = utf16.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    char::decode_utf16(units.take_while(|&unit| unit != 0)).map(|char| char.unwrap_or('?')).collect()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    (0..4).fold(0, |value, byte| value | u32::from(bytes[at + byte]) << (8 * byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn partitions_are_where_sgdisk_put_them() -> Result<(), Failed> {
        let disk = tempfile::NamedTempFile::new()?;
        disk.as_file().set_len(64 << 20)?;
        let made = Command::new("sgdisk")
            .args(["--clear", "--new=1:2048:+1M", "--change-name=1:p.UEFI"])
            .args(["--new=2:8192:+3M", "--change-name=2:p.lxroot"])
            .arg(disk.path())
            .output()?;
        assert!(made.status.success());
        assert_eq!(extent(disk.as_file(), Partition::Root)?, 4 << 20..7 << 20);
        assert!(extent(disk.as_file(), Partition::Home).is_err());
        Ok(())
    }
}
