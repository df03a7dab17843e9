//! `nemosctl integrity`: what is damaged, and how it was found.

use std::io::IsTerminal;
use std::time::Duration;

use nemos_api::CallError;
use nemos_api::integrity::{EventRecord, IntegrityProxy, ScrubOptions, VolumeRecord};
use nemos_model::health::Health;
use nemos_model::integrity::scrub::{SCRUBBED, ScrubState};
use nemos_model::integrity::status::State;
use serde::Serialize;
use zbus::Connection;
use zbus::proxy::CacheProperties;

use crate::arguments::{Integrity as Arguments, IntegrityCommand as Command};
use crate::output::{Output, print};
use crate::style::Style;
use crate::{Failure, table, text};

/// How often to look how far a scrub is.
const LOOK: Duration = Duration::from_millis(500);

/// How the device is. This is also the shape of `--json`; keys are added, never changed.
#[derive(Debug, Serialize)]
struct Integrity {
    /// `ok`, `corrected`, `corrupted`, `unknown`.
    state: String,
    /// Each volume, the root first.
    volumes: Vec<Volume>,
}

/// A volume; null where there is nothing to say. Times are ISO 8601 in UTC.
#[derive(Debug, Serialize)]
struct Volume {
    name: String,
    kind: String,
    state: String,
    status: String,
    algorithm: Option<String>,
    root_hash: Option<String>,
    signed: Option<bool>,
    errors: u64,
    corrected: u64,
    last_scrub: Option<String>,
    scrub: Option<Scrub>,
}

/// The newest scrub of a volume.
#[derive(Debug, Serialize)]
struct Scrub {
    /// `running`, `done`, `cancelled`, `failed`.
    state: String,
    /// 0 to 1.
    coverage: f64,
    /// Bytes that it has read.
    read: u64,
    /// Bytes that it reads in all.
    size: u64,
    /// Blocks that are damaged.
    damaged: u64,
}

/// An event. This is also its shape in `--json`; null where it is not known.
#[derive(Debug, Serialize)]
struct Event {
    id: u64,
    volume: String,
    incarnation: String,
    kind: String,
    area: String,
    block: Option<u64>,
    start: Option<u64>,
    length: Option<u64>,
    first_seen: Option<String>,
    last_seen: Option<String>,
    count: u32,
    found_by: String,
    told_by: Vec<String>,
    acknowledged: Option<String>,
    file: Option<String>,
    package: Option<String>,
}

/// Carries out a command about integrity.
pub async fn run(connection: &Connection, arguments: Arguments, output: Output) -> Result<u8, Failure> {
    // What changes while it is waited for has to be asked for each time.
    let proxy = IntegrityProxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
    match arguments.command {
        None => {
            let integrity = Integrity::ask(&proxy).await?;
            output.show(&integrity, |integrity| integrity.render(output.style))?;
            Ok(if integrity.state == State::Corrupted.name() { 2 } else { 0 })
        }
        Some(Command::Events { open }) => {
            let mut events = events(&proxy).await?;
            events.retain(|event| !open || event.acknowledged.is_none());
            output.show(&events, |events| render_events(events))?;
            Ok(0)
        }
        Some(Command::Acknowledge { ids, all }) => acknowledge(&proxy, ids, all, output).await,
        Some(Command::Scrub { volumes, rate, no_wait, cancel }) => {
            let volumes = if volumes.is_empty() { can_be_scrubbed(&proxy).await? } else { volumes };
            if cancel {
                return stop(&proxy, &volumes, output).await;
            }
            for volume in &volumes {
                proxy.scrub(volume, ScrubOptions { rate }).await?;
            }
            if no_wait { show(&proxy, &volumes, output).await } else { wait(&proxy, &volumes, output).await }
        }
    }
}

/// The volumes of this device that can be scrubbed.
async fn can_be_scrubbed(proxy: &IntegrityProxy<'_>) -> Result<Vec<String>, CallError> {
    let has_checksums = |record: &VolumeRecord| {
        SCRUBBED.iter().any(|volume| volume.name() == record.name) && record.algorithm.is_some()
    };
    let volumes = proxy.volumes().await?;
    Ok(volumes.into_iter().filter(has_checksums).map(|record| record.name).collect())
}

async fn events(proxy: &IntegrityProxy<'_>) -> Result<Vec<Event>, CallError> {
    Ok(proxy.events(0, 0).await?.into_iter().map(Event::from).collect())
}

async fn acknowledge(proxy: &IntegrityProxy<'_>, ids: Vec<u64>, all: bool, output: Output) -> Result<u8, Failure> {
    let open = events(proxy).await?.into_iter().filter(|event| event.acknowledged.is_none());
    let ids: Vec<u64> = if all { open.map(|event| event.id).collect() } else { ids };
    for id in &ids {
        proxy.acknowledge(*id).await?;
    }
    let acknowledged: Vec<Event> = events(proxy).await?.into_iter().filter(|event| ids.contains(&event.id)).collect();
    output.show(&acknowledged, |events| format!("{} acknowledged\n", counted(events.len(), "event")))?;
    Ok(0)
}

/// Stops those that run. Of several that were not named, one may have ended.
async fn stop(proxy: &IntegrityProxy<'_>, volumes: &[String], output: Output) -> Result<u8, Failure> {
    let running: Vec<String> =
        scrubbed(proxy, volumes).await?.into_iter().filter(Volume::is_running).map(|volume| volume.name).collect();
    for volume in if running.is_empty() { volumes } else { &running } {
        proxy.cancel_scrub(volume).await?;
    }
    let mut left = scrubbed(proxy, volumes).await?;
    while left.iter().any(Volume::is_running) {
        tokio::time::sleep(LOOK).await;
        left = scrubbed(proxy, volumes).await?;
    }
    output.show(&left, |volumes| volumes.iter().map(Volume::render_scrub).collect())?;
    Ok(0)
}

/// Shows how far the scrubs are.
async fn show(proxy: &IntegrityProxy<'_>, volumes: &[String], output: Output) -> Result<u8, Failure> {
    let volumes = scrubbed(proxy, volumes).await?;
    output.show(&volumes, |volumes| volumes.iter().map(Volume::render_scrub).collect())?;
    Ok(0)
}

/// Waits until all have ended; on a terminal, shows how far they are.
async fn wait(proxy: &IntegrityProxy<'_>, names: &[String], output: Output) -> Result<u8, Failure> {
    let shows = !output.json && std::io::stdout().is_terminal();
    let mut volumes = scrubbed(proxy, names).await?;
    while volumes.iter().any(Volume::is_running) {
        if shows {
            let progress: Vec<String> = volumes.iter().map(Volume::render_progress).collect();
            print(&format!("\r\x1b[K{}", progress.join("  ")))?;
        }
        tokio::time::sleep(LOOK).await;
        volumes = scrubbed(proxy, names).await?;
    }
    if shows {
        print("\r\x1b[K")?;
    }
    output.show(&volumes, |volumes| volumes.iter().map(Volume::render_scrub).collect())?;
    Ok(u8::from(!volumes.iter().all(Volume::is_sound)))
}

async fn scrubbed(proxy: &IntegrityProxy<'_>, names: &[String]) -> Result<Vec<Volume>, CallError> {
    let volumes = proxy.volumes().await?.into_iter().filter(|volume| names.contains(&volume.name));
    Ok(volumes.map(Volume::from).collect())
}

impl Integrity {
    async fn ask(proxy: &IntegrityProxy<'_>) -> Result<Self, CallError> {
        let volumes = proxy.volumes().await?.into_iter().map(Volume::from).collect();
        Ok(Integrity { state: proxy.state().await?, volumes })
    }

    fn render(&self, style: Style) -> String {
        let health = if self.state == State::Corrupted.name() {
            Health::Critical
        } else if self.state == State::Ok.name() {
            Health::Ok
        } else {
            Health::Warning
        };
        let head = ["VOLUME", "KIND", "STATE", "STATUS", "DAMAGED", "CORRECTED", "LAST SCRUB", "CHECKED BY"]
            .map(str::to_owned);
        let rows = self.volumes.iter().map(Volume::row);
        let table = table::columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
        let running: String =
            self.volumes.iter().filter(|volume| volume.is_running()).map(Volume::render_scrub).collect();
        let gap = if running.is_empty() { "" } else { "\n" };
        format!("integrity {}\n\n{table}{gap}{running}", style.health(health, &self.state))
    }
}

impl Volume {
    fn row(&self) -> [String; 8] {
        let dash = || "-".to_owned();
        let signed = match self.signed {
            Some(true) => ", signed",
            Some(false) => ", not signed",
            None => "",
        };
        let algorithm = self.algorithm.as_ref().map(|algorithm| format!("{algorithm}{signed}"));
        [
            self.name.clone(),
            self.kind.clone(),
            self.state.clone(),
            self.status.clone(),
            self.errors.to_string(),
            self.corrected.to_string(),
            self.last_scrub.clone().unwrap_or_else(dash),
            algorithm.unwrap_or_else(dash),
        ]
    }

    fn is_running(&self) -> bool {
        self.scrub.as_ref().is_some_and(|scrub| scrub.state == ScrubState::Running.name())
    }

    fn is_sound(&self) -> bool {
        self.scrub.as_ref().is_some_and(|scrub| scrub.state == ScrubState::Done.name() && scrub.damaged == 0)
    }

    fn render_progress(&self) -> String {
        let coverage = self.scrub.as_ref().map_or(0.0, |scrub| scrub.coverage * 100.0);
        format!("{} {coverage:.0} %", self.name)
    }

    fn render_scrub(&self) -> String {
        match &self.scrub {
            Some(Scrub { state, read, size, damaged, .. }) => format!(
                "scrub of {}: {state}, {} of {} read, {} damaged\n",
                self.name,
                text::bytes(*read),
                text::bytes(*size),
                counted(usize::try_from(*damaged).unwrap_or(usize::MAX), "block")
            ),
            None => format!("scrub of {}: never begun\n", self.name),
        }
    }
}

fn render_events(events: &[Event]) -> String {
    if events.is_empty() {
        return "no events\n".to_owned();
    }
    let head = ["EVENT", "LAST SEEN", "VOLUME", "WHAT", "TIMES", "FOUND BY", "ACKNOWLEDGED", "FILE"].map(str::to_owned);
    table::columns(&std::iter::once(head).chain(events.iter().map(Event::row)).collect::<Vec<_>>())
}

impl Event {
    fn row(&self) -> [String; 8] {
        let dash = || "-".to_owned();
        let at = match (self.block, self.start) {
            (Some(block), _) => format!(" block {block}"),
            (None, Some(start)) => format!(" at byte {start}"),
            (None, None) => String::new(),
        };
        let file = match (&self.file, &self.package) {
            (Some(file), Some(package)) => format!("{file}, package {package}"),
            (Some(file), None) => file.clone(),
            (None, _) => dash(),
        };
        [
            self.id.to_string(),
            self.last_seen.clone().unwrap_or_else(dash),
            self.volume.clone(),
            format!("{}{at} {}", self.area, self.kind),
            self.count.to_string(),
            self.found_by.clone(),
            self.acknowledged.clone().unwrap_or_else(dash),
            file,
        ]
    }
}

/// `1 event`, `2 events`.
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

impl From<VolumeRecord> for Volume {
    fn from(record: VolumeRecord) -> Self {
        let scrub = record.scrub.map(|state| Scrub {
            state,
            coverage: record.coverage.unwrap_or_default(),
            read: record.scrubbed.unwrap_or_default(),
            size: record.scrub_size.unwrap_or_default(),
            damaged: record.scrub_damaged.unwrap_or_default(),
        });
        Volume {
            name: record.name,
            kind: record.kind,
            state: record.state,
            status: record.status,
            algorithm: record.algorithm,
            root_hash: record.root_hash,
            signed: record.signed,
            errors: record.errors,
            corrected: record.corrected,
            last_scrub: record.last_scrub.and_then(text::time),
            scrub,
        }
    }
}

impl From<EventRecord> for Event {
    fn from(record: EventRecord) -> Self {
        Event {
            id: record.id,
            volume: record.volume,
            incarnation: record.incarnation,
            kind: record.kind,
            area: record.area,
            block: record.block,
            start: record.start,
            length: record.length,
            first_seen: text::time(record.first_seen),
            last_seen: text::time(record.last_seen),
            count: record.count,
            found_by: record.found_by,
            told_by: record.told_by,
            acknowledged: record.acknowledged.and_then(text::time),
            file: record.file,
            package: record.package,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn volume(name: &str, kind: &str) -> VolumeRecord {
        VolumeRecord {
            name: name.into(),
            kind: kind.into(),
            state: "ok".into(),
            status: "active".into(),
            algorithm: None,
            root_hash: None,
            signed: None,
            errors: 0,
            corrected: 0,
            last_scrub: None,
            scrub: None,
            coverage: None,
            scrubbed: None,
            scrub_size: None,
            scrub_damaged: None,
        }
    }

    fn damaged() -> Integrity {
        let root = VolumeRecord {
            state: "corrupted".into(),
            status: "corrupted".into(),
            algorithm: Some("sha256".into()),
            root_hash: Some("ab".repeat(32)),
            signed: Some(false),
            errors: 2,
            last_scrub: Some(1_795_442_786),
            scrub: Some("running".into()),
            coverage: Some(0.25),
            scrubbed: Some(30 << 20),
            scrub_size: Some(120 << 20),
            scrub_damaged: Some(1),
            ..volume("verityRoot", "dm-verity")
        };
        let volumes = [root, volume("p.lxhome", "ext4")].map(Volume::from).into();
        Integrity { state: "corrupted".into(), volumes }
    }

    fn event() -> EventRecord {
        EventRecord {
            id: 7,
            volume: "verityRoot".into(),
            incarnation: "ab".repeat(32),
            kind: "corrupted".into(),
            area: "data".into(),
            block: Some(17),
            start: Some(17 * 4096),
            length: Some(4096),
            first_seen: 1_795_442_786,
            last_seen: 1_795_442_790,
            count: 3,
            found_by: "read".into(),
            told_by: vec!["log".into(), "uevent".into()],
            acknowledged: None,
            file: Some("/usr/bin/foo".into()),
            package: Some("bar".into()),
        }
    }

    #[test]
    fn each_volume_says_how_it_is() {
        insta::assert_snapshot!(damaged().render(Style::new(false)));
    }

    #[test]
    fn events_say_what_where_and_whose() {
        let code_word = EventRecord {
            id: 8,
            area: "code-word".into(),
            kind: "corrected".into(),
            block: None,
            length: None,
            file: None,
            package: None,
            acknowledged: Some(1_795_442_800),
            ..event()
        };
        let events = [event(), code_word].map(Event::from);
        insta::assert_snapshot!(render_events(&events));
        assert_eq!(render_events(&[]), "no events\n");
    }

    #[test]
    fn the_json_is_stable() {
        let mut integrity = damaged();
        integrity.volumes.truncate(1);
        let json = (integrity, [Event::from(event())]);
        insta::assert_snapshot!(serde_json::to_string_pretty(&json).unwrap());
    }
}
