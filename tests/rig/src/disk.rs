//! Disks of a test's own.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;

use tempfile::NamedTempFile;

use crate::power::{LOGGED, LoggedDisk, WriteLog};
use crate::run;
use crate::writes::SECTOR;

/// Alignment of partitions, and more than what a GPT takes at each end of a disk.
const MIB: u64 = 1 << 20;

/// A disk in memory: takes only the room that was written to, and is gone when dropped. Unmount and close first what
/// is on it.
#[derive(Debug)]
pub struct Disk {
    device: Rc<LoopDevice>,
    below: Below,
}

/// What a disk is made of.
#[derive(Debug)]
pub(crate) enum Below {
    /// A file, deleted with the disk.
    File(NamedTempFile),
    /// Another disk, and a log of what is written to it.
    Logged(Box<LoggedDisk>),
    /// What a power cut left of one; the log has it.
    Cut,
}

/// What is on a disk, without the disk.
#[derive(Debug)]
pub struct Image(pub(crate) NamedTempFile);

/// A partition to be made: its label, its size in bytes.
pub type Partition<'a> = (&'a str, u64);

impl Disk {
    /// An empty disk.
    pub fn new(size: u64) -> Self {
        Disk::attach(Disk::sparse(size))
    }

    /// A disk with a GPT and these partitions, in this order.
    pub fn partitioned(partitions: &[Partition]) -> Self {
        let size: u64 = partitions.iter().map(|(_, size)| size.next_multiple_of(MIB)).sum();
        let file = Disk::sparse(size + 2 * MIB);
        let mut arguments = vec!["--clear".to_owned()];
        for (index, (label, size)) in partitions.iter().enumerate() {
            let number = index + 1;
            arguments.push(format!("--new={number}:0:+{}K", size.div_ceil(1024)));
            arguments.push(format!("--change-name={number}:{label}"));
        }
        run("sgdisk", arguments.iter().map(AsRef::as_ref).chain([file.path().as_os_str()]));
        Disk::attach(file)
    }

    /// What is on it now. Unmount first what is on it.
    pub fn image(&self) -> Image {
        File::open(self.path()).and_then(|disk| disk.sync_all()).expect("the disk takes what was written");
        match &self.below {
            Below::File(file) => Image(copy(file)),
            Below::Logged(logged) => logged.below.image(),
            Below::Cut => panic!("a cut disk is not copied"),
        }
    }

    /// What was written to it, of a disk that logs that. Unmount first what is on it.
    pub fn into_log(self) -> WriteLog {
        drop(self.device);
        match self.below {
            Below::Logged(logged) => logged.into_log(),
            Below::File(_) | Below::Cut => panic!("nobody has logged what was written to the disk"),
        }
    }

    fn sparse(size: u64) -> NamedTempFile {
        let file = tempfile::Builder::new().prefix("disk-").tempfile_in("/run").expect("a file in /run");
        file.as_file().set_len(size).expect("a sparse file");
        file
    }

    pub(crate) fn attach(file: NamedTempFile) -> Self {
        Disk { device: Rc::new(LoopDevice::new(file.path(), &["--partscan"])), below: Below::File(file) }
    }

    /// A disk whose partitions nobody sees.
    pub(crate) fn whole(file: NamedTempFile) -> Self {
        Disk { device: Rc::new(LoopDevice::new(file.path(), &[])), below: Below::File(file) }
    }

    pub(crate) fn file_below(self) -> NamedTempFile {
        drop(self.device);
        match self.below {
            Below::File(file) => file,
            Below::Logged(_) | Below::Cut => panic!("the disk is not in a file"),
        }
    }

    pub(crate) fn cut(device: &Rc<LoopDevice>) -> Self {
        Disk { device: Rc::clone(device), below: Below::Cut }
    }

    /// The file that it is in.
    pub(crate) fn file(&self) -> &File {
        match &self.below {
            Below::File(file) => file.as_file(),
            Below::Logged(_) | Below::Cut => panic!("the disk is not in a file"),
        }
    }

    /// Bytes of the whole disk.
    pub(crate) fn size(&self) -> u64 {
        self.file().metadata().expect("the file is there").len()
    }

    /// Device node of the whole disk.
    pub fn path(&self) -> &Path {
        &self.device.0
    }

    /// Device node of the partition with that label, as the kernel tells them.
    #[track_caller]
    pub fn partition(&self, label: &str) -> PathBuf {
        let folder = self.partition_folder(label);
        Path::new("/dev").join(folder.file_name().expect("a partition has a name"))
    }

    /// The bytes of the disk that are the partition with that label.
    #[track_caller]
    pub fn extent(&self, label: &str) -> Range<u64> {
        let folder = self.partition_folder(label);
        let [start, size] = ["start", "size"].map(|name| {
            let text = fs::read_to_string(folder.join(name)).expect("a partition is in sysfs");
            SECTOR * text.trim().parse::<u64>().expect("sysfs counts sectors")
        });
        start..start + size
    }

    #[track_caller]
    fn partition_folder(&self, label: &str) -> PathBuf {
        let name = self.path().file_name().expect("a device has a name");
        let mut entries = Path::new("/sys/class/block").join(name).read_dir().expect("the disk is in sysfs").flatten();
        let line = format!("PARTNAME={label}");
        let found = entries.find(|entry| {
            let uevent = fs::read_to_string(entry.path().join("uevent")).unwrap_or_default();
            uevent.lines().any(|known| known == line)
        });
        found.unwrap_or_else(|| panic!("{} has no partition {label}", self.path().display())).path()
    }
}

impl Image {
    /// Another disk with the same on it.
    pub fn disk(&self) -> Disk {
        Disk::attach(copy(&self.0))
    }

    /// The same, and what is written to it is logged.
    pub fn logged_disk(&self) -> Disk {
        let logged = LoggedDisk::new(self);
        let device = Rc::new(LoopDevice::with_partitions(Path::new(LOGGED)));
        Disk { device, below: Below::Logged(Box::new(logged)) }
    }
}

pub(crate) fn copy(file: &NamedTempFile) -> NamedTempFile {
    let copy = Disk::sparse(0);
    run("cp", ["--sparse=always".as_ref(), file.path().as_os_str(), copy.path().as_os_str()]);
    copy
}

#[derive(Debug)]
pub(crate) struct LoopDevice(PathBuf);

impl LoopDevice {
    /// On another device, without a page cache in between: what is flushed above is what is flushed below.
    pub(crate) fn with_partitions(below: &Path) -> Self {
        LoopDevice::new(below, &["--partscan", "--direct-io=on"])
    }

    fn new(below: &Path, options: &[&str]) -> Self {
        let arguments = ["--find", "--show"].iter().chain(options).map(AsRef::as_ref);
        LoopDevice(run("losetup", arguments.chain([below.as_os_str()])).trim().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // It fails if a test left something open on the disk. That test has failed, and says why.
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).stderr(Stdio::null()).status();
    }
}

/// Turns bytes of a device or file into others, behind the back of whatever is open on it.
#[track_caller]
pub fn corrupt(path: &Path, offset: u64, length: usize) {
    let file = File::options().read(true).write(true).open(path).expect("the device opens");
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).expect("the device has bytes there");
    let bytes: Vec<u8> = bytes.into_iter().map(|byte| !byte).collect();
    file.write_all_at(&bytes, offset).expect("the device takes them");
    file.sync_all().expect("the device keeps them");
}
