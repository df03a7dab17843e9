//! The file systems that a reset takes away, each mounted by itself, so that what is kept can be taken out or put in.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nemos_model::partitions::Partition;
use thiserror::Error;

use super::{APPEAR, Work};
use crate::cryptsetup::CryptError;
use crate::fsck;
use crate::mounts::{Mount, MountError, unmount};
use crate::overlay::{self, OverlayError};
use crate::partitions::DiskError;

/// File systems that cannot be opened or closed.
#[derive(Debug, Error)]
pub enum AreaError {
    /// The partition is not there.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The overlay's volume cannot be opened or closed.
    #[error(transparent)]
    Crypt(#[from] CryptError),
    /// The overlay.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// What was written did not reach the disk, or something is still in use.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Some of a disk's file systems, open as long as this lives.
pub(super) struct Areas {
    folder: PathBuf,
    /// In the order in which they were mounted.
    mounted: Vec<PathBuf>,
    /// The partition of the overlay's volume, if it is open.
    volume: Option<PathBuf>,
}

impl Areas {
    /// Opens and mounts the file systems of these partitions.
    pub(super) fn open(work: &Work<'_>, partitions: &[Partition]) -> Result<Areas, AreaError> {
        let mut areas = Areas { folder: work.scratch.join("areas"), mounted: Vec::new(), volume: None };
        for partition in partitions {
            let device = work.disk.partition(*partition, APPEAR)?;
            let place = areas.place(*partition);
            let source = device.to_string_lossy();
            let mount = Mount::new(partition.file_system(), &source);
            match partition {
                Partition::Root => areas.open_overlay(work, &device, &place)?,
                Partition::OciStorage => mount.on(&place)?,
                _ => drop(fsck::mount(&mount, &place)?),
            }
            areas.mounted.push(place);
        }
        Ok(areas)
    }

    fn open_overlay(&mut self, work: &Work<'_>, partition: &Path, place: &Path) -> Result<(), AreaError> {
        overlay::close(partition)?;
        match work.unlock {
            Some((key, slot)) => overlay::open_slot(partition, key, slot)?,
            None => drop(overlay::open(partition, work.secret)?),
        }
        self.volume = Some(partition.to_owned());
        let upper = self.folder.join("volume");
        overlay::mount_file_system(&upper)?;
        self.mounted.push(upper.clone());
        Ok(overlay::mount_overlay(work.lower, &upper, place)?)
    }

    /// Where the file system of that partition is mounted.
    pub(super) fn place(&self, partition: Partition) -> PathBuf {
        self.folder.join(partition.label())
    }

    /// Writes everything through, and closes all.
    pub(super) fn close(mut self) -> Result<(), AreaError> {
        for place in self.mounted.iter().rev() {
            rustix::fs::syncfs(File::open(place)?).map_err(io::Error::from)?;
        }
        while let Some(place) = self.mounted.pop() {
            unmount(&place)?;
        }
        if let Some(partition) = self.volume.take() {
            overlay::close(&partition)?;
        }
        Ok(())
    }
}

/// Only for what went wrong before [`Areas::close`]: the error that is on its way says more than one from here.
impl Drop for Areas {
    fn drop(&mut self) {
        for place in self.mounted.iter().rev() {
            let _ = unmount(place);
        }
        if let Some(partition) = &self.volume {
            let _ = overlay::close(partition);
        }
    }
}
