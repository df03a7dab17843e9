//! Makes empty file systems, whatever was there before.

use std::path::Path;
use std::time::Duration;

use crate::command::{CommandError, run};

/// It takes seconds; on a large and slow disk, minutes.
const LIMIT: Duration = Duration::from_secs(600);

/// Makes an ext4 file system; the device discards what it held, if it can.
pub fn ext4(device: &Path, label: &str) -> Result<(), CommandError> {
    run("mkfs.ext4", &["-q", "-F", "-L", label, &device.to_string_lossy()], LIMIT)
}

/// Makes an XFS file system (at least 300 MB, or it refuses); the device discards what it held, if it can.
pub fn xfs(device: &Path, label: &str) -> Result<(), CommandError> {
    run("mkfs.xfs", &["-q", "-f", "-L", label, &device.to_string_lossy()], LIMIT)
}
