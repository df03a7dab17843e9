//! Asks whoever is at the console, as systemd does; or whoever started the machine, if it was given the answer beforehand.

use std::env;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nemos_model::keys::{Closed, Provider, Slot};
use tracing::warn;
use zeroize::Zeroizing;

use crate::keys::way::Unlocked;
use crate::keys::{Key, Secret, try_secret};

/// The credential that systemd-cryptsetup(8) takes a passphrase from.
const CREDENTIAL: &str = "cryptsetup.passphrase";
/// How long the console waits for an answer: a device without people comes up all the same.
const ANSWER: Duration = Duration::from_secs(120);
/// How often it asks.
const TRIES: u32 = 3;

/// How it is with a key that somebody types.
pub(super) fn typed_at_boot() -> Closed {
    Closed::NeedsSomebody("somebody types it at the console".to_owned())
}

/// Opens the volume with a passphrase or recovery key: the credential, or what somebody types.
pub(super) fn by_somebody(partition: &Path, slots: &[Slot]) -> Result<Unlocked, String> {
    answer(CREDENTIAL, "Passphrase or recovery key of this device", |answer| by_answer(partition, slots, answer))
}

/// The first answer that opens the volume: what whoever started the machine gave it beforehand, or what somebody types.
pub(super) fn answer(
    name: &str,
    question: &str,
    mut opens: impl FnMut(Secret) -> Option<Unlocked>,
) -> Result<Unlocked, String> {
    if let Some(unlocked) = credential(name).and_then(&mut opens) {
        return Ok(unlocked);
    }
    for left in (1..=TRIES).rev() {
        let asked = match left {
            TRIES => question.to_owned(),
            1 => format!("That was not it; this is the last try. {question}"),
            left => format!("That was not it; {left} tries are left. {question}"),
        };
        match ask(&asked) {
            // A key that was pressed to see whether the console is alive: a token would count it as a wrong PIN.
            Ok(Some(answer)) if answer.expose().is_empty() => {}
            Ok(Some(answer)) => {
                if let Some(unlocked) = opens(answer) {
                    return Ok(unlocked);
                }
            }
            Ok(None) => return Err(format!("nobody answered `{question}` within {} s", ANSWER.as_secs())),
            Err(error) => return Err(format!("nobody can be asked `{question}`: {error}")),
        }
    }
    Err(format!("what was typed, {TRIES} times, does not open the overlay"))
}

fn by_answer(partition: &Path, slots: &[Slot], answer: Secret) -> Option<Unlocked> {
    let meant = answer.as_recovery_key();
    [Some(answer), meant].into_iter().flatten().find_map(|secret| match try_secret(partition, &secret, None) {
        Ok(slot) => {
            let provider = slots.iter().find(|known| known.id == slot).and_then(Slot::provider);
            let provider = provider.unwrap_or(Provider::Passphrase);
            Some(Unlocked { key: Key::Secret(secret), provider, slot, was_asked_for: true })
        }
        Err(error) => {
            warn!("{error}");
            None
        }
    })
}

/// The secret that the service manager was given under that name, as a hypervisor does.
fn credential(name: &str) -> Option<Secret> {
    let folder = PathBuf::from(env::var_os("CREDENTIALS_DIRECTORY")?);
    Secret::read(File::open(folder.join(name)).ok()?).ok()
}

/// Asks at the console. `None` if nobody answers in time.
fn ask(question: &str) -> io::Result<Option<Secret>> {
    let timeout = format!("--timeout={}", ANSWER.as_secs());
    let mut child = Command::new("systemd-ask-password")
        .args(["--no-tty", "--icon=drive-harddisk", "--id=nemos:p.lxroot", &timeout, question])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    // Room for all of it: what grows leaves copies behind.
    let mut answer = Zeroizing::new(Vec::with_capacity(4096));
    if let Some(stdout) = child.stdout.take() {
        stdout.take(4096).read_to_end(&mut answer)?;
    }
    let answered = child.wait()?.success();
    if answer.last() == Some(&b'\n') {
        answer.pop();
    }
    Ok(answered.then(|| Secret::from_bytes(answer)))
}
