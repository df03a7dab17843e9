//! What can go wrong with a machine.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::console::Tail;
use super::disk::DiskError;
use crate::architecture::Architecture;
use crate::keys::KeyError;

/// Why a machine did not do what was asked.
#[derive(Debug, Error)]
pub enum VmError {
    /// Something that has to be installed is not.
    #[error("{what} is not here: install the package {package}")]
    Missing {
        /// What is missing.
        what: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The certificates that its firmware is to trust.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// Nobody made a store for its firmware.
    #[error("machines for {0} have no Secure Boot here: Debian's firmware for them comes without a store for the keys")]
    NoSecureBoot(Architecture),
    /// The firmware's store is not as OVMF has it.
    #[error("{0} is not an empty store of variables as OVMF has it: is the package ovmf as Debian made it?")]
    Firmware(PathBuf),
    /// The disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Another QEMU has the disk.
    #[error("{0} is in use by another machine: power that one off first")]
    InUse(PathBuf),
    /// The TPM's memory cannot be used.
    #[error("cannot use {path} as the memory of a TPM: {source}")]
    TpmState {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The TPM would not begin.
    #[error("the TPM did not start: {0}")]
    Tpm(String),
    /// QEMU would not begin.
    #[error("QEMU did not start: {0}")]
    NotStarted(String),
    /// QEMU ended without a reason that has to do with the machine.
    #[error("QEMU failed before {awaited}: {said}")]
    Failed {
        /// What was waited for.
        awaited: String,
        /// What it said.
        said: String,
    },
    /// An exchange with QEMU failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// QEMU does not do what it was told.
    #[error("QEMU refused `{command}`: {reason}")]
    Refused {
        /// The QMP command.
        command: &'static str,
        /// What QEMU said.
        reason: String,
    },
    /// nemos-initrd would not boot this disk.
    #[error("the boot was refused: {reason}{console}")]
    BootRefused {
        /// What it said.
        reason: String,
        /// The end of the console.
        console: Tail,
    },
    /// The system cannot come up.
    #[error("the system did not come up: {why}{console}")]
    BootFailed {
        /// What was seen.
        why: String,
        /// The end of the console.
        console: Tail,
    },
    /// It went away.
    #[error("the machine {why} before {awaited}{console}")]
    Stopped {
        /// How.
        why: String,
        /// What was waited for.
        awaited: String,
        /// The end of the console.
        console: Tail,
    },
    /// It takes too long.
    #[error("gave up after {} s, before {awaited}{console}", limit.as_secs())]
    TimedOut {
        /// What was waited for.
        awaited: String,
        /// How long.
        limit: Duration,
        /// The end of the console.
        console: Tail,
    },
}

impl VmError {
    /// What QEMU said when it did not start, with this disk.
    pub(super) fn from_complaint(said: &str, disk: &Path) -> Self {
        if said.contains("Failed to get") && said.contains("lock") {
            return VmError::InUse(disk.to_owned());
        }
        let first = said.lines().next().unwrap_or("it does not say why");
        let said = first.split_once(": ").filter(|(program, _)| program.starts_with("qemu-system-"));
        VmError::NotStarted(said.map_or(first, |(_, said)| said).to_owned())
    }
}

/// Says what was being done when an exchange with QEMU failed.
pub(super) fn io(doing: &'static str) -> impl Fn(io::Error) -> VmError {
    move |source| VmError::Io { doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_disk_is_a_disk_in_use() {
        let said =
            "qemu-system-x86_64: -drive if=none: Failed to get \"write\" lock\nIs another process using the image [x]?";
        assert!(matches!(VmError::from_complaint(said, Path::new("x")), VmError::InUse(_)));
        assert!(matches!(VmError::from_complaint("no such option", Path::new("x")), VmError::NotStarted(_)));
    }
}
