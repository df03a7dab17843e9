//! `nemosctl reset verify-certificate`, with a certificate that another implementation signed: what was certified once must
//! verify for ever.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn kept(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificate").join(name)
}

/// Runs it where there is no bus to connect to.
fn verify(certificate: &Path, key: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nemosctl"))
        .args(["reset", "verify-certificate"])
        .args([certificate, "--key".as_ref(), key])
        .args(more)
        .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// That it exits with this status, and says why in a line.
fn is_refused(output: &Output, status: i32, why: &str) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert!(said.contains(why) && said.lines().count() == 1 && output.stdout.is_empty(), "{said}");
}

#[test]
fn a_certificate_of_version_1_is_verified_without_a_device() {
    let output = verify(&kept("version-1.jws"), &kept("device.pem"), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert!(said.starts_with("valid: ") && said.contains("returned by the customer"), "{said}");

    let json = verify(&kept("version-1.jws"), &kept("device.pem"), &["--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["claims"]["targets"][0]["grade"], "key-destroyed");
}

#[test]
fn what_does_not_hold_exits_with_1_and_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("reset.jws");
    let good = std::fs::read_to_string(kept("version-1.jws")).unwrap();
    for (content, why) in [
        (good.replacen(".eyJ2", ".eyK2", 1), "its signature does not match"),
        (String::new(), "it is not a certificate of a reset"),
        ("a".repeat(2 << 20), "it is larger than"),
    ] {
        std::fs::write(&file, content).unwrap();
        is_refused(&verify(&file, &kept("device.pem"), &[]), 1, why);
    }
}

#[test]
fn what_cannot_be_verified_exits_with_2() {
    let (certificate, key) = (kept("version-1.jws"), kept("device.pem"));
    is_refused(&verify(Path::new("/nonexistent/reset.jws"), &key, &[]), 2, "cannot read /nonexistent/reset.jws");
    is_refused(&verify(&certificate, &certificate, &[]), 2, "it is not a public key");
}
