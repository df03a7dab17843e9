//! Disks of a test's own.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::run;

/// Alignment of partitions, and what a GPT needs at each end of a disk, rounded up.
const MIB: u64 = 1 << 20;

/// A disk in memory: takes only the room that was written to. It is gone when dropped; unmount and close first what
/// is on it.
#[derive(Debug)]
pub struct Disk {
    device: PathBuf,
    /// Deleted with the disk.
    _file: NamedTempFile,
}

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

    fn file(size: u64) -> NamedTempFile {
        let file = tempfile::Builder::new().prefix("disk-").tempfile_in("/run").expect("a file in /run");
        file.as_file().set_len(size).expect("a sparse file");
        file
    }

    fn attach(file: NamedTempFile) -> Self {
        let arguments = ["--find", "--show", "--partscan"].map(AsRef::as_ref);
        let device = run("losetup", arguments.into_iter().chain([file.path().as_os_str()]));
        Disk { device: device.trim().into(), _file: file }
    }

    /// Device node of the whole disk.
    pub fn path(&self) -> &Path {
        &self.device
    }

    /// Device node of the partition with that label, as the kernel tells them.
    #[track_caller]
    pub fn partition(&self, label: &str) -> PathBuf {
        let name = self.device.file_name().expect("a device has a name");
        let folder = Path::new("/sys/class/block").join(name);
        let partitions = folder.read_dir().expect("the disk is in sysfs").flatten();
        let line = format!("PARTNAME={label}");
        let found = partitions.into_iter().find(|entry| {
            let uevent = std::fs::read_to_string(entry.path().join("uevent")).unwrap_or_default();
            uevent.lines().any(|known| known == line)
        });
        let found = found.unwrap_or_else(|| panic!("{} has no partition {label}", self.device.display()));
        Path::new("/dev").join(found.file_name())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that failed may have left something open on it; the machine ends soon after.
        let _ = std::process::Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

/// Overwrites bytes of a device or file with others, behind the back of whatever is open on it.
#[track_caller]
pub fn corrupt(path: &Path, offset: u64, length: usize) {
    let file = File::options().read(true).write(true).open(path).expect("the device opens");
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).expect("the device has bytes there");
    let bytes: Vec<u8> = bytes.into_iter().map(|byte| !byte).collect();
    file.write_all_at(&bytes, offset).expect("the device takes them");
    file.sync_all().expect("the device keeps them");
}
