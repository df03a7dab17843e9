//! `nemosctl job`: what was asked of the device, and how it stands.

use std::collections::BTreeMap;

use nemos_api::CallError;
use nemos_api::job::{self, JobRecord, RequesterRecord, RetryOptions};
use nemos_model::JobId;
use nemos_model::job::JobState;
use serde::Serialize;
use zbus::{Connection, ObjectPath};

use crate::arguments::Job as Command;
use crate::output::Output;
use crate::{Failure, table, text};

/// State of a job that the next boot carries out.
const WAITING: &str = JobState::WaitingForReboot.name();
/// State of a job whose time has not come.
const QUEUED: &str = JobState::Queued.name();

/// A request that was accepted. This is also the shape of `--yes --json`.
#[derive(Debug, Serialize)]
pub struct Accepted {
    /// The job; see `nemosctl job show`.
    job: String,
    /// Its state.
    state: String,
    /// Whether the device reboots now.
    rebooting: bool,
}

impl Accepted {
    /// What became of the request that made the job at that path.
    pub async fn of(connection: &Connection, path: &ObjectPath<'_>, reboot: bool) -> Result<Self, Failure> {
        let id = job::id_at(path.as_str()).ok_or(zbus::Error::InvalidReply)?;
        let state = match job::get(connection, id).await {
            Ok(job) => job.state,
            // It was accepted; the reboot may have taken nemosd down before it could answer again.
            Err(CallError::Unreachable(_)) if reboot => WAITING.to_owned(),
            Err(error) => return Err(error.into()),
        };
        // A job that was done before, for the same key, makes nothing reboot.
        Ok(Accepted { job: id.to_string(), rebooting: reboot && state == WAITING, state })
    }

    /// For people; `next` says what the next boot does, if that is not now.
    pub fn render(&self, next: &str) -> String {
        let next = match (self.rebooting, self.state.as_str()) {
            (true, _) => "rebooting",
            (false, WAITING) => next,
            (false, QUEUED) => "waits for its time; `nemosctl job cancel` takes it back",
            (false, state) => state,
        };
        format!("job {}\n{next}\n", self.job)
    }
}

/// A job. This is also its shape in `--json`: times are ISO 8601 in UTC, null where there is none.
#[derive(Debug, Serialize)]
pub struct Job {
    /// Its name.
    pub id: String,
    /// `provision`, `take-over`, `reset-overlay`, `reset-factory`, `revert`, `save`, `apply`, `go-back`.
    pub kind: String,
    /// `queued`, `waiting-for-reboot`, `running`, `done`, `failed`, `cancelled`.
    pub state: String,
    /// 0 to 1.
    pub progress: f64,
    /// The step that comes next or is under way.
    pub step: Option<String>,
    /// `{"uid", "user", "process", "label"}`.
    pub requested_by: Requester,
    /// When it was asked.
    pub requested_at: Option<String>,
    /// When it may begin.
    pub not_before: Option<String>,
    /// When it was begun.
    pub begun_at: Option<String>,
    /// When it ended.
    pub finished_at: Option<String>,
    /// Name of the plan that it carries out.
    pub plan: Option<String>,
    /// `[{"step", "at"}]`: what was done.
    pub steps: Vec<Step>,
    /// `{"p.lxroot": "key-destroyed|formatted|key-replaced|untouched", ..}`: what became of each partition in a reset.
    pub grades: BTreeMap<String, String>,
    /// How many paths a reset keeps.
    pub kept: u32,
    /// Whether a reset keeps everything on the overlay's volume, and only makes a new key for it.
    pub kept_all: bool,
    /// The configuration that is saved, applied, or gone back to.
    pub configuration: Option<String>,
    /// `[{"check", "passed", "seen"}]`: what was found after a reset.
    pub audit: Option<Vec<Audited>>,
    /// `{"step", "message", "at", "attempts"}`: what went wrong last.
    pub error: Option<Error>,
}

/// Who asked.
#[derive(Debug, Serialize)]
pub struct Requester {
    pub uid: u32,
    pub user: Option<String>,
    pub process: Option<String>,
    pub label: Option<String>,
}

/// A step that was done.
#[derive(Debug, Serialize)]
pub struct Step {
    step: String,
    at: Option<String>,
}

/// What was looked for after a reset.
#[derive(Debug, Serialize)]
pub struct Audited {
    check: String,
    passed: bool,
    seen: String,
}

/// What went wrong last.
#[derive(Debug, Serialize)]
pub struct Error {
    step: String,
    message: String,
    at: Option<String>,
    attempts: u32,
}

/// What was accepted. This is also its shape in `--json`.
#[derive(Debug, Serialize)]
struct Retried {
    job: String,
    rebooting: bool,
}

/// Carries out a command about jobs.
pub async fn run(connection: &Connection, command: Command, output: Output) -> Result<u8, Failure> {
    match command {
        Command::List => {
            let jobs: Vec<Job> = job::list(connection).await?.into_iter().map(Job::from).collect();
            output.show(&jobs, |jobs| render_list(jobs, "no jobs yet"))?;
        }
        Command::Show { id } => {
            let job = Job::from(job::get(connection, parse(&id)?).await?);
            output.show(&job, Job::render)?;
        }
        Command::Cancel { id } => {
            let id = parse(&id)?;
            job::cancel(connection, id).await?;
            let job = Job::from(job::get(connection, id).await?);
            output.show(&job, |job| format!("job {id} is {}\n", job.state))?;
        }
        Command::Retry { id, reboot } => {
            let id = parse(&id)?;
            job::retry(connection, id, RetryOptions { reboot: Some(reboot) }).await?;
            let next = if reboot { "rebooting" } else { "the next boot goes on with it" };
            output.show(&Retried { job: id.to_string(), rebooting: reboot }, |_| format!("job {id}\n{next}\n"))?;
        }
    }
    Ok(0)
}

/// The job of that name.
pub fn parse(id: &str) -> Result<JobId, Failure> {
    id.parse().map_err(|error| Failure::Usage(format!("{error}; `nemosctl job list` tells them")))
}

/// Jobs as a table; `none` if there are none.
pub fn render_list(jobs: &[Job], none: &str) -> String {
    if jobs.is_empty() {
        return format!("{none}\n");
    }
    let head = ["REQUESTED", "JOB", "KIND", "STATE", "ENDED", "BY"].map(str::to_owned);
    let rows = jobs.iter().map(|job| {
        let at = |time: &Option<String>| time.clone().unwrap_or_else(|| "-".to_owned());
        let times = (at(&job.requested_at), at(&job.finished_at));
        [times.0, job.id.clone(), job.kind.clone(), job.state.clone(), times.1, job.requested_by.render()]
    });
    table::columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

impl Job {
    /// Labels of the partitions that it erased, or `-`.
    pub fn erased(&self) -> String {
        let erased = self.grades.iter().filter_map(|(label, grade)| match grade.as_str() {
            "untouched" => None,
            "key-replaced" => Some(format!("{label}(new key)")),
            _ => Some(label.clone()),
        });
        let erased = erased.collect::<Vec<_>>().join(",");
        if erased.is_empty() { "-".to_owned() } else { erased }
    }

    /// What the audit came to.
    pub fn verdict(&self) -> &'static str {
        match &self.audit {
            None => "-",
            Some(checks) if checks.iter().all(|check| check.passed) => "passed",
            Some(_) => "FAILED",
        }
    }

    /// One job, for people.
    pub fn render(&self) -> String {
        let mut rows = vec![
            ["job".to_owned(), self.id.clone()],
            ["kind".to_owned(), self.kind.clone()],
            ["state".to_owned(), self.state.clone()],
            ["requested by".to_owned(), self.requested_by.render()],
        ];
        let times = [
            ("requested at", &self.requested_at),
            ("not before", &self.not_before),
            ("begun at", &self.begun_at),
            ("ended at", &self.finished_at),
            ("plan", &self.plan),
            ("next step", &self.step),
        ];
        rows.extend(times.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value.clone()?])));
        rows.extend(
            self.steps.iter().map(|done| {
                [done.step.clone(), format!("done {}", done.at.as_deref().unwrap_or("at an unknown time"))]
            }),
        );
        rows.extend(self.configuration.iter().map(|name| ["configuration".to_owned(), name.clone()]));
        if self.kept_all {
            rows.push(["keeps".to_owned(), "everything, under a new volume key".to_owned()]);
        }
        if self.kept > 0 {
            rows.push(["keeps".to_owned(), format!("{} paths", self.kept)]);
        }
        rows.extend(self.grades.iter().map(|(partition, grade)| [partition.clone(), grade.replace('-', " ")]));
        rows.extend(self.audit.iter().flatten().map(|Audited { check, passed, seen }| {
            [format!("audit {check}"), format!("{}: {seen}", if *passed { "passed" } else { "FAILED" })]
        }));
        if let Some(Error { step, message, attempts, .. }) = &self.error {
            rows.push(["error".to_owned(), format!("{step}: {message} (tries that failed: {attempts})")]);
        }
        table::columns(&rows)
    }
}

impl Requester {
    /// Who it was, for people.
    pub fn render(&self) -> String {
        let user = self.user.clone().unwrap_or_else(|| format!("uid {}", self.uid));
        let process = self.process.as_ref().map(|process| format!(" through {process}")).unwrap_or_default();
        let label = self.label.as_ref().map(|label| format!(" ({label})")).unwrap_or_default();
        format!("{user}{process}{label}")
    }
}

impl From<JobRecord> for Job {
    fn from(record: JobRecord) -> Self {
        let RequesterRecord { uid, user, process, label } = record.requested_by;
        let error = record.error;
        Job {
            id: record.id,
            kind: record.kind,
            state: record.state,
            progress: record.progress,
            step: Some(record.step).filter(|step| !step.is_empty()),
            requested_by: Requester { uid, user, process, label },
            requested_at: text::time(record.requested_at),
            not_before: text::time(record.not_before),
            begun_at: text::time(record.begun_at),
            finished_at: text::time(record.finished_at),
            plan: Some(record.plan).filter(|plan| !plan.is_empty()),
            steps: record.result.steps.into_iter().map(|(step, at)| Step { step, at: text::time(at) }).collect(),
            grades: record.result.grades.into_iter().collect(),
            kept: record.result.kept,
            kept_all: record.result.kept_all.unwrap_or_default(),
            configuration: record.result.configuration,
            audit: record.result.audit.map(|checks| {
                checks.into_iter().map(|(check, passed, seen)| Audited { check, passed, seen }).collect()
            }),
            error: error.message.map(|message| Error {
                step: error.step.unwrap_or_default(),
                message,
                at: error.at.and_then(text::time),
                attempts: error.attempts.unwrap_or_default(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nemos_model::Timestamp;
    use nemos_model::job::{self, JobState, Kind};
    use nemos_model::reset::Scope;
    use nemos_model::reset::audit::{Audit, Found, Survey};

    fn jobs() -> Vec<Job> {
        let by = |user: &str, label: Option<&str>| job::Requester {
            uid: 1000,
            user: Some(user.into()),
            process: Some("nemosctl[812]".into()),
            label: label.map(Into::into),
        };
        let time = |second: u64| Timestamp(1_795_442_786 + second);
        let kind = Kind::Reset { scope: Scope::Factory };
        let new = |id, by, at| job::Job::new(JobId::from_random(id), kind, JobState::WaitingForReboot, by, time(at));
        let mut done = new(7, by("admin", Some("returned by the customer")), 0);
        done.begin(time(20)).unwrap();
        while done.next_step().is_some() {
            done.step_done(time(25)).unwrap();
        }
        done.audit = Some(Audit::new(&Survey::default(), &Found::default(), &[]));
        let mut running = new(8, by("root", None), 100);
        running.begin(time(120)).unwrap();
        running.step_done(time(121)).unwrap();
        running.step_done(time(122)).unwrap();
        running.attempt_failed("cannot open /dev/vda7: no such device".into(), time(122)).unwrap();
        [done, running].iter().map(JobRecord::from).map(Job::from).collect()
    }

    #[test]
    fn jobs_are_listed_oldest_first() {
        insta::assert_snapshot!(render_list(&jobs(), "none"));
    }

    #[test]
    fn a_reset_that_was_done_says_what_became_of_each_partition() {
        insta::assert_snapshot!(jobs()[0].render());
    }

    #[test]
    fn a_job_that_failed_once_says_where_and_why() {
        insta::assert_snapshot!(jobs()[1].render());
    }

    #[test]
    fn the_json_is_stable() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&jobs()).unwrap());
    }

    #[test]
    fn a_job_that_was_done_before_does_not_reboot_the_device_again() {
        let accepted = Accepted { job: "7".into(), state: "done".into(), rebooting: false };
        assert_eq!(accepted.render("the next boot does it"), "job 7\ndone\n");
    }
}
