//! Carries out what the device was asked, or what its first boot needs.

use std::path::Path;
use std::time::Duration;

use nemos_host::job::new_id;
use nemos_host::keys::{Unlocked, read_key_file};
use nemos_host::overlay;
use nemos_host::partitions::Disk;
use nemos_host::reset::{Work, carry_out as carry_out_step, destroy_stage};
use nemos_host::state::{StateError, Store};
use nemos_host::time::now;
use nemos_model::JobId;
use nemos_model::boot::Reason;
use nemos_model::integrity::RootHash;
use nemos_model::job::{Job, JobState, Kind};
use nemos_model::keys::{DEMO_KEY_FILE, Identity};
use nemos_model::overlay::{Mode, Trial, Tried};
use nemos_model::partitions::Partition;
use nemos_model::reset::Step;
use nemos_model::reset::keep::WAITING_PLACES;
use nemos_model::state::{AtBoot, DeviceState, NotTaken, Outcome, Volume};
use thiserror::Error;
use tracing::{error, info, warn};

use crate::bound;
use crate::unlock::unlock;

/// How long the partition may take to appear.
const APPEAR: Duration = Duration::from_secs(10);
/// A folder to mount on while a file system is made.
const SCRATCH: &str = "/run/nemos/scratch";

/// What was done, and what is known of the volume after it.
pub struct Done {
    /// The job that was carried out, or tried.
    pub job: Option<JobId>,
    /// The overlay's volume; `None` if the state does not say.
    pub volume: Option<Volume>,
    /// Where changes to the root are to go.
    pub mode: Mode,
    /// What nobody has confirmed, and this boot went back from.
    pub went_back: Option<Tried>,
    /// What this boot has to be confirmed for.
    pub trial: Option<Trial>,
    /// Whether somebody may still need kept data that waits.
    pub needs_stage: bool,
    /// What went wrong.
    pub degraded: Vec<Reason>,
}

impl Done {
    /// Nothing was done, for this reason.
    pub fn nothing(reason: Reason) -> Self {
        Done {
            job: None,
            volume: None,
            mode: Mode::Persistent,
            went_back: None,
            trial: None,
            needs_stage: true,
            degraded: vec![reason],
        }
    }
}

/// Why a job was left in the middle. What was done is done, but not recorded: the next boot repeats that step.
#[derive(Debug, Error)]
enum Interrupted {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    NotTaken(#[from] NotTaken),
}

/// What this boot works with.
pub struct Place<'a> {
    /// The disk that was booted.
    pub disk: &'a Disk,
    /// Where the read-only root is mounted.
    pub lower: &'a Path,
    /// Its root hash.
    pub root_hash: RootHash,
    /// Where `p.lxstate` is mounted.
    pub state: &'a Path,
}

/// Carries out the pending job, if there is one and it is due: step by step, each recorded before the next begins.
///
/// `command_line_asks` says that whoever boots asks for a factory reset.
pub fn carry_out(store: &Store, place: &Place<'_>, command_line_asks: bool) -> Done {
    let mut state = match store.read() {
        Ok(state) => state,
        Err(error) => return Done::nothing(Reason::StateUnreadable { error: error.to_string() }),
    };
    let mut job = None;
    let tried = state.trial().filter(|trial| trial.running).map(|trial| trial.tried.clone());
    let failed = begin(store, &mut state, command_line_asks).and_then(|begun| {
        if !state.needs_stage() {
            drop_stage(place.state, Partition::State);
        }
        match begun {
            AtBoot::Nothing => Ok(None),
            AtBoot::GivenUp(id) => {
                job = Some(id);
                Ok(state.job(id).and_then(given_up))
            }
            AtBoot::CarryOut(id) => {
                job = Some(id);
                do_steps(id, store, place, &mut state)
            }
        }
    });
    let reason = failed.unwrap_or_else(|error| Some(Reason::StateUnreadable { error: error.to_string() }));
    let is_way_back = |job: &Job| job.kind == Kind::GoBack && job.state == JobState::Done;
    let left = tried.filter(|_| job.and_then(|id| state.job(id)).is_some_and(is_way_back));
    let (mode, left_mode) = mode_of_this_boot(store, &mut state);
    let went_back = left.or(left_mode);
    Done {
        job,
        volume: Some(state.volume),
        mode,
        // A boot that goes back has nothing to confirm, even if that could not be written down.
        trial: if went_back.is_none() { state.running_trial().cloned() } else { None },
        went_back,
        needs_stage: state.needs_stage(),
        degraded: reason.into_iter().collect(),
    }
}

/// The mode of this boot, and the one that it goes back from. What was asked for this boot alone is forgotten before it takes
/// effect, and so is what nobody has confirmed: it must not last because of a power cut.
fn mode_of_this_boot(store: &Store, state: &mut DeviceState) -> (Mode, Option<Tried>) {
    let before = state.clone();
    let (mode, left) = state.begin_mode();
    if *state != before
        && let Err(error) = store.write(state)
    {
        warn!("mode {mode} was asked for to end with this boot, and is not taken, for it would last: {error}");
        *state = before;
        return (state.lasting_mode(), left);
    }
    (mode, left)
}

fn begin(store: &Store, state: &mut DeviceState, command_line_asks: bool) -> Result<AtBoot, Interrupted> {
    let begun = state.begin_at_boot(new_id(), command_line_asks, now()).map_err(NotTaken::from)?;
    if begun == AtBoot::Nothing {
        return Ok(begun);
    }
    let is_way_back = state.pending().is_some_and(|job| job.kind == Kind::GoBack);
    match store.write(state) {
        // It does no harm to go back twice, and not to go back at all may be the end.
        Err(error) if is_way_back => error!("that this boot goes back cannot be written down: {error}"),
        written => written?,
    }
    Ok(begun)
}

/// What a job was to keep that was given up for good must not lie around, on none of the partitions that are mounted there.
pub fn drop_unneeded_stages(sysroot: &Path) {
    let places = WAITING_PLACES.into_iter().filter_map(|partition| Some((partition, partition.mount_point()?)));
    for (partition, place) in places {
        drop_stage(&sysroot.join(place.trim_start_matches('/')), partition);
    }
}

fn drop_stage(folder: &Path, partition: Partition) {
    if let Err(error) = destroy_stage(folder, partition) {
        warn!("kept data that nobody waits for any more is still there: {error}");
    }
}

/// Why a job was given up before this boot could go on with it.
fn given_up(job: &Job) -> Option<Reason> {
    let last = job.attempts.last()?;
    Some(Reason::JobFailed { job: job.id, step: last.step, error: last.error.clone(), retry: false })
}

/// Gives the reason if a step failed.
fn do_steps(
    id: JobId,
    store: &Store,
    place: &Place<'_>,
    state: &mut DeviceState,
) -> Result<Option<Reason>, Interrupted> {
    while let Some((job, step)) = state.job(id).and_then(|job| Some((job, job.next_step()?))) {
        info!("job {id}: {step}");
        match one_step(step, job, place, state.volume) {
            Ok(outcome) => state.step_done(id, outcome, now())?,
            Err(error) => {
                state.attempt_failed(id, error.clone(), now())?;
                store.write(state)?;
                let retry = state.pending().is_some();
                return Ok(Some(Reason::JobFailed { job: id, step, error, retry }));
            }
        }
        store.write(state)?;
    }
    info!("job {id}: done");
    Ok(None)
}

/// Which volume there is.
fn identity(disk: &Disk) -> Result<Identity, String> {
    let partition = disk.partition(Partition::Root, APPEAR).map_err(|error| error.to_string())?;
    overlay::identity(&partition).map_err(|error| error.to_string())
}

/// Finds a key for the volume that there is, if it is this device's.
fn unlock_old(disk: &Disk, lower: &Path, volume: Volume) -> Result<Unlocked, String> {
    let partition = disk.partition(Partition::Root, APPEAR).map_err(|error| error.to_string())?;
    let found = identity(disk)?;
    bound::check(&found, Some(volume)).map_err(|reason| reason.to_string())?;
    unlock(&partition, lower).map(|(unlocked, _)| unlocked)
}

fn one_step(step: Step, job: &Job, place: &Place<'_>, volume: Volume) -> Result<Outcome, String> {
    let secret = read_key_file(Path::new(DEMO_KEY_FILE)).map_err(|error| error.to_string())?;
    let mut last_tenth = 0;
    let mut progress = |bytes: u64, all: u64| {
        let tenth = bytes * 10 / all.max(1);
        if tenth > last_tenth {
            last_tenth = tenth;
            info!("{step}: {} of {} MiB", bytes >> 20, all >> 20);
        }
    };
    let Place { disk, lower, root_hash, state } = *place;
    // The volume that there is may have other keys than one that is made.
    let unlocked = if step.opens_volume() { Some(unlock_old(disk, lower, volume)?) } else { None };
    let unlock = unlocked.as_ref().map(|unlocked| (&unlocked.key, unlocked.slot));
    let work = Work { disk, secret: &secret, unlock, lower, root_hash, state, scratch: Path::new(SCRATCH) };
    if step == Step::TakeOver {
        // Before it is opened: what the state calls the image's own may be somebody else's.
        bound::check(&identity(disk)?, None).map_err(|reason| reason.to_string())?;
    }
    let outcome = carry_out_step(step, job, &work, &mut progress).map_err(|error| error.to_string())?;
    if let Outcome::Volume(made) = &outcome {
        bound::bind_new(made)?;
    }
    Ok(outcome)
}
