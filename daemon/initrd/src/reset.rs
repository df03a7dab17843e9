//! Carries out what the device was asked, or what its first boot needs.

use std::path::Path;

use nemos_host::job::new_id;
use nemos_host::keys::read_key_file;
use nemos_host::partitions::Disk;
use nemos_host::state::{StateError, Store};
use nemos_host::time::now;
use nemos_model::JobId;
use nemos_model::boot::Reason;
use nemos_model::job::Job;
use nemos_model::keys::DEMO_KEY_FILE;
use nemos_model::reset::Step;
use nemos_model::state::{DeviceState, NotTaken, Volume};
use thiserror::Error;
use tracing::info;
use uuid::Uuid;

/// A folder to mount on while a file system is made.
const SCRATCH: &str = "/run/nemos/scratch";

/// What was done, and what is known of the volume after it.
pub struct Done {
    /// The job that was carried out, or tried.
    pub job: Option<JobId>,
    /// The overlay's volume; `None` if the state does not say.
    pub volume: Option<Volume>,
    /// What went wrong.
    pub degraded: Vec<Reason>,
}

impl Done {
    /// Nothing was done, for this reason.
    pub fn nothing(reason: Reason) -> Self {
        Done { job: None, volume: None, degraded: vec![reason] }
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

/// Carries out the pending job, if there is one and it is due: step by step, each recorded before the next begins.
pub fn carry_out(store: &Store, disk: &Disk) -> Done {
    let mut state = match store.read() {
        Ok(state) => state,
        Err(error) => return Done::nothing(Reason::StateUnreadable { error: error.to_string() }),
    };
    let mut job = None;
    let failed = begin(store, &mut state).and_then(|begun| {
        job = begun;
        begun.map_or(Ok(None), |id| do_steps(id, store, disk, &mut state))
    });
    let reason = failed.unwrap_or_else(|error| Some(Reason::StateUnreadable { error: error.to_string() }));
    Done { job, volume: Some(state.volume), degraded: reason.into_iter().collect() }
}

fn begin(store: &Store, state: &mut DeviceState) -> Result<Option<JobId>, Interrupted> {
    let begun = state.begin_at_boot(new_id(), now()).map_err(NotTaken::from)?;
    if begun.is_some() {
        store.write(state)?;
    }
    Ok(begun)
}

/// Gives the reason if a step failed.
fn do_steps(id: JobId, store: &Store, disk: &Disk, state: &mut DeviceState) -> Result<Option<Reason>, Interrupted> {
    while let Some(step) = state.job(id).and_then(Job::next_step) {
        info!("job {id}: {step}");
        match one_step(step, disk) {
            Ok(volume) => state.step_done(id, volume, now())?,
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

fn one_step(step: Step, disk: &Disk) -> Result<Option<Uuid>, String> {
    let secret = read_key_file(Path::new(DEMO_KEY_FILE)).map_err(|error| error.to_string())?;
    let mut last_tenth = 0;
    let mut progress = |bytes: u64, all: u64| {
        let tenth = bytes * 10 / all.max(1);
        if tenth > last_tenth {
            last_tenth = tenth;
            info!("{step}: {} of {} MiB", bytes >> 20, all >> 20);
        }
    };
    nemos_host::reset::carry_out(step, disk, &secret, Path::new(SCRATCH), &mut progress)
        .map_err(|error| error.to_string())
}
