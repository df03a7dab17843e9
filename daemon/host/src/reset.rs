//! The steps of a reset, each on the disk. Every one can be repeated from its start.

use std::path::Path;
use std::time::Duration;

use nemos_model::partitions::Partition;
use nemos_model::reset::Step;
use thiserror::Error;
use uuid::Uuid;

use crate::command::CommandError;
use crate::cryptsetup::CryptError;
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
    /// libcryptsetup refused.
    #[error(transparent)]
    Crypt(#[from] CryptError),
    /// A file system cannot be made.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// Carries out one step on a disk of which nothing is open but the root. Returns the UUID of the volume, if the step
/// made one.
///
/// `scratch` is a folder to mount on; `progress` is called with bytes done and bytes in all.
pub fn carry_out(
    step: Step,
    disk: &Disk,
    secret: &Secret,
    scratch: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Option<Uuid>, StepError> {
    let device = |partition| disk.partition(partition, APPEAR);
    match step {
        Step::DestroyKeys => overlay::destroy_keys(&device(Partition::Root)?)?,
        Step::CreateVolume => {
            return Ok(Some(overlay::create_volume(&device(Partition::Root)?, secret, progress)?));
        }
        Step::CreateOverlay => {
            let partition = device(Partition::Root)?;
            overlay::close(&partition)?;
            overlay::open(&partition, secret)?;
            let made = overlay::create_file_system(scratch);
            overlay::close(&partition)?;
            made?;
        }
        Step::FormatOciStorage => mkfs::xfs(&device(Partition::OciStorage)?, "oci-storage")?,
        Step::FormatHome => mkfs::ext4(&device(Partition::Home)?, "home")?,
    }
    Ok(None)
}
