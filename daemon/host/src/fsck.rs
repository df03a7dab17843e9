//! Repairs what a power cut leaves of an ext4, and nothing that somebody should look at first.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use tracing::warn;

use crate::command::{CommandError, run};
use crate::mounts::{Mount, MountError};

/// Checking takes seconds; on a large and slow disk, minutes.
const LIMIT: Duration = Duration::from_secs(1800);
/// Exit status of e2fsck(8): errors were found, and none is left.
const REPAIRED: i32 = 1;
/// Exit status of e2fsck(8): it found no file system, as without a usable superblock.
const NO_FILE_SYSTEM: i32 = 8;
/// Where the first copy of the superblock is, for each block size that mkfs.ext4 chooses: block, bytes a block. Source:
/// ext4(5), `sparse_super`.
const COPIES: [(&str, &str); 2] = [("32768", "4096"), ("8193", "1024")];

/// Mounts an ext4 and says whether it had to be repaired for that.
///
/// The kernel refuses one whose journal it cannot replay or whose superblock has a wrong checksum. A power cut leaves both:
/// the last writes of a journal are cut short, and the superblock is written past the journal and in place, two sectors at
/// once. `e2fsck -p` mends what needs nobody's judgement, and stops at anything else, as at a sector that cannot be read.
///
/// It mounts one in which it has found errors before, and finds the same ones again: that one is repaired first, if it can be.
pub fn mount(mount: &Mount<'_>, target: &Path) -> Result<bool, MountError> {
    let source = Path::new(mount.source);
    let was_repaired =
        has_errors(source) && repair_noted(source).map_err(|error| MountError::refused(mount, target, &error))?;
    match mount.on(target) {
        Err(broken) if broken.is_broken() => {
            warn!("{broken}; repairing it");
            preen(source).map_err(|error| broken.explained(&error))?;
            warn!("{} was broken and is repaired", mount.source);
            mount.on(target).map(|()| true)
        }
        mounted => mounted.map(|()| was_repaired),
    }
}

/// Repairs what has errors that were noted, and says whether it could. What needs judgement is used as it is.
fn repair_noted(device: &Path) -> Result<bool, CommandError> {
    let repaired = preen(device);
    match &repaired {
        Ok(()) => warn!("{} had errors and is repaired", device.display()),
        Err(CommandError::Failed { status, .. }) if status.code().is_some() => {
            warn!("{} has errors that need judgement, and is used as it is", device.display());
            return Ok(false);
        }
        // It was ended in the middle: nobody knows what is half repaired.
        Err(_) => {}
    }
    repaired.map(|()| true)
}

/// Whether the kernel has noted that it found errors in it. Source: ext4's on-disk format, `s_magic` at 0x38 and `s_state` at 0x3a.
fn has_errors(device: &Path) -> bool {
    const PLACE: u64 = 1024 + 0x38;
    const MAGIC: u16 = 0xef53;
    const ERRORS: u16 = 2;
    let mut found = [0; 4];
    let read = File::open(device).and_then(|device| device.read_exact_at(&mut found, PLACE));
    let [magic, state] = [[found[0], found[1]], [found[2], found[3]]].map(u16::from_le_bytes);
    read.is_ok() && magic == MAGIC && state & ERRORS != 0
}

/// Repairs with the superblock, or with the first copy of it that is one.
fn preen(device: &Path) -> Result<(), CommandError> {
    let device = device.to_string_lossy();
    let mut copies = COPIES.iter().map(|(block, size)| e2fsck(&["-p", "-b", block, "-B", size, &device]));
    let first = e2fsck(&["-p", &device]);
    match &first {
        Err(CommandError::Failed { status, .. }) if status.code() == Some(NO_FILE_SYSTEM) => {
            copies.find(Result::is_ok).unwrap_or(first)
        }
        _ => first,
    }
}

fn e2fsck(arguments: &[&str]) -> Result<(), CommandError> {
    match run("e2fsck", arguments, LIMIT) {
        Err(CommandError::Failed { status, words, .. }) if status.code() == Some(REPAIRED) => {
            warn!("{words}");
            Ok(())
        }
        ended => ended,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::mkfs;

    /// Bytes of the superblock's place and checksum. Source: ext4's on-disk format, `s_checksum` at 0x3fc.
    const CHECKSUM: u64 = 1024 + 0x3fc;

    fn file_system(folder: &Path, size: u64) -> PathBuf {
        let file = folder.join("ext4");
        File::create(&file).unwrap().set_len(size).unwrap();
        mkfs::ext4(&file, "test").unwrap();
        file
    }

    fn damage(file: &Path, offset: u64, length: usize) {
        let file = File::options().write(true).open(file).unwrap();
        file.write_all_at(&vec![0xa5; length], offset).unwrap();
    }

    #[test]
    fn a_superblock_that_was_half_written_is_made_whole_from_its_copy() {
        let folder = tempfile::tempdir().unwrap();
        for size in [64 << 20, 1 << 30] {
            let file = file_system(folder.path(), size);
            damage(&file, CHECKSUM, 4);
            preen(&file).unwrap();
            e2fsck(&["-f", "-n", &file.to_string_lossy()]).unwrap();
        }
    }

    #[test]
    fn errors_that_the_kernel_noted_are_seen_until_they_are_repaired() {
        let folder = tempfile::tempdir().unwrap();
        let file = file_system(folder.path(), 64 << 20);
        assert!(!has_errors(&file));
        run("debugfs", &["-w", "-R", "set_super_value state 3", &file.to_string_lossy()], LIMIT).unwrap();
        assert!(has_errors(&file));
        preen(&file).unwrap();
        assert!(!has_errors(&file));
        assert!(!has_errors(Path::new("/dev/zero")));
    }

    #[test]
    fn what_needs_judgement_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = file_system(folder.path(), 64 << 20);
        run("debugfs", &["-w", "-R", "set_inode_field <2> mode 0100644", &file.to_string_lossy()], LIMIT).unwrap();
        run("debugfs", &["-w", "-R", "set_super_value state 2", &file.to_string_lossy()], LIMIT).unwrap();
        let before = fs::read(&file).unwrap();
        preen(&file).unwrap_err();
        let differing = fs::read(&file).unwrap().iter().zip(&before).filter(|(after, before)| after != before).count();
        assert!(differing < 4096, "{differing} bytes were changed");
    }
}
