//! All that a device wrote to its disk, in order, and the disks that it would have been left with.
//!
//! The log has the format of dm-log-writes (`Documentation/admin-guide/device-mapper/log-writes.rst`): a superblock,
//! then for each write a sector that describes it, and its data.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use libtest_mimic::Failed;
use tempfile::TempDir;

use crate::disk::Disk;

const SECTOR: u64 = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const DISCARD: u64 = 1 << 2;

/// All that a device wrote to its disk from some moment on.
#[derive(Debug)]
pub struct WriteLog {
    /// The disk at that moment.
    before: Disk,
    folder: TempDir,
}

/// What a device did to its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// It wrote this many bytes at this offset; they are at that offset of the log.
    Write {
        at: u64,
        length: u64,
        data: u64,
    },
    Flush,
    Discard,
}

impl WriteLog {
    pub(crate) fn new(before: Disk) -> Result<Self, Failed> {
        Ok(WriteLog { before, folder: tempfile::tempdir()? })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("writes")
    }

    /// How often the device flushed its writes.
    pub fn flushes(&self) -> Result<usize, Failed> {
        Ok(entries(&File::open(self.path())?)?.into_iter().filter(|entry| *entry == Entry::Flush).count())
    }

    /// The disk with everything that was written before the device flushed for the `count`-th time, and nothing after.
    /// What it discarded is still there, as a disk may have it.
    pub fn disk_at_flush(&mut self, count: usize) -> Result<Disk, Failed> {
        let log = File::open(self.path())?;
        let mut disk = self.before.copy()?;
        let file = File::options().write(true).open(disk.bytes()?)?;
        let mut flushes = 0;
        for entry in entries(&log)? {
            match entry {
                Entry::Flush if flushes + 1 == count => break,
                Entry::Flush => flushes += 1,
                Entry::Discard => {}
                Entry::Write { at, length, data } => {
                    let mut bytes = vec![0; usize::try_from(length)?];
                    log.read_exact_at(&mut bytes, data)?;
                    file.write_all_at(&bytes, at)?;
                }
            }
        }
        Ok(disk)
    }
}

/// Reads the log, without the data.
fn entries(log: &File) -> Result<Vec<Entry>, Failed> {
    let [magic, version, count] = numbers(log, 0)?;
    if (magic, version) != (MAGIC, 1) {
        return Err("this is not a log of writes".into());
    }
    let mut entries = Vec::new();
    let mut at = SECTOR;
    for _ in 0..count {
        let [sector, sectors, flags] = numbers(log, at)?;
        at += SECTOR;
        if flags & DISCARD != 0 {
            entries.push(Entry::Discard);
            continue;
        }
        if flags & FLUSH != 0 {
            entries.push(Entry::Flush);
        }
        if sectors > 0 {
            entries.push(Entry::Write { at: sector * SECTOR, length: sectors * SECTOR, data: at });
            at += sectors * SECTOR;
        }
    }
    Ok(entries)
}

/// The first three numbers of a sector.
fn numbers(log: &File, at: u64) -> Result<[u64; 3], Failed> {
    let mut bytes = [0; 24];
    log.read_exact_at(&mut bytes, at)?;
    let number =
        |index: usize| bytes[8 * index..8 * index + 8].iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte));
    Ok([number(0), number(1), number(2)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_as_it_is_documented() -> Result<(), Failed> {
        let log = tempfile::tempfile()?;
        let sector = |numbers: [u64; 3]| {
            let mut sector: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            sector.resize(512, 0);
            sector
        };
        let sectors = [
            sector([MAGIC, 1, 4]),
            sector([8, 2, 0]),
            vec![0xaa; 1024],
            sector([0, 0, FLUSH]),
            sector([0, 4096, DISCARD]),
            sector([1, 1, FLUSH]),
            vec![0xbb; 512],
        ];
        log.write_all_at(&sectors.concat(), 0)?;
        assert_eq!(
            entries(&log)?,
            [
                Entry::Write { at: 4096, length: 1024, data: 1024 },
                Entry::Flush,
                Entry::Discard,
                Entry::Flush,
                Entry::Write { at: 512, length: 512, data: 3584 },
            ]
        );
        Ok(())
    }
}
