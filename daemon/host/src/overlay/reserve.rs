//! Room that the volume keeps for the initrd.
//!
//! On an XFS without any, nobody makes a folder: the overlay would come up read-only, for it makes one whenever it is mounted, and
//! nothing could be taken back. So a file holds some room, and is away only while the initrd works on the volume. Whatever
//! became of it when the power goes, the next boot finds its room free, or in the file.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nemos_model::overlay::usage::RESERVE_FILE;
use rustix::fs::{FallocateFlags, fallocate, statvfs, syncfs};
use tracing::warn;

/// One part in so many of the volume.
const PART: u64 = 64;
/// Bytes that the folders of a boot take at least, with what XFS wants free before it makes one.
const LEAST: u64 = 1 << 20;
/// Bytes that are enough for all that the initrd does.
const MOST: u64 = 16 << 20;
/// Less than this is no help.
const WORTH: u64 = 64 << 10;

/// Does work on the volume that is mounted there, which finds at least the room of the reserve; and sees to it that there is one.
pub fn with_room<T>(volume: &Path, work: impl FnOnce() -> T) -> T {
    let told = |outcome: io::Result<()>, what: &str| {
        if let Err(error) = outcome {
            warn!("the overlay's reserve of room is not {what}: {error}");
        }
    };
    told(give_if_full(volume), "given");
    let done = work();
    told(keep(volume), "kept");
    done
}

fn give_if_full(volume: &Path) -> io::Result<()> {
    let (size, free) = room(volume)?;
    if free >= wanted(size) {
        return Ok(());
    }
    match fs::remove_file(volume.join(RESERVE_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| Ok(syncfs(File::open(volume)?)?)),
    }
}

/// Makes the file as large as it should be; or, where there is none and no such room, as large as it can be.
pub(super) fn keep(volume: &Path) -> io::Result<()> {
    let path = volume.join(RESERVE_FILE);
    let (size, free) = room(volume)?;
    let (held, mut wanted) = (fs::metadata(&path).map_or(0, |found| found.len()), wanted(size));
    if held >= wanted || held > 0 && free < wanted {
        return Ok(());
    }
    let file = File::options().write(true).create(true).truncate(false).open(&path)?;
    while wanted >= WORTH {
        match fallocate(&file, FallocateFlags::empty(), 0, wanted) {
            Err(rustix::io::Errno::NOSPC) => wanted /= 2,
            taken => return taken.map_err(io::Error::from).and_then(|()| file.sync_all()),
        }
    }
    drop(file);
    fs::remove_file(&path)?;
    Err(io::ErrorKind::StorageFull.into())
}

fn wanted(size: u64) -> u64 {
    (size / PART).clamp(LEAST, MOST)
}

fn room(volume: &Path) -> io::Result<(u64, u64)> {
    let stat = statvfs(volume)?;
    Ok((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_a_reserve_and_keeps_it() {
        let volume = tempfile::tempdir_in(".").unwrap();
        let reserve = volume.path().join(RESERVE_FILE);
        assert!(!with_room(volume.path(), || reserve.exists()), "it is not needed yet");
        let made = fs::metadata(&reserve).unwrap();
        assert!((LEAST..=MOST).contains(&made.len()), "{}", made.len());
        assert!(with_room(volume.path(), || reserve.exists()), "there is room without it");
        File::options().write(true).open(&reserve).unwrap().set_len(WORTH).unwrap();
        with_room(volume.path(), || ());
        assert_eq!(fs::metadata(&reserve).unwrap().len(), made.len(), "it grows once there is room again");
    }
}
