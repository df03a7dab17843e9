//! The steps of a reset, each on the disk. Every one can be repeated from its start.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nemos_model::integrity::RootHash;
use nemos_model::job::{Job, Kind};
use nemos_model::keys::KeyslotId;
use nemos_model::overlay::configuration::About;
use nemos_model::partitions::Partition;
use nemos_model::reset::audit::Audit;
use nemos_model::reset::{Scope, Step};
use nemos_model::state::Outcome;
use thiserror::Error;
use tracing::warn;

use crate::boot::image;
use crate::command::CommandError;
use crate::keys::{BACKUP, Key, Secret, destroy_backup};
use crate::mkfs;
use crate::overlay::configuration::{self, ConfigurationError};
use crate::overlay::revert::revert;
use crate::overlay::shadow;
use crate::overlay::{self, OverlayError};
use crate::partitions::{Disk, DiskError};

mod areas;
pub mod everything;
pub mod keep;
mod stage;
mod survey;

pub use areas::AreaError;
pub use stage::{StageError, destroy_in as destroy_stage};

/// How long a partition may take to appear on a disk that is there.
const APPEAR: Duration = Duration::from_secs(5);

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
    /// What is kept cannot be brought to safety, or back.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// What was written did not reach the disk.
    #[error("cannot write {} through: {source}", path.display())]
    Sync {
        /// The partition.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is left cannot be looked at.
    #[error("cannot look at what is left on {}: {source}", path.display())]
    Look {
        /// The partition.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A copy of the old header cannot be destroyed.
    #[error("cannot destroy the copy of the header {}: {source}", path.display())]
    Copy {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Changes cannot be taken back. Everybody sees this of a job, and paths on the overlay are not for everybody.
    #[error("a change cannot be taken back; `journalctl --boot` says which, and why")]
    Revert,
    /// A configuration.
    #[error(transparent)]
    Configuration(ConfigurationError),
    /// The same as for [`StepError::Revert`].
    #[error("the changes cannot be copied; `journalctl --boot` says which, and why")]
    CopyChanges,
    /// The job does not say which configuration it is about.
    #[error("the job does not say which configuration it is about")]
    NoConfiguration,
    /// Nothing is there to open the volume with.
    #[error("nothing opens the overlay's volume")]
    NoKey,
    /// Something is left.
    #[error("something of the old is left: {0}")]
    Left(Audit),
}

/// What a step works on: a disk of which nothing is open but the root.
pub struct Work<'a> {
    /// The disk.
    pub disk: &'a Disk,
    /// What opens a volume that is made.
    pub secret: &'a Secret,
    /// What opens the overlay's volume that there is, by which key slot, if it is another.
    pub unlock: Option<(&'a Key, KeyslotId)>,
    /// Where the read-only root is mounted.
    pub lower: &'a Path,
    /// Its root hash.
    pub root_hash: RootHash,
    /// Where `p.lxstate` is mounted.
    pub state: &'a Path,
    /// A folder to mount in.
    pub scratch: &'a Path,
}

/// Carries out one step of a job; when it returns, what it wrote is on the disk.
///
/// `progress` is called with bytes done and bytes in all.
pub fn carry_out(
    step: Step,
    job: &Job,
    work: &Work<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Outcome, StepError> {
    let place = |partition| work.disk.partition(partition, APPEAR);
    let Work { secret, scratch, .. } = *work;
    match step {
        Step::Survey => return Ok(Outcome::Surveyed(survey::survey(work.disk))),
        Step::StageKept => match job.keep_all {
            Some(on) => everything::fill(on, work, progress)?,
            None => stage::fill(work, &job.keep)?,
        },
        Step::DestroyKeys => {
            let no_copy = destroy_backup(work.state);
            no_copy.map_err(|source| StepError::Copy { path: work.state.join(BACKUP), source })?;
            overlay::destroy_keys(&place(Partition::Root)?)?;
        }
        Step::CreateVolume => {
            let partition = place(Partition::Root)?;
            let volume = overlay::create_volume(&partition, secret, progress)?;
            write_through(&partition)?;
            return Ok(Outcome::Volume(volume));
        }
        Step::TakeOver => {
            let partition = place(Partition::Root)?;
            let volume = overlay::take_over(&partition, secret, scratch)?;
            write_through(&partition)?;
            return Ok(Outcome::Volume(volume));
        }
        Step::CreateOverlay => overlay::create_overlay(&place(Partition::Root)?, secret, scratch)?,
        Step::FormatOciStorage => mkfs::xfs(&place(Partition::OciStorage)?, "oci-storage")?,
        Step::FormatHome => mkfs::ext4(&place(Partition::Home)?, "home")?,
        Step::RestoreKept => match job.keep_all {
            Some(on) => everything::restore(on, work, progress)?,
            None => stage::restore(work, &job.keep)?,
        },
        Step::DestroyStage => stage::at(waits_on(job), work, stage::destroy)?,
        Step::Audit => return audit(job, work),
        Step::Revert => {
            let unlock = work.unlock.ok_or(StepError::NoKey)?;
            let reverted = revert(&place(Partition::Root)?, unlock, work.lower, &job.paths, scratch);
            reverted.map_err(|error| {
                warn!("{error}");
                StepError::Revert
            })?;
        }
        Step::Save | Step::Apply | Step::GoBack => {
            let unlock = work.unlock.ok_or(StepError::NoKey)?;
            overlay::with_file_system(&place(Partition::Root)?, unlock, scratch, |volume| {
                switch(step, job, work, volume)
            })?;
        }
    }
    if let Some(partition) = step.erases() {
        write_through(&place(partition)?)?;
    }
    Ok(Outcome::Done)
}

/// Saves, applies or goes back on the volume that is mounted there.
fn switch(step: Step, job: &Job, work: &Work<'_>, volume: &Path) -> Result<(), StepError> {
    let name = || job.configuration.as_ref().ok_or(StepError::NoConfiguration);
    let done = match step {
        Step::Save => {
            let (name, image) = (name()?, image(work.lower));
            let about = About::new(image, work.root_hash, job.requested_at, Some(job.id));
            // What is saved knows what it was made on, which may be an older image than the one that saves it.
            let noted = shadow::note_image(volume, work.lower, work.root_hash).map_err(ConfigurationError::from);
            noted.and_then(|_| configuration::save(volume, work.lower, name, job.replace, &about))
        }
        Step::Apply => configuration::apply(volume, work.lower, name()?, job.id, job.within.is_some()),
        _ => configuration::go_back(volume, job.applied.ok_or(StepError::NoConfiguration)?),
    };
    done.map_err(|error| match error {
        ConfigurationError::Copy(_) | ConfigurationError::Base(_) => {
            warn!("{error}");
            StepError::CopyChanges
        }
        error => StepError::Configuration(error),
    })
}

/// The partition that what a job keeps waits on.
fn waits_on(job: &Job) -> Partition {
    job.keep_all.unwrap_or(Partition::State)
}

fn write_through(partition: &Path) -> Result<(), StepError> {
    let synced = File::open(partition).and_then(|device| device.sync_all());
    synced.map_err(|source| StepError::Sync { path: partition.to_owned(), source })
}

/// Reads past every cache what is on the disk now, and compares it with what was there.
fn audit(job: &Job, work: &Work<'_>) -> Result<Outcome, StepError> {
    let survey = job.survey.clone().unwrap_or_default();
    let is_stage_there = stage::at(waits_on(job), work, |stage| Ok(stage.symlink_metadata().is_ok()))?;
    let found = survey::find(work.disk, &survey, is_stage_there)?;
    let erased = match job.kind {
        Kind::Reset { scope } => Scope::erased(scope),
        _ => &[],
    };
    let erased: Vec<Partition> = erased.iter().map(|(partition, _)| *partition).collect();
    let audit = Audit::new(&survey, &found, &erased);
    if audit.passed() { Ok(Outcome::Audited(audit)) } else { Err(StepError::Left(audit)) }
}
