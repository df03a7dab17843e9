//! The metadata in the last block of `p.lxreadonly`, as Kiwi writes it: how to open the root, and a signature.
//!
//! ```text
//!     1 squashfs ro verity FF 1 4096 4096 BLOCKS START sha256 ROOT_HASH SALT FF 00 signature
//!     |--------------------- what is signed: RSA-PSS, SHA-256 ----------------| key size bytes, or nothing
//! ```
//!
//! START is the block behind the file system. Until Kiwi 10.2.21 the hash tree begins there; since then, a superblock of
//! dm-verity does, and the tree one block later. Source: `kiwi/utils/veritysetup.py` and `kiwi/utils/signature.py`.

use std::fmt;

use nemos_model::integrity::{InvalidRootHash, RootHash};
use thiserror::Error;

use super::verity;

/// Bytes at the end of the partition.
pub const BLOCK: usize = 4096;

const VERSION: &str = "1";
const SEPARATOR: u8 = 0xff;
const END: [u8; 2] = [SEPARATOR, 0];

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Type of the file system.
    pub file_system: String,
    /// Blocks of it, of 4096 bytes.
    pub data_blocks: u64,
    /// The block behind it.
    pub hash_start: u64,
    /// Root hash.
    pub root_hash: RootHash,
    /// Salt, in hexadecimal.
    pub salt: String,
}

/// Bytes that are no such metadata, or none that fit a root of ours.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotMetadata {
    /// Not in this form.
    #[error("the last block holds no metadata")]
    Form,
    /// Another version of the form.
    #[error("the metadata has version {0}, and only version 1 is known")]
    Version(String),
    /// Something that nemos-image does not make.
    #[error("the metadata has {0}, which nemos-image does not make")]
    Foreign(String),
    /// Its root hash.
    #[error("the metadata: {0}")]
    RootHash(#[from] InvalidRootHash),
}

impl Metadata {
    /// What is signed.
    pub fn message(&self) -> Vec<u8> {
        let (header, credentials) = (self.header(), self.to_string());
        [header.as_bytes(), &[SEPARATOR], credentials.as_bytes(), &END].concat()
    }

    fn header(&self) -> String {
        format!("{VERSION} {} ro verity", self.file_system)
    }

    /// Reads a block: what it says, what of it is signed, and what follows that.
    pub fn parse(block: &[u8; BLOCK]) -> Result<(Self, &[u8], &[u8]), NotMetadata> {
        let end = block.windows(END.len()).position(|two| two == END).ok_or(NotMetadata::Form)?;
        let (message, signature) = block.split_at(end + END.len());
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| NotMetadata::Form);
        let at = message.iter().position(|byte| *byte == SEPARATOR).filter(|at| *at < end).ok_or(NotMetadata::Form)?;
        let header: Vec<_> = text(&message[..at])?.split(' ').collect();
        let credentials: Vec<_> = text(&message[at + 1..end])?.split(' ').collect();
        let file_system = match header[..] {
            [VERSION, file_system, "ro", "verity"] => file_system.to_owned(),
            [version, _, _, _] => return Err(NotMetadata::Version(version.to_owned())),
            _ => return Err(NotMetadata::Form),
        };
        let [hash_type, data_block, hash_block, data_blocks, hash_start, algorithm, root_hash, salt] = credentials[..]
        else {
            return Err(NotMetadata::Form);
        };
        if (hash_type, data_block, hash_block, algorithm) != ("1", "4096", "4096", "sha256") {
            let told = format!("hash type {hash_type}, blocks of {data_block} and {hash_block} bytes, {algorithm}");
            return Err(NotMetadata::Foreign(told));
        }
        let number = |text: &str| text.parse().map_err(|_| NotMetadata::Form);
        let (data_blocks, hash_start) = (number(data_blocks)?, number(hash_start)?);
        let metadata =
            Metadata { file_system, data_blocks, hash_start, root_hash: root_hash.parse()?, salt: salt.to_owned() };
        Ok((metadata, message, signature))
    }

    /// The block, with a signature of some bytes, or none.
    pub fn block(&self, signature: &[u8]) -> Option<[u8; BLOCK]> {
        let content = [&self.message(), signature].concat();
        let mut block = [0; BLOCK];
        block.get_mut(..content.len())?.copy_from_slice(&content);
        Some(block)
    }

    /// The byte of the partition where the tree itself begins, given what stands at the hash start.
    pub fn tree_start(&self, at_hash_start: &[u8; verity::SUPERBLOCK]) -> u64 {
        let superblock = u64::from(at_hash_start.starts_with(verity::MAGIC));
        (self.hash_start + superblock).saturating_mul(verity::BLOCK)
    }
}

/// The words that a table of dm-verity is made of.
impl fmt::Display for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Metadata { data_blocks, hash_start, root_hash, salt, .. } = self;
        write!(f, "1 4096 4096 {data_blocks} {hash_start} sha256 {root_hash} {salt}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn metadata() -> Metadata {
        Metadata {
            file_system: "squashfs".into(),
            data_blocks: 25_600,
            hash_start: 25_600,
            root_hash: "ab".repeat(32).parse().expect("a root hash"),
            salt: "cd".repeat(32),
        }
    }

    #[test]
    fn it_is_written_as_kiwi_writes_it() {
        let block = metadata().block(b"signature").expect("it fits");
        let (hash, salt) = ("ab".repeat(32), "cd".repeat(32));
        let head = b"1 squashfs ro verity\xff1 4096 4096 25600 25600 sha256 ";
        let expected = [head.as_slice(), hash.as_bytes(), b" ", salt.as_bytes(), b"\xff\0signature\0"];
        assert!(block.starts_with(&expected.concat()));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let block = metadata().block(b"signature").expect("it fits");
        let (read, message, signature) = Metadata::parse(&block).expect("our own");
        assert_eq!(read, metadata());
        assert_eq!(message, metadata().message());
        assert!(signature.starts_with(b"signature\0"));
    }

    #[test]
    fn the_tree_begins_behind_a_superblock_if_there_is_one() {
        let mut at_hash_start = [7; verity::SUPERBLOCK];
        assert_eq!(metadata().tree_start(&at_hash_start), 25_600 * 4096);
        at_hash_start[..8].copy_from_slice(verity::MAGIC);
        assert_eq!(metadata().tree_start(&at_hash_start), 25_601 * 4096);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert_eq!(Metadata::parse(&[0; BLOCK]), Err(NotMetadata::Form));
        let mut block = metadata().block(&[]).expect("it fits");
        block[0] = b'2';
        assert_eq!(Metadata::parse(&block), Err(NotMetadata::Version("2".into())));
        assert!(Metadata { salt: "ab".repeat(2100), ..metadata() }.block(&[]).is_none());
    }

    proptest! {
        #[test]
        fn no_block_makes_the_parser_panic(at in 0..BLOCK, bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut block = metadata().block(&[1; 256]).expect("it fits");
            let end = (at + bytes.len()).min(BLOCK);
            block[at..end].copy_from_slice(&bytes[..end - at]);
            if let Ok((read, message, _)) = Metadata::parse(&block) {
                let _ = read.tree_start(&[0; verity::SUPERBLOCK]);
                prop_assert!(message.ends_with(&END));
            }
        }
    }
}
