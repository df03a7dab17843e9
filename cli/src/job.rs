//! `nemosctl job`: what was asked of the device, and how it stands.

use nemos_api::job::{self, JobRecord, RequesterRecord};
use nemos_model::JobId;
use serde::Serialize;
use zbus::Connection;

use crate::arguments::Job as Command;
use crate::output::Output;
use crate::{Failure, table, text};

/// A job. This is also its shape in `--json`: times are ISO 8601 in UTC, null where there is none.
#[derive(Debug, Serialize)]
pub struct Job {
    /// Its name.
    pub id: String,
    /// `provision`, `reset-factory`.
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
    /// When it ended.
    pub finished_at: Option<String>,
    /// `[{"step", "at"}]`: what was done.
    pub steps: Vec<Step>,
    /// `{"step", "message", "at", "attempts"}`: what went wrong last.
    pub error: Option<Error>,
}

/// Who asked.
#[derive(Debug, Serialize)]
pub struct Requester {
    uid: u32,
    user: Option<String>,
    process: Option<String>,
    label: Option<String>,
}

/// A step that was done.
#[derive(Debug, Serialize)]
pub struct Step {
    step: String,
    at: Option<String>,
}

/// What went wrong last.
#[derive(Debug, Serialize)]
pub struct Error {
    step: String,
    message: String,
    at: Option<String>,
    attempts: u32,
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
    }
    Ok(0)
}

fn parse(id: &str) -> Result<JobId, Failure> {
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
            ("ended at", &self.finished_at),
            ("next step", &self.step),
        ];
        rows.extend(times.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value.clone()?])));
        rows.extend(
            self.steps.iter().map(|done| {
                [done.step.clone(), format!("done {}", done.at.as_deref().unwrap_or("at an unknown time"))]
            }),
        );
        if let Some(Error { step, message, attempts, .. }) = &self.error {
            rows.push(["error".to_owned(), format!("{step}: {message} (tries that failed: {attempts})")]);
        }
        table::columns(&rows)
    }
}

impl Requester {
    fn render(&self) -> String {
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
            finished_at: text::time(record.finished_at),
            steps: record.result.steps.into_iter().map(|(step, at)| Step { step, at: text::time(at) }).collect(),
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
        let mut running = new(8, by("root", None), 100);
        running.begin(time(120)).unwrap();
        running.step_done(time(121)).unwrap();
        running.attempt_failed("cannot open /dev/vda7: no such device".into(), time(122)).unwrap();
        [done, running].iter().map(JobRecord::from).map(Job::from).collect()
    }

    #[test]
    fn jobs_are_listed_oldest_first() {
        insta::assert_snapshot!(render_list(&jobs(), "none"));
    }

    #[test]
    fn a_job_that_failed_once_says_where_and_why() {
        insta::assert_snapshot!(jobs()[1].render());
    }

    #[test]
    fn the_json_is_stable() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&jobs()).unwrap());
    }
}
