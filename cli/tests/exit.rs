//! How nemosctl ends where there is no nemosd.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::process::{Command, Output, Stdio};

fn nemosctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nemosctl"))
        .args(arguments)
        .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_device_that_cannot_be_asked_is_unknown() {
    let status = nemosctl(&["status"]);
    assert_eq!(status.status.code(), Some(3));
    let error = text(&status.stderr);
    assert!(error.starts_with("nemosctl: nemosd cannot be reached: "), "{error}");
    assert!(error.contains("systemctl status nemosd"), "{error}");

    let health = nemosctl(&["health"]);
    assert_eq!(health.status.code(), Some(3));
    let line = text(&health.stdout);
    assert!(line.starts_with("NEMOS UNKNOWN - ") && line.lines().count() == 1, "{line}");
}

#[test]
fn a_script_that_did_not_say_yes_erases_nothing() {
    let reset = nemosctl(&["reset", "--factory"]);
    assert_eq!(reset.status.code(), Some(2));
    assert!(text(&reset.stderr).contains("--yes"));
}

#[test]
fn wrong_usage_is_told_from_refusals() {
    assert_eq!(nemosctl(&["reset"]).status.code(), Some(2));
    assert_eq!(nemosctl(&["reset", "--factory", "--yes", "--dry-run"]).status.code(), Some(2));
}
