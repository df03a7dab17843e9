//! Disks of a test's own.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::NamedTempFile;

use crate::power::{LOGGED, LoggedDisk, WriteLog};
use crate::run;

/// Alignment of partitions, and more than what a GPT takes at each end of a disk.
const MIB: u64 = 1 << 20;

/// A disk in memory: takes only the room that was written to, and is gone when dropped. Unmount and close first what
/// is on it.
#[derive(Debug)]
pub struct Disk {
    device: LoopDevice,
    below: Below,
}

/// What a disk is made of.
#[derive(Debug)]
pub(crate) enum Below {
    /// A file, deleted with the disk.
    File(NamedTempFile),
    /// Another disk, and a log of what is written to it.
    Logged(Box<LoggedDisk>),
}

/// What is on a disk, without the disk.
#[derive(Debug)]
pub struct Image(pub(crate) NamedTempFile);

/// A partition to be made: its label, its size in bytes.
pub type Partition<'a> = (&'a str, u64);

impl Disk {
    /// An empty disk.
    pub fn new(size: u64) -> Self {
        Disk::attach(Disk::file(size))
    }

    /// A disk with a GPT and these partitions, in this order.
    pub fn partitioned(partitions: &[Partition]) -> Self {
        let size: u64 = partitions.iter().map(|(_, size)| size.next_multiple_of(MIB)).sum();
        let file = Disk::file(size + 2 * MIB);
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
        }
    }

    /// What was written to it, of a disk that logs that. Unmount first what is on it.
    pub fn into_log(self) -> WriteLog {
        drop(self.device);
        match self.below {
            Below::Logged(logged) => logged.into_log(),
            Below::File(_) => panic!("nobody has logged what was written to the disk"),
        }
    }

    pub(crate) fn file(size: u64) -> NamedTempFile {
        let file = tempfile::Builder::new().prefix("disk-").tempfile_in("/run").expect("a file in /run");
        file.as_file().set_len(size).expect("a sparse file");
        file
    }

    pub(crate) fn attach(file: NamedTempFile) -> Self {
        Disk { device: LoopDevice::new(file.path(), &["--partscan"]), below: Below::File(file) }
    }

    /// A disk whose partitions nobody sees.
    pub(crate) fn whole(file: NamedTempFile) -> Self {
        Disk { device: LoopDevice::new(file.path(), &[]), below: Below::File(file) }
    }

    pub(crate) fn file_below(self) -> NamedTempFile {
        drop(self.device);
        match self.below {
            Below::File(file) => file,
            Below::Logged(_) => panic!("the disk is logged"),
        }
    }

    /// Device node of the whole disk.
    pub fn path(&self) -> &Path {
        &self.device.0
    }

    /// Device node of the partition with that label, as the kernel tells them.
    #[track_caller]
    pub fn partition(&self, label: &str) -> PathBuf {
        let name = self.path().file_name().expect("a device has a name");
        let entries = Path::new("/sys/class/block").join(name).read_dir().expect("the disk is in sysfs");
        let line = format!("PARTNAME={label}");
        let found = entries.flatten().find(|entry| {
            let uevent = std::fs::read_to_string(entry.path().join("uevent")).unwrap_or_default();
            uevent.lines().any(|known| known == line)
        });
        let found = found.unwrap_or_else(|| panic!("{} has no partition {label}", self.path().display()));
        Path::new("/dev").join(found.file_name())
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
        // Without a page cache in between: what is flushed above is what is flushed below.
        let device = LoopDevice::new(Path::new(LOGGED), &["--partscan", "--direct-io=on"]);
        Disk { device, below: Below::Logged(Box::new(logged)) }
    }
}

pub(crate) fn copy(file: &NamedTempFile) -> NamedTempFile {
    let copy = Disk::file(0);
    run("cp", ["--sparse=always".as_ref(), file.path().as_os_str(), copy.path().as_os_str()]);
    copy
}

#[derive(Debug)]
struct LoopDevice(PathBuf);

impl LoopDevice {
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
