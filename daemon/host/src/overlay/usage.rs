//! Looks at what takes room on the overlay's volume.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nemos_model::overlay::ConfigurationName;
use nemos_model::overlay::UPPER_FOLDER;
use nemos_model::overlay::configuration::FOLDER;
use nemos_model::overlay::usage::{RESERVE_FILE, REVERTED_FOLDER, Taken, Usage};
use rustix::fs::statvfs;
use thiserror::Error;

use super::configuration::SWITCH;
use super::fiemap::shared_extents;
use super::volume_mount;

/// Something that cannot be looked at.
#[derive(Debug, Error)]
#[error("cannot look at {}: {source}", path.display())]
pub struct UsageError {
    path: PathBuf,
    source: io::Error,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> UsageError {
    move |source| UsageError { path: path.to_owned(), source }
}

/// What takes room on the volume, wherever it is mounted at this boot. Reads no content, and all of the metadata.
pub fn usage() -> Result<Usage, UsageError> {
    usage_of(volume_mount())
}

/// The same, of the volume that is mounted there.
pub fn usage_of(volume: &Path) -> Result<Usage, UsageError> {
    let stat = statvfs(volume).map_err(io::Error::from).map_err(at(volume))?;
    let mut shared = Vec::new();
    let mut taken = |folder: &str| taken(&volume.join(folder), &mut shared);
    let (changes, previous, reverted) = (taken(UPPER_FOLDER)?, taken(SWITCH)?, taken(REVERTED_FOLDER)?);
    let mut configurations = Vec::new();
    for name in names(&volume.join(FOLDER))? {
        let found = taken(&format!("{FOLDER}/{name}"))?;
        configurations.push((name, found));
    }
    let reserve = fs::symlink_metadata(volume.join(RESERVE_FILE)).map_or(0, |found| allocated(&found));
    Ok(Usage {
        size: stat.f_blocks * stat.f_frsize,
        free: stat.f_bavail * stat.f_frsize,
        names: stat.f_files,
        names_free: stat.f_ffree,
        changes,
        configurations,
        previous,
        reverted,
        reserve,
        shared: length_of_union(shared),
    })
}

/// In order; what is being saved or deleted is nobody's configuration.
fn names(folder: &Path) -> Result<Vec<String>, UsageError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at(folder))?,
    };
    let names = entries.map(|entry| entry.map(|entry| saved(&entry.file_name())));
    let mut names: Vec<String> =
        names.filter_map(io::Result::transpose).collect::<io::Result<_>>().map_err(at(folder))?;
    names.sort_unstable();
    Ok(names)
}

fn saved(name: &OsStr) -> Option<String> {
    let name: ConfigurationName = name.to_str()?.parse().ok()?;
    Some(name.as_str().to_owned())
}

fn allocated(metadata: &Metadata) -> u64 {
    metadata.blocks() * 512
}

/// All that is in a folder, if there is one. Where a block is that somebody else has, too, goes to `shared`.
fn taken(folder: &Path, shared: &mut Vec<(u64, u64)>) -> Result<Taken, UsageError> {
    let (mut taken, mut seen) = (Taken::default(), HashSet::new());
    let mut waiting = vec![folder.to_owned()];
    while let Some(path) = waiting.pop() {
        // The device is in use: what has gone since it was listed takes no room. What no path leads to is not counted.
        let is_gone =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename);
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if is_gone(&error) => continue,
            found => found.map_err(at(&path))?,
        };
        taken.entries += 1;
        // A file that has several names takes room once.
        if !metadata.is_dir() && metadata.nlink() > 1 && !seen.insert(metadata.ino()) {
            continue;
        }
        taken.bytes += allocated(&metadata);
        if metadata.is_dir() {
            let entries = match fs::read_dir(&path) {
                Err(error) if is_gone(&error) => continue,
                entries => entries.map_err(at(&path))?,
            };
            for entry in entries {
                waiting.push(entry.map_err(at(&path))?.path());
            }
        } else if metadata.is_file() && metadata.blocks() > 0 {
            match shared_extents(&path) {
                Err(error) if is_gone(&error) => {}
                extents => {
                    let extents = extents.map_err(at(&path))?;
                    taken.shared += extents.iter().map(|(start, end)| end - start).sum::<u64>();
                    shared.extend(extents);
                }
            }
        }
    }
    Ok(taken)
}

/// Bytes of places that may overlap.
fn length_of_union(mut places: Vec<(u64, u64)>) -> u64 {
    places.sort_unstable();
    let (mut length, mut reached) = (0, 0);
    for (start, end) in places {
        length += end.saturating_sub(start.max(reached));
        reached = reached.max(end);
    }
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_is_counted_once() {
        assert_eq!(length_of_union(vec![]), 0);
        assert_eq!(length_of_union(vec![(5, 10), (0, 6), (20, 30), (21, 22), (30, 31)]), 21);
    }

    #[test]
    fn each_file_takes_room_once_and_a_folder_that_is_not_there_none() {
        let volume = tempfile::tempdir_in(".").unwrap();
        let upper = volume.path().join(UPPER_FOLDER);
        fs::create_dir_all(upper.join("etc")).unwrap();
        fs::write(upper.join("etc/one"), vec![1; 1 << 16]).unwrap();
        fs::hard_link(upper.join("etc/one"), upper.join("etc/other")).unwrap();
        fs::create_dir_all(volume.path().join(FOLDER).join("lab/tree")).unwrap();
        let usage = usage_of(volume.path()).unwrap();
        assert_eq!(usage.changes.entries, 4);
        assert!((1 << 16..1 << 17).contains(&usage.changes.bytes), "{usage:?}");
        assert_eq!((usage.configurations.len(), usage.configurations[0].0.as_str()), (1, "lab"));
        assert_eq!(usage.reverted, Taken::default());
    }
}
