//! `nemosctl reset`: back to the image as it was shipped.

use jiff::Zoned;
use nemos_api::reset::{KeptEntry, PlanOptions, PlanRecord, RequestOptions, ResetProxy};
use nemos_model::partitions::Partition;
use serde::Serialize;
use zbus::Connection;

use crate::arguments::{Reset as Arguments, ResetCommand};
use crate::job::{Accepted, Job};
use crate::output::{Output, agrees, can_ask, print};
use crate::{Failure, certificate, table, text};

/// What a reset would do. This is also the shape of `--dry-run --json`; sizes in bytes, null where not known.
#[derive(Debug, Serialize)]
struct Plan {
    /// The plan's name.
    #[serde(rename = "plan")]
    name: String,
    /// `overlay` or `factory`.
    scope: String,
    /// `[{"partition", "how": "key-destroyed|key-replaced|formatted", "size", "used"}]`.
    erased: Vec<Erased>,
    /// Labels of the partitions that stay.
    untouched: Vec<String>,
    /// `[{"path", "entries", "bytes"}]`: what is kept of that which goes.
    keep: Vec<Kept>,
    /// Bytes in use on the overlay's volume, if all of them are kept.
    keep_all: Option<u64>,
    /// `{"on", "needed", "available"}`: the partition that it waits on, and the room for it there.
    room: Option<Room>,
    /// What the device makes anew of its own.
    regenerated: Vec<String>,
    /// Names of the steps, in order.
    steps: Vec<String>,
    /// How long it takes.
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

/// A path that is kept.
#[derive(Debug, Serialize)]
struct Kept {
    path: String,
    entries: u64,
    bytes: u64,
}

/// The room for what is kept.
#[derive(Debug, Serialize)]
struct Room {
    on: String,
    needed: u64,
    available: u64,
}

/// Refuses a reset that has to be asked about where there is nobody to ask.
pub fn check(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let asks = arguments.command.is_none() && !arguments.yes && !arguments.dry_run;
    if asks && !can_ask(output) { Err(Failure::NobodyToAsk) } else { Ok(()) }
}

/// Carries out a command about resets.
pub async fn run(connection: &Connection, arguments: Arguments, output: Output) -> Result<u8, Failure> {
    match arguments {
        Arguments { command: Some(ResetCommand::History), .. } => {
            let records = ResetProxy::new(connection).await?.history().await?;
            let jobs: Vec<Job> = records.into_iter().map(Job::from).collect();
            output.show(&jobs, |jobs| render_history(jobs))?;
        }
        Arguments { command: Some(ResetCommand::Certificate(command)), .. } => {
            return certificate::run(command, output).await;
        }
        arguments if arguments.dry_run => output.show(&ask_plan(connection, &arguments).await?, Plan::render)?,
        arguments => {
            let accepted = reset(connection, arguments).await?;
            output.show(&accepted, |accepted| accepted.render("the next boot resets the device"))?;
        }
    }
    Ok(0)
}

/// Resets that have ended, for people: a line each. `nemosctl job show` tells all of one.
fn render_history(jobs: &[Job]) -> String {
    if jobs.is_empty() {
        return "never reset\n".to_owned();
    }
    let head = ["REQUESTED", "JOB", "KIND", "STATE", "ENDED", "ERASED", "AUDIT", "BY"].map(str::to_owned);
    let rows = jobs.iter().map(|job| {
        let at = |time: &Option<String>| time.clone().unwrap_or_else(|| "-".to_owned());
        let (asked, ended) = (at(&job.requested_at), at(&job.finished_at));
        let (kind, state) = (job.kind.clone(), job.state.clone());
        [asked, job.id.clone(), kind, state, ended, job.erased(), job.verdict().to_owned(), job.requested_by.render()]
    });
    table::columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

async fn reset(connection: &Connection, arguments: Arguments) -> Result<Accepted, Failure> {
    let at = arguments.at.as_deref().map(|at| text::parse_time(at, &Zoned::now()));
    let not_before = at.transpose().map_err(Failure::Usage)?;
    let agreed = if arguments.yes { arguments.if_plan.clone() } else { Some(confirm(connection, &arguments).await?) };
    let scope = arguments.scope().name();
    let options = RequestOptions {
        keep: some(&arguments.keep),
        keep_sets: some(&arguments.keep_set),
        keep_all: arguments.keep_all.then_some(true),
        key: arguments.key,
        label: arguments.label,
        reboot: Some(!arguments.no_reboot),
        plan: agreed,
        not_before,
    };
    let path = ResetProxy::new(connection).await?.request(scope, options).await?;
    Accepted::of(connection, &path, !arguments.no_reboot).await
}

/// Says what will go, and asks. Gives back the name of the plan that was agreed to.
async fn confirm(connection: &Connection, arguments: &Arguments) -> Result<String, Failure> {
    let plan = ask_plan(connection, arguments).await?;
    let verb = if arguments.keep_all { "make a new key" } else { "erase" };
    let question = match (&arguments.at, arguments.no_reboot) {
        (Some(at), _) => format!("At {at}, {verb}?"),
        (None, true) => format!("At the next boot, {verb}?"),
        (None, false) => format!("Reboot now and {verb}?"),
    };
    print(&format!("{}\n{question} [y/N] ", plan.render()))?;
    if agrees()? { Ok(plan.name) } else { Err(Failure::Declined) }
}

/// A list as an option: not there if it is empty.
fn some(list: &[String]) -> Option<Vec<String>> {
    (!list.is_empty()).then(|| list.to_vec())
}

async fn ask_plan(connection: &Connection, arguments: &Arguments) -> Result<Plan, Failure> {
    let options = PlanOptions {
        scope: Some(arguments.scope().name().to_owned()),
        keep: some(&arguments.keep),
        keep_sets: some(&arguments.keep_set),
        keep_all: arguments.keep_all.then_some(true),
    };
    let (name, record) = ResetProxy::new(connection).await?.plan(options).await?;
    Ok(Plan::new(name, record))
}

impl Plan {
    fn new(name: String, record: PlanRecord) -> Self {
        let PlanRecord { scope, erased, untouched, keep, keep_all, regenerated, steps, seconds, .. } = record;
        let room = record.room_needed.zip(record.room_available).zip(record.waits_on);
        let room = room.map(|((needed, available), on)| Room { on, needed, available });
        let erased = erased.into_iter().map(|entry| Erased {
            partition: entry.partition,
            how: entry.how,
            size: entry.size,
            used: entry.used,
        });
        let keep = keep.into_iter().map(|KeptEntry { path, entries, bytes }| Kept { path, entries, bytes }).collect();
        Plan { name, scope, erased: erased.collect(), untouched, keep, keep_all, room, regenerated, steps, seconds }
    }

    /// The plan, for people.
    fn render(&self) -> String {
        let erased = self.erased.iter().map(|erased| {
            let used = erased.used.map(|used| format!("{} used", text::bytes(used))).unwrap_or_default();
            let how = match erased.how.as_str() {
                "key-replaced" => "key replaced: nobody can read it with the old one any more".to_owned(),
                "key-destroyed" => "key destroyed: nobody can read it any more".to_owned(),
                "formatted" => "formatted: not reachable, but not overwritten".to_owned(),
                other => other.to_owned(),
            };
            [format!("  {}", erased.partition), holds(&erased.partition).to_owned(), used, how]
        });
        let untouched = self.untouched.iter().map(|label| [format!("  {label}"), holds(label).to_owned()]);
        let (erased, untouched): (Vec<_>, Vec<_>) = (erased.collect(), untouched.collect());
        let what_happens = if self.keep_all.is_some() { "This gets a new volume key" } else { "This goes" };
        let mut parts = vec![format!("{what_happens}:\n{}", table::columns(&erased))];
        parts.extend(self.render_kept());
        parts.push(format!("This stays:\n{}", table::columns(&untouched)));
        if !self.regenerated.is_empty() {
            parts.push(format!("The device makes anew: {}.\n", self.regenerated.join(", ")));
        }
        parts.extend(self.seconds.map(|seconds| format!("It takes about {seconds} s besides the reboot.\n")));
        parts.push(format!("Plan {}\n", self.name));
        parts.join("\n")
    }

    fn render_kept(&self) -> Option<String> {
        let room = self.room.as_ref()?;
        let rows = self.keep.iter().map(|Kept { path, entries, bytes }| match entries {
            0 => [format!("  {path}"), "is not there".to_owned()],
            1 => [format!("  {path}"), text::bytes(*bytes)],
            many => [format!("  {path}"), format!("{many} files and folders, {}", text::bytes(*bytes))],
        });
        let kept = match self.keep_all {
            None => format!("This is kept of it:\n{}", table::columns(&rows.collect::<Vec<_>>())),
            Some(bytes) => format!(
                "All of it is kept, {}: changes, saved configurations, and who the device is. Keys begin anew, as at the\n\
                 first boot: no recovery key, passphrase or TPM key of the old volume opens the new one.\n",
                text::bytes(bytes)
            ),
        };
        let (on, needed, available) = (&room.on, text::bytes(room.needed), text::bytes(room.available));
        let fits = if room.needed <= room.available {
            format!("It waits encrypted on {on} meanwhile, in {needed} of {available}.")
        } else {
            format!("THIS DOES NOT FIT: it needs {needed} on {on} while it waits, and there are {available}.")
        };
        Some(format!("{kept}{fits}\n"))
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
            untouched: ["p.UEFI", "p.lxoci-preloaded", "p.lxstate", "p.lxreadonly"].map(str::to_owned).to_vec(),
            keep: vec![
                KeptEntry { path: "/etc/hostname".into(), entries: 1, bytes: 4096 },
                KeptEntry { path: "/etc/machine-id".into(), entries: 0, bytes: 0 },
                KeptEntry { path: "/home/admin".into(), entries: 17, bytes: 3 << 20 },
            ],
            keep_all: None,
            waits_on: Some("p.lxstate".into()),
            room_needed: Some(8 << 20),
            room_available: Some(50 << 20),
            regenerated: vec!["SSH host keys".into()],
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
    fn a_new_volume_key_is_said_to_take_keys_and_nothing_else() {
        let root = ErasedEntry {
            partition: "p.lxroot".into(),
            how: "key-replaced".into(),
            size: Some(512 << 20),
            used: Some(34_567_890),
        };
        let record = PlanRecord {
            scope: "overlay".into(),
            erased: vec![root],
            untouched: ["p.UEFI", "p.lxhome", "p.lxoci-storage"].map(str::to_owned).to_vec(),
            keep: vec![],
            keep_all: Some(98 << 20),
            waits_on: Some("p.lxoci-storage".into()),
            room_needed: Some(110 << 20),
            room_available: Some(400 << 20),
            regenerated: vec![],
            steps: vec!["survey".into(), "stage-kept".into()],
            seconds: None,
        };
        insta::assert_snapshot!(Plan::new("3d11b5cc-7e2d-4faf-b7ef-77b83176e567".into(), record).render());
    }

    #[test]
    fn the_json_is_stable() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&plan()).unwrap());
    }
}
