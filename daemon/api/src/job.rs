//! Jobs: what was asked of the device, and how it ended.

use std::collections::HashMap;

use nemos_model::JobId;
use nemos_model::job::{Job, Requester};
use nemos_model::reset::audit::Audit;
use nemos_model::state::NotTaken;
use zbus::proxy::CacheProperties;
use zbus::{Connection, DeserializeDict, ObjectPath, OwnedObjectPath, SerializeDict, Type, proxy};

use crate::options::{Dictionary, Options};
use crate::reset::ResetProxy;
use crate::{CallError, Error};

/// The Job interface, of each object below `/org/nemos/Device1/jobs`.
#[proxy(interface = "org.nemos.Device1.Job", default_service = "org.nemos.Device1", assume_defaults = false)]
pub trait Job {
    /// Takes the job back, if it has not begun.
    #[zbus(allow_interactive_auth)]
    fn cancel(&self) -> Result<(), CallError>;

    /// Tries the job again that was given up.
    #[zbus(allow_interactive_auth)]
    fn retry(&self, options: RetryOptions) -> Result<(), CallError>;
}

/// Options of `Retry`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, SerializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct RetryOptions {
    /// Reboot at once.
    pub reboot: Option<bool>,
}

impl RetryOptions {
    /// Reads what a caller sent.
    pub fn parse(dictionary: Dictionary) -> Result<Self, Error> {
        let mut options = Options::new(dictionary);
        let read = RetryOptions { reboot: options.take("reboot")? };
        options.finish().map(|()| read)
    }
}

/// Name of the Job interface.
pub const INTERFACE: &str = "org.nemos.Device1.Job";

/// All properties of one job, at one moment.
pub async fn get(connection: &Connection, id: JobId) -> Result<JobRecord, CallError> {
    let properties = Some("org.freedesktop.DBus.Properties");
    let reply = connection.call_method(Some(crate::BUS_NAME), path(id), properties, "GetAll", &(INTERFACE,)).await;
    Ok(reply.map_err(|error| not_there(id, error))?.body().deserialize()?)
}

/// Takes a job back, if it has not begun or was given up.
pub async fn cancel(connection: &Connection, id: JobId) -> Result<(), CallError> {
    proxy(connection, id).await?.cancel().await.map_err(|error| known(id, error))
}

/// Tries a job again that was given up.
pub async fn retry(connection: &Connection, id: JobId, options: RetryOptions) -> Result<(), CallError> {
    proxy(connection, id).await?.retry(options).await.map_err(|error| known(id, error))
}

async fn proxy(connection: &Connection, id: JobId) -> Result<JobProxy<'static>, CallError> {
    Ok(JobProxy::builder(connection).path(path(id)).cache_properties(CacheProperties::No).build().await?)
}

fn known(id: JobId, error: CallError) -> CallError {
    match error {
        CallError::Unreachable(error) => not_there(id, error),
        refused @ CallError::Refused(_) => refused,
    }
}

/// A job that does not exist has no object.
fn not_there(id: JobId, error: zbus::Error) -> CallError {
    match &error {
        zbus::Error::FDO(fdo) if matches!(**fdo, zbus::fdo::Error::UnknownObject(_)) => {
            CallError::Refused(NotTaken::NoSuchJob(id).into())
        }
        _ => error.into(),
    }
}

/// All jobs that the device remembers, oldest first; an error if it cannot remember.
pub async fn list(connection: &Connection) -> Result<Vec<JobRecord>, CallError> {
    /// What is of interest here of an object's interfaces.
    #[derive(DeserializeDict, Type)]
    #[zbus(signature = "a{sa{sv}}")]
    struct Interfaces {
        #[zbus(rename = "org.nemos.Device1.Job")]
        job: Option<JobRecord>,
    }
    let manager = "org.freedesktop.DBus.ObjectManager";
    let reply =
        connection.call_method(Some(crate::BUS_NAME), crate::PATH, Some(manager), "GetManagedObjects", &()).await?;
    let objects: HashMap<OwnedObjectPath, Interfaces> = reply.body().deserialize()?;
    let mut jobs: Vec<JobRecord> = objects.into_values().filter_map(|interfaces| interfaces.job).collect();
    if jobs.is_empty() {
        // No objects: there are no jobs, or there is no memory that could hold one. This property says which.
        ResetProxy::new(connection).await?.pending().await?;
    }
    jobs.sort_by(|a, b| (a.requested_at, &a.id).cmp(&(b.requested_at, &b.id)));
    Ok(jobs)
}

/// Where the job of that name is.
pub fn path(id: JobId) -> OwnedObjectPath {
    ObjectPath::from_string_unchecked(format!("{}/jobs/{id}", crate::PATH)).into()
}

/// The job at that path; `None` if there cannot be one.
pub fn id_at(path: &str) -> Option<JobId> {
    path.strip_prefix(crate::PATH)?.strip_prefix("/jobs/")?.parse().ok()
}

/// All properties of a job. D-Bus knows no null: a time that is not known is 0, a text that is not there is empty.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "PascalCase")]
pub struct JobRecord {
    /// Its name.
    pub id: String,
    /// `provision`, `take-over`, `reset-overlay`, `reset-factory`, `revert`, `save`, `apply`, `go-back`.
    pub kind: String,
    /// `queued`, `waiting-for-reboot`, `running`, `done`, `failed` or `cancelled`.
    pub state: String,
    /// How much is done, 0 to 1.
    pub progress: f64,
    /// The step that comes next or is under way.
    pub step: String,
    /// Who asked.
    pub requested_by: RequesterRecord,
    /// When it was asked.
    pub requested_at: u64,
    /// When it may begin.
    pub not_before: u64,
    /// When the initrd began with it.
    pub begun_at: u64,
    /// When it ended.
    pub finished_at: u64,
    /// Name of the plan that it carries out.
    pub plan: String,
    /// What was done.
    pub result: JobResult,
    /// What went wrong last.
    pub error: JobError,
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct RequesterRecord {
    /// Numeric user.
    pub uid: u32,
    /// User name.
    pub user: Option<String>,
    /// Process, as `name[pid]`.
    pub process: Option<String>,
    /// The caller's own label.
    pub label: Option<String>,
}

/// What was done so far.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct JobResult {
    /// Each step that was done, and when.
    pub steps: Vec<(String, u64)>,
    /// What became of each partition in a reset: its label; `key-destroyed`, `key-replaced`, `formatted` or `untouched`.
    pub grades: Vec<(String, String)>,
    /// How many paths it keeps.
    pub kept: u32,
    /// Whether it keeps everything on the overlay's volume.
    #[zbus(rename = "kept-all")]
    pub kept_all: Option<bool>,
    /// The configuration that is saved, applied, or gone back to.
    pub configuration: Option<String>,
    /// What was checked after a reset: the check, whether it is as it should be, what was seen. Not there before that.
    pub audit: Option<Vec<(String, bool, String)>>,
}

/// The last try that failed; empty if none did.
#[derive(Debug, Clone, PartialEq, Eq, Default, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct JobError {
    /// At which step.
    pub step: Option<String>,
    /// What went wrong, for people.
    pub message: Option<String>,
    /// When.
    pub at: Option<u64>,
    /// How many tries have failed.
    pub attempts: Option<u32>,
}

impl From<&Job> for JobRecord {
    fn from(job: &Job) -> Self {
        let step = if job.state.is_final() { None } else { job.next_step() };
        JobRecord {
            id: job.id.to_string(),
            kind: job.kind.to_string(),
            state: job.state.to_string(),
            progress: job.progress(),
            step: step.map_or_else(String::new, |step| step.to_string()),
            requested_by: RequesterRecord::from(&job.requested_by),
            requested_at: job.requested_at.0,
            not_before: job.not_before.map_or(0, |time| time.0),
            begun_at: job.begun_at.map_or(0, |time| time.0),
            finished_at: job.finished_at.map_or(0, |time| time.0),
            plan: job.plan.map(|plan| plan.to_string()).unwrap_or_default(),
            result: JobResult::from(job),
            error: JobError::from(job),
        }
    }
}

impl From<&Job> for JobResult {
    fn from(job: &Job) -> Self {
        let grades = job.grades().into_iter();
        let checks = |audit: &Audit| {
            let checks = audit.checks.iter();
            checks.map(|check| (check.check.name().to_owned(), check.passed, check.seen.clone())).collect()
        };
        JobResult {
            steps: job.steps.iter().map(|done| (done.step.to_string(), done.at.0)).collect(),
            grades: grades.map(|(partition, grade)| (partition.label().to_owned(), grade.name().to_owned())).collect(),
            kept: u32::try_from(job.keep.len()).unwrap_or(u32::MAX),
            kept_all: job.keep_all.map(|_| true),
            configuration: job.configuration.as_ref().map(ToString::to_string),
            audit: job.audit.as_ref().map(checks),
        }
    }
}

impl From<&Requester> for RequesterRecord {
    fn from(requester: &Requester) -> Self {
        let Requester { uid, user, process, label } = requester.clone();
        RequesterRecord { uid, user, process, label }
    }
}

impl From<&Job> for JobError {
    fn from(job: &Job) -> Self {
        let Some(last) = job.attempts.last() else { return JobError::default() };
        JobError {
            step: Some(last.step.to_string()),
            message: Some(last.error.clone()),
            at: Some(last.at.0),
            attempts: u32::try_from(job.attempts.len()).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nemos_model::Timestamp;
    use nemos_model::job::{JobState, Kind};
    use proptest::prelude::*;
    use zbus::wire::{LE, serialized::Context, to_bytes};

    #[test]
    fn a_job_travels_whole() {
        let requester = Requester { uid: 1000, user: Some("admin".into()), process: None, label: None };
        let id = JobId::from_random(7);
        let mut job = Job::new(id, Kind::Provision, JobState::WaitingForReboot, requester, Timestamp(1));
        job.begin(Timestamp(2)).unwrap();
        job.step_done(Timestamp(3)).unwrap();
        job.attempt_failed("no space".into(), Timestamp(4)).unwrap();
        let record = JobRecord::from(&job);
        let received: JobRecord = to_bytes(Context::new(LE, 0), &record).unwrap().deserialize().unwrap().0;
        assert_eq!(received, record);
        assert_eq!(received.error.message.as_deref(), Some("no space"));
    }

    proptest! {
        #[test]
        fn a_path_leads_back_to_its_job(bits: u128) {
            let id = JobId::from_random(bits);
            prop_assert_eq!(id_at(path(id).as_str()), Some(id));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = id_at(&text);
        }
    }
}
