//! Keys that a TPM 2.0 keeps, as systemd has them: its token in the header, its plugin for libcryptsetup, its program to enrol.
//!
//! The TPM gives the key out as long as the registers that the image's policy of keys names are what they were: PCR 7, if it names
//! none. That is, Secure Boot is on or off as it was, and trusts the same keys. If the image brings a signature over what is measured
//! of it (PCR 11), the TPM asks for such a signature, too, by the same key: without Secure Boot, PCR 7 is the same for whatever
//! somebody starts on the device. The signature is good in the initrd and in the system that it starts, so that both can show
//! that the key opens the volume.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use nemos_model::keys::slot::{self, TPM2_TOKEN_TYPE, Tpm2Token};
use nemos_model::keys::{Closed, KeyslotId, Provider, Slot};
use nemos_model::overlay::LOWER_MOUNT;
use nemos_model::uki::pcr::{PCR, PUBLIC_KEY_FILE, RUNTIME};
use tracing::warn;

use crate::cryptsetup::CryptError;
use crate::integrity::scrub::header::metadata;
use crate::keys::lockout::lockout;
use crate::keys::way::{Given, Moment, Way};
use crate::keys::{ChangeError, Key, NewKey, Token, cryptenroll, policy};
use crate::time::wait_for;

/// How the kernel shares a TPM 2.0 among those who use it.
pub(super) const DEVICE: &str = "/dev/tpmrm0";
/// What there is where the firmware has one: the table TPM2 of ACPI (TCG ACPI Specification 1.3, 7.3), and the variable by which
/// systemd-stub(7) says that it has measured the kernel's image.
const TOLD: [&str; 2] = [
    "/sys/firmware/acpi/tables/TPM2",
    "/sys/firmware/efi/efivars/StubPcrKernelImage-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f",
];
/// An enrolment with the policy of one that is there does nothing, so a rotation has this one in its policy, or has not. It is not
/// extended by anything on a device of ours.
const SPARE_PCR: u8 = 14;

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

/// Waits for the one that the firmware has told the kernel of, or has measured this boot with: its driver may be a module, and then
/// it is there only after a while. What a boot does without it, the next one would not take.
pub fn wait_for_tpm2() {
    const LIMIT: Duration = Duration::from_secs(10);
    let is_told = TOLD.iter().any(|place| Path::new(place).exists());
    if is_told && wait_for(LIMIT, || has_tpm2().then_some(())).is_none() {
        warn!("the firmware tells of a TPM, and {DEVICE} is not there within {} s", LIMIT.as_secs());
    }
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
pub fn tpm2_tokens(partition: &Path) -> Vec<Tpm2Token> {
    metadata(partition).ok().flatten().map(|metadata| slot::tpm2_tokens(&metadata)).unwrap_or_default()
}

/// Has the TPM make a key for the lowest key slot that is free.
fn enroll(partition: &Path, unlock: &Key) -> Result<(), ChangeError> {
    let pcrs = policy(Path::new(LOWER_MOUNT))?.tpm2_pcrs;
    let there = tpm2_tokens(partition);
    let is_free = |policy: &String| there.iter().all(|token| token.pcrs() != *policy);
    let policies = [&[][..], &[SPARE_PCR]].map(|spare| named(&[&pcrs, spare].concat()));
    let pcrs = format!("--tpm2-pcrs={}", policies.into_iter().find(is_free).ok_or(ChangeError::Tpm2Full)?);
    let mut arguments = vec!["--tpm2-device=auto", &pcrs];
    let public_key = Path::new(RUNTIME).join(PUBLIC_KEY_FILE);
    let signed = [format!("--tpm2-public-key={}", public_key.display()), format!("--tpm2-public-key-pcrs={PCR}")];
    if public_key.exists() {
        arguments.extend(signed.iter().map(String::as_str));
    } else {
        arguments.push("--tpm2-public-key=");
    }
    cryptenroll::enroll(partition, unlock, &arguments, None)
}

/// Registers as systemd-cryptenroll(1) has them, in the order in which a token has them.
fn named(pcrs: &[u8]) -> String {
    let sorted: BTreeSet<&u8> = pcrs.iter().collect();
    sorted.into_iter().map(u8::to_string).collect::<Vec<_>>().join("+")
}
