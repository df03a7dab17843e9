//! Opens the read-only root under dm-verity; below, what is done about integrity while the system runs.

mod fsmap;
pub mod ledger;
pub mod names;
pub mod owner;
pub mod scrub;
pub mod watch;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use devicemapper::{DM, DevId, DmFlags, DmName, DmOptions};
use libcryptsetup_rs::consts::flags::{CryptActivate, CryptDeactivate, CryptVerity};
use libcryptsetup_rs::consts::vals::EncryptionFormat;
use libcryptsetup_rs::{CryptParamsVerity, CryptParamsVerityRef};
use nemos_model::integrity::{ROOT_SIGNATURE, RootHash, VERITY_MAPPING, VerityTable};
use thiserror::Error;

use crate::cryptsetup::{self, CryptError};

/// Bytes of a block of data and of the hash tree.
const BLOCK: u32 = 4096;
/// Bytes of a squashfs superblock.
const SQUASHFS_SUPERBLOCK: usize = 96;
const SQUASHFS_MAGIC: [u8; 4] = *b"hsqs";

/// Why the root was not opened. The boot has to be refused.
#[derive(Debug, Error)]
pub enum RootError {
    /// The partition cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The partition or mapping.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no squashfs on it.
    #[error("{} holds no squashfs: it was overwritten, or is not a root of nemos", path.display())]
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
    /// The first blocks do not have the hashes that the command line's root hash vouches for.
    #[error("the root on {} is not the one with root hash {root_hash}: {source}", path.display())]
    Unverified {
        /// The partition.
        path: PathBuf,
        /// What it should have been.
        root_hash: RootHash,
        /// What reading gave.
        source: io::Error,
    },
}

/// The signature over the root hash that the initrd carries, if the image is signed.
pub fn root_signature() -> Result<Option<Vec<u8>>, RootError> {
    let path = Path::new(ROOT_SIGNATURE);
    match fs::read(path) {
        Ok(signature) => Ok(Some(signature)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RootError::Io { path: path.to_owned(), source }),
    }
}

/// Opens `partition` as [`VERITY_MAPPING`], has the kernel check the signature over the root hash if there is one, and
/// reads from it, since the kernel compares hashes only when it reads. Returns the mapping's device node.
pub fn open_root(partition: &Path, root_hash: RootHash, signature: Option<&[u8]>) -> Result<PathBuf, RootError> {
    let hash_area_offset = hash_area(partition)?;
    let opened = cryptsetup::with("open the verified root on", partition, |device| {
        let parameters = CryptParamsVerity {
            hash_name: "sha256".to_owned(),
            data_device: partition.to_owned(),
            hash_device: None,
            fec_device: None,
            salt: Vec::new(),
            hash_type: 1,
            data_block_size: BLOCK,
            hash_block_size: BLOCK,
            data_size: 0,
            hash_area_offset,
            fec_area_offset: 0,
            fec_roots: 0,
            flags: CryptVerity::empty(),
        };
        let mut parameters: CryptParamsVerityRef<'_> = (&parameters).try_into()?;
        device.context_handle().load(Some(EncryptionFormat::Verity), Some(&mut parameters))?;
        device.set_data_device(partition)?;
        let (name, hash) = (Some(VERITY_MAPPING), Some(root_hash.as_bytes().as_slice()));
        let mut activate = device.activate_handle();
        match signature {
            Some(_) => activate.activate_by_signed_key(name, hash, signature, CryptActivate::READONLY),
            None => activate.activate_by_volume_key(name, hash, CryptActivate::READONLY),
        }
    });
    opened.map_err(|source| match signature {
        Some(_) => RootError::Signature(source),
        None => RootError::Crypt(source),
    })?;
    let mapping = PathBuf::from(format!("/dev/mapper/{VERITY_MAPPING}"));
    let mut first = [0; SQUASHFS_SUPERBLOCK];
    let read = File::open(&mapping).and_then(|file| file.read_exact_at(&mut first, 0));
    read.map_err(|source| RootError::Unverified { path: partition.to_owned(), root_hash, source })?;
    Ok(mapping)
}

/// Reads a file of the mounted root to its end, so that damage to it is seen now.
pub fn read_through(path: &Path) -> Result<(), RootError> {
    let io = |source| RootError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    io::copy(&mut file, &mut io::sink()).map_err(io)?;
    Ok(())
}

/// Closes the mapping again.
pub fn close_root(partition: &Path) -> Result<(), CryptError> {
    cryptsetup::with("close the verified root on", partition, |device| {
        device.activate_handle().deactivate(VERITY_MAPPING, CryptDeactivate::empty())
    })
}

/// What the kernel compares the open root with; `None` if it is not open.
pub fn verity_table() -> Option<VerityTable> {
    let id = DevId::Name(DmName::new(VERITY_MAPPING).ok()?);
    let options = DmOptions::default().set_flags(DmFlags::DM_STATUS_TABLE);
    let (_, targets) = DM::new().ok()?.table_status(&id, options).ok()?;
    let [(_, _, target, params)] = targets.as_slice() else { return None };
    VerityTable::parse(params).filter(|_| target == "verity")
}

/// Where the hash tree begins: behind the squashfs, at the next block.
fn hash_area(partition: &Path) -> Result<u64, RootError> {
    let mut superblock = [0; SQUASHFS_SUPERBLOCK];
    File::open(partition)
        .and_then(|mut file| file.read_exact(&mut superblock))
        .map_err(|source| RootError::Io { path: partition.to_owned(), source })?;
    bytes_used(&superblock)
        .map(|bytes| bytes.next_multiple_of(BLOCK.into()))
        .ok_or_else(|| RootError::NoSquashfs { path: partition.to_owned() })
}

/// The size of a squashfs, from its superblock.
///
/// Source: `struct squashfs_super_block` in the kernel's `fs/squashfs/squashfs_fs.h`: magic at 0, `bytes_used` at 40.
fn bytes_used(superblock: &[u8; SQUASHFS_SUPERBLOCK]) -> Option<u64> {
    let (magic, rest) = superblock.split_first_chunk()?;
    let bytes = u64::from_le_bytes(*rest.get(36..)?.first_chunk()?);
    (*magic == SQUASHFS_MAGIC && (1..=1 << 40).contains(&bytes)).then_some(bytes)
}
