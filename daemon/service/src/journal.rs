//! What is written to the journal: each event with its `MESSAGE_ID`, and with fields that programs can select by.
//!
//! The identifiers are explained to people in `/usr/lib/systemd/catalog/nemos.catalog` (`journalctl -x`).

use std::fmt;

use nemos_api::Error;
use nemos_model::JobId;
use nemos_model::health::{Finding, Health, verdict};
use nemos_model::integrity::{Event, Scrub};
use nemos_model::job::{Job, Requester};
use nemos_model::keys::KeyslotId;
use nemos_model::overlay::{ConfigurationName, Mode, Tried};
use tracing::field::display;
use tracing::{info, warn};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::journal_layer::JournalLayer;

/// A request was granted. Fields as in [`REQUEST_REFUSED`], and what it is about: `NEMOS_JOB`, `NEMOS_KEYSLOT` or
/// `NEMOS_CONFIGURATION`.
pub const REQUEST_GRANTED: &str = "d0c273ead1334af9b2e7b17176656ace";
/// A request was refused: `NEMOS_ACTION`, `NEMOS_OUTCOME`, `NEMOS_CALLER_{UID,USER,PROCESS,LABEL}`, `NEMOS_ERROR`.
pub const REQUEST_REFUSED: &str = "5fa638dc82ed4d71b23d73780ef11a97";
/// This boot carried out a job, or tried to: `NEMOS_JOB`, `NEMOS_JOB_STATE`.
pub const CARRIED_OUT: &str = "a5e738d0a83547bd9b1074871801f537";
/// The device reboots for a job: `NEMOS_JOB`.
pub const REBOOTING: &str = "a2b301af0b2f4c81bec74083d08b35f5";
/// The device did not reboot for a job, which waits: `NEMOS_JOB`, `NEMOS_ERROR`.
pub const NOT_REBOOTED: &str = "92db5250c58b409592baf0c0c7ebca0a";
/// The device reboots to go back from what nobody has confirmed: `NEMOS_TRIED`.
pub const GOING_BACK: &str = "c6c85df48213416c8e14c4f49b8a6691";
/// The health changed: `NEMOS_HEALTH`, `NEMOS_FINDINGS`.
pub const HEALTH_CHANGED: &str = "92336534cebc4b87bb80bee35c78ebf8";

/// Something is damaged that was not, or that was acknowledged: `NEMOS_VOLUME`, `NEMOS_EVENT`, `NEMOS_KIND`.
pub const DAMAGED: &str = "1aa90428ade643bdad099b7fd7899941";
/// A scrub came to its end: `NEMOS_VOLUME`, `NEMOS_SCRUB`, `NEMOS_DAMAGED`.
pub const SCRUBBED: &str = "426d0563638a41eb878bf38895942bbc";

/// Sends everything to the journal, or to standard error where there is none.
pub fn begin() {
    let level = LevelFilter::INFO;
    if let Ok(journal) = JournalLayer::new() {
        tracing_subscriber::registry().with(level).with(journal).init();
    } else {
        let text = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
        tracing_subscriber::registry().with(level).with(text).init();
    }
}

/// What a request is about.
pub enum Subject {
    /// A job.
    Job(JobId),
    /// A key slot.
    Keyslot(KeyslotId),
    /// A configuration.
    Configuration(ConfigurationName),
    /// A configuration that has another name now.
    Renamed(ConfigurationName, ConfigurationName),
    /// A mode.
    Mode(Mode),
    /// What has no name.
    Nothing,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Job(job) => write!(f, ": job {job}"),
            Subject::Keyslot(slot) => write!(f, ": key slot {slot}"),
            Subject::Configuration(name) => write!(f, ": configuration {name}"),
            Subject::Renamed(from, to) => write!(f, ": configuration {from}, now {to}"),
            Subject::Mode(mode) => write!(f, ": mode {mode}"),
            Subject::Nothing => Ok(()),
        }
    }
}

/// A request, and how it ended.
pub fn request(action: &str, caller: &Requester, outcome: Result<&Subject, &Error>) {
    let subject = match outcome {
        Ok(subject) => subject,
        Err(error) => return refused(action, caller, error),
    };
    let [user, process, label] =
        [&caller.user, &caller.process, &caller.label].map(|text| text.as_deref().unwrap_or_default());
    let (mut job, mut keyslot, mut configuration) = (None, None, None);
    match subject {
        Subject::Job(id) => job = Some(display(id)),
        Subject::Keyslot(slot) => keyslot = Some(display(slot)),
        Subject::Configuration(name) | Subject::Renamed(name, _) => configuration = Some(display(name)),
        Subject::Mode(_) | Subject::Nothing => {}
    }
    info!(
        message_id = REQUEST_GRANTED,
        nemos_action = action,
        nemos_outcome = "granted",
        nemos_job = job,
        nemos_keyslot = keyslot,
        nemos_configuration = configuration,
        nemos_caller_uid = caller.uid,
        nemos_caller_user = user,
        nemos_caller_process = process,
        nemos_caller_label = label,
        "{action} granted to uid {} ({process}){subject}",
        caller.uid
    );
}

fn refused(action: &str, caller: &Requester, error: &Error) {
    let [user, process, label] =
        [&caller.user, &caller.process, &caller.label].map(|text| text.as_deref().unwrap_or_default());
    warn!(
        message_id = REQUEST_REFUSED,
        nemos_action = action,
        nemos_outcome = "refused",
        nemos_error = error.kind.name(),
        nemos_caller_uid = caller.uid,
        nemos_caller_user = user,
        nemos_caller_process = process,
        nemos_caller_label = label,
        "{action} refused to uid {} ({process}): {error}",
        caller.uid
    );
}

/// A caller that the bus could not name was refused.
pub fn stranger(action: &str, error: &Error) {
    let nemos_error = error.kind.name();
    warn!(
        message_id = REQUEST_REFUSED,
        nemos_action = action,
        nemos_outcome = "refused",
        nemos_error,
        "{action} refused: {error}"
    );
}

/// A reboot is asked for.
pub fn rebooting(job: JobId) {
    info!(message_id = REBOOTING, nemos_job = %job, "rebooting to carry out job {job}");
}

/// A reboot was refused.
pub fn not_rebooted(job: JobId, error: &str) {
    warn!(
        message_id = NOT_REBOOTED,
        nemos_job = %job,
        nemos_error = error,
        "cannot reboot ({error}); job {job} waits for the next boot"
    );
}

/// Health is critical while something is on trial.
pub fn going_back(tried: &Tried) {
    let name = tried.to_string();
    warn!(message_id = GOING_BACK, nemos_tried = name, "health is critical: rebooting to go back from {tried}");
}

/// What this boot did before nemosd was there to say so.
pub fn carried_out(job: &Job) {
    let (id, kind, state, by) = (job.id, job.kind, job.state, &job.requested_by);
    info!(
        message_id = CARRIED_OUT,
        nemos_job = %id,
        nemos_job_state = state.name(),
        nemos_caller_uid = by.uid,
        "this boot carried out job {id} ({kind}) of uid {}: {state}",
        by.uid
    );
}

/// The health is another than before.
pub fn health(findings: &[Finding]) {
    let health = verdict(findings);
    let reasons: Vec<&str> = findings.iter().map(|finding| finding.message.as_str()).collect();
    let reasons = reasons.join("; ");
    match health {
        Health::Ok => info!(message_id = HEALTH_CHANGED, nemos_health = health.name(), "health is {health}"),
        Health::Warning | Health::Critical => warn!(
            message_id = HEALTH_CHANGED,
            nemos_health = health.name(),
            nemos_findings = reasons,
            "health is {health}: {reasons}"
        ),
    }
}

/// Something is damaged.
pub fn damaged(event: &Event) {
    warn!(
        message_id = DAMAGED,
        nemos_volume = event.place.volume.name(),
        nemos_event = event.id,
        nemos_kind = event.place.kind.name(),
        "{event}"
    );
}

/// A scrub came to its end.
pub fn scrubbed(scrub: &Scrub) {
    let (volume, state, damaged) = (scrub.volume, scrub.state, scrub.damaged);
    info!(
        message_id = SCRUBBED,
        nemos_volume = volume.name(),
        nemos_scrub = state.name(),
        nemos_damaged = damaged,
        "scrub of {volume} {state}: {} MiB read, {damaged} blocks damaged{}",
        scrub.checked >> 20,
        scrub.error.as_deref().map(|error| format!(" ({error})")).unwrap_or_default()
    );
}
