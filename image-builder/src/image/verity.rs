//! A dm-verity hash tree, recomputed without the kernel and without `veritysetup`, which made it.
//!
//! ```text
//!     superblock | top block | ... | blocks of digests of data blocks
//!                     ^ the root hash is its digest; each block holds the digests of 128 blocks of the level below
//! ```

#![allow(clippy::cast_possible_truncation, reason = "what is cast are the small constants below")]

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nemos_model::integrity::RootHash;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use uuid::Uuid;

/// Bytes of a block of data, and of a block of digests.
pub const BLOCK: u64 = 4096;
/// What the superblock begins with.
pub const MAGIC: &[u8] = b"verity\0\0";
/// Bytes of the superblock.
pub const SUPERBLOCK: usize = 512;

const DIGEST: usize = 32;
const PER_BLOCK: u64 = BLOCK / DIGEST as u64;
/// Blocks read at once.
const BATCH: u64 = 256;

/// What the superblock says.
///
/// Source: `struct verity_sb` in cryptsetup's `lib/verity/verity.c`, little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Names the tree.
    pub uuid: Uuid,
    /// Blocks that it covers.
    pub data_blocks: u64,
    /// Hashed before each block.
    pub salt: Vec<u8>,
}

/// Bytes that are not the superblock of a tree that we make.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotVerity {
    /// The magic is another one.
    #[error("there is no dm-verity superblock behind the squashfs")]
    Magic,
    /// Something that nemos-image does not make.
    #[error("the dm-verity superblock has {0}, which nemos-image does not make")]
    Foreign(&'static str),
}

/// What is wrong with a tree.
#[derive(Debug, Error)]
pub enum Corrupted {
    /// The root hash is another one.
    #[error("the tree has another root hash than the kernel image asks for")]
    RootHash,
    /// A block of digests.
    #[error("block {block} of level {level} of the hash tree is corrupted")]
    Hash {
        /// Which level, 0 next to the data.
        level: usize,
        /// Which block of it.
        block: u64,
    },
    /// Blocks of data.
    #[error("{count} of the blocks of the root are corrupted, the first is block {first}")]
    Data {
        /// How many.
        count: u64,
        /// The first.
        first: u64,
    },
    /// The disk cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
}

impl Superblock {
    /// Reads a superblock.
    pub fn parse(bytes: &[u8; SUPERBLOCK]) -> Result<Self, NotVerity> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if &bytes[..8] != MAGIC {
            return Err(NotVerity::Magic);
        }
        let is = |found: bool, what| if found { Ok(()) } else { Err(NotVerity::Foreign(what)) };
        is(word(8) == 1 && word(12) == 1, "another version")?;
        is(
            bytes[32..64] == *b"sha256\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            "another hash than sha256",
        )?;
        is(u64::from(word(64)) == BLOCK && u64::from(word(68)) == BLOCK, "blocks of other than 4096 bytes")?;
        let salt_size = usize::from(u16::from_le_bytes([bytes[80], bytes[81]]));
        is(salt_size <= 256, "a salt of more than 256 bytes")?;
        let data_blocks = u64::from(word(72)) | u64::from(word(76)) << 32;
        is((1..1 << 40).contains(&data_blocks), "an impossible size")?;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[16..32]);
        Ok(Superblock { uuid: Uuid::from_bytes(uuid), data_blocks, salt: bytes[88..88 + salt_size].to_vec() })
    }

    /// The salt in hexadecimal.
    pub fn salt_hex(&self) -> String {
        hex(&self.salt)
    }

    /// Blocks of each level, the one next to the data first. A single block has no tree at all: its digest is the root hash.
    fn levels(&self) -> Vec<u64> {
        if self.data_blocks == 1 {
            return Vec::new();
        }
        let mut levels = vec![self.data_blocks.div_ceil(PER_BLOCK)];
        while let Some(below @ 2..) = levels.last() {
            levels.push(below.div_ceil(PER_BLOCK));
        }
        levels
    }

    /// Bytes of the superblock and the tree.
    pub fn size(&self) -> u64 {
        (1 + self.levels().iter().sum::<u64>()) * BLOCK
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Recomputes the whole tree over the data at `data`, with its superblock at `hashes`, and compares.
pub fn check(disk: &File, data: u64, hashes: u64, superblock: &Superblock, root: &RootHash) -> Result<(), Corrupted> {
    let levels = superblock.levels();
    let salted = Sha256::new_with_prefix(&superblock.salt);
    // The top level comes first on the disk.
    let start = |level: usize| hashes + BLOCK * (1 + levels[level + 1..].iter().sum::<u64>());
    let mut top = [0; BLOCK as usize];
    disk.read_exact_at(&mut top, levels.len().checked_sub(1).map_or(data, start))?;
    if salted.clone().chain_update(top).finalize()[..] != root.as_bytes()[..] {
        return Err(Corrupted::RootHash);
    }
    for level in (0..levels.len().saturating_sub(1)).rev() {
        let wrong = compare(disk, &salted, start(level), levels[level], start(level + 1))?;
        if let Some(block) = wrong.first {
            return Err(Corrupted::Hash { level, block });
        }
    }
    if levels.is_empty() {
        return Ok(());
    }
    match compare(disk, &salted, data, superblock.data_blocks, start(0))? {
        Wrong { first: Some(first), count } => Err(Corrupted::Data { count, first }),
        Wrong { first: None, .. } => Ok(()),
    }
}

#[derive(Default)]
struct Wrong {
    first: Option<u64>,
    count: u64,
}

/// Compares the digests of `blocks` blocks at `at` with those stored at `digests`.
fn compare(disk: &File, salted: &Sha256, at: u64, blocks: u64, digests: u64) -> io::Result<Wrong> {
    let mut wrong = Wrong::default();
    let mut data = vec![0; (BATCH * BLOCK) as usize];
    let mut stored = vec![0; BATCH as usize * DIGEST];
    for from in (0..blocks).step_by(BATCH as usize) {
        let count = BATCH.min(blocks - from) as usize;
        let data = &mut data[..count * BLOCK as usize];
        let stored = &mut stored[..count * DIGEST];
        disk.read_exact_at(data, at + from * BLOCK)?;
        disk.read_exact_at(stored, digests + from * DIGEST as u64)?;
        for (number, (block, digest)) in (from..).zip(data.chunks(BLOCK as usize).zip(stored.chunks(DIGEST))) {
            if salted.clone().chain_update(block).finalize()[..] != *digest {
                wrong.first.get_or_insert(number);
                wrong.count += 1;
            }
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::Tool;
    use proptest::prelude::*;
    use std::io::Write;
    use tempfile::NamedTempFile;

    /// Data, and behind it what veritysetup made of it.
    fn formatted(blocks: u64) -> (NamedTempFile, u64, Superblock, RootHash) {
        let mut file = NamedTempFile::new().expect("a temporary file");
        for block in 0..blocks {
            let content = block.to_le_bytes().repeat(BLOCK as usize / 8);
            file.write_all(&content).expect("a block");
        }
        let offset = blocks * BLOCK;
        let told = Tool::new("veritysetup")
            .args(["format", "--hash=sha256", "--salt=0102030405", "--uuid=00112233-4455-6677-8899-aabbccddeeff"])
            .args([format!("--data-blocks={blocks}"), format!("--hash-offset={offset}")])
            .args([file.path(), file.path()])
            .output()
            .expect("veritysetup works");
        let told = String::from_utf8(told).expect("text");
        let root = told.lines().find_map(|line| line.strip_prefix("Root hash:")).expect("a root hash");
        let mut bytes = [0; SUPERBLOCK];
        file.as_file().read_exact_at(&mut bytes, offset).expect("a superblock");
        let superblock = Superblock::parse(&bytes).expect("a superblock");
        (file, offset, superblock, root.trim().parse().expect("a root hash"))
    }

    #[test]
    fn veritysetups_trees_are_recomputed_at_every_height() {
        for blocks in [1, 2, 127, 128, 129, 128 * 128 + 1] {
            let (file, offset, superblock, root) = formatted(blocks);
            assert_eq!(superblock.data_blocks, blocks);
            assert_eq!(superblock.salt, [1, 2, 3, 4, 5]);
            assert_eq!(superblock.uuid.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
            assert_eq!(file.path().metadata().expect("its size").len(), offset + superblock.size());
            check(file.as_file(), 0, offset, &superblock, &root).expect("a sound tree");
        }
    }

    #[test]
    fn a_flipped_bit_is_found_wherever_it_is() {
        let (file, offset, superblock, root) = formatted(300);
        let flip = |at: u64| {
            let mut byte = [0];
            file.as_file().read_exact_at(&mut byte, at).expect("a byte");
            file.as_file().write_all_at(&[byte[0] ^ 1], at).expect("a flipped bit");
        };
        let told_with = |at: u64| {
            flip(at);
            let told = check(file.as_file(), 0, offset, &superblock, &root).expect_err("damage").to_string();
            flip(at);
            told
        };
        assert!(told_with(299 * BLOCK + 4095).contains("the first is block 299"));
        assert!(told_with(offset + BLOCK).contains("another root hash"));
        assert!(told_with(offset + 2 * BLOCK).contains("block 0 of level 0"));
        check(file.as_file(), 0, offset, &superblock, &root).expect("a sound tree again");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(mut bytes in prop::collection::vec(any::<u8>(), SUPERBLOCK), ours: bool) {
            if ours {
                bytes[..16].copy_from_slice(b"verity\0\0\x01\0\0\0\x01\0\0\0");
                bytes[32..64].fill(0);
                bytes[32..38].copy_from_slice(b"sha256");
                bytes[64..72].copy_from_slice(&[0, 16, 0, 0, 0, 16, 0, 0]);
            }
            let bytes: [u8; SUPERBLOCK] = bytes.try_into().expect("its size");
            if let Ok(superblock) = Superblock::parse(&bytes) {
                prop_assert!(superblock.size() > superblock.data_blocks / PER_BLOCK * BLOCK);
            }
        }
    }
}
