//! `nemos-image run`: boots a disk, for a person or for one command.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum as _};
use nemos_model::manifest::Manifest;
use thiserror::Error;

use crate::architecture::Architecture;
use crate::image::Image;
use crate::vm::{Config, Disk, Machine, VmError, attach, quoted};

/// Boot a disk in QEMU
///
/// Without COMMAND, this terminal is the machine's console, until it powers off or you type Ctrl-A X. With COMMAND, it
/// is run as root once the system is up, its stdout, stderr and exit status are passed through, and the machine is
/// powered off.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Disk image to boot
    pub disk: PathBuf,

    /// What the disk is for [default: what the manifest next to it says, or else the disk itself]
    #[arg(long, value_name = "NAME")]
    pub arch: Option<Architecture>,

    /// Forget what the machine writes: the disk image is not touched
    #[arg(long)]
    pub snapshot: bool,

    /// Words for the kernel's command line besides those in the image, as in `--append systemd.factory_reset=1`
    #[arg(long, value_name = "WORDS", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub append: Option<String>,

    /// Give the machine a TPM 2.0 (swtpm). Its memory is a folder next to the disk, DISK.tpm, and stays with it; with
    /// --snapshot, what it remembers is forgotten too
    #[arg(long)]
    pub tpm: bool,

    /// Boot only what is signed with the keys whose certificates are in DIR, as `nemos-image keys` makes them; amd64 only
    #[arg(long, value_name = "DIR")]
    pub secure_boot: Option<PathBuf>,

    /// Memory of the machine
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(64..))]
    pub memory: u32,

    /// Virtual processors of the machine
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus: u32,

    /// Give up if the system is not up, COMMAND has not ended, or the machine is not off after that long
    #[arg(long, value_name = "SECONDS", default_value_t = 180, requires = "command",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,

    /// Command to run as root on the booted system, and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Why a disk was not run, or its command not to its end.
#[derive(Debug, Error)]
pub enum RunError {
    /// The machine.
    #[error(transparent)]
    Machine(#[from] VmError),
    /// The firmware's variables have no place.
    #[error("cannot make a folder for the firmware's variables: {0}")]
    Variables(io::Error),
}

/// Boots the disk, and returns when the machine is off.
pub fn run(args: RunArgs) -> Result<ExitCode, RunError> {
    let RunArgs { disk, arch, snapshot, append, tpm, secure_boot, memory, cpus, timeout, command } = args;
    let tpm = tpm.then(|| tpm_of(&disk));
    let architecture = arch.unwrap_or_else(|| architecture_of(&disk));
    let disk = Disk::open(&disk).and_then(|disk| if snapshot { Ok(disk) } else { disk.writable() });
    let disk = disk.map_err(VmError::from)?;
    let limit = Duration::from_secs(timeout);
    let config = Config { architecture, snapshot, tpm, memory, cpus, append, limit, ..Config::new(disk) };
    let variables = tempfile::tempdir().map_err(RunError::Variables)?;
    let config = match secure_boot {
        Some(keys) => config.secure_boot(&keys, variables.path().join("variables"))?,
        None => config,
    };
    if command.is_empty() {
        attach(&config)?;
        return Ok(ExitCode::SUCCESS);
    }
    // A command may reboot the machine, but its exit status would not come back.
    let mut machine = Machine::start(&Config { reboots: false, ..config })?;
    let status = machine.shell_into(&quoted(&command), &mut io::stdout(), &mut io::stderr())?;
    machine.power_off()?;
    Ok(ExitCode::from(status))
}

/// What a disk is for. One that does not tell is no raw disk of ours, and QEMU or the firmware will say what it is.
fn architecture_of(disk: &Path) -> Architecture {
    let beside = fs::read_to_string(disk.with_extension("manifest.json")).ok();
    let said = beside.and_then(|text| Manifest::parse(&text).ok()?.architecture);
    let said = said.and_then(|name| Architecture::from_str(&name, false).ok());
    said.or_else(|| Image::open(disk).ok()?.architecture().ok()).unwrap_or_default()
}

/// The folder with the memory of a disk's TPM.
fn tpm_of(disk: &Path) -> PathBuf {
    let mut path = disk.as_os_str().to_owned();
    path.push(".tpm");
    path.into()
}
