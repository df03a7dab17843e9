//! `nemosctl health`: one line and an exit status, as monitoring plugins have it.

use nemos_api::CallError;
use nemos_model::health::{Finding, Health};
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
    /// Why it is unknown; null if it is not.
    error: Option<String>,
}

/// Asks, prints, and says how to exit: 3 if there is nobody to ask.
pub async fn run(connection: Result<Connection, CallError>, output: Output) -> Result<u8, Failure> {
    let status = match &connection {
        Ok(connection) => Status::ask(connection).await,
        Err(error) => Err(error.clone()),
    };
    let verdict = match &status {
        Ok(status) => Verdict { health: status.health.name(), findings: &status.findings, error: None },
        Err(error) => Verdict { health: "unknown", findings: &[], error: Some(error.to_string()) },
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
        format!("NEMOS {} - {reasons}\n", self.health.to_uppercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first_in_one_line() {
        let finding = |health, message: &str| Finding { health, message: message.into() };
        let findings = [finding(Health::Warning, "demo key"), finding(Health::Critical, "root is\ncorrupted")];
        let verdict = Verdict { health: "critical", findings: &findings, error: None };
        assert_eq!(verdict.render(), "NEMOS CRITICAL - root is corrupted; demo key\n");
    }

    #[test]
    fn a_healthy_device_says_so() {
        let verdict = Verdict { health: "ok", findings: &[], error: None };
        assert_eq!(verdict.render(), "NEMOS OK - nothing to do\n");
    }
}
