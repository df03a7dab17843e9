//! What can be kept of a device, how much it is, and the room for it.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nemos_model::partitions::Partition;
use nemos_model::reset::KeptPath;
use nemos_model::reset::keep::{BadKeep, SetName, Usage, parse_set};
use thiserror::Error;

/// Bytes of a block of a file system, as stat(2) counts them.
const STAT_BLOCK: u64 = 512;
/// Bytes of a block of the file system that kept data waits in.
const BLOCK: u64 = 4096;

/// Something that cannot be kept.
#[derive(Debug, Error)]
pub enum KeepError {
    /// It is not there.
    #[error("{} is not there", path.display())]
    NotThere {
        /// The path.
        path: PathBuf,
    },
    /// It is not what can be kept.
    #[error("{} is a {what}, and only files and folders can be kept", path.display())]
    NotPlain {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The path leads elsewhere.
    #[error("{} is a symbolic link: name the place that it leads to", link.display())]
    ThroughLink {
        /// The link.
        link: PathBuf,
    },
    /// Something else is mounted there.
    #[error("{} is on another file system, which no reset takes away", path.display())]
    Elsewhere {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be looked at.
    #[error("cannot look at {}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its blocks cannot be kept.
    #[error(
        "{} cannot be kept as a whole: its volume was made in another way than those that this device makes",
        Partition::Root
    )]
    OtherVolume,
    /// The image has no such set.
    #[error("this image has no keep set `{0}`")]
    NoSuchSet(SetName),
    /// A set that came with the image is not what it must be.
    #[error("the keep set `{set}`: {source}")]
    BadSet {
        /// The set.
        set: SetName,
        /// What is wrong with it.
        source: BadKeep,
    },
}

fn io(path: &Path) -> impl FnOnce(io::Error) -> KeepError {
    move |source| match source.kind() {
        io::ErrorKind::NotFound => KeepError::NotThere { path: path.to_owned() },
        _ => KeepError::Io { path: path.to_owned(), source },
    }
}

/// How much there is at and below a path of a file system that is mounted on `area`.
///
/// Links inside are kept as links, and what is mounted inside is not part of it.
pub fn measure(area: &Path, within: &str) -> Result<Usage, KeepError> {
    let device = fs::metadata(area).map_err(io(area))?.dev();
    let path = walk(area, within)?;
    let found = fs::symlink_metadata(&path).map_err(io(&path))?;
    let folder = if found.is_dir() { &path } else { path.parent().unwrap_or(area) };
    // Of a file on an overlay, stat(2) tells the device below: only folders say where they are.
    if fs::metadata(folder).map_err(io(folder))?.dev() != device {
        return Err(KeepError::Elsewhere { path });
    }
    usage(&path, &found, device)
}

/// The path below `area`; refuses links on the way, and at its end.
fn walk(area: &Path, within: &str) -> Result<PathBuf, KeepError> {
    let mut path = area.to_owned();
    for name in within.split('/').filter(|name| !name.is_empty()) {
        path.push(name);
        if fs::symlink_metadata(&path).map_err(io(&path))?.is_symlink() {
            return Err(KeepError::ThroughLink { link: path });
        }
    }
    Ok(path)
}

fn usage(path: &Path, found: &Metadata, device: u64) -> Result<Usage, KeepError> {
    let kind = found.file_type();
    if kind.is_block_device() || kind.is_char_device() {
        return Err(KeepError::NotPlain { path: path.to_owned(), what: "device node" });
    }
    let one = Usage { entries: 1, bytes: (found.blocks() * STAT_BLOCK).next_multiple_of(BLOCK) };
    if !kind.is_dir() {
        return Ok(one);
    }
    if found.dev() != device {
        return Ok(Usage::default());
    }
    let entries = fs::read_dir(path).map_err(io(path))?;
    let inside = entries.map(|entry| {
        let path = entry.map_err(io(path))?.path();
        let found = fs::symlink_metadata(&path).map_err(io(&path))?;
        usage(&path, &found, device)
    });
    Ok(one + inside.sum::<Result<Usage, KeepError>>()?)
}

/// Reads a keep set from the image whose root is mounted on `lower`.
pub fn read_set(lower: &Path, name: &SetName) -> Result<Vec<KeptPath>, KeepError> {
    let path = lower.join(name.file());
    let text = fs::read_to_string(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => KeepError::NoSuchSet(name.clone()),
        _ => KeepError::Io { path, source },
    })?;
    parse_set(&text).map_err(|source| KeepError::BadSet { set: name.clone(), source })
}

/// What makes a device itself to others, as the image says in [`SetName::identity`]; nothing if it does not say.
pub fn identity(lower: &Path) -> Result<Vec<KeptPath>, KeepError> {
    match read_set(lower, &SetName::identity()) {
        Err(KeepError::NoSuchSet(_)) => Ok(Vec::new()),
        read => read,
    }
}

/// Bytes free where a stage is, or will be, once nothing waits there.
pub fn free(stage: &Path) -> Result<u64, KeepError> {
    let folder = stage.parent().unwrap_or(stage);
    let space = rustix::fs::statvfs(folder).map_err(|error| io(folder)(error.into()))?;
    let waiting = fs::metadata(stage).map_or(0, |file| file.blocks() * STAT_BLOCK);
    Ok((space.f_bavail * space.f_frsize).saturating_add(waiting))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    fn folder() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("etc/app")).unwrap();
        fs::write(folder.path().join("etc/app/config"), vec![7; 5000]).unwrap();
        symlink("/etc/passwd", folder.path().join("etc/app/link")).unwrap();
        symlink("etc", folder.path().join("settings")).unwrap();
        folder
    }

    #[test]
    fn a_folder_is_measured_whole_and_its_links_are_links() {
        let folder = folder();
        let all = measure(folder.path(), "etc").unwrap();
        assert_eq!(all.entries, 4);
        assert!((8192..64 << 10).contains(&all.bytes), "{all:?}");
        assert_eq!(measure(folder.path(), "etc/app/config").unwrap().entries, 1);
        assert_eq!(measure(folder.path(), "").unwrap().entries, 6);
    }

    #[test]
    fn a_path_that_leads_through_a_link_is_refused() {
        let folder = folder();
        for path in ["settings/app/config", "etc/app/link"] {
            let refused = measure(folder.path(), path).unwrap_err();
            assert!(matches!(refused, KeepError::ThroughLink { .. }), "{path}: {refused}");
        }
    }

    #[test]
    fn what_is_not_there_is_said_to_be_so() {
        let refused = measure(folder().path(), "etc/other").unwrap_err();
        assert!(matches!(refused, KeepError::NotThere { .. }), "{refused}");
    }

    #[test]
    fn a_device_node_is_refused() {
        let refused = measure(Path::new("/dev"), "null").unwrap_err();
        assert!(matches!(refused, KeepError::NotPlain { .. }), "{refused}");
    }

    #[test]
    fn a_set_comes_from_the_image() {
        let image = tempfile::tempdir().unwrap();
        let name: SetName = "identity".parse().unwrap();
        assert!(matches!(read_set(image.path(), &name), Err(KeepError::NoSuchSet(_))));
        let file = image.path().join(name.file());
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "/etc/machine-id\n").unwrap();
        assert_eq!(read_set(image.path(), &name).unwrap(), ["/etc/machine-id".parse().unwrap()]);
        fs::write(&file, "etc/machine-id\n").unwrap();
        assert!(matches!(read_set(image.path(), &name), Err(KeepError::BadSet { .. })));
    }
}
