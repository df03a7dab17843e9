//! `nemosctl reset`: back to the image as it was shipped.

use std::io::{BufRead, IsTerminal};

use nemos_api::CallError;
use nemos_api::job;
use nemos_api::reset::{PlanOptions, PlanRecord, RequestOptions, ResetProxy};
use nemos_model::job::JobState;
use nemos_model::partitions::Partition;
use serde::Serialize;
use zbus::Connection;

use crate::arguments::{Reset as Arguments, ResetCommand};
use crate::job::{Job, render_list};
use crate::output::{Output, print};
use crate::{Failure, table, text};

const SCOPE: &str = "factory";
/// State of a job that the next boot carries out.
const WAITING: &str = JobState::WaitingForReboot.name();

/// What a reset would do. This is also the shape of `--dry-run --json`; sizes in bytes, null where not known.
#[derive(Debug, Serialize)]
struct Plan {
    /// The plan's name.
    #[serde(rename = "plan")]
    name: String,
    /// `factory`.
    scope: String,
    /// `[{"partition", "how": "key-destroyed|formatted", "size", "used"}]`.
    erased: Vec<Erased>,
    /// Labels of the partitions that stay.
    kept: Vec<String>,
    /// Names of the steps, in order.
    steps: Vec<String>,
    /// How long it took the last time.
    seconds: Option<u64>,
}

/// A partition whose contents go.
#[derive(Debug, Serialize)]
struct Erased {
    partition: String,
    how: String,
    size: Option<u64>,
    used: Option<u64>,
}

/// What was accepted. This is also the shape of `--yes --json`.
#[derive(Debug, Serialize)]
struct Accepted {
    /// The job; see `nemosctl job show`.
    job: String,
    /// Its state.
    state: String,
    /// Whether the device reboots now.
    rebooting: bool,
}

/// Refuses a reset that has to be asked about where there is nobody to ask.
pub fn check(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let asks = arguments.command.is_none() && !arguments.yes && !arguments.dry_run;
    let can_ask = !output.json && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if asks && !can_ask { Err(Failure::NobodyToAsk) } else { Ok(()) }
}

/// Carries out a command about resets.
pub async fn run(connection: &Connection, arguments: Arguments, output: Output) -> Result<u8, Failure> {
    match arguments {
        Arguments { command: Some(ResetCommand::History), .. } => {
            let records = ResetProxy::new(connection).await?.history().await?;
            let jobs: Vec<Job> = records.into_iter().map(Job::from).collect();
            output.show(&jobs, |jobs| render_list(jobs, "never reset"))?;
        }
        Arguments { dry_run: true, .. } => output.show(&ask_plan(connection).await?, Plan::render)?,
        arguments => output.show(&reset(connection, arguments).await?, Accepted::render)?,
    }
    Ok(0)
}

async fn reset(connection: &Connection, arguments: Arguments) -> Result<Accepted, Failure> {
    let agreed = if arguments.yes { None } else { Some(confirm(connection, arguments.no_reboot).await?) };
    let options = RequestOptions {
        key: arguments.key,
        label: arguments.label,
        reboot: Some(!arguments.no_reboot),
        plan: agreed,
        not_before: None,
    };
    let path = ResetProxy::new(connection).await?.request(SCOPE, options).await?;
    let id = job::id_at(path.as_str()).ok_or(zbus::Error::InvalidReply)?;
    let state = match job::get(connection, id).await {
        Ok(job) => job.state,
        // It was accepted; the reboot may have taken nemosd down before it could answer again.
        Err(CallError::Unreachable(_)) if !arguments.no_reboot => WAITING.to_owned(),
        Err(error) => return Err(error.into()),
    };
    // A job that was done before, for the same key, makes nothing reboot.
    Ok(Accepted { job: id.to_string(), rebooting: !arguments.no_reboot && state == WAITING, state })
}

/// Says what will go, and asks. Gives back the name of the plan that was agreed to.
async fn confirm(connection: &Connection, no_reboot: bool) -> Result<String, Failure> {
    let plan = ask_plan(connection).await?;
    let question = if no_reboot { "Erase at the next boot?" } else { "Reboot now and erase?" };
    print(&format!("{}\n{question} [y/N] ", plan.render()))?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(plan.name),
        _ => Err(Failure::Declined),
    }
}

async fn ask_plan(connection: &Connection) -> Result<Plan, Failure> {
    let options = PlanOptions { scope: Some(SCOPE.to_owned()) };
    let (name, record) = ResetProxy::new(connection).await?.plan(options).await?;
    Ok(Plan::new(name, record))
}

impl Accepted {
    fn render(&self) -> String {
        let next = match (self.rebooting, self.state.as_str()) {
            (true, _) => "rebooting",
            (false, WAITING) => "the next boot resets the device",
            (false, state) => state,
        };
        format!("job {}\n{next}\n", self.job)
    }
}

impl Plan {
    fn new(name: String, record: PlanRecord) -> Self {
        let PlanRecord { scope, erased, kept, steps, seconds } = record;
        let erased = erased.into_iter().map(|entry| Erased {
            partition: entry.partition,
            how: entry.how,
            size: entry.size,
            used: entry.used,
        });
        Plan { name, scope, erased: erased.collect(), kept, steps, seconds }
    }

    /// The plan, for people.
    fn render(&self) -> String {
        let erased = self.erased.iter().map(|erased| {
            let used = erased.used.map(|used| format!("{} used", text::bytes(used))).unwrap_or_default();
            let how = match erased.how.as_str() {
                "key-destroyed" => "key destroyed: nobody can read it any more".to_owned(),
                "formatted" => "formatted: not reachable, but not overwritten".to_owned(),
                other => other.to_owned(),
            };
            [format!("  {}", erased.partition), holds(&erased.partition).to_owned(), used, how]
        });
        let kept = self.kept.iter().map(|label| [format!("  {label}"), holds(label).to_owned()]);
        let (erased, kept): (Vec<_>, Vec<_>) = (erased.collect(), kept.collect());
        let last = self.seconds.map(|seconds| format!("It took {seconds} s the last time.\n")).unwrap_or_default();
        format!("This goes:\n{}\nThis stays:\n{}\n{last}", table::columns(&erased), table::columns(&kept))
    }
}

/// What is on the partition of that label.
fn holds(label: &str) -> &'static str {
    label.parse::<Partition>().map_or("", Partition::holds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nemos_api::reset::ErasedEntry;

    fn plan() -> Plan {
        let erased = |partition: &str, how: &str, used| ErasedEntry {
            partition: partition.into(),
            how: how.into(),
            size: Some(512 << 20),
            used,
        };
        let record = PlanRecord {
            scope: "factory".into(),
            erased: vec![
                erased("p.lxroot", "key-destroyed", Some(34_567_890)),
                erased("p.lxoci-storage", "formatted", None),
                erased("p.lxhome", "formatted", Some(4096)),
            ],
            kept: ["p.UEFI", "p.lxoci-preloaded", "p.lxstate", "p.lxreadonly"].map(str::to_owned).to_vec(),
            steps: vec!["destroy-keys".into(), "create-volume".into()],
            seconds: Some(9),
        };
        Plan::new("3d11b5cc-7e2d-4faf-b7ef-77b83176e567".into(), record)
    }

    #[test]
    fn the_plan_says_what_goes_how_and_what_stays() {
        insta::assert_snapshot!(plan().render());
    }

    #[test]
    fn the_json_is_stable() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&plan()).unwrap());
    }

    #[test]
    fn a_job_that_was_done_before_does_not_reboot_the_device_again() {
        let accepted = Accepted { job: "7".into(), state: "done".into(), rebooting: false };
        assert_eq!(accepted.render(), "job 7\ndone\n");
    }
}
