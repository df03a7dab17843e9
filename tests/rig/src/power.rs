//! Power cuts: a disk as it would have been, had the power gone while it was written to.
//!
//! ```text
//!     /dev/loopN, with partitions        what a test sees         /dev/loopN, with partitions
//!     └── rig-log-writes (dm-log-writes)                          └── rig-cut (dm-snapshot)
//!         ├── the disk                                                ├── the disk at a flush
//!         └── the log                                                 └── what was written since then
//!
//!             while it is written to                                     after the power came back
//! ```
//!
//! The disk at a flush holds what the device was told is safe, and nothing else: the least that a power cut leaves.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::rc::Rc;

use devicemapper::{DM, DevId, DmName, DmOptions, DmResult};
use fastrand::Rng;

use crate::disk::{Disk, Image, LoopDevice, copy};
use crate::run;
use crate::writes::{SECTOR, Write, flushes, survivors};

/// Our own mappings begin so, and are not a test's to close.
pub(crate) const OURS: &str = "rig-";
const MAPPING: &str = "rig-log-writes";
/// Its device node.
pub(crate) const LOGGED: &str = "/dev/mapper/rig-log-writes";
/// More than any test writes. Only what is written takes room.
const LOG_SIZE: u64 = 4 << 30;

/// A disk, and a log of what is written to it. There is one at a time.
#[derive(Debug)]
pub(crate) struct LoggedDisk {
    before: Image,
    pub(crate) below: Disk,
    log: Disk,
}

/// What was written to a disk, and the disk as it was at one of its flushes.
#[derive(Debug)]
pub struct WriteLog {
    log: File,
    /// What each flush made last that comes now, the next one's at the end.
    flushes: Vec<Vec<Write>>,
    /// What is put back to the disk for each cut.
    device: Rc<LoopDevice>,
    snapshot: Snapshot,
    /// At first as it was before everything that was written.
    disk: Disk,
    /// Takes what is written after a cut.
    _since: Disk,
}

impl LoggedDisk {
    pub(crate) fn new(image: &Image) -> Self {
        let (below, log) = (Disk::whole(copy(&image.0)), Disk::new(LOG_SIZE));
        let (below_path, log_path) = (below.path().display(), log.path().display());
        let table = format!("0 {} log-writes {below_path} {log_path}", below.size() / SECTOR);
        // There is no udev to make the node.
        run("env", ["DM_DISABLE_UDEV=1", "dmsetup", "create", MAPPING, "--table", &table]);
        LoggedDisk { before: Image(copy(&image.0)), below, log }
    }

    pub(crate) fn into_log(self) -> WriteLog {
        run("dmsetup", ["remove", "--retry", MAPPING]);
        File::open(self.log.path()).and_then(|log| log.sync_all()).expect("the log is kept");
        let log = self.log.file_below().into_file();
        let mut flushes = flushes(&log).expect("the log can be read");
        flushes.reverse();
        let disk = Disk::whole(self.before.0);
        // Room for everything, and for where it belongs.
        let since = Disk::new(disk.size() + (64 << 20));
        let snapshot = Snapshot::new(&disk, &since).expect("a snapshot of the disk");
        let device = Rc::new(LoopDevice::with_partitions(&snapshot.device));
        WriteLog { log, flushes, device, snapshot, disk, _since: since }
    }
}

impl WriteLog {
    /// Goes on to the next flush, or, after the last one, to the end of what was written. False if that was the end.
    pub fn goes_on(&mut self) -> bool {
        let Some(writes) = self.flushes.pop() else { return false };
        self.replay(&writes, self.disk.file());
        true
    }

    /// How many writes follow that are not safe before the next flush.
    pub fn unsafe_writes(&self) -> usize {
        self.next().len()
    }

    /// Whether one of them is to these bytes of the disk.
    pub fn writes_to(&self, bytes: &Range<u64>) -> bool {
        self.next().iter().any(|write| write.is_in(bytes))
    }

    /// Whether these words were written to these bytes of the disk, from now on to the end.
    pub fn wrote(&self, words: &str, bytes: &Range<u64>) -> bool {
        let mut writes = self.flushes.iter().flatten().filter(|write| write.is_in(bytes));
        writes.any(|write| self.data(write).windows(words.len()).any(|window| window == words.as_bytes()))
    }

    /// The disk with everything that is safe and nothing else. There is one cut disk at a time.
    pub fn cut(&self) -> Disk {
        self.snapshot.put_back().expect("the disk is put back");
        Disk::cut(&self.device)
    }

    /// The disk with everything that is safe, and with a part of what follows, down to single sectors.
    pub fn torn(&self, random: &mut Rng) -> Disk {
        let disk = self.cut();
        // The page cache may hold what an earlier one left, and a sector is written with the page that it is in.
        run("blockdev", ["--flushbufs".as_ref(), self.snapshot.device.as_os_str()]);
        let device = File::options().write(true).open(&self.snapshot.device).expect("the disk opens");
        self.replay(&survivors(self.next(), random), &device);
        device.sync_all().expect("the disk takes the data");
        disk
    }

    fn next(&self) -> &[Write] {
        self.flushes.last().map_or(&[], Vec::as_slice)
    }

    fn replay(&self, writes: &[Write], disk: &File) {
        for write in writes {
            disk.write_all_at(&self.data(write), write.at).expect("the disk takes the data");
        }
    }

    fn data(&self, write: &Write) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(write.length).expect("a write fits into memory")];
        self.log.read_exact_at(&mut bytes, write.data).expect("the log has the data");
        bytes
    }
}

/// A disk that is put back to another as often as it is asked.
#[derive(Debug)]
struct Snapshot {
    device: PathBuf,
    /// The table of nothing, and that of a snapshot.
    tables: [Table; 2],
}

/// As the kernel takes it: start, length, target, parameters.
type Table = (u64, u64, String, String);

impl Snapshot {
    const MAPPING: &str = "rig-cut";
    /// Sectors that are copied at once when some of them are written to.
    const CHUNK: u64 = 64;

    /// A snapshot of `disk` that keeps in `since` what is written to it.
    fn new(disk: &Disk, since: &Disk) -> DmResult<Self> {
        let size = disk.size() / SECTOR;
        let parameters = format!("{} {} N {}", disk.path().display(), since.path().display(), Self::CHUNK);
        let tables = [(0, size, "error".into(), String::new()), (0, size, "snapshot".into(), parameters)];
        let made = DM::new()?.device_create(Self::name(), None, DmOptions::default())?;
        let snapshot = Snapshot { device: format!("/dev/dm-{}", made.device().minor).into(), tables };
        snapshot.put_back()?;
        Ok(snapshot)
    }

    /// Forgets what was written to it. Nothing on it may be open.
    fn put_back(&self) -> DmResult<()> {
        let (dm, id, options) = (DM::new()?, DevId::Name(Self::name()), DmOptions::default());
        // By way of nothing: a snapshot hands what it keeps on to one that takes its place.
        for table in &self.tables {
            dm.table_load(&id, std::slice::from_ref(table), options)?;
            dm.device_suspend(&id, options)?;
        }
        Ok(())
    }

    fn name() -> &'static DmName {
        DmName::new(Self::MAPPING).expect("a name")
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // It fails if a test left something open on the disk. That test has failed, and says why.
        let _ = DM::new().and_then(|dm| dm.device_remove(&DevId::Name(Self::name()), DmOptions::default()));
    }
}
