//! What the device remembers about itself across boots and resets: the contents of `state.json` on `p.lxstate`.
//!
//! One document, replaced whole: whatever moment the power goes, the device finds either the state before a change
//! or the state after it.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::job::{Job, JobId, JobState, Kind, MAX_TEXT, Refused, Requester};
use crate::reset::{Scope, Step};
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

    /// How long the latest job took that was done here, in seconds: the best guess for the next one.
    pub fn last_duration(&self) -> Option<u64> {
        self.jobs.iter().rev().find(|job| job.state == JobState::Done)?.duration()
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
        let state = match request.not_before {
            Some(due) if due > now => JobState::Queued,
            _ => JobState::WaitingForReboot,
        };
        self.push(Job {
            not_before: request.not_before,
            reboot: request.reboot,
            key: request.key,
            ..Job::new(id, Kind::Reset { scope: request.scope }, state, request.by, now)
        });
        Ok(Taken::New(id))
    }

    /// Takes a request back.
    pub fn cancel(&mut self, id: JobId, now: Timestamp) -> Result<(), NotTaken> {
        let job = self.jobs.iter_mut().find(|job| job.id == id).ok_or(NotTaken::NoSuchJob(id))?;
        Ok(job.cancel(now)?)
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
    /// `id` names the provisioning job, if this is the first boot. A provisioning that was given up is not begun
    /// again by itself: a device that keeps failing must still come up, and a reset repairs it.
    pub fn begin_at_boot(&mut self, id: JobId, now: Timestamp) -> Result<Option<JobId>, Refused> {
        let gave_up = self.jobs.last().is_some_and(|job| job.state == JobState::Failed);
        if self.volume == Volume::NeverProvisioned && self.pending().is_none() && !gave_up {
            self.push(Job::new(id, Kind::Provision, JobState::WaitingForReboot, Requester::image(), now));
        }
        let Some(job) = self.jobs.iter_mut().find(|job| !job.state.is_final()) else {
            return Ok(None);
        };
        if job.state == JobState::Queued {
            match job.not_before {
                Some(due) if due > now => return Ok(None),
                _ => job.due()?,
            }
        }
        job.begin(now)?;
        Ok(Some(job.id))
    }

    /// Records that the next step of the running job is done, and what it made of the volume.
    ///
    /// `volume` is the LUKS UUID of the volume that [`Step::CreateVolume`] made.
    pub fn step_done(&mut self, id: JobId, volume: Option<Uuid>, now: Timestamp) -> Result<(), NotTaken> {
        let job = self.jobs.iter_mut().find(|job| job.id == id).ok_or(NotTaken::NoSuchJob(id))?;
        let step = job.next_step();
        job.step_done(now)?;
        match (step, volume) {
            (Some(Step::DestroyKeys), _) => self.volume = Volume::Erased,
            (Some(Step::CreateVolume), Some(uuid)) => self.volume = Volume::Provisioned { uuid },
            _ => {}
        }
        Ok(())
    }

    /// Records that the next step of the running job failed.
    pub fn attempt_failed(&mut self, id: JobId, error: String, now: Timestamp) -> Result<(), NotTaken> {
        let job = self.jobs.iter_mut().find(|job| job.id == id).ok_or(NotTaken::NoSuchJob(id))?;
        Ok(job.attempt_failed(error, now)?)
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
    use proptest::prelude::*;

    fn somebody() -> Requester {
        Requester { uid: 1000, user: Some("admin".into()), process: None, label: None }
    }

    fn factory() -> Request {
        Request { scope: Scope::Factory, by: somebody(), key: None, not_before: None, reboot: false }
    }

    fn id(n: u128) -> JobId {
        JobId::from_random(n)
    }

    fn provisioned() -> DeviceState {
        DeviceState { volume: Volume::Provisioned { uuid: Uuid::from_u128(7) }, ..DeviceState::shipped() }
    }

    /// Carries out all steps of the job, as the initrd does.
    fn finish(state: &mut DeviceState, job: JobId) {
        while state.job(job).unwrap().next_step().is_some() {
            state.step_done(job, Some(Uuid::from_u128(8)), Timestamp(9)).unwrap();
        }
    }

    #[test]
    fn the_first_boot_provisions_and_the_second_has_nothing_to_do() {
        let mut state = DeviceState::shipped();
        let job = state.begin_at_boot(id(1), Timestamp(1)).unwrap().expect("a job");
        assert_eq!(state.job(job).unwrap().kind, Kind::Provision);
        finish(&mut state, job);
        assert_eq!(state.job(job).unwrap().state, JobState::Done);
        assert_eq!(state.begin_at_boot(id(2), Timestamp(2)), Ok(None));
        assert!(matches!(state.volume, Volume::Provisioned { .. }));
    }

    #[test]
    fn a_device_that_was_not_asked_erases_nothing() {
        assert_eq!(provisioned().begin_at_boot(id(1), Timestamp(1)), Ok(None));
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
        let job = state.begin_at_boot(id(3), Timestamp(3)).unwrap().unwrap();
        finish(&mut state, job);
        assert_eq!(state.request(request, id(4), Timestamp(4)), Ok(Taken::Known(id(1))));
    }

    #[test]
    fn a_request_for_later_waits_for_its_time() {
        let mut state = provisioned();
        let request = Request { not_before: Some(Timestamp(100)), ..factory() };
        state.request(request, id(1), Timestamp(1)).unwrap();
        assert_eq!(state.begin_at_boot(id(2), Timestamp(99)), Ok(None));
        assert_eq!(state.begin_at_boot(id(3), Timestamp(100)), Ok(Some(id(1))));
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
    fn history_holds_resets_that_ended_and_how_long_the_last_took() {
        let mut state = DeviceState::shipped();
        let first_boot = state.begin_at_boot(id(1), Timestamp(1)).unwrap().unwrap();
        finish(&mut state, first_boot);
        assert_eq!(state.last_duration(), Some(8));
        state.request(factory(), id(2), Timestamp(10)).unwrap();
        assert_eq!(state.history().count(), 0);
        state.cancel(id(2), Timestamp(11)).unwrap();
        assert_eq!(state.history().map(|job| job.id).collect::<Vec<_>>(), [id(2)]);
    }

    #[test]
    fn what_was_begun_is_not_cancelled() {
        let mut state = provisioned();
        state.request(factory(), id(1), Timestamp(1)).unwrap();
        state.begin_at_boot(id(2), Timestamp(2)).unwrap();
        assert!(matches!(state.cancel(id(1), Timestamp(3)), Err(NotTaken::Refused(_))));
    }

    #[test]
    fn after_three_failures_the_device_stops_trying() {
        let mut state = DeviceState::shipped();
        for boot in 1..=3 {
            let job = state.begin_at_boot(id(boot), Timestamp(1)).unwrap().expect("tries left");
            state.attempt_failed(job, "no space".into(), Timestamp(2)).unwrap();
        }
        assert_eq!(state.begin_at_boot(id(4), Timestamp(3)), Ok(None));
        assert_eq!(state.jobs().last().unwrap().state, JobState::Failed);
        state.request(factory(), id(5), Timestamp(4)).expect("a reset repairs it");
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
        Boot,
        Step,
        Fail,
    }

    fn event() -> impl Strategy<Value = Event> {
        let key = proptest::option::of("[a-c]");
        prop_oneof![
            (key, proptest::option::of(0..50u64)).prop_map(|(key, at)| Event::Request(key, at)),
            (0..8usize).prop_map(Event::Cancel),
            Just(Event::Boot),
            Just(Event::Step),
            Just(Event::Fail),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: the document stays readable, at most one job is open, no job leaves
        /// a final state, and the volume is never `Provisioned` by a job that did not make it.
        #[test]
        fn any_history_keeps_the_document_sound(events in prop::collection::vec(event(), 0..200)) {
            let mut state = DeviceState::shipped();
            for (now, event) in events.into_iter().enumerate() {
                let now = now as u64;
                let ended: Vec<_> = state.jobs().iter().filter(|job| job.state.is_final()).cloned().collect();
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
                    Event::Boot => drop(state.begin_at_boot(name, at).expect("a boot is never refused")),
                    Event::Step => {
                        if let Some(job) = state.pending().map(|job| job.id) {
                            let _ = state.step_done(job, Some(Uuid::from_u128(now.into())), at);
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
