//! `nemosctl health`: one line and an exit status, as monitoring plugins have it.

use nemos_api::CallError;
use nemos_api::integrity::{IntegrityProxy, VolumeRecord};
use nemos_model::health::{FULL, Finding, Health, NEARLY_FULL};
use nemos_model::overlay::UPPER_MOUNT;
use nemos_model::partitions::Partition;
use serde::Serialize;
use zbus::Connection;

use crate::Failure;
use crate::output::Output;
use crate::status::Status;

/// The health alone. This is also the shape of `--json`.
#[derive(Debug, Serialize)]
struct Verdict<'a> {
    /// `ok`, `warning`, `critical`, `unknown`.
    health: &'a str,
    /// `[{"health", "message"}]`.
    findings: &'a [Finding],
    /// `[{"name", "value", "unit", "warning", "critical", "max"}]`: what the findings follow from, where that is a number.
    figures: Vec<Figure>,
    /// Why it is unknown; null if it is not.
    error: Option<String>,
}

/// A number, and from where on it is a finding; null where there is no such thing.
#[derive(Debug, Serialize)]
struct Figure {
    name: String,
    value: u64,
    /// `B`, `s`, or empty.
    unit: &'static str,
    warning: Option<u64>,
    critical: Option<u64>,
    max: Option<u64>,
}

impl Figure {
    /// As the monitoring plugins' guidelines have it: `'label'=value[unit];[warning];[critical];[min];[max]`.
    fn render(&self) -> String {
        let limit = |limit: Option<u64>| limit.map(|limit| limit.to_string()).unwrap_or_default();
        let (warning, critical, max) = (limit(self.warning), limit(self.critical), limit(self.max));
        let figure = format!("{}={}{};{warning};{critical};0;{max}", self.name, self.value, self.unit);
        figure.trim_end_matches(';').to_owned()
    }
}

async fn volumes(connection: &Connection) -> Result<Vec<VolumeRecord>, CallError> {
    IntegrityProxy::new(connection).await?.volumes().await
}

fn figures(status: &Status, volumes: &[VolumeRecord]) -> Vec<Figure> {
    let of_all = |name: &str, value: fn(&VolumeRecord) -> u64, warning, critical| Figure {
        name: name.into(),
        value: volumes.iter().map(value).sum(),
        unit: "",
        warning,
        critical,
        max: None,
    };
    // A limit is the last value that is none: one damaged place is critical already.
    let mut figures = vec![
        of_all("damaged", |volume| volume.errors, None, Some(0)),
        of_all("corrected", |volume| volume.corrected, Some(0), None),
    ];
    for (name, mount) in [("overlay", UPPER_MOUNT), ("state", Partition::State.mount_point().unwrap_or_default())] {
        let layer = status.storage.iter().find(|layer| layer.name == mount);
        if let Some((Some(value), Some(size))) = layer.map(|layer| (layer.used, layer.size)) {
            let [warning, critical] = [NEARLY_FULL, FULL].map(|percent| Some(size / 100 * percent));
            figures.push(Figure { name: format!("{name}_used"), value, unit: "B", warning, critical, max: Some(size) });
        }
    }
    figures
}

/// Asks, prints, and says how to exit: 3 if there is nobody to ask.
pub async fn run(connection: Result<Connection, CallError>, output: Output) -> Result<u8, Failure> {
    let status = match &connection {
        Ok(connection) => Status::ask(connection).await,
        Err(error) => Err(error.clone()),
    };
    let volumes = match &connection {
        Ok(connection) => volumes(connection).await.unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    let figures = status.as_ref().map(|status| figures(status, &volumes)).unwrap_or_default();
    let verdict = match &status {
        Ok(status) => Verdict { health: status.health.name(), findings: &status.findings, figures, error: None },
        Err(error) => Verdict { health: "unknown", findings: &[], figures, error: Some(error.to_string()) },
    };
    output.show(&verdict, Verdict::render)?;
    Ok(match status.map(|status| status.health) {
        Ok(Health::Ok) => 0,
        Ok(Health::Warning) => 1,
        Ok(Health::Critical) => 2,
        Err(_) => 3,
    })
}

impl Verdict<'_> {
    fn render(&self) -> String {
        let mut findings: Vec<&Finding> = self.findings.iter().collect();
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.health));
        let reasons = findings.iter().map(|finding| finding.message.as_str()).chain(self.error.as_deref());
        let reasons = reasons.collect::<Vec<_>>().join("; ").replace('\n', " ");
        let reasons = if reasons.is_empty() { "nothing to do" } else { &reasons };
        // What stands behind the bar is for programs.
        let reasons = reasons.replace('|', "/");
        let figures: Vec<String> = self.figures.iter().map(Figure::render).collect();
        let bar = if figures.is_empty() { "" } else { " | " };
        format!("NEMOS {} - {reasons}{bar}{}\n", self.health.to_uppercase(), figures.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first_in_one_line() {
        let finding = |health, message: &str| Finding { health, message: message.into() };
        let findings = [finding(Health::Warning, "demo key"), finding(Health::Critical, "root is\ncorrupted")];
        let verdict = Verdict { health: "critical", findings: &findings, figures: Vec::new(), error: None };
        assert_eq!(verdict.render(), "NEMOS CRITICAL - root is corrupted; demo key\n");
    }

    #[test]
    fn a_healthy_device_says_so() {
        let verdict = Verdict { health: "ok", findings: &[], figures: Vec::new(), error: None };
        assert_eq!(verdict.render(), "NEMOS OK - nothing to do\n");
    }

    #[test]
    fn figures_follow_the_line_with_their_limits() {
        let root = VolumeRecord { errors: 2, ..crate::integrity::tests::volume("verityRoot", "dm-verity") };
        let figures = figures(&crate::status::tests::healthy(), &[root]);
        let verdict = Verdict { health: "ok", findings: &[], figures, error: None };
        assert_eq!(
            verdict.render(),
            "NEMOS OK - nothing to do | damaged=2;;0;0 corrected=0;0;;0 overlay_used=12345678B;462421980;503526156;0;513802240\n"
        );
    }
}
