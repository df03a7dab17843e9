//! Carries configurations from device to device, each in a file.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nemos_model::overlay::ConfigurationName;
use nemos_model::overlay::archive::signature::FILE;
use nemos_model::overlay::archive::{BlobDigest, FILE_ENDING, Policy, SHIPPED_FOLDER};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use sha2::{Digest as _, Sha256};

use crate::policy::{self, PolicyError};

mod export;
mod import;

pub use export::{ExportError, Exported, export};
pub use import::{ImportError, Source, Unpacked, Wanted, import, import_shipped, shipped_about};

/// How long the other end of a pipe may do nothing.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that a pipe takes without blocking once it takes any: `PIPE_BUF`.
const ATOMIC: usize = 4096;

/// Reads whose configurations the image takes whose root is mounted there.
pub fn policy(root: &Path) -> Result<Policy, PolicyError> {
    policy::read(root, FILE, "configurations", Policy::check)
}

/// The configurations that the image ships whose root is mounted there, in the order of their names.
pub fn shipped(root: &Path) -> io::Result<Vec<ConfigurationName>> {
    let entries = match fs::read_dir(root.join(SHIPPED_FOLDER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let file = entry?.file_name();
        let name = file.to_str().and_then(|file| file.strip_suffix(FILE_ENDING));
        names.extend(name.and_then(|name| name.parse::<ConfigurationName>().ok()).filter(|name| !name.is_factory()));
    }
    names.sort();
    Ok(names)
}

/// The file in which the image ships that configuration.
fn shipped_file(root: &Path, name: &ConfigurationName) -> PathBuf {
    root.join(SHIPPED_FOLDER).join(format!("{name}{FILE_ENDING}"))
}

/// A file or pipe of a caller, whom nobody waits for for ever.
#[derive(Debug)]
pub struct Caller(File);

impl Caller {
    /// The file, if it is one that bytes go through.
    pub fn new(file: OwnedFd) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(fstat(&file)?.st_mode);
        if matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
            Ok(Caller(file.into()))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file and no pipe"))
        }
    }

    fn wait(&self, wanted: PollFlags) -> io::Result<()> {
        let limit = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.0, wanted)], Some(&limit))? {
            0 => Err(io::Error::new(io::ErrorKind::TimedOut, "its other end has done nothing for a minute")),
            _ => Ok(()),
        }
    }
}

impl Read for Caller {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait(PollFlags::IN)?;
        self.0.read(buffer)
    }
}

impl Write for Caller {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait(PollFlags::OUT)?;
        self.0.write(&bytes[..bytes.len().min(ATOMIC)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Counts and digests what goes through it.
#[derive(Debug)]
struct Digested<T> {
    inner: T,
    digest: Sha256,
    bytes: u64,
}

impl<T> Digested<T> {
    fn new(inner: T) -> Self {
        Digested { inner, digest: Sha256::new(), bytes: 0 }
    }

    fn seen(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    fn digest(&self) -> BlobDigest {
        BlobDigest::from_bytes(self.digest.clone().finalize().into())
    }
}

impl<T: Read> Read for Digested<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.seen(&buffer[..read]);
        Ok(read)
    }
}

impl<T: Write> Write for Digested<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.seen(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_comes_from_the_image() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(policy(root.path()).unwrap(), Policy::default());
        let file = root.path().join(FILE);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, r#"{"signers": [], "require-signature": false}"#).unwrap();
        assert!(!policy(root.path()).unwrap().require_signature);
        fs::write(&file, r#"{"require-signature": true}"#).unwrap();
        assert!(matches!(policy(root.path()), Err(PolicyError::Bad { .. })));
        fs::write(&file, "signed").unwrap();
        assert!(matches!(policy(root.path()), Err(PolicyError::Malformed { .. })));
    }

    #[test]
    fn what_the_image_ships_is_listed() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(shipped(root.path()).unwrap(), []);
        let folder = root.path().join(SHIPPED_FOLDER);
        fs::create_dir_all(&folder).unwrap();
        for file in ["site.tar", "lab.tar", "factory.tar", ".hidden.tar", "notes.txt"] {
            fs::write(folder.join(file), "").unwrap();
        }
        let names: Vec<String> = shipped(root.path()).unwrap().into_iter().map(String::from).collect();
        assert_eq!(names, ["lab", "site"]);
    }

    #[test]
    fn a_folder_is_nothing_to_read_from() {
        let folder = File::open("/").unwrap();
        assert_eq!(Caller::new(folder.into()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
