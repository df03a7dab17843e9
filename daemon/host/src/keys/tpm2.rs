//! Keys that a TPM 2.0 keeps, as systemd has them: its token in the header, its plugin for libcryptsetup, its program to enrol.
//!
//! The TPM gives the key out as long as PCR 7 is what it was: Secure Boot is on or off as it was, and trusts the same keys. A new
//! image that is signed with the same key changes nothing of that.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nemos_model::keys::slot::{Tpm2Token, tpm2_tokens};
use nemos_model::keys::{Closed, KeyslotId, Provider, Slot};

use crate::command::{CommandError, run_with_input};
use crate::integrity::scrub::header::metadata;
use crate::keys::way::{Given, Moment, Way};
use crate::keys::{ChangeError, Key, NewKey};

/// How the kernel shares a TPM 2.0 among those who use it.
const DEVICE: &str = "/dev/tpmrm0";
/// A TPM takes seconds for what a processor does at once.
const LIMIT: Duration = Duration::from_secs(120);
/// An enrolment with the policy of one that is there does nothing, so a rotation takes the other one. PCR 14 is not extended by
/// anything on a device of ours.
const POLICIES: [&str; 2] = ["7", "7+14"];

pub(super) struct Tpm2;

impl Way for Tpm2 {
    fn provider(&self) -> Provider {
        Provider::Tpm2
    }

    fn key(&self, _: &Slot, _: Moment) -> Result<Key, Closed> {
        Ok(Key::Tpm2)
    }

    fn takes_secret(&self) -> bool {
        false
    }

    fn new_key(&self, _: Given) -> Result<NewKey, ChangeError> {
        Ok(NewKey { provider: Provider::Tpm2, key: Key::Tpm2, place: None })
    }

    fn enroll(&self, partition: &Path, _: KeyslotId, unlock: &Key, _: &NewKey) -> Result<(), ChangeError> {
        enroll(partition, unlock)
    }
}

/// Whether the device has a TPM 2.0.
pub fn has_tpm2() -> bool {
    Path::new(DEVICE).exists()
}

/// The tokens of a TPM, the newest key first.
pub(super) fn tokens(partition: &Path) -> Vec<Tpm2Token> {
    metadata(partition).ok().flatten().map(|metadata| tpm2_tokens(&metadata)).unwrap_or_default()
}

/// Has the TPM make a key for the lowest key slot that is free.
fn enroll(partition: &Path, unlock: &Key) -> Result<(), ChangeError> {
    let is_free = |policy: &&&str| tokens(partition).iter().all(|token| token.pcrs() != ***policy);
    let policy = POLICIES.iter().find(is_free).ok_or(ChangeError::Tpm2Full)?;
    let pcrs = format!("--tpm2-pcrs={policy}");
    let partition = partition.to_string_lossy();
    let (unlock, input) = match unlock {
        Key::Secret(secret) => ("--unlock-key-file=/dev/stdin", Stdio::from(secret.send().map_err(not_sent)?)),
        Key::Tpm2 => ("--unlock-tpm2-device=auto", Stdio::null()),
    };
    // Not bound to a signature over PCR 11: that opens in the initrd only, where nobody can see that it does.
    let arguments = ["--tpm2-device=auto", &pcrs, "--tpm2-public-key=", unlock, &partition];
    Ok(run_with_input("systemd-cryptenroll", &arguments, input, LIMIT)?)
}

fn not_sent(source: std::io::Error) -> CommandError {
    CommandError::NotStarted { program: "systemd-cryptenroll".to_owned(), source }
}
