//! Walks the overlay's upper folder beside the image.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nemos_model::overlay::changes::{Change, Kind, Seen, Upper, judge};
use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::Errno;
use thiserror::Error;

use crate::integrity::scrub::is_damage;

/// Names of the overlay's own attributes begin so.
const OVERLAY_ATTRIBUTES: &[u8] = b"trusted.overlay.";
/// Names of ours begin so.
const OUR_ATTRIBUTES: &[u8] = b"trusted.nemos.";
/// Bytes that are compared at once.
const CHUNK: u64 = 64 << 10;

/// A path that cannot be looked at.
#[derive(Debug, Error)]
#[error("cannot look at {}: {source}", path.display())]
pub struct ChangesError {
    path: PathBuf,
    source: io::Error,
}

/// The two trees that an overlay joins.
#[derive(Debug, Clone, Copy)]
pub struct Trees<'a> {
    /// What the device has made.
    pub upper: &'a Path,
    /// The image.
    pub lower: &'a Path,
}

/// How far a walk has come. It needs the trees only to go on, so it can wait for whoever reads page by page. Memory goes with the
/// largest folder, not with the number of changes.
#[derive(Debug, Clone)]
pub struct Walk {
    /// Folders that are open, and the names that are still to come in each, the last first.
    open: Vec<(PathBuf, Vec<OsString>)>,
    /// Only what comes after this path.
    after: Option<PathBuf>,
}

impl Walk {
    /// Of what is at and below `below`, and comes after `after`.
    pub fn new(below: &Path, after: Option<&Path>) -> Self {
        let (folder, name) = match (below.parent(), below.file_name()) {
            (Some(folder), Some(name)) => (folder.to_owned(), name.to_owned()),
            _ => (PathBuf::new(), OsString::new()),
        };
        Walk { open: vec![(folder, vec![name])], after: after.map(Path::to_owned) }
    }

    /// The next path that the overlay has something at, and what.
    pub(super) fn step(&mut self, trees: &Trees<'_>) -> Result<Option<(PathBuf, Upper)>, ChangesError> {
        while let Some((folder, names)) = self.open.last_mut() {
            let Some(name) = names.pop() else {
                self.open.pop();
                continue;
            };
            // That of the root is empty.
            let path = if name.is_empty() { folder.clone() } else { folder.join(name) };
            let after = self.after.as_deref();
            // What comes before what is wanted, and so does all that is in it.
            if after.is_some_and(|after| path.as_path() < after && !after.starts_with(&path)) {
                continue;
            }
            let Some(Some(upper)) = unless_gone(trees.upper_at(&path))? else { continue };
            let is_wanted = after.is_none_or(|after| path.as_path() > after);
            if matches!(&upper, Upper::There { seen, .. } if seen.kind == Kind::Folder)
                && let Some(names) = unless_gone(listed(&trees.upper.join(&path)))?
            {
                self.open.push((path.clone(), names));
            }
            if is_wanted {
                return Ok(Some((path, upper)));
            }
        }
        Ok(None)
    }

    /// The next change; `None` if there is no more.
    pub fn next(&mut self, trees: &Trees<'_>) -> Result<Option<Change>, ChangesError> {
        while let Some((path, upper)) = self.step(trees)? {
            if let Some(Some(change)) = unless_gone(trees.judged(&path, &upper))? {
                return Ok(Some(change));
            }
        }
        Ok(None)
    }
}

impl Trees<'_> {
    /// Tells of each change at and below `below`, which comes after `after`, in the order of their paths.
    pub fn changes(
        &self,
        below: &Path,
        after: Option<&Path>,
        tell: &mut dyn FnMut(Change) -> ControlFlow<()>,
    ) -> Result<(), ChangesError> {
        let mut walk = Walk::new(below, after);
        while let Some(change) = walk.next(self)? {
            if tell(change).is_break() {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn judged(&self, path: &Path, upper: &Upper) -> Result<Option<Change>, ChangesError> {
        // The root of the overlay is the root of the image.
        let factory = self.lower_at(path)?;
        let same = || same_content(&self.upper.join(path), &self.lower.join(path)).map_err(at(path));
        let Some(what) = judge(upper, factory.as_ref(), same)? else { return Ok(None) };
        let (seen, from) = match upper {
            Upper::Whiteout => (factory.as_ref(), None),
            Upper::There { seen, redirect, .. } => (Some(seen), redirect.clone()),
        };
        let Some(seen) = seen else { return Ok(None) };
        let size = if matches!(upper, Upper::Whiteout) { 0 } else { seen.size };
        let factory_size = factory.as_ref().filter(|factory| factory.kind == Kind::File).map(|factory| factory.size);
        Ok(Some(Change { path: path.to_owned(), what, kind: seen.kind, size, factory_size, from }))
    }

    pub(super) fn upper_at(&self, path: &Path) -> Result<Option<Upper>, ChangesError> {
        let full = self.upper.join(path);
        let Some(metadata) = metadata(&full)? else { return Ok(None) };
        if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
            return Ok(Some(Upper::Whiteout));
        }
        let mut attributes = attributes(&full).map_err(at(&full))?;
        let mut own = |name: &str| {
            let name = [OVERLAY_ATTRIBUTES, name.as_bytes()].concat();
            attributes.remove(OsStr::from_bytes(&name))
        };
        let opaque = own("opaque").as_deref() == Some(b"y");
        let redirect = own("redirect").map(|target| PathBuf::from(OsString::from_vec(target)));
        let metacopy = own("metacopy").is_some();
        attributes.retain(|name, _| {
            [OVERLAY_ATTRIBUTES, OUR_ATTRIBUTES].iter().all(|prefix| !name.as_bytes().starts_with(prefix))
        });
        let seen = seen(&full, &metadata, attributes)?;
        Ok(Some(Upper::There { seen, opaque, redirect, metacopy }))
    }

    fn lower_at(&self, path: &Path) -> Result<Option<Seen>, ChangesError> {
        let full = self.lower.join(path);
        let Some(metadata) = metadata(&full)? else { return Ok(None) };
        let attributes = attributes(&full).map_err(at(&full))?;
        seen(&full, &metadata, attributes).map(Some)
    }
}

/// The device is in use: what has vanished since it was listed is no change any more. And folder in folder, anybody can make what no
/// path leads to: that is not told.
fn unless_gone<T>(looked: Result<T, ChangesError>) -> Result<Option<T>, ChangesError> {
    use io::ErrorKind::{InvalidFilename, NotADirectory, NotFound};
    match looked {
        Err(error) if matches!(error.source.kind(), NotFound | NotADirectory | InvalidFilename) => Ok(None),
        looked => looked.map(Some),
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ChangesError {
    move |source| ChangesError { path: path.to_owned(), source }
}

/// The names in a folder, the last first.
fn listed(folder: &Path) -> Result<Vec<OsString>, ChangesError> {
    let names = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>());
    let mut names = names.map_err(at(folder))?;
    names.sort_unstable_by(|one, other| other.cmp(one));
    Ok(names)
}

fn metadata(path: &Path) -> Result<Option<Metadata>, ChangesError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

fn seen(path: &Path, metadata: &Metadata, attributes: BTreeMap<OsString, Vec<u8>>) -> Result<Seen, ChangesError> {
    let kind = match metadata.file_type() {
        kind if kind.is_file() => Kind::File,
        kind if kind.is_dir() => Kind::Folder,
        kind if kind.is_symlink() => Kind::Link,
        _ => Kind::Special,
    };
    let target = if kind == Kind::Link { Some(fs::read_link(path).map_err(at(path))?) } else { None };
    Ok(Seen {
        kind,
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        size: if kind == Kind::File { metadata.len() } else { 0 },
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        target,
        device: metadata.rdev(),
        attributes,
    })
}

pub(super) fn attributes(path: &Path) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    let mut names = Vec::with_capacity(256);
    loop {
        match llistxattr(path, rustix::buffer::spare_capacity(&mut names)) {
            Ok(_) => break,
            Err(Errno::RANGE) => names.reserve(names.capacity() * 2),
            // A file system without attributes has none.
            Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
            Err(error) => return Err(error.into()),
        }
    }
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| Ok((OsString::from_vec(name.to_vec()), attribute(path, OsStr::from_bytes(name))?))).collect()
}

fn attribute(path: &Path, name: &OsStr) -> io::Result<Vec<u8>> {
    let mut value = Vec::with_capacity(256);
    loop {
        match lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)) {
            Ok(_) => return Ok(value),
            Err(Errno::RANGE) => value.reserve(value.capacity() * 2),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Compares two files of the same size, the overlay's and the image's.
fn same_content(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    // Most files are small, and there are many.
    let chunk = one.metadata()?.len().clamp(1, CHUNK);
    let chunk = usize::try_from(chunk).unwrap_or(usize::MAX);
    let (mut left, mut right) = (vec![0; chunk], vec![0; chunk]);
    loop {
        let read = match one.read(&mut left) {
            // What cannot be read any more is not what the image has, and that is how it comes back.
            Err(error) if is_damage(&error) => return Ok(false),
            read => read?,
        };
        if read == 0 {
            return Ok(other.read(&mut right)? == 0);
        }
        match other.read_exact(&mut right[..read]) {
            Ok(()) if left[..read] == right[..read] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}
