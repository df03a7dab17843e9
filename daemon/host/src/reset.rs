//! The steps of a reset, each on the disk. Every one can be repeated from its start.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nemos_model::reset::Step;
use thiserror::Error;
use uuid::Uuid;

use crate::command::CommandError;
use crate::keys::Secret;
use crate::mkfs;
use crate::overlay::{self, OverlayError};
use crate::partitions::{Disk, DiskError};

/// How long a partition may take to appear.
const APPEAR: Duration = Duration::from_secs(10);

/// A step that failed.
#[derive(Debug, Error)]
pub enum StepError {
    /// The partition is not there.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The overlay's volume.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// A file system cannot be made.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// What was written did not reach the disk.
    #[error("cannot write {} through: {source}", path.display())]
    Sync {
        /// The partition.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Carries out one step on a disk of which nothing is open but the root; when it returns, what it wrote is on the
/// disk. Returns the UUID of the volume, if the step made one.
///
/// `scratch` is a folder to mount on; `progress` is called with bytes done and bytes in all.
pub fn carry_out(
    step: Step,
    disk: &Disk,
    secret: &Secret,
    scratch: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Option<Uuid>, StepError> {
    let partition = disk.partition(step.partition(), APPEAR)?;
    let mut volume = None;
    match step {
        Step::DestroyKeys => overlay::destroy_keys(&partition)?,
        Step::CreateVolume => volume = Some(overlay::create_volume(&partition, secret, progress)?),
        Step::CreateOverlay => overlay::create_overlay(&partition, secret, scratch)?,
        Step::FormatOciStorage => mkfs::xfs(&partition, "oci-storage")?,
        Step::FormatHome => mkfs::ext4(&partition, "home")?,
    }
    File::open(&partition)
        .and_then(|device| device.sync_all())
        .map_err(|source| StepError::Sync { path: partition, source })?;
    Ok(volume)
}
