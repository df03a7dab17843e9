//! Saved configurations: made, applied and gone back from while the overlay is not mounted, listed and taken away at any time.
//!
//! ```text
//! upper/                      what the overlay has; of one that was applied, an attribute names the job
//! switch/previous             what is about to take its place; and then what it had before, for as long as somebody may go back
//! configurations/.saving      one that is being saved
//! configurations/.deleted     one that is being deleted
//! ```
//!
//! Every change of what counts is one rename, after all that it brings was written through.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nemos_model::JobId;
use nemos_model::overlay::configuration::{ABOUT_FILE, About, BASE_FILE, FOLDER, TREE_FOLDER, Unreadable};
use nemos_model::overlay::{ConfigurationName, UPPER_FOLDER};
use rustix::fs::{CWD, RenameFlags, XattrFlags, lgetxattr, lremovexattr, lsetxattr, renameat_with, syncfs};
use rustix::io::Errno;
use thiserror::Error;
use tracing::warn;

use super::changes::Trees;
use super::shadow::{Base, Index, Noted, ShadowError};
use crate::copy::{self, CopyError};
use crate::job::new_id;
use crate::reset::keep::{KeepError, identity};

/// Attribute of an upper folder that a job has put in its place: its name.
const MARK: &str = "trusted.nemos.job";
/// Largest document that is read, in bytes.
const MAX_BYTES: u64 = 64 << 10;

pub(super) const SWITCH: &str = "switch";
const PREVIOUS: &str = "switch/previous";
const SAVING: &str = ".saving";
const DELETED: &str = ".deleted";

/// A configuration that cannot be worked on.
#[derive(Debug, Error)]
pub enum ConfigurationError {
    /// There is none of that name.
    #[error("there is no configuration {0}; `nemosctl overlay list` tells those that there are")]
    NotThere(ConfigurationName),
    /// There is one already.
    #[error("there is a configuration {0} already; another name, or --replace")]
    Exists(ConfigurationName),
    /// What was before it is not there any more.
    #[error("there is nothing to go back to on the overlay's volume")]
    NothingBefore,
    /// Its document cannot be used.
    #[error("{} cannot be used: {source}", path.display())]
    Unreadable {
        /// The document.
        path: PathBuf,
        /// Why not.
        source: Unreadable,
    },
    /// It cannot be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// What makes the device itself is not known.
    #[error(transparent)]
    Identity(#[from] KeepError),
    /// What the image has at its paths cannot be noted, or told.
    #[error(transparent)]
    Base(#[from] ShadowError),
    /// Writing or reading failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A configuration, and what is known of it.
pub type Known = (ConfigurationName, Result<About, ConfigurationError>);

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ConfigurationError {
    move |source| ConfigurationError::Io { action, path: path.to_owned(), source }
}

/// What is in a configuration's folder.
fn folder(volume: &Path, name: &ConfigurationName) -> PathBuf {
    volume.join(FOLDER).join(name.as_str())
}

/// The changes of a configuration, on the volume that is mounted there.
pub fn tree(volume: &Path, name: &ConfigurationName) -> PathBuf {
    folder(volume, name).join(TREE_FOLDER)
}

/// Makes the folders that nemosd works in, where they are not there yet: it cannot write beside them. They are for root alone:
/// what was closed since, or had a fault that is mended, is open in them.
pub fn prepare(volume: &Path) -> Result<(), ConfigurationError> {
    [FOLDER, SWITCH].map(|name| volume.join(name)).iter().try_for_each(|path| {
        let made = fs::create_dir_all(path).and_then(|()| fs::set_permissions(path, PermissionsExt::from_mode(0o700)));
        made.map_err(at("make", path))
    })
}

/// What is known of a configuration.
pub fn about(volume: &Path, name: &ConfigurationName) -> Result<About, ConfigurationError> {
    let path = folder(volume, name).join(ABOUT_FILE);
    let length = match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ConfigurationError::NotThere(name.clone()));
        }
        found => found.map_err(at("read", &path))?.len(),
    };
    if length > MAX_BYTES {
        return Err(at("read", &path)(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than any of ours")));
    }
    let text = fs::read(&path).map_err(at("read", &path))?;
    About::parse(&text).map_err(|source| ConfigurationError::Unreadable { path, source })
}

/// The paths of a configuration at which this image has something else than the one that it was made on, in order; `None` if
/// that is not known.
pub fn shadowed(
    volume: &Path,
    lower: &Path,
    name: &ConfigurationName,
) -> Result<Option<Vec<PathBuf>>, ConfigurationError> {
    let base = folder(volume, name).join(BASE_FILE);
    match Index::of_image(lower)?.filter(|_| base.exists()) {
        Some(index) => Ok(Some(Base::read(&base)?.shadowed(&index)?.collect::<Result<_, _>>()?)),
        None => Ok(None),
    }
}

/// All saved configurations by name, each with what is known of it.
pub fn list(volume: &Path) -> Result<Vec<Known>, ConfigurationError> {
    let place = volume.join(FOLDER);
    let entries = match fs::read_dir(&place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(at("list", &place))?,
    };
    let name = |name: OsString| name.to_str()?.parse::<ConfigurationName>().ok();
    let mut names: Vec<ConfigurationName> = entries.into_iter().filter_map(|entry| name(entry.file_name())).collect();
    names.sort();
    Ok(names
        .into_iter()
        .map(|name| {
            let about = about(volume, &name);
            (name, about)
        })
        .collect())
}

/// Saves the changes that the overlay has. It can be repeated from its start.
pub fn save(
    volume: &Path,
    lower: &Path,
    name: &ConfigurationName,
    replace: bool,
    about: &About,
) -> Result<(), ConfigurationError> {
    prepare(volume)?;
    let (place, new) = (folder(volume, name), volume.join(FOLDER).join(SAVING));
    let there = match self::about(volume, name) {
        Ok(there) if there.job == about.job => return remove(&new),
        Ok(_) if !replace => return Err(ConfigurationError::Exists(name.clone())),
        there => !matches!(there, Err(ConfigurationError::NotThere(_))),
    };
    remove(&new)?;
    let made = make(volume, lower, &new, about).and_then(|()| put(volume, &new, &place, there));
    if made.is_err() {
        // It may have failed for lack of the room that it takes.
        remove(&new)?;
    }
    made?;
    remove(&new)
}

fn make(volume: &Path, lower: &Path, new: &Path, about: &About) -> Result<(), ConfigurationError> {
    let (tree, text) = (new.join(TREE_FOLDER), new.join(ABOUT_FILE));
    fs::create_dir(new).map_err(at("make", new))?;
    let upper = volume.join(UPPER_FOLDER);
    copy::tree(&upper, &tree)?;
    unmark(&tree)?;
    let noted = Noted::read(volume, about.root_hash, Trees { upper: &upper, lower })?;
    note_base(new, lower, noted)?;
    fs::write(&text, about.to_text()).map_err(at("write", &text))
}

/// Notes what the changes in that folder were made on: this image, but for what is noted of those that they are a copy of.
pub(super) fn note_base(folder: &Path, lower: &Path, copied: Option<Noted<'_>>) -> Result<(), ConfigurationError> {
    if let Some(index) = Index::of_image(lower)? {
        Base::note(&folder.join(TREE_FOLDER), &index, copied, &folder.join(BASE_FILE))?;
    }
    Ok(())
}

/// Gives what is whole its place, in one step; what was there has the other's then. If it fails, it has not happened, or else the
/// journal says so.
pub(super) fn put(volume: &Path, new: &Path, place: &Path, is_there: bool) -> Result<(), ConfigurationError> {
    write_through(volume)?;
    let how = if is_there { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
    let exchange = |from, to| renameat_with(CWD, from, CWD, to, how).map_err(io::Error::from);
    exchange(new, place).map_err(at("put in its place", place))?;
    write_through(volume).inspect_err(|_| {
        exchange(place, new).unwrap_or_else(|error| warn!("{} is not taken back: {error}", place.display()));
    })
}

/// Has two change places. If it fails, it may have happened.
fn exchange(volume: &Path, one: &Path, other: &Path) -> Result<(), ConfigurationError> {
    write_through(volume)?;
    let exchanged = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).map_err(io::Error::from);
    exchanged.map_err(at("put in its place", other))?;
    write_through(volume)
}

/// Puts a configuration's changes in the place of those that the overlay has, which are gone then unless somebody may want to go
/// back (`keep`). It can be repeated from its start. With one that was imported, the device stays who it is to others.
pub fn apply(
    volume: &Path,
    lower: &Path,
    name: &ConfigurationName,
    job: JobId,
    keep: bool,
) -> Result<(), ConfigurationError> {
    let (upper, previous) = (volume.join(UPPER_FOLDER), volume.join(PREVIOUS));
    // Once the mark is there it has happened: by one exchange, which left there what was here.
    if mark(&upper)? != Some(job.to_string()) {
        prepare(volume)?;
        forget_previous(volume)?;
        let made = fill(volume, lower, name, &previous).and_then(|()| set_mark(&previous, job));
        let made = made.and_then(|()| put(volume, &previous, &upper, true));
        if made.is_err() && mark(&upper)? != Some(job.to_string()) {
            // It may have failed for lack of the room that it takes.
            forget_previous(volume)?;
        }
        made?;
    }
    if !keep {
        leave_to_next(forget_previous(volume));
    }
    Ok(())
}

fn fill(volume: &Path, lower: &Path, name: &ConfigurationName, new: &Path) -> Result<(), ConfigurationError> {
    if name.is_factory() {
        fs::create_dir(new).map_err(at("make", new))?;
        return fs::set_permissions(new, PermissionsExt::from_mode(0o755)).map_err(at("make", new));
    }
    let tree = tree(volume, name);
    if !tree.is_dir() {
        return Err(ConfigurationError::NotThere(name.clone()));
    }
    copy::tree(&tree, new)?;
    let is_imported = about(volume, name)?.imported.is_some();
    if is_imported { keep_identity(&volume.join(UPPER_FOLDER), lower, new) } else { Ok(()) }
}

/// What is another device's does not go with it, and this one's stays.
fn keep_identity(upper: &Path, lower: &Path, new: &Path) -> Result<(), ConfigurationError> {
    let is = |path: &Path, kind: fn(&Metadata) -> bool| path.symlink_metadata().is_ok_and(|found| kind(&found));
    for path in identity(lower)?.iter().map(|path| Path::new(path.within())) {
        let folders = path.ancestors().skip(1);
        let hides_it = { folders }.any(|folder| is(&new.join(folder), |found| !found.is_dir()));
        if is(&upper.join(path), |_| true) && !is(&new.join(path), |_| true) && !hides_it {
            copy::copy(upper, new, &path.to_string_lossy())?;
        }
    }
    Ok(())
}

/// Puts back what the overlay had before that job. It can be repeated from its start.
pub fn go_back(volume: &Path, applied: JobId) -> Result<(), ConfigurationError> {
    let (upper, previous) = (volume.join(UPPER_FOLDER), volume.join(PREVIOUS));
    if mark(&upper)? == Some(applied.to_string()) {
        if !previous.exists() {
            return Err(ConfigurationError::NothingBefore);
        }
        exchange(volume, &previous, &upper)?;
    }
    leave_to_next(forget_previous(volume));
    Ok(())
}

/// Gives up what the overlay had before: nobody goes back to it any more. That is one rename; what cannot be removed then takes
/// up room until the next who tries.
pub fn forget_previous(volume: &Path) -> Result<(), ConfigurationError> {
    let (switch, previous) = (volume.join(SWITCH), volume.join(PREVIOUS));
    match fs::rename(&previous, switch.join(format!("left-{}", new_id()))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        renamed => renamed.map_err(at("give up", &previous))?,
    }
    let entries = match fs::read_dir(&switch) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(at("list", &switch))?,
    };
    let left = entries.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with("left-"));
    left.for_each(|entry| leave_to_next(remove(&entry.path())));
    Ok(())
}

/// Deletes a configuration.
pub fn delete(volume: &Path, name: &ConfigurationName) -> Result<(), ConfigurationError> {
    let (place, deleted) = (folder(volume, name), volume.join(FOLDER).join(DELETED));
    remove(&deleted)?;
    match fs::rename(&place, &deleted) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ConfigurationError::NotThere(name.clone()));
        }
        renamed => renamed.map_err(at("delete", &place))?,
    }
    write_through(volume)?;
    leave_to_next(remove(&deleted));
    Ok(())
}

/// Gives a configuration another name.
pub fn rename(volume: &Path, from: &ConfigurationName, to: &ConfigurationName) -> Result<(), ConfigurationError> {
    let (old, new) = (folder(volume, from), folder(volume, to));
    match renameat_with(CWD, &old, CWD, &new, RenameFlags::NOREPLACE) {
        Err(Errno::NOENT) => return Err(ConfigurationError::NotThere(from.clone())),
        Err(Errno::EXIST) => return Err(ConfigurationError::Exists(to.clone())),
        renamed => renamed.map_err(io::Error::from).map_err(at("rename", &old))?,
    }
    write_through(volume)
}

/// Takes away what was being made or deleted when the power went.
pub fn remove_leftovers(volume: &Path) -> Result<(), ConfigurationError> {
    let place = volume.join(FOLDER);
    let entries = match fs::read_dir(&place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(at("list", &place))?,
    };
    let left = entries.into_iter().filter(|entry| entry.file_name().to_string_lossy().starts_with('.'));
    left.map(|entry| entry.path()).try_for_each(|path| remove(&path))
}

/// What has happened has: what could not be taken away takes up room until the next one who does.
fn leave_to_next(removed: Result<(), ConfigurationError>) {
    if let Err(error) = removed {
        warn!("what nobody needs any more takes up room still: {error}");
    }
}

fn remove(path: &Path) -> Result<(), ConfigurationError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(at("remove", path)),
    }
}

fn write_through(volume: &Path) -> Result<(), ConfigurationError> {
    let synced = File::open(volume).and_then(|folder| Ok(syncfs(folder)?));
    synced.map_err(at("write through", volume))
}

/// The job that has put an upper folder in its place.
fn mark(upper: &Path) -> Result<Option<String>, ConfigurationError> {
    let mut value = Vec::with_capacity(64);
    match lgetxattr(upper, MARK, rustix::buffer::spare_capacity(&mut value)) {
        Err(Errno::NODATA) => Ok(None),
        Err(error) => Err(at("read", upper)(error.into())),
        Ok(_) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
    }
}

fn set_mark(upper: &Path, job: JobId) -> Result<(), ConfigurationError> {
    let set = lsetxattr(upper, MARK, job.to_string().as_bytes(), XattrFlags::empty());
    set.map_err(io::Error::from).map_err(at("mark", upper))
}

fn unmark(upper: &Path) -> Result<(), ConfigurationError> {
    match lremovexattr(upper, MARK) {
        Err(Errno::NODATA) => Ok(()),
        removed => removed.map_err(io::Error::from).map_err(at("mark", upper)),
    }
}
