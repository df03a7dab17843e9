//! What the device remembers about itself across boots and resets: the contents of `state.json` on `p.lxstate`.
//!
//! One document, replaced whole: whatever moment the power goes, the device finds either the state before a change
//! or the state after it.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::job::{Job, JobId, JobState, Kind, MAX_TEXT, Refused, Requester};
use crate::reset::audit::{Audit, Survey};
use crate::reset::{KeptPath, Scope, Step};
use crate::time::Timestamp;

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
    /// This device made it.
    Provisioned {
        /// Its LUKS UUID.
        uuid: Uuid,
    },
    /// A reset destroyed it and has not made the next one yet.
    Erased,
}

impl Volume {
    /// Whether a volume with this LUKS UUID is the one that this device made.
    pub fn is(self, found: Uuid) -> bool {
        matches!(self, Volume::Provisioned { uuid } if uuid == found)
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

/// What a caller asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub scope: Scope,
    /// What to keep, as [`keep::decide`](crate::reset::keep::decide) decided.
    pub keep: Vec<KeptPath>,
    /// Name of the plan that says what will be done.
    pub plan: Option<Uuid>,
    /// Who asks.
    pub by: Requester,
    /// Idempotency key.
    pub key: Option<String>,
    /// Not to begin before this.
    pub not_before: Option<Timestamp>,
    /// Reboot by itself when it is due.
    pub reboot: bool,
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotTaken {
    /// Another job has not ended.
    #[error("job {0} has not ended; wait for it, or cancel it first")]
    Busy(JobId),
    /// An earlier reset was given up in the middle, and what it was to keep is nowhere else.
    #[error(
        "job {0} was given up with kept data that waits to be copied back; try it again (`nemosctl job retry {0}`), or give that data up (`nemosctl job cancel {0}`)"
    )]
    KeptDataWaits(JobId),
    /// Something was done to the device since.
    #[error("job {0} is not the latest: the device is not any more what it left")]
    NotTheLatest(JobId),
    /// A text is empty, too long, or not printable.
    #[error("the {0} must be 1 to {MAX_TEXT} bytes of printable text")]
    Text(&'static str),
    /// There is no such job.
    #[error("there is no job {0}")]
    NoSuchJob(JobId),
    /// The job's state does not allow it.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// Whether a request made a job, or found the one it made before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// A new job.
    New(JobId),
    /// The job that was made for the same idempotency key.
    Known(JobId),
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
    /// [`Step::CreateVolume`] made a volume with this LUKS UUID.
    Volume(Uuid),
    /// [`Step::Survey`] saw this.
    Surveyed(Survey),
    /// [`Step::Audit`] found this, and it is as it should be.
    Audited(Audit),
}

impl DeviceState {
    /// The state that an image is shipped with.
    pub fn shipped() -> Self {
        DeviceState { version: VERSION, volume: Volume::NeverProvisioned, jobs: Vec::new() }
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

    /// Takes a request; `id` names the job if a new one is made.
    pub fn request(&mut self, request: Request, id: JobId, now: Timestamp) -> Result<Taken, NotTaken> {
        check_text("idempotency key", request.key.as_deref())?;
        check_text("label", request.by.label.as_deref())?;
        let known = |job: &&Job| request.key.is_some() && job.key == request.key;
        if let Some(job) = self.jobs.iter().find(known) {
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
        self.push(Job {
            keep: request.keep,
            plan: request.plan,
            not_before: request.not_before,
            reboot: request.reboot,
            key: request.key,
            ..Job::new(id, Kind::Reset { scope: request.scope }, state, request.by, now)
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
        let job = self.job_mut(id)?;
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
    /// `id` names the job that this makes, if it does: the provisioning at the first boot, or the factory reset that the
    /// kernel's command line asks for. What was begun or asked for before goes first. A provisioning that was given up
    /// is not begun again by itself: a device that keeps failing must still come up, and a reset repairs it.
    pub fn begin_at_boot(&mut self, id: JobId, command_line_asks: bool, now: Timestamp) -> Result<AtBoot, Refused> {
        self.become_due(now);
        let waits = self.pending().is_some_and(|job| job.state != JobState::Queued);
        let gave_up = self.jobs.last().is_some_and(|job| job.state == JobState::Failed);
        if self.pending().is_none() && self.volume == Volume::NeverProvisioned && !gave_up {
            self.push(Job::new(id, Kind::Provision, JobState::WaitingForReboot, Requester::image(), now));
        } else if !waits && command_line_asks && !self.needs_stage() {
            // It takes away what a request for later could.
            if let Some(later) = self.jobs.iter_mut().find(|job| job.state == JobState::Queued) {
                later.cancel(now)?;
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

    /// Records that the next step of the running job is done, and what it has brought.
    pub fn step_done(&mut self, id: JobId, outcome: Outcome, now: Timestamp) -> Result<(), NotTaken> {
        let job = self.job_mut(id)?;
        let step = job.next_step();
        job.step_done(now)?;
        match outcome {
            Outcome::Surveyed(survey) => job.survey = Some(survey),
            Outcome::Audited(audit) => job.audit = Some(audit),
            Outcome::Volume(uuid) => self.volume = Volume::Provisioned { uuid },
            Outcome::Done if step == Some(Step::DestroyKeys) => self.volume = Volume::Erased,
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

fn check_text(what: &'static str, text: Option<&str>) -> Result<(), NotTaken> {
    match text {
        Some(text) if text.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control) => {
            Err(NotTaken::Text(what))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::MAX_INTERRUPTIONS;
    use proptest::prelude::*;

    fn somebody() -> Requester {
        Requester { uid: 1000, user: Some("admin".into()), process: None, label: None }
    }

    fn factory() -> Request {
        Request {
            scope: Scope::Factory,
            keep: Vec::new(),
            plan: None,
            by: somebody(),
            key: None,
            not_before: None,
            reboot: false,
        }
    }

    fn id(n: u128) -> JobId {
        JobId::from_random(n)
    }

    fn provisioned() -> DeviceState {
        DeviceState { volume: Volume::Provisioned { uuid: Uuid::from_u128(7) }, ..DeviceState::shipped() }
    }

    fn keeping() -> Request {
        Request { keep: vec!["/etc/hostname".parse().unwrap()], ..factory() }
    }

    /// Carries out the next step of the job, as the initrd does.
    fn do_step(state: &mut DeviceState, job: JobId) {
        let outcome = match state.job(job).unwrap().next_step().unwrap() {
            Step::Survey => Outcome::Surveyed(Survey::default()),
            Step::CreateVolume => Outcome::Volume(Uuid::from_u128(8)),
            Step::Audit => Outcome::Audited(Audit { checks: Vec::new() }),
            _ => Outcome::Done,
        };
        state.step_done(job, outcome, Timestamp(9)).unwrap();
    }

    fn finish(state: &mut DeviceState, job: JobId) {
        while state.job(job).unwrap().next_step().is_some() {
            do_step(state, job);
        }
    }

    /// Carries out the job up to that step.
    fn reach(state: &mut DeviceState, job: JobId, step: Step) {
        while state.job(job).unwrap().next_step() != Some(step) {
            do_step(state, job);
        }
    }

    /// What a boot begins with.
    fn boots(state: &mut DeviceState, now: u64) -> AtBoot {
        state.begin_at_boot(id(1000 + u128::from(now)), false, Timestamp(now)).unwrap()
    }

    /// Boots until the job is given up at its next step.
    fn fails(state: &mut DeviceState, job: JobId) {
        for _ in 0..3 {
            if state.job(job).unwrap().state != JobState::Running {
                assert_eq!(boots(state, 2), AtBoot::CarryOut(job));
            }
            state.attempt_failed(job, "broken".into(), Timestamp(3)).unwrap();
        }
        assert_eq!(state.job(job).unwrap().state, JobState::Failed);
    }

    #[test]
    fn the_first_boot_provisions_and_the_second_has_nothing_to_do() {
        let mut state = DeviceState::shipped();
        let AtBoot::CarryOut(job) = boots(&mut state, 1) else { panic!("there is nothing to do") };
        assert_eq!(state.job(job).unwrap().kind, Kind::Provision);
        finish(&mut state, job);
        assert_eq!(state.job(job).unwrap().state, JobState::Done);
        assert_eq!(boots(&mut state, 2), AtBoot::Nothing);
        assert!(matches!(state.volume, Volume::Provisioned { .. }));
    }

    #[test]
    fn a_device_that_was_not_asked_erases_nothing() {
        assert_eq!(boots(&mut provisioned(), 1), AtBoot::Nothing);
    }

    #[test]
    fn a_second_request_is_told_of_the_first() {
        let mut state = provisioned();
        state.request(factory(), id(1), Timestamp(1)).unwrap();
        assert_eq!(state.request(factory(), id(2), Timestamp(2)), Err(NotTaken::Busy(id(1))));
    }

    #[test]
    fn the_same_idempotency_key_gives_the_same_job_even_after_it_ended() {
        let mut state = provisioned();
        let request = Request { key: Some("ticket-17".into()), ..factory() };
        assert_eq!(state.request(request.clone(), id(1), Timestamp(1)), Ok(Taken::New(id(1))));
        assert_eq!(state.request(request.clone(), id(2), Timestamp(2)), Ok(Taken::Known(id(1))));
        assert_eq!(boots(&mut state, 3), AtBoot::CarryOut(id(1)));
        finish(&mut state, id(1));
        assert_eq!(state.request(request, id(4), Timestamp(4)), Ok(Taken::Known(id(1))));
    }

    #[test]
    fn a_request_for_later_waits_for_its_time() {
        let mut state = provisioned();
        let request = Request { not_before: Some(Timestamp(100)), ..factory() };
        state.request(request, id(1), Timestamp(1)).unwrap();
        assert_eq!(boots(&mut state, 99), AtBoot::Nothing);
        assert_eq!(boots(&mut state, 100), AtBoot::CarryOut(id(1)));
    }

    #[test]
    fn a_queued_job_becomes_due_while_the_system_runs() {
        let mut state = provisioned();
        let request = Request { not_before: Some(Timestamp(100)), reboot: true, ..factory() };
        state.request(request, id(1), Timestamp(1)).unwrap();
        assert_eq!(state.become_due(Timestamp(99)), None);
        let job = state.become_due(Timestamp(100)).expect("its time has come");
        assert_eq!((job.state, job.reboot), (JobState::WaitingForReboot, true));
        assert_eq!(state.become_due(Timestamp(101)), None, "once is enough");
    }

    #[test]
    fn the_command_line_asks_for_a_reset_and_what_was_asked_before_goes_first() {
        let asked = |state: &mut DeviceState| state.begin_at_boot(id(9), true, Timestamp(50)).unwrap();
        let mut state = provisioned();
        assert_eq!(asked(&mut state), AtBoot::CarryOut(id(9)));
        assert_eq!(asked(&mut state), AtBoot::CarryOut(id(9)), "the power went, and it goes on with the same one");
        assert_eq!(state.job(id(9)).unwrap().kind, Kind::Reset { scope: Scope::Factory });

        let mut state = provisioned();
        state.request(keeping(), id(1), Timestamp(1)).unwrap();
        assert_eq!(asked(&mut state), AtBoot::CarryOut(id(1)));

        let mut state = provisioned();
        state.request(Request { not_before: Some(Timestamp(100)), ..factory() }, id(1), Timestamp(1)).unwrap();
        assert_eq!(asked(&mut state), AtBoot::CarryOut(id(9)));
        assert_eq!(state.job(id(1)).unwrap().state, JobState::Cancelled);
    }

    #[test]
    fn history_holds_resets_that_ended() {
        let mut state = provisioned();
        state.request(factory(), id(2), Timestamp(10)).unwrap();
        assert_eq!(state.history().count(), 0);
        state.cancel(id(2), Timestamp(11)).unwrap();
        assert_eq!(state.history().map(|job| job.id).collect::<Vec<_>>(), [id(2)]);
    }

    #[test]
    fn a_step_takes_as_long_as_it_took_when_nothing_came_between() {
        let mut state = DeviceState::shipped();
        assert_eq!(state.expected_duration(&Scope::Factory.steps(false)), None);
        for (job, seconds) in [(1, 1000), (2, 7)] {
            if job == 2 {
                state.request(factory(), id(2), Timestamp(2000)).unwrap();
            }
            let begin = 2000 * u64::from(job == 2);
            state.begin_at_boot(id(job), false, Timestamp(begin)).unwrap();
            reach(&mut state, id(job), Step::CreateVolume);
            let before = state.job(id(job)).unwrap().steps.last().map_or(Timestamp(begin), |done| done.at);
            state.step_done(id(job), Outcome::Volume(Uuid::from_u128(8)), Timestamp(before.0 + seconds)).unwrap();
            finish(&mut state, id(job));
        }
        assert_eq!(state.expected_duration(&[Step::CreateVolume]), Some(7), "once the power was off for a while");
    }

    #[test]
    fn what_was_begun_is_not_cancelled() {
        let mut state = provisioned();
        state.request(factory(), id(1), Timestamp(1)).unwrap();
        boots(&mut state, 2);
        assert!(matches!(state.cancel(id(1), Timestamp(3)), Err(NotTaken::Refused(_))));
    }

    #[test]
    fn after_three_failures_the_device_stops_trying() {
        let mut state = DeviceState::shipped();
        let AtBoot::CarryOut(job) = boots(&mut state, 1) else { panic!("there is nothing to do") };
        fails(&mut state, job);
        assert_eq!(boots(&mut state, 3), AtBoot::Nothing);
        state.request(factory(), id(5), Timestamp(4)).expect("a reset repairs it");
    }

    #[test]
    fn a_job_that_has_erased_nothing_yet_fails_at_once_and_can_be_tried_again() {
        let mut state = provisioned();
        state.request(keeping(), id(1), Timestamp(1)).unwrap();
        boots(&mut state, 2);
        reach(&mut state, id(1), Step::StageKept);
        state.attempt_failed(id(1), "no space".into(), Timestamp(3)).unwrap();
        assert_eq!(state.job(id(1)).unwrap().state, JobState::Failed);
        assert_eq!(boots(&mut state, 4), AtBoot::Nothing);
        state.retry(id(1)).unwrap();
        assert_eq!(boots(&mut state, 5), AtBoot::CarryOut(id(1)));
        assert_eq!(state.job(id(1)).unwrap().next_step(), Some(Step::StageKept), "it goes on where it failed");
    }

    #[test]
    fn a_job_that_failed_once_can_be_taken_back_before_the_next_try() {
        let mut state = provisioned();
        state.request(factory(), id(1), Timestamp(1)).unwrap();
        boots(&mut state, 2);
        reach(&mut state, id(1), Step::FormatHome);
        state.attempt_failed(id(1), "no such device".into(), Timestamp(3)).unwrap();
        assert_eq!(state.job(id(1)).unwrap().state, JobState::WaitingForReboot);
        state.cancel(id(1), Timestamp(4)).unwrap();
        assert_eq!(boots(&mut state, 5), AtBoot::Nothing);
    }

    #[test]
    fn kept_data_that_waits_is_not_lost_to_another_reset() {
        let mut state = provisioned();
        state.request(keeping(), id(1), Timestamp(1)).unwrap();
        boots(&mut state, 2);
        reach(&mut state, id(1), Step::CreateVolume);
        fails(&mut state, id(1));
        assert!(state.needs_stage());
        assert_eq!(state.request(factory(), id(2), Timestamp(4)), Err(NotTaken::KeptDataWaits(id(1))));
        assert_eq!(
            state.begin_at_boot(id(3), true, Timestamp(4)),
            Ok(AtBoot::Nothing),
            "not even for the command line"
        );
        state.cancel(id(1), Timestamp(5)).unwrap();
        assert!(!state.needs_stage());
        state.request(factory(), id(2), Timestamp(6)).unwrap();
    }

    #[test]
    fn only_the_latest_job_is_tried_again() {
        let mut state = provisioned();
        state.request(factory(), id(1), Timestamp(1)).unwrap();
        boots(&mut state, 2);
        reach(&mut state, id(1), Step::CreateVolume);
        fails(&mut state, id(1));
        state.request(factory(), id(2), Timestamp(4)).unwrap();
        assert_eq!(state.retry(id(1)), Err(NotTaken::NotTheLatest(id(1))));
    }

    #[test]
    fn power_cuts_are_no_failures_but_a_step_that_ends_every_boot_is_given_up() {
        let mut state = provisioned();
        state.request(factory(), id(1), Timestamp(1)).unwrap();
        for step in [Step::Survey, Step::DestroyKeys] {
            assert_eq!(state.job(id(1)).unwrap().next_step(), Some(step));
            for boot in 0..MAX_INTERRUPTIONS {
                assert_eq!(boots(&mut state, boot.into()), AtBoot::CarryOut(id(1)));
            }
            do_step(&mut state, id(1));
        }
        for boot in 0..MAX_INTERRUPTIONS {
            boots(&mut state, boot.into());
        }
        assert_eq!(boots(&mut state, 99), AtBoot::GivenUp(id(1)));
        assert_eq!(boots(&mut state, 100), AtBoot::Nothing);
    }

    #[test]
    fn a_document_of_another_version_is_refused() {
        let error = DeviceState::parse(br#"{"version": 2, "something": "new"}"#).unwrap_err();
        assert!(matches!(error, Unreadable::Version(2)));
    }

    #[test]
    fn unprintable_labels_are_refused() {
        for label in [String::new(), "x".repeat(MAX_TEXT + 1), "a\nb".into()] {
            let by = Requester { label: Some(label), ..somebody() };
            let refused = provisioned().request(Request { by, ..factory() }, id(1), Timestamp(1));
            assert_eq!(refused, Err(NotTaken::Text("label")));
        }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Request(Option<String>, Option<u64>),
        Cancel(usize),
        Retry(usize),
        Boot(bool),
        Step,
        Fail,
    }

    fn event() -> impl Strategy<Value = Event> {
        let key = proptest::option::of("[a-c]");
        prop_oneof![
            (key, proptest::option::of(0..50u64)).prop_map(|(key, at)| Event::Request(key, at)),
            (0..8usize).prop_map(Event::Cancel),
            (0..8usize).prop_map(Event::Retry),
            any::<bool>().prop_map(Event::Boot),
            Just(Event::Step),
            Just(Event::Fail),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: the document stays readable, at most one job is open, and a job leaves a
        /// final state only if it failed and somebody asks for that.
        #[test]
        fn any_history_keeps_the_document_sound(events in prop::collection::vec(event(), 0..200)) {
            let mut state = DeviceState::shipped();
            for (now, event) in events.into_iter().enumerate() {
                let now = now as u64;
                let asks = matches!(event, Event::Cancel(_) | Event::Retry(_));
                let ends = |job: &&Job| job.state.is_final() && !(asks && job.state == JobState::Failed);
                let ended: Vec<_> = state.jobs().iter().filter(ends).cloned().collect();
                let (name, at) = (id(u128::from(now)), Timestamp(now));
                match event {
                    Event::Request(key, due) => {
                        let not_before = due.map(Timestamp);
                        let _ = state.request(Request { key, not_before, ..factory() }, name, at);
                    }
                    Event::Cancel(nth) => {
                        if let Some(job) = state.jobs().get(nth).map(|job| job.id) {
                            let _ = state.cancel(job, at);
                        }
                    }
                    Event::Retry(nth) => {
                        if let Some(job) = state.jobs().get(nth).map(|job| job.id) {
                            let _ = state.retry(job);
                        }
                    }
                    Event::Boot(asks) => {
                        state.begin_at_boot(name, asks, at).expect("a boot is never refused");
                    }
                    Event::Step => {
                        if let Some(job) = state.pending().map(|job| job.id) {
                            let _ = state.step_done(job, Outcome::Volume(Uuid::from_u128(now.into())), at);
                        }
                    }
                    Event::Fail => {
                        if let Some(job) = state.pending().map(|job| job.id) {
                            let _ = state.attempt_failed(job, "broken".into(), at);
                        }
                    }
                }
                for job in ended {
                    if let Some(kept) = state.job(job.id) {
                        prop_assert_eq!(kept, &job);
                    }
                }
                prop_assert_eq!(DeviceState::parse(state.to_text().as_bytes()).expect("readable"), state.clone());
            }
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let _ = DeviceState::parse(&bytes);
        }
    }
}
