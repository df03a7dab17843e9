//! Outside: starts User-Mode Linux with this very program as its first process, and waits for the verdict.

use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::io::{FdFlags, dup, fcntl_setfd};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tempfile::TempDir;

use crate::init::{self, Shared};

const KERNEL: &str = "linux.uml";
const MEMORY: u64 = 2048 << 20;

/// Variable of the environment that names the one test to run.
const ONLY: &str = "NEMOS_RIG_ONLY";

/// Runs this program, with its arguments, as root inside User-Mode Linux. Returns its exit status.
pub(crate) fn run_this_program_again() -> Result<u8> {
    let folder = shared_folder()?;
    let shared = Shared(folder.path());
    shared.describe_this_call(&[]).with_context(|| format!("cannot prepare {}", folder.path().display()))?;
    run(&shared, &inherited_output()?)
}

/// Runs one test of this program in a machine of its own. Returns its exit status, and what it printed.
pub(crate) fn run_one_test(name: &str) -> Result<(u8, String)> {
    let folder = shared_folder()?;
    let shared = Shared(folder.path());
    shared
        .describe_this_call(&[(ONLY, name)])
        .with_context(|| format!("cannot prepare {}", folder.path().display()))?;
    let printed = folder.path().join("printed");
    let status = run(&shared, &inherited(&File::create(&printed)?)?)?;
    let printed = fs::read(&printed)?;
    Ok((status, String::from_utf8_lossy(&printed).into_owned()))
}

/// The one test that was asked for.
pub(crate) fn only_test() -> Option<String> {
    std::env::var(ONLY).ok()
}

fn shared_folder() -> Result<TempDir> {
    // For us only: our environment will be in it.
    let mode = Permissions::from_mode(0o700);
    let folder = tempfile::Builder::new().prefix("nemos-rig-").permissions(mode).tempdir();
    folder.context("cannot make a temporary folder")
}

fn run(shared: &Shared, output: &OwnedFd) -> Result<u8> {
    let log = shared.0.join("console");
    let ended = wait(&mut start(shared, output, File::create(&log)?)?)?;
    match shared.status() {
        Some(status) => Ok(status),
        None => bail!(
            "the test machine did not come to its end ({ended}); its console said:\n{}",
            fs::read_to_string(log).unwrap_or_default()
        ),
    }
}

fn start(shared: &Shared, output: &OwnedFd, console: File) -> Result<Child> {
    let folder = shared.0.to_str().filter(|folder| !folder.contains([' ', '"', ',']));
    let folder = folder.with_context(|| format!("TMPDIR: {} has a space, quote or comma in it", shared.0.display()))?;
    let mut kernel = Command::new(KERNEL);
    kernel
        .arg(format!("mem={}M", MEMORY >> 20))
        // The host's root, read-only: init puts a tmpfs over it.
        .args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet"])
        .arg(format!("init={}", shared.program().display()))
        .arg(format!("{}={folder}", init::SHARED))
        .arg(format!("{}={}", init::LIMIT, init::limit().as_secs()))
        .arg(format!("uml_dir={folder}/"))
        // The kernel's console is our child's standard output, the first serial line is ours.
        .args(["con=null", "con0=null,fd:1", "ssl=null"])
        .arg(format!("ssl0=null,fd:{}", output.as_raw_fd()))
        // The second line says nothing, and ends when this process does.
        .arg("ssl1=fd:0,null")
        .env("TMPDIR", memory_folder())
        .stdin(Stdio::piped())
        .stderr(console.try_clone()?)
        .stdout(console);
    stay_on_one_processor().context("cannot choose a processor for the test machine")?;
    kernel.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow!(
            "these tests need device-mapper, and get it from User-Mode Linux, which is not here: apt-get install user-mode-linux"
        ),
        _ => anyhow!("cannot start {KERNEL}: {error}"),
    })
}

/// Has this thread, and what it starts, run on one processor; the next thread that calls has the next one. A machine and the
/// processes in it take turns, system call by system call, and waking each other on another processor takes longer than the call.
fn stay_on_one_processor() -> rustix::io::Result<()> {
    static MACHINES: AtomicUsize = AtomicUsize::new(0);
    let allowed = sched_getaffinity(None)?;
    let processors: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor)).collect();
    let mut one = CpuSet::new();
    one.set(processors[MACHINES.fetch_add(1, Ordering::Relaxed) % processors.len()]);
    sched_setaffinity(None, &one)
}

/// Our standard output under a number that a child inherits.
fn inherited_output() -> Result<OwnedFd> {
    inherited(rustix::stdio::stdout())
}

fn inherited(output: impl AsFd) -> Result<OwnedFd> {
    let output = dup(output).context("cannot duplicate the output")?;
    fcntl_setfd(&output, FdFlags::empty()).context("cannot pass the output on")?;
    Ok(output)
}

/// Where User-Mode Linux can keep its memory, which it has to execute from; in memory, if there is room.
fn memory_folder() -> PathBuf {
    let shm = Path::new("/dev/shm");
    let fits = statvfs(shm)
        .is_ok_and(|fs| !fs.f_flag.contains(StatVfsMountFlags::NOEXEC) && fs.f_bavail * fs.f_frsize >= MEMORY);
    if fits { shm.to_owned() } else { std::env::temp_dir() }
}

fn wait(kernel: &mut Child) -> Result<ExitStatus> {
    // Init ends the machine in time. This is for a kernel that hangs.
    let limit = init::limit() + Duration::from_secs(30);
    let begin = Instant::now();
    loop {
        if let Some(status) = kernel.try_wait().context("cannot wait for the test machine")? {
            return Ok(status);
        }
        if begin.elapsed() > limit {
            kernel.kill().context("cannot end the test machine")?;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
