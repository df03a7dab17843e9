//! Copies files and folders with all that they are: owner, mode, extended attributes, times, links among each other.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;
use std::time::Duration;

use thiserror::Error;

use crate::command::{CommandError, run};

/// Longest that one path may take.
const LIMIT: Duration = Duration::from_secs(1800);

/// A copy that failed.
#[derive(Debug, Error)]
pub enum CopyError {
    /// A file or folder.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The copy itself.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// Copies `within` from one folder to another, in place of what is there. What is above it is made if it is not there,
/// with the owner and mode that it has in the first.
pub(crate) fn copy(from: &Path, to: &Path, within: &str) -> Result<(), CopyError> {
    make_parents(from, to, within)?;
    let (source, target) = (from.join(within), to.join(within));
    clear(&target)?;
    if !fs::symlink_metadata(&source).map_err(named(&source))?.is_dir() && target.is_dir() {
        fs::remove_dir(&target).map_err(named(&target))?;
    }
    tree(&source, &target)
}

/// Copies a file, or a folder with all that is in it, to where nothing is. Contents are shared where the file system can do it.
pub(crate) fn tree(source: &Path, target: &Path) -> Result<(), CopyError> {
    let preserve = "--preserve=mode,ownership,timestamps,links,xattr";
    let arguments = [
        "--recursive",
        "--no-dereference",
        "--reflink=auto",
        preserve,
        "--no-target-directory",
        "--one-file-system",
        "--",
    ];
    let (source, target) = (source.to_string_lossy(), target.to_string_lossy());
    Ok(run("cp", &[&arguments[..], &[&*source, &*target]].concat(), LIMIT)?)
}

fn make_parents(from: &Path, to: &Path, within: &str) -> io::Result<()> {
    let parents: Vec<&Path> =
        Path::new(within).ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
    for parent in parents.into_iter().rev() {
        let (old, new) = (from.join(parent), to.join(parent));
        if fs::symlink_metadata(&new).is_ok_and(|found| found.is_dir()) {
            continue;
        }
        clear(&new)?;
        let found = fs::metadata(&old)?;
        fs::create_dir(&new).map_err(named(&new))?;
        lchown(&new, Some(found.uid()), Some(found.gid())).map_err(named(&new))?;
        fs::set_permissions(&new, found.permissions()).map_err(named(&new))?;
    }
    Ok(())
}

/// Takes away what is there; of a folder only what is in it, since a file system may be mounted on it.
fn clear(target: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(named(target))?,
    };
    if !found.is_dir() {
        return fs::remove_file(target).map_err(named(target));
    }
    for entry in fs::read_dir(target).map_err(named(target))? {
        let entry = entry.map_err(named(target))?;
        let path = entry.path();
        let removed = if entry.file_type()?.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(named(&path))?;
    }
    Ok(())
}

fn named(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
