//! systemd-cryptenroll(1): has a token make a key for the lowest key slot that is free.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nemos_model::keys::slot::TPM2_TOKEN_TYPE;
use rustix::fs::{MemfdFlags, Mode, fchmod, memfd_create};

use crate::command::{CommandError, run_with_credentials};
use crate::keys::{ChangeError, Key, Secret};

const PROGRAM: &str = "systemd-cryptenroll";
/// A TPM takes seconds for what a processor does at once.
const LIMIT: Duration = Duration::from_secs(120);
/// What it says of a PIN, and of the empty one, behind the name of the token.
const WRONG_PIN: &str = "is incorrect, please try again";
/// What the program calls the PIN of a token: before systemd 256, and since.
const PINS: [&str; 2] = ["pkcs11-pin", "cryptenroll.pkcs11-pin"];

/// Runs it. Neither the key that unlocks nor the PIN is in an argument, the environment or a file.
pub(super) fn enroll(
    partition: &Path,
    unlock: &Key,
    arguments: &[&str],
    pin: Option<&Secret>,
) -> Result<(), ChangeError> {
    let (unlock, input) = match unlock {
        Key::Secret(secret) => {
            ("--unlock-key-file=/proc/self/fd/0", Stdio::from(in_memory(secret).map_err(not_started)?))
        }
        Key::Token(token) if token.kind == TPM2_TOKEN_TYPE => ("--unlock-tpm2-device=auto", Stdio::null()),
        Key::Token(_) => return Err(ChangeError::UnlockedByToken),
    };
    let credentials = Credentials::with(pin).map_err(not_started)?;
    let partition = partition.to_string_lossy();
    let arguments: Vec<&str> = arguments.iter().copied().chain([unlock, &partition]).collect();
    let enrolled = run_with_credentials(PROGRAM, &arguments, input, credentials.folder.path(), LIMIT);
    enrolled.map_err(|error| match (&error, pin) {
        (CommandError::Failed { words, .. }, Some(_)) if words.contains(WRONG_PIN) => ChangeError::WrongPin,
        (CommandError::Failed { words, .. }, None) if words.contains(WRONG_PIN) => ChangeError::NoPin,
        _ => error.into(),
    })
}

fn not_started(source: io::Error) -> CommandError {
    CommandError::NotStarted { program: PROGRAM.to_owned(), source }
}

/// A file that is nowhere: the program looks for its end before it reads it, which a pipe has not.
fn in_memory(secret: &Secret) -> io::Result<File> {
    let mut file = File::from(memfd_create("key", MemfdFlags::CLOEXEC)?);
    // The program complains of a key file that everybody might read.
    fchmod(&file, Mode::RUSR | Mode::WUSR)?;
    file.write_all(secret.expose())?;
    Ok(file)
}

/// The PIN, as a credential that can be read once: the program would try a wrong one three times, and a token that is given three
/// wrong ones is locked.
struct Credentials {
    folder: tempfile::TempDir,
    _pin: OwnedFd,
}

impl Credentials {
    fn with(pin: Option<&Secret>) -> io::Result<Self> {
        let pin = match pin {
            Some(pin) => pin.send()?,
            // Without any, it would wait for somebody to type one.
            None => io::pipe()?.0.into(),
        };
        let folder = tempfile::tempdir()?;
        let read = format!("/proc/{}/fd/{}", std::process::id(), pin.as_raw_fd());
        for name in PINS {
            symlink(&read, folder.path().join(name))?;
        }
        Ok(Credentials { folder, _pin: pin })
    }
}
