//! The image under test, and the device that all cases share: booted once, saved, and resumed by whoever needs one.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use libtest_mimic::Failed;
use nemos_image::image::Image;
use nemos_image::vm::{self, Boot, Config, Format, Machine};
use tempfile::TempDir;

use crate::device::comes_up;

/// How long anything may take: a boot takes 20 s without KVM, and several may share two processors with a compiler.
const LIMIT: Duration = Duration::from_secs(400);

/// The environment variable that names the image.
pub const NEMOS_IMAGE: &str = "NEMOS_IMAGE";

/// The image under test.
pub fn image() -> Result<PathBuf, Failed> {
    let path = std::env::var_os(NEMOS_IMAGE);
    path.map(PathBuf::from).ok_or_else(|| format!("set {NEMOS_IMAGE} to the image to test, or use tests/run.sh").into())
}

/// What the firmware of a device with the image starts, without the firmware: kernel, initrd and command line of the image.
/// Firmware that is emulated takes a sixth of a boot; cases that are about it have it.
pub(crate) fn kernel() -> Result<Boot, Failed> {
    static KERNEL: OnceLock<Result<Boot, String>> = OnceLock::new();
    let kernel = KERNEL.get_or_init(|| extracted().map_err(|error| error.message().unwrap_or_default().to_owned()));
    kernel.clone().map_err(Failed::from)
}

fn extracted() -> Result<Boot, Failed> {
    let uki = Image::open(&image()?)?.uki()?;
    let (kernel, initrd) = (shared("linux")?, shared("initrd")?);
    fs::write(&kernel, uki.section(".linux")?)?;
    fs::write(&initrd, uki.section(".initrd")?)?;
    Ok(Boot::Kernel { kernel, initrd, command_line: uki.command_line })
}

/// A machine with this disk, as all cases have it. It has one processor: two machines at once are faster than one with two.
pub(crate) fn config(disk: vm::Disk) -> Config {
    Config { cpus: 1, limit: LIMIT, ..Config::new(disk) }
}

/// A device after its first boot.
pub(crate) struct Booted {
    /// Its disk as it was then; nobody writes it any more.
    pub(crate) disk: vm::Disk,
    /// The machine as it was then.
    pub(crate) machine: PathBuf,
}

/// The shared device; the first who asks waits for its first boot.
pub(crate) fn booted() -> Result<&'static Booted, Failed> {
    static BOOTED: OnceLock<Result<Booted, String>> = OnceLock::new();
    let booted = BOOTED.get_or_init(|| first_boot().map_err(|error| error.message().unwrap_or_default().to_owned()));
    booted.as_ref().map_err(|error| format!("the first boot, which this case builds on, failed: {error}").into())
}

fn first_boot() -> Result<Booted, Failed> {
    let image = vm::Disk { path: image()?, format: Format::Raw };
    let disk = image.overlay(&shared("disk.qcow2")?)?;
    let saved = shared("machine")?;
    let mut machine = Machine::start(&Config { boot: kernel()?, ..config(disk.clone()) })?;
    comes_up(&mut machine)?;
    machine.save(&saved)?;
    Ok(Booted { disk, machine: saved })
}

/// The folder of what all cases share. What is static is never dropped: see [`clean_up`].
static SHARED: OnceLock<Result<TempDir, String>> = OnceLock::new();

/// A file with this name that all cases share.
fn shared(name: &str) -> Result<PathBuf, Failed> {
    let folder = SHARED.get_or_init(|| tempfile::tempdir().map_err(|error| error.to_string()));
    Ok(folder.as_ref().map_err(String::as_str)?.path().join(name))
}

/// Removes what the cases shared, after the last of them.
pub fn clean_up() {
    if let Some(Ok(folder)) = SHARED.get() {
        let _ = fs::remove_dir_all(folder.path());
    }
}
