//! Jobs: what was asked of the device, and how it ended. They outlive the daemon, a reboot and a reset.
//!
//! ```text
//!                      cancel
//!     (request) --> queued -------------------------------> cancelled
//!                     | due                                  ^  ^
//!                     v                cancel                |  |
//!              waiting-for-reboot ---------------------------+  | cancel
//!                     | begin (initrd)   ^     ^                |
//!                     v                  |     | retry          |
//!     +--step done--running              |     +------------- failed
//!     |               | | | attempt failed, tries left          ^
//!     +-------------->+ | +--------------+                      |
//!       last step done  | attempt failed, no tries left,        |
//!                v      | or nothing was erased yet             |
//!              done     +---------------------------------------+
//! ```
//!
//! A power cut is not a failure: a job that was running goes on at the next boot. But a step at which boot after boot
//! ends is given up too, since it may be the step that ends them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::Timestamp;
use crate::overlay::{ConfigurationName, Within};
use crate::partitions::Partition;
use crate::reset::audit::{Audit, Survey};
use crate::reset::{Grade, Keep, Keeping, KeptPath, Scope, Step, grades};

/// How often a job may fail before the device stops trying: a device that keeps failing must still come up.
pub const MAX_ATTEMPTS: usize = 3;

/// How many boots in a row may end in the middle of the same step before the device stops trying: more than a person's
/// patience with a power switch, and less than for ever.
pub const MAX_INTERRUPTIONS: u32 = 16;

/// Longest label or idempotency key a caller may give, in bytes.
pub const MAX_TEXT: usize = 128;

/// The label of a job that the kernel's command line asked for.
pub const COMMAND_LINE_LABEL: &str = "systemd.factory_reset=1 on the kernel command line";

/// Name of a job: 32 lower-case hexadecimal digits, so that it can stand in a D-Bus object path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(Uuid);

/// Text that is not a job's name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a job's name is 32 hexadecimal digits, not `{0}`")]
pub struct InvalidJobId(pub String);

impl JobId {
    /// The job named by 128 bits, which the caller takes from a good random source.
    pub const fn from_random(bits: u128) -> Self {
        JobId(Uuid::from_u128(bits))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_simple().fmt(f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobId({self})")
    }
}

impl FromStr for JobId {
    type Err = InvalidJobId;

    fn from_str(text: &str) -> Result<Self, InvalidJobId> {
        let id = Uuid::try_parse(text).map(JobId);
        id.ok().filter(|id| id.to_string() == text).ok_or_else(|| InvalidJobId(text.chars().take(80).collect()))
    }
}

impl TryFrom<String> for JobId {
    type Error = InvalidJobId;

    fn try_from(text: String) -> Result<Self, InvalidJobId> {
        text.parse()
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> String {
        id.to_string()
    }
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Kind {
    /// The first boot of an image: make the storage that a device has of its own.
    Provision,
    /// The first boot of an image whose builder has made that storage: take it over.
    TakeOver,
    /// Back to the image as it was shipped.
    Reset {
        /// How much of it.
        scope: Scope,
    },
    /// Some paths of the root back to what the image has.
    Revert,
    /// The changes to the root are saved under a name.
    Save,
    /// Saved changes take the place of those that there are.
    Apply,
    /// The changes that there were before that, since nobody confirmed it.
    GoBack,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Provision => f.write_str("provision"),
            Kind::TakeOver => f.write_str("take-over"),
            Kind::Reset { scope } => write!(f, "reset-{scope}"),
            Kind::Revert => f.write_str("revert"),
            Kind::Save => f.write_str("save"),
            Kind::Apply => f.write_str("apply"),
            Kind::GoBack => f.write_str("go-back"),
        }
    }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Accepted, not due yet.
    Queued,
    /// The next boot carries it out.
    WaitingForReboot,
    /// The initrd has begun, and has not been seen to stop: it is finished at the next boot, if not at this one.
    Running,
    /// Every step was done.
    Done,
    /// Given up, with the reason in the last attempt. It can be tried again, or taken back.
    Failed,
    /// Taken back before it began.
    Cancelled,
}

impl JobState {
    /// Whether nothing more will happen to the job by itself.
    pub const fn is_final(self) -> bool {
        matches!(self, JobState::Done | JobState::Failed | JobState::Cancelled)
    }

    /// The name used in files, on the bus and by people.
    pub const fn name(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::WaitingForReboot => "waiting-for-reboot",
            JobState::Running => "running",
            JobState::Done => "done",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who asked. Taken from the bus, not from what the caller says, except for the label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requester {
    /// Numeric user.
    pub uid: u32,
    /// User name, if the system knows one.
    pub user: Option<String>,
    /// Process that asked, as `name[pid]`.
    pub process: Option<String>,
    /// A label of the caller's own, for its records.
    pub label: Option<String>,
}

/// A step that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepDone {
    /// Which.
    pub step: Step,
    /// When it ended.
    pub at: Timestamp,
}

/// A try that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When.
    pub at: Timestamp,
    /// At which step.
    pub step: Step,
    /// What went wrong, for people.
    pub error: String,
}

/// A job, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// What it does.
    #[serde(flatten)]
    pub kind: Kind,
    /// Where it stands.
    pub state: JobState,
    /// What a reset keeps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<KeptPath>,
    /// Where all of the overlay waits, if a reset keeps all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_all: Option<Partition>,
    /// What a revert takes back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<KeptPath>,
    /// The configuration that is saved, applied, or gone back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<ConfigurationName>,
    /// Whether what is saved takes the place of what has the name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
    /// The time within which what is applied has to be confirmed, if it has to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<Within>,
    /// The job whose work is taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<JobId>,
    /// Name of the plan that it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Uuid>,
    /// Who asked.
    pub requested_by: Requester,
    /// When it was asked.
    pub requested_at: Timestamp,
    /// Not to begin before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Whether the device reboots by itself when the job is due.
    #[serde(default)]
    pub reboot: bool,
    /// The caller's idempotency key: asking again with it gives back this job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// When the initrd began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun_at: Option<Timestamp>,
    /// When it reached a final state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// Steps done so far, in order.
    #[serde(default)]
    pub steps: Vec<StepDone>,
    /// Tries that failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
    /// How often it was tried again after it had been given up.
    #[serde(default)]
    pub retries: usize,
    /// Boots that have begun on the next step.
    #[serde(default)]
    pub begins: u32,
    /// What was there before a reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub survey: Option<Survey>,
    /// What the audit found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
}

/// A change of a job's state that its present state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("job {id} is {state}: it cannot {event}")]
pub struct Refused {
    /// The job.
    pub id: JobId,
    /// Its state.
    pub state: JobState,
    /// What was tried.
    pub event: &'static str,
}

impl Requester {
    /// The image itself: nobody asked for a first boot.
    pub fn image() -> Self {
        Requester { uid: 0, user: None, process: Some("nemos-initrd".into()), label: None }
    }

    /// Nobody in particular: what the image's recipe says of keys.
    pub fn policy() -> Self {
        Requester { process: Some("nemosd".into()), ..Requester::image() }
    }

    /// Whoever wrote the kernel's command line.
    pub fn command_line() -> Self {
        Requester { label: Some(COMMAND_LINE_LABEL.into()), ..Requester::image() }
    }
}

impl Job {
    /// A job of which nothing is done yet.
    pub fn new(id: JobId, kind: Kind, state: JobState, requested_by: Requester, now: Timestamp) -> Self {
        Job {
            id,
            kind,
            state,
            keep: Vec::new(),
            keep_all: None,
            paths: Vec::new(),
            configuration: None,
            replace: false,
            within: None,
            applied: None,
            plan: None,
            requested_by,
            requested_at: now,
            not_before: None,
            reboot: false,
            key: None,
            begun_at: None,
            finished_at: None,
            steps: Vec::new(),
            attempts: Vec::new(),
            retries: 0,
            begins: 0,
            survey: None,
            audit: None,
        }
    }

    /// The steps of this job, in order.
    pub fn all_steps(&self) -> Vec<Step> {
        match self.kind {
            Kind::Provision => Step::PROVISION.to_vec(),
            Kind::TakeOver => vec![Step::TakeOver],
            Kind::Reset { scope } => scope.steps(self.keeping()),
            Kind::Revert => vec![Step::Revert],
            Kind::Save => vec![Step::Save],
            Kind::Apply => vec![Step::Apply],
            Kind::GoBack => vec![Step::GoBack],
        }
    }

    /// What it keeps.
    pub fn kept(&self) -> Keep {
        self.keep_all.map_or_else(|| Keep::Paths(self.keep.clone()), Keep::Everything)
    }

    /// How much it keeps.
    pub const fn keeping(&self) -> Keeping {
        match self.keep_all {
            Some(_) => Keeping::Everything,
            None if self.keep.is_empty() => Keeping::Nothing,
            None => Keeping::Paths,
        }
    }

    /// The first step that is not done; `None` if all are.
    pub fn next_step(&self) -> Option<Step> {
        self.all_steps().get(self.steps.len()).copied()
    }

    /// Whether that step was done.
    pub fn has_done(&self, step: Step) -> bool {
        self.steps.iter().any(|done| done.step == step)
    }

    /// Whether something may be gone already.
    pub fn has_begun_to_erase(&self) -> bool {
        let erases = |step: Step| step.erases().is_some();
        self.steps.iter().any(|done| erases(done.step))
            || self.begun_at.is_some() && self.next_step().is_some_and(erases)
    }

    /// Whether what it was to keep waits for it, and is nowhere else.
    pub fn holds_kept_data(&self) -> bool {
        let is_given_back = self.has_done(Step::RestoreKept) || self.state == JobState::Cancelled;
        self.has_done(Step::StageKept) && !is_given_back
    }

    /// What became of each partition; nothing for what is not a reset.
    pub fn grades(&self) -> Vec<(Partition, Grade)> {
        match self.kind {
            Kind::Provision | Kind::TakeOver | Kind::Revert | Kind::Save | Kind::Apply | Kind::GoBack => Vec::new(),
            Kind::Reset { scope } => {
                grades(scope, self.keeping(), &self.steps.iter().map(|done| done.step).collect::<Vec<_>>())
            }
        }
    }

    /// How much is done, 0 to 1, counted in steps.
    #[allow(clippy::cast_precision_loss, reason = "a plan has a handful of steps")]
    pub fn progress(&self) -> f64 {
        match self.state {
            JobState::Done => 1.0,
            _ => self.steps.len() as f64 / self.all_steps().len() as f64,
        }
    }

    /// How long that step took, in seconds, counted from the step before it; `None` if it was not done.
    pub fn step_duration(&self, step: Step) -> Option<u64> {
        let place = self.steps.iter().position(|done| done.step == step)?;
        let before = place.checked_sub(1).and_then(|before| self.steps.get(before)).map(|done| done.at);
        Some(self.steps.get(place)?.at.0.saturating_sub(before.or(self.begun_at)?.0))
    }

    /// Its time has come: the next boot is to carry it out.
    pub fn due(&mut self) -> Result<(), Refused> {
        self.change(&[JobState::Queued], "become due", JobState::WaitingForReboot)
    }

    /// Taken back. What it has erased stays erased, and what it was to keep and holds is given up.
    pub fn cancel(&mut self, now: Timestamp) -> Result<(), Refused> {
        let from = [JobState::Queued, JobState::WaitingForReboot, JobState::Failed];
        self.change(&from, "be cancelled", JobState::Cancelled)?;
        self.finished_at = Some(now);
        Ok(())
    }

    /// Tried again at the next boot, after it was given up, from the step that failed.
    pub fn retry(&mut self) -> Result<(), Refused> {
        self.change(&[JobState::Failed], "be tried again", JobState::WaitingForReboot)?;
        self.finished_at = None;
        self.retries += 1;
        self.begins = 0;
        Ok(())
    }

    /// The initrd starts on it, or goes on with it after an interruption. Gives it up if boot after boot ended in the
    /// middle of its next step.
    pub fn begin(&mut self, now: Timestamp) -> Result<(), Refused> {
        self.change(&[JobState::WaitingForReboot, JobState::Running], "begin", JobState::Running)?;
        self.begun_at.get_or_insert(now);
        self.begins += 1;
        if self.begins > MAX_INTERRUPTIONS {
            let step = self.next_step().ok_or_else(|| self.refuse("begin"))?;
            let error = format!("{MAX_INTERRUPTIONS} boots in a row ended in the middle of it");
            self.attempts.push(Attempt { at: now, step, error });
            self.end(JobState::Failed, now);
        }
        Ok(())
    }

    /// The next step is done; with the last one, so is the job.
    pub fn step_done(&mut self, now: Timestamp) -> Result<(), Refused> {
        let step = self.next_step().ok_or_else(|| self.refuse("do another step"))?;
        self.change(&[JobState::Running], "do a step", JobState::Running)?;
        self.steps.push(StepDone { step, at: now });
        self.begins = 0;
        if self.next_step().is_none() {
            self.end(JobState::Done, now);
        }
        Ok(())
    }

    /// The next step failed. The next boot tries again, but after [`MAX_ATTEMPTS`] the job has failed; and at once, if
    /// nothing was erased yet and so nothing has to be finished, unless it is the way back.
    pub fn attempt_failed(&mut self, error: String, now: Timestamp) -> Result<(), Refused> {
        let step = self.next_step().ok_or_else(|| self.refuse("fail"))?;
        self.change(&[JobState::Running], "fail", JobState::WaitingForReboot)?;
        self.attempts.push(Attempt { at: now, step, error });
        self.begins = 0;
        let has_to_end = self.has_begun_to_erase() || self.kind == Kind::GoBack;
        if self.attempts.len() >= MAX_ATTEMPTS * (self.retries + 1) || !has_to_end {
            self.end(JobState::Failed, now);
        }
        Ok(())
    }

    fn end(&mut self, state: JobState, now: Timestamp) {
        self.state = state;
        self.finished_at = Some(now);
    }

    fn change(&mut self, from: &[JobState], event: &'static str, to: JobState) -> Result<(), Refused> {
        if !from.contains(&self.state) {
            return Err(self.refuse(event));
        }
        self.state = to;
        Ok(())
    }

    fn refuse(&self, event: &'static str) -> Refused {
        Refused { id: self.id, state: self.state, event }
    }
}
