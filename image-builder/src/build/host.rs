//! What a build needs of the host, checked before anything takes time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::Mode;
use rustix::process::geteuid;
use thiserror::Error;

use crate::architecture::Architecture;

/// Programs that every build runs, and the Debian packages they come in.
const PROGRAMS: [(&str, &str); 13] = [
    ("mmdebstrap", "mmdebstrap"),
    ("apt-get", "apt"),
    ("apt-config", "apt"),
    ("dpkg-deb", "dpkg"),
    ("tar", "tar"),
    ("zstd", "zstd"),
    ("mksquashfs", "squashfs-tools"),
    ("veritysetup", "cryptsetup-bin"),
    ("mke2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("mkfs.vfat", "dosfstools"),
    ("mcopy", "mtools"),
    ("python3", "python3"),
];

/// Debian's own interpreter: the one that `python3-pefile` is installed for.
pub const PYTHON: &str = "/usr/bin/python3";

/// What is missing on the host.
#[derive(Debug, Error)]
pub enum HostError {
    /// Programs are not installed.
    #[error("{} not installed; run: sudo apt-get install {}", missing(programs), packages.join(" "))]
    Programs {
        /// The programs.
        programs: Vec<String>,
        /// The packages they come in.
        packages: Vec<String>,
    },
    /// No compiler.
    #[error(
        "there is no cargo to build the package with; install Rust {} or newer (https://rustup.rs), or give --package FILE.deb",
        env!("CARGO_PKG_RUST_VERSION")
    )]
    NoRust,
    /// A compiler for other processors only.
    #[error(
        "rustc has no standard library for {target}; run: rustup target add {target}, or name a compiler that has it in RUSTC, \
         or give --package FILE.deb"
    )]
    NoStandardLibrary {
        /// As rustc names it.
        target: &'static str,
    },
    /// Nothing runs the packages' own programs.
    #[error(
        "programs for {0} do not run on this host, and installing packages runs some; run: sudo apt-get install \
         qemu-user-static (if it is there: sudo systemctl restart systemd-binfmt)"
    )]
    NoEmulation(Architecture),
    /// An ordinary user without user ids of their own.
    #[error(
        "{user} has no range of user ids in {file}, so a root file system cannot be unpacked without root; \
         run: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
    )]
    NoUserIds {
        /// Who.
        user: String,
        /// Where they would be.
        file: &'static str,
    },
    /// A folder that cannot be written.
    #[error("{path} cannot be written: {source}; choose another folder with {option}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// The option that names it.
        option: &'static str,
    },
    /// Not enough space.
    #[error(
        "{path} has {free_mib} MiB free, and the build needs {needed_mib} MiB; free some, or choose another folder with {option}"
    )]
    Space {
        /// The folder.
        path: PathBuf,
        /// What is free.
        free_mib: u64,
        /// What is needed.
        needed_mib: u64,
        /// The option that names it.
        option: &'static str,
    },
}

fn missing(programs: &[String]) -> String {
    let verb = if programs.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", programs.join(", "))
}

/// Where a program is: in the PATH, or where Debian has what only root's PATH names.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Checks that the package can be built.
pub fn check_for_package(architecture: Architecture) -> Result<(), HostError> {
    check_programs(&[("dpkg-deb", "dpkg")])?;
    find_program("cargo").map(drop).ok_or(HostError::NoRust)?;
    if is_foreign(architecture) {
        let compiler = cross_compiler(architecture);
        let package = format!("gcc-{}", architecture.multiarch().replace('_', "-"));
        check_programs(&[(&compiler, &package), ("mmdebstrap", "mmdebstrap"), ("apt-get", "apt"), ("tar", "tar")])?;
        check_user()?;
        check_standard_library(architecture)?;
    }
    Ok(())
}

/// GCC for another architecture.
pub fn cross_compiler(architecture: Architecture) -> String {
    format!("{}-gcc", architecture.multiarch())
}

/// Whether its programs are not this host's own.
fn is_foreign(architecture: Architecture) -> bool {
    Architecture::of_host() != Some(architecture)
}

/// rustc tells where a standard library would be, also of those that are not there.
fn check_standard_library(architecture: Architecture) -> Result<(), HostError> {
    let target = architecture.rust_target();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let told = Command::new(rustc).args(["--print", "target-libdir", "--target", target]).output();
    let there = told.is_ok_and(|told| Path::new(String::from_utf8_lossy(&told.stdout).trim()).is_dir());
    if there { Ok(()) } else { Err(HostError::NoStandardLibrary { target }) }
}

/// Checks that the packages' own programs run, as their installation needs; mmdebstrap asks the same program.
fn check_emulation(architecture: Architecture) -> Result<(), HostError> {
    if !is_foreign(architecture) {
        return Ok(());
    }
    check_programs(&[("arch-test", "arch-test")])?;
    let tested = Command::new("arch-test").arg(architecture.name()).output();
    let runs = tested.is_ok_and(|tested| tested.status.success());
    if runs { Ok(()) } else { Err(HostError::NoEmulation(architecture)) }
}

fn check_programs(wanted: &[(&str, &str)]) -> Result<(), HostError> {
    let absent: Vec<_> = wanted.iter().copied().filter(|(program, _)| find_program(program).is_none()).collect();
    refuse(&absent)
}

fn refuse(absent: &[(&str, &str)]) -> Result<(), HostError> {
    if absent.is_empty() {
        return Ok(());
    }
    let programs = absent.iter().map(|(program, _)| (*program).to_owned()).collect();
    let mut packages: Vec<_> = absent.iter().map(|(_, package)| (*package).to_owned()).collect();
    packages.sort();
    packages.dedup();
    Err(HostError::Programs { programs, packages })
}

/// Checks that what is needed to install a root is there, and that an ordinary user can have one.
pub fn check_for_bootstrap(architecture: Architecture) -> Result<(), HostError> {
    let installing = ["mmdebstrap", "apt-get", "apt-config", "dpkg-deb", "tar", "zstd"];
    check_programs(&PROGRAMS.into_iter().filter(|(program, _)| installing.contains(program)).collect::<Vec<_>>())?;
    check_emulation(architecture)?;
    check_user()
}

/// Checks that all that an image needs is there, and that an ordinary user can have a root file system.
pub fn check(architecture: Architecture, builds_package: bool, converts: bool) -> Result<(), HostError> {
    let mut wanted = PROGRAMS.to_vec();
    if converts {
        wanted.push(("qemu-img", "qemu-utils"));
    }
    if !is_root() {
        wanted.push(("newuidmap", "uidmap"));
    }
    let mut absent: Vec<_> = wanted.into_iter().filter(|(program, _)| find_program(program).is_none()).collect();
    if !absent.iter().any(|(program, _)| *program == "python3") && !python_reads_pe() {
        absent.push(("the Python module pefile", "python3-pefile"));
    }
    if !Path::new("/usr/share/keyrings/debian-archive-keyring.gpg").exists()
        && !Path::new("/usr/share/keyrings/debian-archive-keyring.pgp").exists()
    {
        absent.push(("Debian's archive keyring", "debian-archive-keyring"));
    }
    refuse(&absent)?;
    check_emulation(architecture)?;
    if builds_package {
        check_for_package(architecture)?;
    }
    check_user()
}

fn check_user() -> Result<(), HostError> {
    if is_root() { Ok(()) } else { check_user_ids() }
}

/// Makes folders that everybody may read, as a root file system and a package need them, whatever the user is used to.
pub fn set_umask() {
    rustix::process::umask(Mode::from_bits_retain(0o022));
}

/// Whether we are root: then mmdebstrap needs no user namespace.
pub fn is_root() -> bool {
    geteuid().is_root()
}

fn python_reads_pe() -> bool {
    Command::new(PYTHON).args(["-c", "import pefile"]).output().is_ok_and(|ended| ended.status.success())
}

fn check_user_ids() -> Result<(), HostError> {
    let uid = geteuid().as_raw().to_string();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let by_uid = |line: &&str| line.split(':').nth(2) == Some(&uid);
    let user = passwd.lines().find(by_uid).and_then(|line| line.split(':').next()).unwrap_or(&uid);
    for file in ["/etc/subuid", "/etc/subgid"] {
        let ranges = fs::read_to_string(file).unwrap_or_default();
        let owns = |line: &str| line.split(':').next().is_some_and(|owner| owner == user || owner == uid);
        if !ranges.lines().any(owns) {
            return Err(HostError::NoUserIds { user: user.to_owned(), file });
        }
    }
    Ok(())
}

/// Where roots are unpacked: in memory, if there is plenty and nobody said `TMPDIR`. They are many small files that live for
/// seconds, and most of that time would be spent on a disk.
pub fn roots_folder() -> PathBuf {
    const MEMORY: &str = "/dev/shm";
    /// As many roots at once as there may be, and in all as much again for whatever else needs memory.
    const NEEDED_MIB: u64 = 2048;
    let folder = Path::new(MEMORY);
    let has_space = free_mib(folder).is_ok_and(|free| free >= NEEDED_MIB);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    if std::env::var_os("TMPDIR").is_none() && has_space && available_mib(&meminfo) >= 2 * NEEDED_MIB {
        folder.to_owned()
    } else {
        std::env::temp_dir()
    }
}

/// Memory that is free or can be made so, of `/proc/meminfo`.
fn available_mib(meminfo: &str) -> u64 {
    let kib =
        meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0_u64) >> 10
}

fn free_mib(path: &Path) -> io::Result<u64> {
    let space = rustix::fs::statvfs(path)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize) >> 20)
}

/// Makes sure that a folder exists, can be written and has space.
pub fn check_folder(path: &Path, needed_mib: u64, option: &'static str) -> Result<(), HostError> {
    let unwritable = |source| HostError::Folder { path: path.to_owned(), source, option };
    fs::create_dir_all(path).map_err(unwritable)?;
    tempfile::tempfile_in(path).map_err(unwritable)?;
    let free_mib = free_mib(path).map_err(unwritable)?;
    if free_mib < needed_mib {
        return Err(HostError::Space { path: path.to_owned(), free_mib, needed_mib, option });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_to_type() {
        let error = HostError::Programs {
            programs: vec!["mksquashfs".into(), "mcopy".into()],
            packages: vec!["squashfs-tools".into(), "mtools".into()],
        };
        assert_eq!(
            error.to_string(),
            "mksquashfs, mcopy are not installed; run: sudo apt-get install squashfs-tools mtools"
        );
    }

    #[test]
    fn a_host_of_another_kind_is_told_what_runs_and_what_compiles() {
        let told = HostError::NoEmulation(Architecture::Arm64).to_string();
        assert!(told.starts_with("programs for arm64 do not run on this host") && told.contains("qemu-user-static"));
        let told = HostError::NoStandardLibrary { target: Architecture::Arm64.rust_target() }.to_string();
        assert!(told.contains("run: rustup target add aarch64-unknown-linux-gnu"), "{told}");
        assert_eq!(cross_compiler(Architecture::Arm64), "aarch64-linux-gnu-gcc");
    }

    #[test]
    fn every_missing_program_is_named_and_each_package_once() {
        let told = check_programs(&[("sh", "dash"), ("no-such-program", "b"), ("nor-this", "a"), ("nor-that", "a")]);
        assert_eq!(
            told.expect_err("three are missing").to_string(),
            "no-such-program, nor-this, nor-that are not installed; run: sudo apt-get install a b"
        );
    }

    #[test]
    fn what_memory_is_available_is_read() {
        assert_eq!(available_mib("MemTotal:       24684084 kB\nMemAvailable:    4194304 kB\nBuffers: 1 kB\n"), 4096);
        assert_eq!(available_mib(""), 0);
    }

    #[test]
    fn a_folder_without_space_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(check_folder(folder.path(), 0, "--output").is_ok());
        let refused = check_folder(folder.path(), u64::MAX, "--output");
        assert!(matches!(refused, Err(HostError::Space { .. })), "{refused:?}");
    }
}
