//! Opens squashfs volumes under dm-verity.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use devicemapper::{DM, DevId, DmFlags, DmName, DmOptions};
use libcryptsetup_rs::consts::flags::{CryptActivate, CryptDeactivate, CryptVerity};
use libcryptsetup_rs::consts::vals::EncryptionFormat;
use libcryptsetup_rs::{CryptParamsVerity, CryptParamsVerityRef};
use nemos_model::integrity::protection::{Fec, OnCorruption, Protection};
use nemos_model::integrity::{RootHash, VerityTable};
use thiserror::Error;

use crate::cryptsetup::{self, CryptError};

/// Bytes of a block of data and of the hash tree.
const BLOCK: u32 = 4096;
/// Bytes of a squashfs superblock.
const SQUASHFS_SUPERBLOCK: usize = 96;
const SQUASHFS_MAGIC: [u8; 4] = *b"hsqs";

/// Why a volume was not opened.
#[derive(Debug, Error)]
pub enum VerityError {
    /// The partition cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The partition or mapping.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no squashfs on it.
    #[error("{} holds no squashfs: it was overwritten, or is not of an image of nemos", path.display())]
    NoSquashfs {
        /// The partition.
        path: PathBuf,
    },
    /// The kernel refused the mapping.
    #[error(transparent)]
    Crypt(#[from] CryptError),
    /// The kernel refused the mapping, and there is a signature that it was to check.
    #[error("{0}: the signature over the root hash is by no key that the firmware trusts, or over another one")]
    Signature(CryptError),
    /// The first blocks do not have the hashes that the root hash vouches for.
    #[error("what is on {} is not what the root hash {root_hash} is of: {source}", path.display())]
    Unverified {
        /// The partition.
        path: PathBuf,
        /// What it should have been.
        root_hash: RootHash,
        /// What reading gave.
        source: io::Error,
    },
}

/// A squashfs with its hash tree behind it, on one partition.
#[derive(Debug)]
pub struct Verity<'a> {
    /// Name of its mapping.
    pub mapping: &'static str,
    /// Where it is.
    pub partition: &'a Path,
    /// What the kernel compares with.
    pub root_hash: RootHash,
    /// A signature over that, which the kernel is to check.
    pub signature: Option<Vec<u8>>,
    /// How it is protected beyond that.
    pub protection: Protection,
}

/// A signature over a root hash that the initrd carries, if the image is signed.
pub fn signature(path: &str) -> Result<Option<Vec<u8>>, VerityError> {
    let path = Path::new(path);
    match fs::read(path) {
        Ok(signature) => Ok(Some(signature)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(VerityError::Io { path: path.to_owned(), source }),
    }
}

impl Verity<'_> {
    /// Opens it, and reads from it, since the kernel compares hashes only when it reads. Returns the mapping's device node.
    pub fn open(&self) -> Result<PathBuf, VerityError> {
        let hash_area = self.protection.hash_offset.map_or_else(|| hash_area(self.partition), Ok)?;
        let parameters = self.parameters(hash_area);
        let opened = cryptsetup::with("open under dm-verity", self.partition, |device| {
            let mut parameters: CryptParamsVerityRef<'_> = (&parameters).try_into()?;
            device.context_handle().load(Some(EncryptionFormat::Verity), Some(&mut parameters))?;
            device.set_data_device(self.partition)?;
            let (name, hash) = (Some(self.mapping), Some(self.root_hash.as_bytes().as_slice()));
            let flags = CryptActivate::READONLY | on_corruption(self.protection.on_corruption);
            let mut activate = device.activate_handle();
            match self.signature.as_deref() {
                signature @ Some(_) => activate.activate_by_signed_key(name, hash, signature, flags),
                None => activate.activate_by_volume_key(name, hash, flags),
            }
        });
        opened.map_err(|source| match self.signature {
            Some(_) => VerityError::Signature(source),
            None => VerityError::Crypt(source),
        })?;
        let mapping = PathBuf::from(format!("/dev/mapper/{}", self.mapping));
        let mut first = [0; SQUASHFS_SUPERBLOCK];
        let read = File::open(&mapping).and_then(|file| file.read_exact_at(&mut first, 0));
        let (path, root_hash) = (self.partition.to_owned(), self.root_hash);
        read.map_err(|source| VerityError::Unverified { path, root_hash, source })?;
        Ok(mapping)
    }

    /// Closes the mapping again.
    pub fn close(&self) -> Result<(), CryptError> {
        cryptsetup::with("close what is under dm-verity on", self.partition, |device| {
            device.activate_handle().deactivate(self.mapping, CryptDeactivate::empty())
        })
    }

    fn parameters(&self, hash_area_offset: u64) -> CryptParamsVerity {
        let Fec { roots, offset } = self.protection.fec.unwrap_or(Fec { roots: 0, offset: 0 });
        CryptParamsVerity {
            hash_name: "sha256".to_owned(),
            data_device: self.partition.to_owned(),
            hash_device: None,
            fec_device: self.protection.fec.map(|_| self.partition.to_owned()),
            salt: Vec::new(),
            hash_type: 1,
            data_block_size: BLOCK,
            hash_block_size: BLOCK,
            data_size: 0,
            hash_area_offset,
            fec_area_offset: offset,
            fec_roots: roots,
            flags: CryptVerity::empty(),
        }
    }
}

fn on_corruption(policy: OnCorruption) -> CryptActivate {
    match policy {
        OnCorruption::Report => CryptActivate::empty(),
        OnCorruption::Restart => CryptActivate::RESTART_ON_CORRUPTION,
        OnCorruption::Panic => CryptActivate::PANIC_ON_CORRUPTION,
    }
}

/// Reads a file of the mounted root to its end, so that damage to it is seen now.
pub fn read_through(path: &Path) -> Result<(), VerityError> {
    let io = |source| VerityError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    io::copy(&mut file, &mut io::sink()).map_err(io)?;
    Ok(())
}

/// What the kernel compares an open volume with; `None` if there is no such mapping.
pub fn table(dm: &DM, mapping: &str) -> Option<VerityTable> {
    let id = DevId::Name(DmName::new(mapping).ok()?);
    let options = DmOptions::default().set_flags(DmFlags::DM_STATUS_TABLE);
    let (_, targets) = dm.table_status(&id, options).ok()?;
    let [(_, _, target, params)] = targets.as_slice() else { return None };
    VerityTable::parse(params).filter(|_| target == "verity")
}

/// Where the hash tree begins: behind the squashfs, at the next block.
fn hash_area(partition: &Path) -> Result<u64, VerityError> {
    let mut superblock = [0; SQUASHFS_SUPERBLOCK];
    File::open(partition)
        .and_then(|mut file| file.read_exact(&mut superblock))
        .map_err(|source| VerityError::Io { path: partition.to_owned(), source })?;
    bytes_used(&superblock)
        .map(|bytes| bytes.next_multiple_of(BLOCK.into()))
        .ok_or_else(|| VerityError::NoSquashfs { path: partition.to_owned() })
}

/// The size of a squashfs, from its superblock.
///
/// Source: `struct squashfs_super_block` in the kernel's `fs/squashfs/squashfs_fs.h`: magic at 0, `bytes_used` at 40.
fn bytes_used(superblock: &[u8; SQUASHFS_SUPERBLOCK]) -> Option<u64> {
    let (magic, rest) = superblock.split_first_chunk()?;
    let bytes = u64::from_le_bytes(*rest.get(36..)?.first_chunk()?);
    (*magic == SQUASHFS_MAGIC && (1..=1 << 40).contains(&bytes)).then_some(bytes)
}
