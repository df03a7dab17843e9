//! What this host has to run a machine with.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::VmError;
use crate::architecture::Architecture;

const SWTPM: &str = "swtpm";

/// What runs machines of one architecture, and the packages that have it.
struct Parts {
    qemu: (&'static str, &'static str),
    firmware: &'static str,
    code: &'static str,
    /// The build that keeps its variables from the system, as Secure Boot needs. There is none but for PCs.
    secure_code: &'static str,
    vars: &'static str,
}

impl Parts {
    const fn of(architecture: Architecture) -> Self {
        match architecture {
            Architecture::Amd64 => Parts {
                qemu: ("qemu-system-x86_64", "qemu-system-x86"),
                firmware: "ovmf",
                code: "/usr/share/OVMF/OVMF_CODE_4M.fd",
                secure_code: "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
                vars: "/usr/share/OVMF/OVMF_VARS_4M.fd",
            },
            Architecture::Arm64 => Parts {
                qemu: ("qemu-system-aarch64", "qemu-system-arm"),
                firmware: "qemu-efi-aarch64",
                code: "/usr/share/AAVMF/AAVMF_CODE.fd",
                secure_code: "/usr/share/AAVMF/AAVMF_CODE.fd",
                vars: "/usr/share/AAVMF/AAVMF_VARS.fd",
            },
        }
    }
}

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
    /// The cipher that signs pointers is slow to emulate; QEMU has one that is not.
    pub(super) const fn cpu(self, architecture: Architecture) -> &'static str {
        match (self, architecture) {
            (Accelerator::Kvm, _) => "max",
            (Accelerator::Tcg, Architecture::Amd64) => "max,la57=off",
            (Accelerator::Tcg, Architecture::Arm64) => "max,pauth-impdef=on",
        }
    }
}

impl Host {
    /// Looks for everything that a machine needs.
    pub fn find(architecture: Architecture) -> Result<Self, VmError> {
        let parts = Parts::of(architecture);
        let (program, package) = parts.qemu;
        let qemu = in_path(program).ok_or_else(|| VmError::Missing { what: program.to_owned(), package })?;
        let firmware = |path: &str| match Path::new(path) {
            path if path.is_file() => Ok(path.to_owned()),
            path => Err(VmError::Missing { what: path.display().to_string(), package: parts.firmware }),
        };
        Ok(Host {
            firmware_code: firmware(parts.code)?,
            secure_firmware_code: firmware(parts.secure_code)?,
            firmware_vars: firmware(parts.vars)?,
            // It runs the instructions of this machine's own processor.
            accelerator: if Architecture::of_host() == Some(architecture) && kvm_works(&qemu, architecture) {
                Accelerator::Kvm
            } else {
                Accelerator::Tcg
            },
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
fn kvm_works(qemu: &Path, architecture: Architecture) -> bool {
    if OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let machine = match architecture {
        Architecture::Amd64 => "q35",
        Architecture::Arm64 => "virt,gic-version=max",
    };
    let probe = Command::new(qemu)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", machine, "-S"])
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
