//! The key in a TPM, with tpm2-tools on a TPM in software (`swtpm`).

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nemos_host::certificate::SigningKey;
use nemos_host::time::wait_for;
use nemos_model::certificate::{Keeping, PublicKey};
use p256::ecdsa::VerifyingKey;
use p256::ecdsa::signature::Verifier as _;
use p256::pkcs8::DecodePublicKey as _;
use tempfile::TempDir;

/// A TPM; what it stores is in the folder.
struct Tpm {
    swtpm: Child,
    socket: PathBuf,
}

impl Tpm {
    fn switched_on(folder: &TempDir) -> Self {
        let socket = folder.path().join("socket");
        let control = folder.path().join("socket.ctrl");
        let swtpm = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", folder.path().display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", control.display()))
            .stderr(Stdio::null())
            .spawn()
            .expect("this test needs swtpm (package swtpm)");
        let tpm = Tpm { swtpm, socket };
        let ready = || (tpm.socket.exists() && control.exists()).then_some(());
        wait_for(Duration::from_secs(20), ready).expect("swtpm makes its sockets");
        tpm
    }

    fn key(&self) -> SigningKey {
        SigningKey::in_tpm(&format!("swtpm:path={}", self.socket.display())).unwrap()
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        let _ = self.swtpm.kill();
        let _ = self.swtpm.wait();
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(self.socket.with_extension("ctrl"));
    }
}

fn verifies(key: PublicKey, message: &[u8], signature: &p256::ecdsa::Signature) -> bool {
    VerifyingKey::from_public_key_pem(&key.to_pem()).unwrap().verify(message, signature).is_ok()
}

#[test]
fn the_tpm_has_the_same_key_after_each_start_and_signs_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let first = Tpm::switched_on(&folder).key().public();
    let tpm = Tpm::switched_on(&folder);
    let key = tpm.key();
    assert_eq!(key.public(), first);
    assert_eq!(key.keeping(), Keeping::Tpm);
    let signature = key.sign(b"a message").unwrap();
    assert!(verifies(first, b"a message", &signature));
    assert!(!verifies(first, b"a massage", &signature));
}

#[test]
fn two_tpms_have_two_keys() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [one, other] = folders.each_ref().map(|folder| Tpm::switched_on(folder).key().public());
    assert_ne!(one, other);
}
