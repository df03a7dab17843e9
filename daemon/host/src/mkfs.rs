//! Makes file systems, whatever was there before.

use std::path::Path;
use std::time::Duration;

use crate::command::{CommandError, run};

/// It takes seconds; on a large and slow disk, minutes.
const LIMIT: Duration = Duration::from_secs(600);

/// Makes an ext4 file system; the device discards what it held, if it can.
pub fn ext4(device: &Path, label: &str) -> Result<(), CommandError> {
    run("mkfs.ext4", &["-q", "-F", "-L", label, &device.to_string_lossy()], LIMIT)
}

/// Makes an XFS file system (at least 300 MB, or it refuses); the device discards what it held, if it can. It keeps records of
/// whose each block is, so that a damaged one leads to its file.
pub fn xfs(device: &Path, label: &str) -> Result<(), CommandError> {
    run("mkfs.xfs", &["-q", "-f", "-m", "rmapbt=1", "-L", label, &device.to_string_lossy()], LIMIT)
}

/// Makes an ext4 file system for so many files and folders and nothing else: no journal, nothing reserved, room for large
/// extended attributes.
pub fn ext4_for(device: &Path, entries: u64) -> Result<(), CommandError> {
    let inodes = (entries + 32).to_string();
    let features = "^has_journal,^resize_inode,ea_inode";
    run("mkfs.ext4", &["-q", "-F", "-m", "0", "-O", features, "-N", &inodes, &device.to_string_lossy()], LIMIT)
}
