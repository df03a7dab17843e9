//! Inside: the first process. Makes a machine of what the kernel gives, runs the tests in it, and powers it off.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use rustix::process::{chdir, pivot_root};
use rustix::system::{RebootCommand, reboot};
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};

use crate::NATIVE;

/// Word of the kernel's command line, and so a variable of init's environment: the folder shared with the outside.
pub(crate) const SHARED: &str = "NEMOS_RIG_SHARED";
/// The same: how many seconds the tests in one machine may take.
pub(crate) const LIMIT: &str = "NEMOS_RIG_LIMIT";
/// If nobody says so.
const USUAL_LIMIT: Duration = Duration::from_secs(1800);

/// Exit status of tests that took longer, as of timeout(1).
const TOO_LONG: u8 = 124;
/// Where the shared folder is inside.
const SHARED_HERE: &str = "/run/nemos-rig";
/// Root's. Ordinary users do not look where most of the programs are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const MODULES: &str = "/usr/lib/uml/modules";
/// Loaded by hand. The kernel asks for all others itself, when they are needed.
const DRIVERS: [&str; 2] = ["dm-mod", "loop"];

/// What the outside and the inside tell each other, as files in a folder.
pub(crate) struct Shared<'a>(pub(crate) &'a Path);

impl Shared<'_> {
    /// Says how this program was called, with more variables in its environment.
    pub(crate) fn describe_this_call(&self, more: &[(&str, &str)]) -> Result<()> {
        let more = more.iter().map(|(name, value)| (name.into(), value.into()));
        let variables = env::vars_os().chain(more).map(|(name, value)| [name, value].join(OsStr::new("=")));
        write_list(&self.0.join("environment"), variables)?;
        write_list(&self.0.join("arguments"), env::args_os().skip(1))?;
        symlink(env::current_exe()?, self.program())?;
        symlink(env::current_dir()?, self.0.join("folder"))?;
        Ok(())
    }

    /// A link to this program.
    pub(crate) fn program(&self) -> PathBuf {
        self.0.join("program")
    }

    /// What the tests ended with; `None` if they did not come to an end.
    pub(crate) fn status(&self) -> Option<u8> {
        fs::read_to_string(self.0.join("status")).ok()?.parse().ok()
    }

    /// The call that [`Self::describe_this_call`] described.
    fn call(&self) -> Result<Command> {
        let mut command = Command::new(fs::read_link(self.program())?);
        command.args(read_list(&self.0.join("arguments"))?);
        command.current_dir(fs::read_link(self.0.join("folder"))?);
        command.env_clear();
        for variable in read_list(&self.0.join("environment"))? {
            // A name is at least one byte, even one that begins with `=`.
            if let Some(end) = variable.as_bytes().iter().skip(1).position(|byte| *byte == b'=') {
                let (name, value) = variable.as_bytes().split_at(end + 1);
                command.env(OsStr::from_bytes(name), OsStr::from_bytes(&value[1..]));
            }
        }
        Ok(command)
    }

    /// Nobody outside will.
    fn clear(&self) {
        for file in fs::read_dir(self.0).into_iter().flatten().flatten() {
            let _ = fs::remove_file(file.path());
        }
    }

    fn report(&self, status: u8) -> Result<()> {
        fs::write(self.0.join("status"), status.to_string()).context("cannot report the exit status")
    }
}

fn write_list(path: &Path, items: impl Iterator<Item = OsString>) -> Result<()> {
    let bytes: Vec<u8> = items.flat_map(|item| [item.into_vec(), vec![0]].concat()).collect();
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn read_list(path: &Path) -> Result<Vec<OsString>> {
    let mut bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    bytes.pop();
    let items = bytes.split(|byte| *byte == 0).map(|item| OsString::from_vec(item.to_vec()));
    Ok(if bytes.is_empty() { Vec::new() } else { items.collect() })
}

/// The shared folder, if the kernel started this process as its first.
pub(crate) fn called_by_the_kernel() -> Option<PathBuf> {
    env::var_os(SHARED).filter(|_| std::process::id() == 1).map(PathBuf::from)
}

/// The whole life of the machine.
pub(crate) fn main(shared: &Path) -> ! {
    if let Err(error) = make_machine(shared).and_then(|()| run_tests()) {
        // To the kernel's console, which the outside shows when there is no exit status.
        eprintln!("nemos-rig: {error:#}");
    }
    power_off()
}

fn power_off() -> ! {
    rustix::fs::sync();
    let error = reboot(RebootCommand::PowerOff);
    panic!("cannot power off: {error:?}");
}

/// Moves to a root that can be written: a tmpfs over the host's.
fn make_machine(shared: &Path) -> Result<()> {
    mount_new("proc", "/proc", "")?;
    mount_new("tmpfs", "/mnt", "size=75%,mode=0755")?;
    for folder in ["upper", "work", "root", "lib"] {
        fs::create_dir(Path::new("/mnt").join(folder)).with_context(|| format!("cannot make /mnt/{folder}"))?;
    }
    symlink(MODULES, "/mnt/lib/modules").context("cannot make /mnt/lib/modules")?;
    load(&["--dirname", "/mnt", "overlay"])?;
    mount_new("overlay", "/mnt/root", "lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work")?;
    chdir("/mnt/root").context("cannot enter the new root")?;
    pivot_root(".", ".").context("cannot change to the new root")?;
    unmount(".", UnmountFlags::DETACH).context("cannot leave the old root")?;
    chdir("/").context("cannot enter the new root")?;

    mount_new("proc", "/proc", "")?;
    mount_new("sysfs", "/sys", "")?;
    mount_new("devtmpfs", "/dev", "")?;
    mount_new("tmpfs", "/dev/shm", "")?;
    mount_new("tmpfs", "/run", "size=90%,mode=0755")?;
    mount_new("hostfs", SHARED_HERE, shared.to_str().context("the shared folder's name is not text")?)?;
    fs::create_dir_all("/lib/modules").context("cannot make /lib/modules")?;
    mount_bind(MODULES, "/lib/modules").with_context(|| format!("cannot mount {MODULES} on /lib/modules"))?;
    load(&[&["--all"], &DRIVERS[..]].concat())
}

fn mount_new(fs_type: &str, target: &str, options: &str) -> Result<()> {
    let options = CString::new(options)?;
    fs::create_dir_all(target).with_context(|| format!("cannot make {target}"))?;
    mount(fs_type, target, fs_type, MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("cannot mount {fs_type} on {target}"))
}

fn load(arguments: &[&str]) -> Result<()> {
    let status = Command::new("/sbin/modprobe").args(arguments).status();
    let status = status.context("cannot run /sbin/modprobe: apt-get install kmod")?;
    ensure!(status.success(), "modprobe {} failed", arguments.join(" "));
    Ok(())
}

/// How long the tests in one machine may take.
pub(crate) fn limit() -> Duration {
    let given = env::var(LIMIT).ok().and_then(|seconds| seconds.parse().ok());
    given.map_or(USUAL_LIMIT, Duration::from_secs)
}

fn run_tests() -> Result<()> {
    let shared = Shared(Path::new(SHARED_HERE));
    let output = open_output()?;
    let mut tests = shared.call()?;
    tests
        .env("PATH", PATH)
        .env(NATIVE.0, NATIVE.1)
        .env("NO_COLOR", "1")
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?);
    thread::spawn(|| {
        thread::sleep(limit());
        let _ = Shared(Path::new(SHARED_HERE)).report(TOO_LONG);
        power_off();
    });
    thread::spawn(|| {
        // Nobody writes to it: it ends with the process outside that holds it.
        let _ = File::open("/dev/ttyS1").and_then(|mut outside| outside.read(&mut [0]));
        Shared(Path::new(SHARED_HERE)).clear();
        power_off();
    });
    let status = tests.status().context("cannot run the tests")?;
    tcdrain(&output).context("cannot pass the last output on")?;
    shared.report(exit_code(status))
}

/// The serial line that ends in the outside's standard output; what goes through it stays as it is.
fn open_output() -> Result<File> {
    let output = File::options().read(true).write(true).open("/dev/ttyS0").context("cannot open /dev/ttyS0")?;
    let mut settings = tcgetattr(&output)?;
    settings.make_raw();
    tcsetattr(&output, OptionalActions::Now, &settings)?;
    Ok(output)
}

/// As a shell has it: 128 and the signal, if there was one.
fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| code.try_into().ok()).unwrap_or(u8::MAX)
}
