//! Mounting, unmounting, and what is mounted.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nemos_model::stack::SeenMount;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount as unmount2,
};
use thiserror::Error;

/// A mount that failed.
#[derive(Debug, Error)]
#[error("cannot mount {fs_type} from {source_name} on {}: {error}{explanation}", target.display())]
pub struct MountError {
    fs_type: &'static str,
    source_name: String,
    target: PathBuf,
    error: io::Error,
    /// What the kernel says beyond the error number.
    explanation: String,
}

impl MountError {
    /// One that was not tried, and why.
    pub(crate) fn refused(mount: &Mount<'_>, target: &Path, why: &dyn std::error::Error) -> Self {
        MountError {
            fs_type: mount.fs_type,
            source_name: mount.source.to_owned(),
            target: target.to_owned(),
            error: io::Error::other(why.to_string()),
            explanation: String::new(),
        }
    }

    /// What a file system gives that finds itself broken: a checksum that is not right (`EFSBADCRC`, which user space knows
    /// as `EBADMSG`), contents that contradict themselves (`EFSCORRUPTED`, known as `EUCLEAN`), a journal that cannot be
    /// replayed (`EIO`).
    pub(crate) fn is_broken(&self) -> bool {
        let broken = [Errno::BADMSG, Errno::UCLEAN, Errno::IO];
        broken.iter().any(|errno| self.error.raw_os_error() == Some(errno.raw_os_error()))
    }

    /// The same, with what came of the attempt to do something about it.
    pub(crate) fn explained(self, more: &dyn std::error::Error) -> Self {
        MountError { explanation: format!("{}; {more}", self.explanation), ..self }
    }
}

/// A file system to be mounted.
#[derive(Debug, Clone)]
pub struct Mount<'a> {
    /// Type, as in `/proc/filesystems`.
    pub fs_type: &'static str,
    /// Device node, or a name.
    pub source: &'a str,
    /// Options with a value; those of the file system, not of the mount.
    pub options: Vec<(&'static str, String)>,
    /// Attributes of the mount.
    pub attributes: MountAttrFlags,
}

impl<'a> Mount<'a> {
    /// A file system without options, mounted read-write.
    pub fn new(fs_type: &'static str, source: &'a str) -> Self {
        Mount { fs_type, source, options: Vec::new(), attributes: MountAttrFlags::empty() }
    }

    /// Read-only: the file system itself as well as its mount.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        self
    }

    /// Data only: no device nodes, no setuid programs.
    #[must_use]
    pub fn data_only(mut self) -> Self {
        self.attributes |= MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
        self
    }

    /// Adds an option of the file system.
    #[must_use]
    pub fn option(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.options.push((name, value.into()));
        self
    }

    /// Mounts it on `target`, which is made if it is not there.
    pub fn on(&self, target: &Path) -> Result<(), MountError> {
        fs::create_dir_all(target).map_err(|error| self.failed(target, error, String::new()))?;
        let moved = |context: &OwnedFd, mount: OwnedFd| {
            move_mount(&mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(|error| self.failed(target, error.into(), messages(context)))
        };
        self.make(target, moved)
    }

    /// Mounts it where nobody else sees it: its root, for as long as that is open.
    pub fn hidden(&self) -> Result<OwnedFd, MountError> {
        self.make(Path::new("a place of its own"), |_, mount| Ok(mount))
    }

    fn make<T>(
        &self,
        target: &Path,
        made: impl FnOnce(&OwnedFd, OwnedFd) -> Result<T, MountError>,
    ) -> Result<T, MountError> {
        let context = fsopen(self.fs_type, FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|error| self.failed(target, error.into(), String::new()))?;
        let mount = self.configure(&context).map_err(|error| self.failed(target, error.into(), messages(&context)))?;
        made(&context, mount)
    }

    fn failed(&self, target: &Path, error: io::Error, explanation: String) -> MountError {
        MountError {
            fs_type: self.fs_type,
            source_name: self.source.to_owned(),
            target: target.to_owned(),
            error,
            explanation,
        }
    }

    fn configure(&self, context: &OwnedFd) -> rustix::io::Result<OwnedFd> {
        fsconfig_set_string(context, "source", self.source)?;
        for (name, value) in &self.options {
            fsconfig_set_string(context, *name, value.as_str())?;
        }
        if self.attributes.contains(MountAttrFlags::MOUNT_ATTR_RDONLY) {
            fsconfig_set_flag(context, "ro")?;
        }
        fsconfig_create(context)?;
        fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, self.attributes)
    }
}

/// What the kernel has to say about a mount that failed: one message a read, `e overlay: ...`.
fn messages(context: &OwnedFd) -> String {
    let mut text = String::new();
    let mut buffer = [0; 512];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        text.push_str("; ");
        text.push_str(String::from_utf8_lossy(&buffer[..length]).trim_start_matches("e ").trim());
    }
    text
}

/// Unmounts what is mounted on `target`.
pub fn unmount(target: &Path) -> io::Result<()> {
    unmount2(target, UnmountFlags::empty()).map_err(|error| {
        let error = io::Error::from(error);
        io::Error::new(error.kind(), format!("cannot unmount {}: {error}", target.display()))
    })
}

/// All mounts of this process's namespace, with their sizes.
pub fn mounted() -> io::Result<Vec<SeenMount>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(text.lines().filter_map(parse_line).map(with_size).collect())
}

/// Where the root of the file system on a device is mounted, if it is.
pub fn mounted_at(device: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let is_its_root = |line: &&str| line.split(' ').nth(3) == Some("/");
    let mut mounts = text.lines().filter(is_its_root).filter_map(parse_line);
    mounts.find(|mount| Path::new(&mount.source) == device).map(|mount| mount.target.into())
}

/// The root of the file system on a device, of one of these types: where it is mounted, or a mount of our own, read-only, that
/// ends with it.
pub fn root_of(device: &Path, fs_types: &[&'static str]) -> Result<OwnedFd, String> {
    if let Some(target) = mounted_at(device) {
        let opened = open(&target, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        return opened.map_err(|error| format!("cannot open {}: {}", target.display(), io::Error::from(error)));
    }
    let source = device.to_string_lossy();
    let mut refusal = String::new();
    for fs_type in fs_types {
        let mut mount = Mount::new(fs_type, &source).read_only().data_only();
        mount.attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC;
        match mount.hidden() {
            Ok(root) => return Ok(root),
            Err(error) => refusal = error.to_string(),
        }
    }
    Err(refusal)
}

/// Opens a file below such a root for reading, and nothing that a link leads to.
pub fn open_below(root: &OwnedFd, path: &str) -> io::Result<File> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let open = |flags| openat2(root, path.trim_start_matches('/'), flags, Mode::empty(), resolve);
    // Who only looks leaves no trace. It is its owner's to ask for that.
    let opened =
        open(flags | OFlags::NOATIME).or_else(|error| if error == Errno::PERM { open(flags) } else { Err(error) });
    let file = File::from(opened?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no file")) }
}

/// Reads a line of mountinfo; see `proc_pid_mountinfo(5)`. Read-only means the file system, not one mount of it:
/// a service that systemd confines sees its own mounts read-only.
fn parse_line(line: &str) -> Option<SeenMount> {
    let (mount, file_system) = line.split_once(" - ")?;
    let target = unescape(mount.split(' ').nth(4)?);
    let mut fields = file_system.split(' ');
    let fs_type = fields.next()?.to_owned();
    let source = unescape(fields.next()?);
    let read_only = fields.next()?.split(',').any(|option| option == "ro");
    Some(SeenMount { target, source, fs_type, read_only, ..SeenMount::default() })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn with_size(mount: SeenMount) -> SeenMount {
    match rustix::fs::statvfs(mount.target.as_str()) {
        Ok(stat) => {
            let size = stat.f_blocks * stat.f_frsize;
            let used = size - stat.f_bfree * stat.f_frsize;
            SeenMount {
                size,
                used,
                names: stat.f_files,
                names_used: stat.f_files.saturating_sub(stat.f_ffree),
                ..mount
            }
        }
        Err(_) => mount,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_from_its_line() {
        let line = "36 25 252:1 / /run/ne\\040mos rw,noatime shared:1 - xfs /dev/mapper/luks ro,attr2,noquota";
        let mount = parse_line(line).unwrap();
        assert_eq!((mount.target.as_str(), mount.source.as_str()), ("/run/ne mos", "/dev/mapper/luks"));
        assert_eq!(mount.fs_type, "xfs");
        assert!(mount.read_only, "the file system is read-only, whatever its mount is");
    }

    #[test]
    fn a_line_of_another_form_is_passed_over() {
        assert_eq!(parse_line("36 25 252:1 / /run rw"), None);
    }
}
