//! Power cuts: a disk as it was at any flush of what was written to it.
//!
//! ```text
//!     /dev/loopN, with partitions     what a test sees
//!     └── rig-log-writes (dm-log-writes)
//!         ├── the disk
//!         └── the log
//! ```
//!
//! dm-log-writes logs a write once a flush made it last. So the disk at a flush holds what the device was told is safe,
//! and nothing else: the least that a power cut leaves.

use std::fs::File;
use std::os::unix::fs::FileExt;

use tempfile::NamedTempFile;

use crate::disk::{Disk, Image, copy};
use crate::run;

/// Our own mappings begin so, and are not a test's to close.
pub(crate) const OURS: &str = "rig-";
const MAPPING: &str = "rig-log-writes";
/// Its device node.
pub(crate) const LOGGED: &str = "/dev/mapper/rig-log-writes";
/// Bytes of a sector of the log: that of the device that it is on.
const SECTOR: u64 = 512;
/// More than any test writes. Only what is written takes room.
const LOG_SIZE: u64 = 4 << 30;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;

/// A disk, and a log of what is written to it. There is one at a time.
#[derive(Debug)]
pub(crate) struct LoggedDisk {
    before: Image,
    pub(crate) below: Disk,
    log: Disk,
}

/// What was written to a disk.
#[derive(Debug)]
pub struct WriteLog {
    log: NamedTempFile,
    /// The disk as it was at some flush, at first before all of them.
    disk: NamedTempFile,
    /// Where in the log the next entry is, and how many there are from there on.
    next: u64,
    left: u64,
}

impl LoggedDisk {
    pub(crate) fn new(image: &Image) -> Self {
        let (below, log) = (Disk::whole(copy(&image.0)), Disk::new(LOG_SIZE));
        let sectors = run("blockdev", ["--getsz".as_ref(), below.path().as_os_str()]);
        let (below_path, log_path) = (below.path().display(), log.path().display());
        let table = format!("0 {} log-writes {below_path} {log_path}", sectors.trim());
        // There is no udev to make the node.
        run("env", ["DM_DISABLE_UDEV=1", "dmsetup", "create", MAPPING, "--table", &table]);
        LoggedDisk { before: Image(copy(&image.0)), below, log }
    }

    pub(crate) fn into_log(self) -> WriteLog {
        run("dmsetup", ["remove", "--retry", MAPPING]);
        File::open(self.log.path()).and_then(|log| log.sync_all()).expect("the log is kept");
        let log = self.log.file_below();
        let [magic, version, left] = numbers(log.as_file(), 0);
        assert_eq!((magic, version), (MAGIC, 1), "this is a log of dm-log-writes");
        WriteLog { log, disk: self.before.0, next: SECTOR, left }
    }
}

impl WriteLog {
    /// Goes on by that many flushes; false if there are no more so many.
    ///
    /// What was discarded is still there, as a disk may have it.
    pub fn flushes(&mut self, mut count: usize) -> bool {
        while count > 0 && self.left > 0 {
            self.left -= 1;
            let [sector, sectors, flags] = numbers(self.log.as_file(), self.next);
            self.next += SECTOR;
            if sectors > 0 && flags & (DISCARD | MARK) == 0 {
                let mut bytes = vec![0; usize::try_from(sectors * SECTOR).expect("a write fits into memory")];
                self.log.as_file().read_exact_at(&mut bytes, self.next).expect("the log has the data");
                self.disk.as_file().write_all_at(&bytes, sector * SECTOR).expect("the disk takes the data");
                self.next += sectors * SECTOR;
            }
            if flags & FLUSH != 0 {
                count -= 1;
            }
        }
        count == 0
    }

    /// The disk as it is now, after the power came back.
    pub fn disk(&self) -> Disk {
        Disk::attach(copy(&self.disk))
    }
}

/// The first three numbers of a sector: of the log's head, or of an entry.
///
/// Source: `struct log_write_super` and `struct log_write_entry` in the kernel's `drivers/md/dm-log-writes.c`.
fn numbers(log: &File, offset: u64) -> [u64; 3] {
    let mut bytes = [0; 24];
    log.read_exact_at(&mut bytes, offset).expect("the log goes on");
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    [number(0), number(8), number(16)]
}
