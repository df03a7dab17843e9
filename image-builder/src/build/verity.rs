//! What is shipped read-only, under dm-verity: a squashfs, its hash tree behind it, and behind that the parity that mends it.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use nemos_model::integrity::RootHash;
use nemos_model::integrity::protection::Fec;

use super::Context;
use super::error::BuildError;
use super::ids::Ids;
use super::tool::Tool;
use crate::image::verity::{BLOCK, Superblock};

/// A squashfs under dm-verity.
#[derive(Debug)]
pub struct Verified {
    /// The content of its partition.
    pub file: PathBuf,
    /// What the kernel compares with.
    pub hash: RootHash,
    /// Hashed before each block.
    pub salt: Vec<u8>,
    /// Bytes of the file system, in whole blocks.
    pub data: u64,
    /// Where the parity is.
    pub fec: Option<Fec>,
}

impl Verified {
    /// Puts the tree where nemos-initrd looks for it: behind the file system, in blocks of 4096 bytes. `name` is what the
    /// numbers in it follow from.
    pub fn make(context: &Context, file: PathBuf, name: &str, fec_roots: u32, ids: &Ids) -> Result<Self, BuildError> {
        let data = super::size_of(&file)?.next_multiple_of(BLOCK);
        let grown = OpenOptions::new().write(true).open(&file).and_then(|file| file.set_len(data));
        grown.map_err(BuildError::io("writing", &file))?;
        let superblock = Superblock {
            uuid: ids.uuid(name),
            data_blocks: data / BLOCK,
            salt: ids.digest(&format!("{name} salt")).0.to_vec(),
        };
        let fec = (fec_roots > 0).then(|| Fec { roots: fec_roots, offset: data + superblock.size() });
        let hash_file = context.scratch.join(format!("{name}.hash"));
        format(&file, data, &superblock, fec, &hash_file)?;
        let hash = super::read(&hash_file)?.trim().parse()?;
        Ok(Verified { file, hash, salt: superblock.salt, data, fec })
    }

    /// Bytes of the tree, and of what follows it.
    pub fn overhead(&self) -> Result<u64, BuildError> {
        Ok(fs::metadata(&self.file).map_err(BuildError::io("reading", &self.file))?.len() - self.data)
    }
}

fn format(
    file: &Path,
    data: u64,
    superblock: &Superblock,
    fec: Option<Fec>,
    hash_file: &Path,
) -> Result<(), BuildError> {
    let fec = fec.map(|Fec { roots, offset }| {
        [format!("--fec-device={}", file.display()), format!("--fec-offset={offset}"), format!("--fec-roots={roots}")]
    });
    Tool::new("veritysetup")
        .args(["format", "--hash=sha256", "--data-block-size=4096", "--hash-block-size=4096"])
        .arg(format!("--data-blocks={}", superblock.data_blocks))
        .arg(format!("--hash-offset={data}"))
        .arg(format!("--salt={}", superblock.salt_hex()))
        .arg(format!("--uuid={}", superblock.uuid))
        .arg(format!("--root-hash-file={}", hash_file.display()))
        .args(fec.into_iter().flatten())
        .args([file, file])
        .run()?;
    Ok(())
}
