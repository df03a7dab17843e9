//! What this host has to run a machine with.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::VmError;

const QEMU: &str = "qemu-system-x86_64";
const SWTPM: &str = "swtpm";
const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// The build that keeps its variables from the system, as Secure Boot needs.
const OVMF_SECURE_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// QEMU, its firmware, and how fast it can be.
#[derive(Debug, Clone)]
pub struct Host {
    /// The program.
    pub(super) qemu: PathBuf,
    pub(super) firmware_code: PathBuf,
    pub(super) secure_firmware_code: PathBuf,
    /// The template of its variables: never written.
    pub(super) firmware_vars: PathBuf,
    pub(super) accelerator: Accelerator,
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU, translating them: some ten times slower.
    Tcg,
}

impl Accelerator {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }

    /// The processor that a machine has. To emulate a fifth level of page tables takes time, and nothing needs it.
    pub(super) const fn cpu(self) -> &'static str {
        match self {
            Accelerator::Kvm => "max",
            Accelerator::Tcg => "max,la57=off",
        }
    }
}

impl Host {
    /// Looks for everything that a machine needs.
    pub fn find() -> Result<Self, VmError> {
        let qemu =
            in_path(QEMU).ok_or_else(|| VmError::Missing { what: QEMU.to_owned(), package: "qemu-system-x86" })?;
        let firmware = |path: &str| match Path::new(path) {
            path if path.is_file() => Ok(path.to_owned()),
            path => Err(VmError::Missing { what: path.display().to_string(), package: "ovmf" }),
        };
        Ok(Host {
            firmware_code: firmware(OVMF_CODE)?,
            secure_firmware_code: firmware(OVMF_SECURE_CODE)?,
            firmware_vars: firmware(OVMF_VARS)?,
            accelerator: if kvm_works(&qemu) { Accelerator::Kvm } else { Accelerator::Tcg },
            qemu,
        })
    }

    /// A command that runs QEMU and takes it along when the calling thread ends, however that ends: a machine that
    /// nobody holds any more must not go on running on its disk.
    pub(super) fn qemu(&self) -> Command {
        Host::with_us(&self.qemu)
    }

    /// A command that runs a program and takes it along when the calling thread ends.
    pub(super) fn with_us(program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    }

    /// The TPM in software. Only a machine with a TPM needs it.
    pub(super) fn swtpm() -> Result<PathBuf, VmError> {
        in_path(SWTPM).ok_or_else(|| VmError::Missing { what: SWTPM.to_owned(), package: "swtpm" })
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Whether QEMU can make a virtual processor with KVM.
///
/// That `/dev/kvm` opens is not enough: inside of some virtual machines it opens, and QEMU then aborts.
fn kvm_works(qemu: &Path) -> bool {
    if OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let probe = Command::new(qemu)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-S"])
        .args(["-accel", Accelerator::Kvm.name(), "-cpu", "max", "-monitor", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut probe) = probe else { return false };
    let asked = probe.stdin.take().map(|mut monitor| monitor.write_all(b"quit\n"));
    let ended = probe.wait();
    matches!(asked, Some(Ok(()))) && ended.is_ok_and(|status| status.success())
}
