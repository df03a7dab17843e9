//! What the device remembers about itself across boots and resets: the contents of `state.json` on `p.lxstate`.
//!
//! One document, replaced whole: whatever moment the power goes, the device finds either the state before a change
//! or the state after it.

mod keys;
mod request;
mod trial;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::request::{NotTaken, Request, Taken, Wanted};
use crate::job::{Job, JobId, JobState, Kind, Refused, Requester};
use crate::keys::recovery::Sealed;
use crate::keys::{Change, Identity};
use crate::overlay::{ConfigurationName, Modes, Trial, Tried};
use crate::reset::audit::{Audit, Survey};
use crate::reset::{Keep, Scope, Step};
use crate::time::Timestamp;
use request::check_text;

/// Version of the document that this code writes, and the only one it reads.
pub const VERSION: u32 = 1;

/// Name of the document in the root of `p.lxstate`.
pub const FILE_NAME: &str = "state.json";

/// How many jobs that have ended are remembered.
pub const HISTORY: usize = 64;

/// What is known of the overlay's volume.
///
/// The first boot is told from damage by this fact, never by a header that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Volume {
    /// The image was written, and never booted to the end of its provisioning.
    NeverProvisioned,
    /// The image was written with a volume in it, as Kiwi does, that no device has taken over yet.
    Built,
    /// This device made it.
    Provisioned(Identity),
    /// This device has taken it over from its image: whoever has the image has its volume key.
    TakenOver(Identity),
    /// A reset destroyed it and has not made the next one yet.
    Erased,
}

impl Volume {
    /// Whether a volume is the one that this device made, or took over.
    pub fn is(self, found: &Identity) -> bool {
        matches!(self, Volume::Provisioned(identity) | Volume::TakenOver(identity) if identity.is(found))
    }

    /// What the first boot has to do for it, if that is still to be done.
    const fn first_boot(self) -> Option<Kind> {
        match self {
            Volume::NeverProvisioned => Some(Kind::Provision),
            Volume::Built => Some(Kind::TakeOver),
            Volume::Provisioned(_) | Volume::TakenOver(_) | Volume::Erased => None,
        }
    }
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    version: u32,
    /// The overlay's volume.
    pub volume: Volume,
    /// Jobs, oldest first. At most one has not ended.
    jobs: Vec<Job>,
    /// A change of the key slots that has not come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_change: Option<Change>,
    /// The recovery keys that were made for the fleet, oldest first. Documents of before have one, under another name, and must
    /// stay readable.
    #[serde(default, rename = "sealed_keys", skip_serializing_if = "Vec::is_empty")]
    sealed: Vec<Sealed>,
    /// Where changes to the root are to go.
    #[serde(default, skip_serializing_if = "Modes::is_default")]
    modes: Modes,
    /// The configuration that was applied last.
    #[serde(default = "ConfigurationName::factory", skip_serializing_if = "ConfigurationName::is_factory")]
    configuration: ConfigurationName,
    /// What nobody has confirmed yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trial: Option<Trial>,
}

/// Why a document cannot be used.
#[derive(Debug, Error)]
pub enum Unreadable {
    /// It was written by a newer (or unknown) nemos.
    #[error("it has version {0}, and this nemos knows only version {VERSION}")]
    Version(u64),
    /// It is not what nemos writes.
    #[error("it is not a nemos state document: {0}")]
    Malformed(#[from] serde_json::Error),
    /// It contradicts itself.
    #[error("it holds {0} jobs that have not ended, where one is the most")]
    ManyPending(usize),
}

/// What a boot has to carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtBoot {
    /// Nothing.
    Nothing,
    /// This job, from its next step on.
    CarryOut(JobId),
    /// Nothing any more: boot after boot ended in the middle of this job, and it is given up.
    GivenUp(JobId),
}

/// What a step has brought, that the device has to remember.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing but that it was done.
    Done,
    /// [`Step::CreateVolume`] made, or [`Step::TakeOver`] took over, a volume with this LUKS UUID.
    Volume(Identity),
    /// [`Step::Survey`] saw this.
    Surveyed(Survey),
    /// [`Step::Audit`] found this, and it is as it should be.
    Audited(Audit),
}

impl DeviceState {
    /// The state that an image is shipped with.
    pub fn shipped() -> Self {
        DeviceState {
            version: VERSION,
            volume: Volume::NeverProvisioned,
            jobs: Vec::new(),
            key_change: None,
            sealed: Vec::new(),
            modes: Modes::default(),
            configuration: ConfigurationName::factory(),
            trial: None,
        }
    }

    /// The state that an image is shipped with whose builder has formatted the overlay.
    pub fn shipped_with_volume() -> Self {
        DeviceState { volume: Volume::Built, ..DeviceState::shipped() }
    }

    /// Reads a document.
    pub fn parse(text: &[u8]) -> Result<Self, Unreadable> {
        #[derive(Deserialize)]
        struct Head {
            version: u64,
        }
        let Head { version } = serde_json::from_slice(text)?;
        if version != u64::from(VERSION) {
            return Err(Unreadable::Version(version));
        }
        let state: DeviceState = serde_json::from_slice(text)?;
        match state.jobs.iter().filter(|job| !job.state.is_final()).count() {
            0 | 1 => Ok(state),
            many => Err(Unreadable::ManyPending(many)),
        }
    }

    /// Writes the document: JSON, a newline at its end.
    #[allow(clippy::missing_panics_doc, reason = "it does not panic")]
    pub fn to_text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self)
            .expect("a tree of strings, numbers and lists without maps always serializes");
        text.push('\n');
        text
    }

    /// All jobs that are remembered, oldest first.
    pub fn jobs(&self) -> &[Job] {
        &self.jobs
    }

    /// The job of that name.
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.iter().find(|job| job.id == id)
    }

    /// The one job that has not ended.
    pub fn pending(&self) -> Option<&Job> {
        self.jobs.iter().find(|job| !job.state.is_final())
    }

    /// Resets that have ended, oldest first.
    pub fn history(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter().filter(|job| job.state.is_final() && matches!(job.kind, Kind::Reset { .. }))
    }

    /// How long these steps take, in seconds: each as long as it took here when it was quickest, since a step that was
    /// interrupted has the time in it that the device was off. `None` if none of them was done here before.
    pub fn expected_duration(&self, steps: &[Step]) -> Option<u64> {
        let quickest = |step: &Step| self.jobs.iter().filter_map(|job| job.step_duration(*step)).min();
        steps.iter().filter_map(quickest).reduce(|all, step| all + step)
    }

    /// Whether a job that has not come to its end still needs what waits to be copied back.
    pub fn needs_stage(&self) -> bool {
        self.jobs.last().is_some_and(Job::holds_kept_data)
    }

    /// The job that was made for an idempotency key, if one was. It must have been asked for the same kind of thing.
    pub fn known(&self, key: Option<&str>, kind: Kind) -> Result<Option<&Job>, NotTaken> {
        match self.jobs.iter().find(|job| key.is_some() && job.key.as_deref() == key) {
            Some(job) if job.kind != kind => Err(NotTaken::OtherRequest(job.id)),
            known => Ok(known),
        }
    }

    /// Takes a request; `id` names the job if a new one is made.
    pub fn request(&mut self, request: Request, id: JobId, now: Timestamp) -> Result<Taken, NotTaken> {
        check_text("idempotency key", request.key.as_deref())?;
        check_text("label", request.by.label.as_deref())?;
        if let Some(job) = self.known(request.key.as_deref(), request.wanted.kind())? {
            return Ok(Taken::Known(job.id));
        }
        if let Some(job) = self.pending() {
            return Err(NotTaken::Busy(job.id));
        }
        if let Some(job) = self.jobs.last().filter(|job| job.holds_kept_data()) {
            return Err(NotTaken::KeptDataWaits(job.id));
        }
        let state = match request.not_before {
            Some(due) if due > now => JobState::Queued,
            _ => JobState::WaitingForReboot,
        };
        // A reset takes what is tried with it, if it keeps none of it; anything else would build on what may be gone.
        let takes_it = matches!(&request.wanted, Wanted::Reset { keep: Keep::Paths(_), .. });
        let takes_all = takes_it && state == JobState::WaitingForReboot;
        if let Some(trial) = self.trial.as_ref().filter(|_| !takes_all) {
            return Err(NotTaken::OnTrial(trial.tried.clone()));
        }
        let Request { wanted, by, key, not_before, reboot } = request;
        let job = Job { not_before, reboot, key, ..Job::new(id, wanted.kind(), state, by, now) };
        self.push(match wanted {
            Wanted::Reset { keep: Keep::Paths(keep), plan, .. } => Job { keep, plan, ..job },
            Wanted::Reset { keep: Keep::Everything(on), plan, .. } => Job { keep_all: Some(on), plan, ..job },
            Wanted::Revert { paths } => Job { paths, ..job },
            Wanted::Save { name, replace } => Job { configuration: Some(name), replace, ..job },
            Wanted::Apply { name, within } => Job { configuration: Some(name), within, ..job },
        });
        Ok(Taken::New(id))
    }

    /// Takes a request back.
    pub fn cancel(&mut self, id: JobId, now: Timestamp) -> Result<(), NotTaken> {
        Ok(self.job_mut(id)?.cancel(now)?)
    }

    /// Tries a job again that was given up. Only the latest: what came after it has made the device another.
    pub fn retry(&mut self, id: JobId) -> Result<(), NotTaken> {
        let latest = self.jobs.last().map(|job| job.id);
        let trial = self.trial.as_ref().map(|trial| trial.tried.clone());
        let job = self.job_mut(id)?;
        let takes_it = job.kind == Kind::GoBack || matches!(job.kind, Kind::Reset { .. }) && job.keep_all.is_none();
        if let Some(tried) = trial.filter(|_| !takes_it) {
            return Err(NotTaken::OnTrial(tried));
        }
        if latest == Some(id) { Ok(job.retry()?) } else { Err(NotTaken::NotTheLatest(id)) }
    }

    fn job_mut(&mut self, id: JobId) -> Result<&mut Job, NotTaken> {
        self.jobs.iter_mut().find(|job| job.id == id).ok_or(NotTaken::NoSuchJob(id))
    }

    /// Makes the queued job due if its time has come while the system runs, and gives it back.
    pub fn become_due(&mut self, now: Timestamp) -> Option<&Job> {
        let is_due = |job: &Job| job.state == JobState::Queued && job.not_before.is_none_or(|due| due <= now);
        let job = self.jobs.iter_mut().find(|job| is_due(job))?;
        job.due().ok()?;
        Some(job)
    }

    /// Decides, in the initrd, what this boot has to carry out before the overlay is opened, and begins it.
    ///
    /// `id` names the job that this makes, if it does: what the first boot has to do, or the factory reset that the
    /// kernel's command line asks for. What was begun or asked for before goes first. A first boot's job that was given up
    /// is not begun again by itself: a device that keeps failing must still come up, and a reset repairs it.
    pub fn begin_at_boot(&mut self, id: JobId, command_line_asks: bool, now: Timestamp) -> Result<AtBoot, Refused> {
        self.become_due(now);
        if !command_line_asks {
            self.begin_to_go_back(id, now);
        }
        let goes_first = |job: &Job| match job.kind {
            Kind::Provision | Kind::TakeOver | Kind::Reset { .. } => job.state != JobState::Queued,
            // What has begun is finished.
            Kind::Revert | Kind::Save | Kind::Apply | Kind::GoBack => job.state == JobState::Running,
        };
        let waits = self.pending().is_some_and(goes_first);
        let gave_up = self.jobs.last().is_some_and(|job| job.state == JobState::Failed);
        let first_boot = self.volume.first_boot().filter(|_| self.pending().is_none() && !gave_up);
        if let Some(kind) = first_boot {
            self.push(Job::new(id, kind, JobState::WaitingForReboot, Requester::image(), now));
        } else if !waits && command_line_asks && !self.needs_stage() {
            // It takes away what any other request could.
            if let Some(other) = self.jobs.iter_mut().find(|job| !job.state.is_final()) {
                other.cancel(now)?;
            }
            let kind = Kind::Reset { scope: Scope::Factory };
            self.push(Job::new(id, kind, JobState::WaitingForReboot, Requester::command_line(), now));
        }
        let begins = |job: &&mut Job| !job.state.is_final() && job.state != JobState::Queued;
        let Some(job) = self.jobs.iter_mut().find(begins) else {
            return Ok(AtBoot::Nothing);
        };
        job.begin(now)?;
        Ok(if job.state == JobState::Failed { AtBoot::GivenUp(job.id) } else { AtBoot::CarryOut(job.id) })
    }

    /// A boot begins whose last one nobody confirmed. What was asked for since goes first: a reset takes it all, and a way back
    /// that was given up waits for somebody.
    fn begin_to_go_back(&mut self, id: JobId, now: Timestamp) {
        let Some(Trial { tried: Tried::Configuration { before, applied, .. }, running: true, .. }) = &self.trial else {
            return;
        };
        // Kept data that waits for a reset is nowhere else.
        if self.pending().is_none() && !self.gave_up_the_way_back() && !self.needs_stage() {
            let (configuration, applied) = (Some(before.clone()), Some(*applied));
            let job = Job::new(id, Kind::GoBack, JobState::WaitingForReboot, Requester::image(), now);
            self.push(Job { configuration, applied, ..job });
        }
    }

    /// Records that the next step of the running job is done, and what it has brought.
    pub fn step_done(&mut self, id: JobId, outcome: Outcome, now: Timestamp) -> Result<(), NotTaken> {
        let job = self.job_mut(id)?;
        let step = job.next_step();
        job.step_done(now)?;
        match outcome {
            Outcome::Surveyed(survey) => job.survey = Some(survey),
            Outcome::Audited(audit) => job.audit = Some(audit),
            Outcome::Volume(identity) if step == Some(Step::TakeOver) => self.volume = Volume::TakenOver(identity),
            Outcome::Volume(identity) => self.volume = Volume::Provisioned(identity),
            Outcome::Done if step == Some(Step::DestroyKeys) => {
                let keeps_all = job.keep_all.is_some();
                self.volume = Volume::Erased;
                self.key_change = None;
                self.sealed.clear();
                if !keeps_all {
                    self.modes = Modes::default();
                    self.configuration = ConfigurationName::factory();
                    self.trial = None;
                }
            }
            Outcome::Done if step == Some(Step::Apply) => {
                let (name, within) = (job.configuration.clone(), job.within);
                let name = name.unwrap_or_else(ConfigurationName::factory);
                let before = std::mem::replace(&mut self.configuration, name.clone());
                let tried = Tried::Configuration { name, before, applied: id };
                self.trial = within.map(|within| Trial { tried, within, running: true });
            }
            Outcome::Done if step == Some(Step::GoBack) => {
                self.configuration = job.configuration.clone().unwrap_or_else(ConfigurationName::factory);
                self.trial = None;
            }
            Outcome::Done => {}
        }
        Ok(())
    }

    /// Records that the next step of the running job failed.
    pub fn attempt_failed(&mut self, id: JobId, error: String, now: Timestamp) -> Result<(), NotTaken> {
        Ok(self.job_mut(id)?.attempt_failed(error, now)?)
    }

    fn push(&mut self, job: Job) {
        self.jobs.push(job);
        let excess = self.jobs.len().saturating_sub(HISTORY);
        self.jobs.drain(..excess);
    }
}

#[cfg(test)]
mod tests;
