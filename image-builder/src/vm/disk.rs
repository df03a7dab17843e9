//! A disk image in a file, seen from the host.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

const SECTOR_BYTES: usize = 512;

/// How a disk is stored in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// QEMU's own, which can hold only what differs from another file.
    Qcow2,
}

impl Format {
    /// The name that QEMU knows it by.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// A file that holds a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Where it is.
    pub path: PathBuf,
    /// How it is stored.
    pub format: Format,
}

/// Why a file is not a disk that can be booted.
#[derive(Debug, Error)]
pub enum DiskError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write {path}: {source}; with --snapshot it need not be written")]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a folder, a socket, or the like.
    #[error("{0} is not a file: give the disk image that `nemos-image build` made")]
    NotAFile(PathBuf),
    /// It has no partition table.
    #[error("{0} is not a disk image, it has no partition table: give the one that `nemos-image build` made")]
    NoPartitionTable(PathBuf),
    /// Its end is missing.
    #[error("{path} is truncated: it has {has} bytes and its partition table needs {needs}; copy or build it again")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        has: u64,
        /// Bytes there should be.
        needs: u64,
    },
    /// `qemu-img` failed.
    #[error("cannot make {path}: {reason}")]
    NotMade {
        /// The file to be made.
        path: PathBuf,
        /// What `qemu-img` said.
        reason: String,
    },
}

impl Disk {
    /// Looks at a file and says what disk it holds.
    ///
    /// A raw one must have a GPT that fits into the file; whether its contents are sound is not looked at here.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        let unreadable = |source| DiskError::Unreadable { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(DiskError::NotAFile(path.to_owned()));
        }
        let mut head = [0; 2 * SECTOR_BYTES];
        match file.read_exact_at(&mut head, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(DiskError::NoPartitionTable(path.to_owned()));
            }
            Err(error) => return Err(unreadable(error)),
        }
        if head.starts_with(b"QFI\xfb") {
            return Ok(Disk { path: path.to_owned(), format: Format::Qcow2 });
        }
        let needs = size_of_partitioned_disk(&head).ok_or_else(|| DiskError::NoPartitionTable(path.to_owned()))?;
        let has = metadata.len();
        if has < needs {
            return Err(DiskError::Truncated { path: path.to_owned(), has, needs });
        }
        Ok(Disk { path: path.to_owned(), format: Format::Raw })
    }

    /// Makes sure that a machine can write to it.
    pub fn writable(self) -> Result<Self, DiskError> {
        match File::options().write(true).open(&self.path) {
            Ok(_) => Ok(self),
            Err(source) => Err(DiskError::ReadOnly { path: self.path, source }),
        }
    }

    /// Makes a new disk at `path` that holds only what will differ from this one, which must not change any more.
    pub fn overlay(&self, path: &Path) -> Result<Disk, DiskError> {
        let failed = |reason: String| DiskError::NotMade { path: path.to_owned(), reason };
        let base = std::path::absolute(&self.path).map_err(|error| failed(error.to_string()))?;
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", Format::Qcow2.name(), "-F", self.format.name(), "-b"])
            .args([base.as_path(), path])
            .output()
            .map_err(|error| failed(format!("qemu-img: {error}; install the package qemu-utils")))?;
        if !made.status.success() {
            return Err(failed(String::from_utf8_lossy(&made.stderr).trim().to_owned()));
        }
        Ok(Disk { path: path.to_owned(), format: Format::Qcow2 })
    }
}

/// Bytes that a disk with this GPT has: its backup header is in the last sector.
fn size_of_partitioned_disk(head: &[u8; 2 * SECTOR_BYTES]) -> Option<u64> {
    let header = head[SECTOR_BYTES..].strip_prefix(b"EFI PART")?;
    let backup_lba = u64::from_le_bytes(header.get(24..32)?.try_into().ok()?);
    backup_lba.checked_add(1)?.checked_mul(SECTOR_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A file of `len` bytes with a GPT header for a disk of `sectors`.
    fn disk_of(sectors: u64, len: u64) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[0; 512]).unwrap();
        file.write_all(b"EFI PART").unwrap();
        file.write_all(&[0; 24]).unwrap();
        file.write_all(&(sectors - 1).to_le_bytes()).unwrap();
        file.as_file().set_len(len).unwrap();
        file
    }

    #[test]
    fn a_whole_disk_is_raw() {
        let file = disk_of(100, 51200);
        assert_eq!(Disk::open(file.path()).unwrap().format, Format::Raw);
    }

    #[test]
    fn a_truncated_disk_is_told_with_its_sizes() {
        let file = disk_of(100, 51199);
        let error = Disk::open(file.path()).unwrap_err();
        assert!(matches!(error, DiskError::Truncated { has: 51199, needs: 51200, .. }), "{error}");
    }

    #[test]
    fn what_is_not_a_disk_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("text");
        std::fs::write(&text, "x".repeat(4096)).unwrap();
        assert!(matches!(Disk::open(&text), Err(DiskError::NoPartitionTable(_))));
        std::fs::write(&text, "").unwrap();
        assert!(matches!(Disk::open(&text), Err(DiskError::NoPartitionTable(_))));
        assert!(matches!(Disk::open(folder.path()), Err(DiskError::NotAFile(_))));
        assert!(matches!(Disk::open(&folder.path().join("nothing")), Err(DiskError::Unreadable { .. })));
    }
}
