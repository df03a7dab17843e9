//! A machine whose console is this terminal.

use std::io::Read;
use std::process::Stdio;

use super::config::{Config, Front};
use super::error::{VmError, io};
use super::host::Host;
use super::tpm::Tpm;

/// Boots a machine with its console on this terminal, and returns when it is off.
pub fn attach(config: &Config) -> Result<(), VmError> {
    let host = Host::find(config.architecture)?;
    let mut tpm = config.tpm.as_deref().map(|state| Tpm::start(state, config.snapshot)).transpose()?;
    let socket = tpm.as_ref().map(Tpm::socket);
    eprintln!("nemos-image: the machine's console follows; Ctrl-A X switches it off, Ctrl-A H tells of other keys");
    let mut qemu = host
        .qemu()
        .args(config.arguments(&host, Front::Terminal, socket.as_deref()))
        .stderr(Stdio::piped())
        .spawn()
        .map_err(io("start QEMU"))?;
    let mut said = String::new();
    if let Some(mut stderr) = qemu.stderr.take() {
        stderr.read_to_string(&mut said).map_err(io("read what QEMU says"))?;
    }
    let status = qemu.wait().map_err(io("wait for QEMU"))?;
    if status.success() {
        return Ok(());
    }
    let failure = tpm.as_mut().and_then(Tpm::failure);
    Err(failure.unwrap_or_else(|| VmError::from_complaint(said.trim(), &config.disk.path)))
}
