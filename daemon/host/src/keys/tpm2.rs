//! Keys that a TPM 2.0 keeps, as systemd has them: its token in the header, its plugin for libcryptsetup, its program to enrol.
//!
//! The TPM gives the key out as long as PCR 7 is what it was: Secure Boot is on or off as it was, and trusts the same keys. A new
//! image that is signed with the same key changes nothing of that.
//!
//! Not bound to a signature over PCR 11 besides, which images that are signed carry. It would be good for the initrd alone, and the
//! running system could neither see that such a key opens the volume, nor rotate it or add another with it when nobody is there
//! (`--unlock-file`). Signed for the running system, too, it would add to PCR 7 that the image is signed with the PCR key: but PCR 7
//! holds the certificate that the image was signed with, and who signs with the one signs with the other.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use nemos_model::keys::slot::{TPM2_TOKEN_TYPE, Tpm2Token, tpm2_tokens};
use nemos_model::keys::{Closed, KeyslotId, Provider, Slot};

use crate::cryptsetup::CryptError;
use crate::integrity::scrub::header::metadata;
use crate::keys::lockout::lockout;
use crate::keys::way::{Given, Moment, Way};
use crate::keys::{ChangeError, Key, NewKey, Token, cryptenroll};

/// How the kernel shares a TPM 2.0 among those who use it.
pub(super) const DEVICE: &str = "/dev/tpmrm0";
/// An enrolment with the policy of one that is there does nothing, so a rotation takes the other one. PCR 14 is not extended by
/// anything on a device of ours.
const POLICIES: [&str; 2] = ["7", "7+14"];

/// What the device's TPM keeps.
const KEY: Key = Key::Token(Token { kind: TPM2_TOKEN_TYPE, pin: None });

pub(super) struct Tpm2;

impl Way for Tpm2 {
    fn provider(&self) -> Provider {
        Provider::Tpm2
    }

    fn key(&self, _: &Slot, _: Moment) -> Result<Key, Closed> {
        Ok(KEY)
    }

    /// It may have a reason of its own.
    fn refusal(&self, error: &CryptError) -> Closed {
        Closed::Locked(lockout().map_or_else(|| error.to_string(), |lockout| format!("{error}; {lockout}")))
    }

    fn takes_secret(&self) -> bool {
        false
    }

    fn new_key(&self, _: Given) -> Result<NewKey, ChangeError> {
        Ok(NewKey { provider: Provider::Tpm2, key: KEY, place: None })
    }

    fn enroll(&self, partition: &Path, _: KeyslotId, unlock: &Key, _: &NewKey) -> Result<(), ChangeError> {
        enroll(partition, unlock)
    }
}

/// Whether the device has a TPM 2.0.
pub fn has_tpm2() -> bool {
    Path::new(DEVICE).exists()
}

/// Gives it a command, and gives its answer. The kernel takes the one with one write, and gives the other with one read.
pub(super) fn ask(device: &Path, command: &[u8]) -> io::Result<Vec<u8>> {
    /// More than any answer has.
    const ANSWER: usize = 4096;
    let mut device = File::options().read(true).write(true).open(device)?;
    device.write_all(command)?;
    let mut answer = vec![0; ANSWER];
    let length = device.read(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// The tokens of a TPM, the newest key first.
fn tokens(partition: &Path) -> Vec<Tpm2Token> {
    metadata(partition).ok().flatten().map(|metadata| tpm2_tokens(&metadata)).unwrap_or_default()
}

/// Has the TPM make a key for the lowest key slot that is free.
fn enroll(partition: &Path, unlock: &Key) -> Result<(), ChangeError> {
    let is_free = |policy: &&&str| tokens(partition).iter().all(|token| token.pcrs() != ***policy);
    let policy = POLICIES.iter().find(is_free).ok_or(ChangeError::Tpm2Full)?;
    let pcrs = format!("--tpm2-pcrs={policy}");
    cryptenroll::enroll(partition, unlock, &["--tpm2-device=auto", &pcrs, "--tpm2-public-key="], None)
}
