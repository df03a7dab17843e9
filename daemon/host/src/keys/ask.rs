//! Asks whoever is at the console, as systemd does; or whoever started the machine, if it was given the answer beforehand.

use std::env;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::keys::Secret;

/// The credential that systemd-cryptsetup(8) takes a passphrase from.
const CREDENTIAL: &str = "cryptsetup.passphrase";

/// The secret that the service manager was given for this, as a hypervisor does.
pub fn credential() -> Option<Secret> {
    let folder = PathBuf::from(env::var_os("CREDENTIALS_DIRECTORY")?);
    Secret::read(File::open(folder.join(CREDENTIAL)).ok()?).ok()
}

/// Asks at the console. `None` if nobody answers in time.
pub fn ask(question: &str, limit: Duration) -> io::Result<Option<Secret>> {
    let timeout = format!("--timeout={}", limit.as_secs());
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
    Ok((answered && !answer.is_empty()).then(|| Secret::from_bytes(answer)))
}
