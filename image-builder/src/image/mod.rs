//! A disk image, read without mounting anything.

pub mod authenticode;
pub mod metadata;
pub mod pcr;
pub mod squashfs;
pub mod uki;
pub mod verity;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use gptman::{GPTHeader, GPTPartitionEntry};
use nemos_model::manifest::Extent;
use nemos_model::partitions::Partition;
use thiserror::Error;
use uuid::Uuid;

use self::uki::{NotUki, Uki};
use crate::architecture::Architecture;
use crate::build::{Tool, ToolError};
use crate::layout::SECTOR;

/// Why a file is not a disk image that can be looked into.
#[derive(Debug, Error)]
pub enum ImageError {
    /// It cannot be read.
    #[error("{path} cannot be read: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a container of another kind.
    #[error("{0} is a qcow2 file; convert it first: qemu-img convert -O raw {0} DISK.raw")]
    Qcow2(PathBuf),
    /// It is not a disk, or not one of ours.
    #[error("{path} is not a nemos disk: {why}; give one that `nemos-image build` made")]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
    /// Its end is missing.
    #[error("{path} is truncated: it has {has} bytes, and its partition table needs {needs}; copy or build it again")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        has: u64,
        /// Bytes there should be.
        needs: u64,
    },
    /// A program that reads it is missing or fails.
    #[error("{what} cannot be read: {source}; {advice}")]
    Tool {
        /// What was read.
        what: &'static str,
        /// Why.
        source: ToolError,
        /// What to do.
        advice: &'static str,
    },
    /// The file on the ESP.
    #[error("what firmware starts from p.UEFI is not a unified kernel image: {0}")]
    Uki(#[from] NotUki),
    /// A file on the ESP that its firmware cannot start.
    #[error("{path} on p.UEFI is a program for {architecture}, and so for other firmware than looks for that name")]
    Machine {
        /// The file.
        path: &'static str,
        /// Its architecture.
        architecture: Architecture,
    },
}

/// One of the two copies of a partition table.
#[derive(Debug)]
pub struct Table {
    /// The copy's header.
    pub header: GPTHeader,
    /// Its entries in use, in their order.
    pub entries: Vec<GPTPartitionEntry>,
}

/// A disk image.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    size: u64,
    /// The copy at the start of the disk.
    pub primary: Result<Table, gptman::Error>,
    /// The copy at its end.
    pub backup: Result<Table, gptman::Error>,
}

/// A partition with one of our labels.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// Which one.
    pub partition: Partition,
    /// Its identity.
    pub guid: Uuid,
    /// Where it begins, in bytes.
    pub start: u64,
    /// How long it is, in bytes.
    pub size: u64,
}

impl Image {
    /// Opens a disk image, and refuses what is none of ours.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let unreadable = |source| ImageError::Unreadable { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(unreadable)?;
        if !file.metadata().map_err(unreadable)?.is_file() {
            return Err(not_ours(path, "it is not a file"));
        }
        let size = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
        let mut magic = [0; 4];
        if file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"QFI\xfb" {
            return Err(ImageError::Qcow2(path.to_owned()));
        }
        let primary = read_table(&mut file, SECTOR);
        if let Ok(table) = &primary {
            let needs = table.header.backup_lba.saturating_add(1).saturating_mul(SECTOR);
            if needs > size {
                return Err(ImageError::Truncated { path: path.to_owned(), has: size, needs });
            }
        }
        let backup = read_table(&mut file, (size / SECTOR).saturating_sub(1) * SECTOR);
        let image = Image { path: path.to_owned(), file, size, primary, backup };
        match image.table() {
            None => Err(not_ours(path, "it has no partition table")),
            Some(_) if image.find(Partition::Readonly).is_none() => {
                Err(not_ours(path, "it has no partition p.lxreadonly"))
            }
            Some(_) => Ok(image),
        }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The partition table: the first copy that is sound.
    pub fn table(&self) -> Option<&Table> {
        self.primary.as_ref().or(self.backup.as_ref()).ok()
    }

    /// The partitions that lie on the disk, in its order.
    pub fn extents(&self) -> Vec<Extent> {
        let entries = self.table().map_or(&[][..], |table| &table.entries);
        let found = |entry: &GPTPartitionEntry| {
            let label = entry.partition_name.as_str().to_owned();
            let start = entry.starting_lba.checked_mul(SECTOR)?;
            let end = entry.ending_lba.checked_add(1)?.checked_mul(SECTOR)?;
            let guid = Uuid::from_bytes_le(entry.unique_partition_guid);
            (start < end && end <= self.size).then(|| Extent { label, guid, start, size: end - start })
        };
        entries.iter().filter_map(found).collect()
    }

    /// Those with labels of ours.
    pub fn partitions(&self) -> Vec<Found> {
        let ours = |Extent { label, guid, start, size }: Extent| {
            let partition = label.parse().ok()?;
            Some(Found { partition, guid, start, size })
        };
        self.extents().into_iter().filter_map(ours).collect()
    }

    /// The partition for one purpose.
    pub fn find(&self, partition: Partition) -> Option<Found> {
        self.partitions().into_iter().find(|found| found.partition == partition)
    }

    /// The partition for one purpose, which the disk must have.
    pub fn require(&self, partition: Partition) -> Result<Found, ImageError> {
        self.find(partition).ok_or_else(|| not_ours(&self.path, &format!("it has no partition {partition}")))
    }

    /// Bytes at a place of the disk.
    pub fn read<const SIZE: usize>(&self, at: u64) -> Result<[u8; SIZE], ImageError> {
        let mut bytes = [0; SIZE];
        let read = self.file.read_exact_at(&mut bytes, at);
        read.map_err(|source| ImageError::Unreadable { path: self.path.clone(), source })?;
        Ok(bytes)
    }

    /// What the disk is for: each firmware looks for a name of its own.
    pub fn architecture(&self) -> Result<Architecture, ImageError> {
        let listed = String::from_utf8_lossy(&self.mtools("mdir", "EFI/BOOT")?).into_owned();
        let named = |architecture: &Architecture| {
            listed
                .lines()
                .any(|file| file.trim_start_matches("::/").eq_ignore_ascii_case(architecture.removable_path()))
        };
        let found = Architecture::ALL.into_iter().find(named);
        found.ok_or_else(|| not_ours(&self.path, "there is nothing on p.UEFI that firmware would start"))
    }

    /// What a program of mtools tells of a file or a folder on the ESP.
    fn mtools(&self, program: &str, path: &str) -> Result<Vec<u8>, ImageError> {
        let esp = self.require(Partition::Esp)?;
        let drive = format!("{}@@{}", self.path.display(), esp.start);
        let brief = (program == "mdir").then_some("-b");
        let tool = Tool::new(program).env("MTOOLS_SKIP_CHECK", "1").args(brief).args(["-i", &drive]);
        tool.arg(format!("::/{path}")).output().map_err(|source| ImageError::Tool {
            what: "the kernel image on p.UEFI",
            source,
            advice: "is the package mtools installed?",
        })
    }

    /// What the firmware boots.
    pub fn uki(&self) -> Result<Uki, ImageError> {
        let architecture = self.architecture()?;
        let bytes = self.mtools("mtype", architecture.removable_path())?;
        let uki = Uki::parse(bytes)?;
        if uki.architecture != architecture {
            let path = architecture.removable_path();
            return Err(ImageError::Machine { path, architecture: uki.architecture });
        }
        Ok(uki)
    }

    /// A file of the read-only root.
    pub fn root_file(&self, path: &str) -> Result<String, ImageError> {
        let root = self.require(Partition::Readonly)?;
        let read = Tool::new("unsquashfs").args(["-offset", &root.start.to_string(), "-cat"]).arg(&self.path).arg(path);
        let bytes = read.output().map_err(|source| ImageError::Tool {
            what: "the root",
            source,
            advice: "is the package squashfs-tools installed?",
        })?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn not_ours(path: &Path, why: &str) -> ImageError {
    ImageError::NotOurs { path: path.to_owned(), why: why.to_owned() }
}

fn read_table(file: &mut File, at: u64) -> Result<Table, gptman::Error> {
    file.seek(SeekFrom::Start(at))?;
    let header = GPTHeader::read_from(file)?;
    // What the header claims is checked before anything of that size is read.
    if header.number_of_partition_entries > 1024 || header.size_of_partition_entry != 128 {
        return Err(gptman::Error::InvalidHeaderSize);
    }
    let entries = header.read_partitions(file, SECTOR)?;
    Ok(Table { header, entries: entries.into_iter().filter(GPTPartitionEntry::is_used).collect() })
}
