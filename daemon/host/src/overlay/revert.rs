//! Takes changes back: what the overlay's upper folder has at a path goes, and the image's is there again. Only while the
//! overlay is not mounted.

use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use nemos_model::keys::KeyslotId;
use nemos_model::overlay::UPPER_FOLDER;
use nemos_model::overlay::changes::{Kind, Upper};
use nemos_model::overlay::usage::REVERTED_FOLDER;
use nemos_model::reset::KeptPath;
use rustix::fs::syncfs;
use thiserror::Error;
use tracing::warn;

use super::changes::{ChangesError, Trees};
use super::{OverlayError, with_file_system};
use crate::job::new_id;
use crate::keys::Key;

/// A change that cannot be taken back.
#[derive(Debug, Error)]
pub enum RevertError {
    /// There is none.
    #[error("{path} is as the image has it", path = .0.as_str())]
    Unchanged(KeptPath),
    /// The image's folder around it is hidden.
    #[error("{path} is in {around}, which is not the image's folder any more; revert {around}", path = path.as_str(), around = around.display())]
    Around {
        /// The path.
        path: KeptPath,
        /// The folder.
        around: PathBuf,
    },
    /// The path leads elsewhere.
    #[error("{path} leads through the link {link}; name the place that it leads to", path = path.as_str(), link = link.display())]
    ThroughLink {
        /// The path.
        path: KeptPath,
        /// The link.
        link: PathBuf,
    },
    /// It cannot be looked at.
    #[error(transparent)]
    Changes(#[from] ChangesError),
    /// The volume.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// It cannot be taken away.
    #[error("cannot take back {}: {source}", path.display())]
    Io {
        /// The path on the volume.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> RevertError {
    move |source| RevertError::Io { path: path.to_owned(), source }
}

impl Trees<'_> {
    /// Whether there is a change at or below the path that can be taken back by itself.
    pub fn can_revert(&self, path: &KeptPath) -> Result<(), RevertError> {
        self.check_around(path)?;
        let mut changed = false;
        self.changes(Path::new(path.within()), None, &mut |_| {
            changed = true;
            ControlFlow::Break(())
        })?;
        if changed { Ok(()) } else { Err(RevertError::Unchanged(path.clone())) }
    }

    /// The folders around it must be the image's, seen through: in another, nothing of the image would come back.
    fn check_around(&self, path: &KeptPath) -> Result<(), RevertError> {
        let within = Path::new(path.within());
        for around in within.ancestors().skip(1).filter(|around| !around.as_os_str().is_empty()) {
            let is_link = || self.lower.join(around).symlink_metadata().is_ok_and(|lower| lower.is_symlink());
            let is_seen_through = match self.upper_at(around)? {
                None if is_link() => {
                    return Err(RevertError::ThroughLink { path: path.clone(), link: Path::new("/").join(around) });
                }
                None => true,
                Some(Upper::Whiteout) => false,
                Some(Upper::There { seen, opaque, redirect, .. }) => {
                    let is_of_image = self.lower.join(around).symlink_metadata().is_ok_and(|lower| lower.is_dir());
                    seen.kind == Kind::Folder && !opaque && redirect.is_none() && is_of_image
                }
            };
            if !is_seen_through {
                return Err(RevertError::Around { path: path.clone(), around: Path::new("/").join(around) });
            }
        }
        Ok(())
    }
}

/// Takes the changes at and below these paths back, on a volume that is not open. It can be repeated from its start: what is
/// gone already stays gone.
pub fn revert(
    partition: &Path,
    unlock: (&Key, KeyslotId),
    lower: &Path,
    paths: &[KeptPath],
    scratch: &Path,
) -> Result<(), RevertError> {
    with_file_system(partition, unlock, scratch, |volume| take_away(volume, lower, paths))
}

/// The same, on the volume's file system.
pub fn take_away(volume: &Path, lower: &Path, paths: &[KeptPath]) -> Result<(), RevertError> {
    let (upper, trash) = (volume.join(UPPER_FOLDER), volume.join(REVERTED_FOLDER));
    let trees = Trees { upper: &upper, lower };
    for path in paths {
        trees.check_around(path)?;
    }
    // Beside what could not be deleted the last time.
    let own = trash.join(new_id().to_string());
    fs::create_dir_all(&own).map_err(io_error(&own))?;
    let through = || File::open(volume).and_then(|folder| Ok(syncfs(folder)?)).map_err(io_error(volume));
    let mut moved = Vec::new();
    let mut take = |number: usize, path: &KeptPath| {
        let (from, to) = (upper.join(path.within()), own.join(number.to_string()));
        match fs::rename(&from, &to) {
            Ok(()) => moved.push((from, to)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error(&from)(error)),
        }
        Ok(())
    };
    let taken = paths.iter().enumerate().try_for_each(|(number, path)| take(number, path)).and_then(|()| through());
    if let Err(error) = taken {
        // All of it or nothing.
        for (from, to) in moved.iter().rev() {
            fs::rename(to, from).map_err(io_error(from))?;
        }
        return Err(error);
    }
    // It has happened: what cannot be deleted now is deleted with what is taken back next.
    if let Err(error) = empty(&trash) {
        warn!("what was taken back takes up room still: {error}");
    }
    through()
}

fn empty(trash: &Path) -> Result<(), RevertError> {
    match fs::remove_dir_all(trash) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(io_error(trash)),
    }
}
