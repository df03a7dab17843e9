//! What the kernel says of a dm-verity mapping.

use crate::integrity::RootHash;
use crate::integrity::kernel_log::BLOCK;

/// What the status line of a dm-verity target says.
///
/// Source: `verity_status()` in the kernel's `drivers/md/dm-verity-target.c`: `V`, or `C` once a block failed. Newer kernels
/// append fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerityStatus {
    /// No block that was read so far failed.
    Verified,
    /// At least one block failed since the mapping was made.
    Corrupted,
}

impl VerityStatus {
    /// Reads the status parameters of the target; `None` if they are not dm-verity's.
    pub fn parse(params: &str) -> Option<Self> {
        match params.split_whitespace().next()? {
            "V" => Some(VerityStatus::Verified),
            "C" => Some(VerityStatus::Corrupted),
            _ => None,
        }
    }
}

/// What the table of a dm-verity target says: what is compared with what.
///
/// Source: the kernel's `Documentation/admin-guide/device-mapper/verity.rst`: `<version> <data device> <hash device> <data block
/// size> <hash block size> <data blocks> <hash start block> <algorithm> <root hash> <salt> [<number of options> <options>]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerityTable {
    /// Blocks of data, of 4096 bytes.
    pub data_blocks: u64,
    /// The first block of the tree, its top, counted from the beginning of the device.
    pub tree: u64,
    /// What every block is compared with in the end.
    pub root_hash: RootHash,
    /// Hashed before each block.
    pub salt: Vec<u8>,
    /// Whether the kernel was given a signature of the root hash, and found it good: it refuses the mapping otherwise.
    pub signed: bool,
    /// What mends damaged blocks, if anything does.
    pub parity: Option<Parity>,
}

/// Error correction of a dm-verity target: `fec_blocks` and `fec_roots` of its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parity {
    /// Blocks that it covers: the data, and behind them the tree.
    pub blocks: u64,
    /// Parity bytes of a code word.
    pub roots: u64,
}

impl Parity {
    /// Bytes of a code word.
    const CODE_WORD: u64 = 255;

    /// The blocks that a code word spans, of those that are covered. The kernel names it by the first of them, in bytes.
    ///
    /// Source: `fec_interleave()` and `verity_fec_decode()` in the kernel's `drivers/md/dm-verity-fec.c`.
    pub fn blocks_of(self, code_word: u64) -> impl Iterator<Item = u64> {
        let columns = Parity::CODE_WORD.saturating_sub(self.roots).max(1);
        let rounds = self.blocks.div_ceil(columns).max(1);
        let first = code_word / BLOCK % rounds;
        (0..columns).map(move |column| first + column * rounds).take_while(move |block| *block < self.blocks)
    }
}

impl VerityTable {
    /// Reads the table of a mapping that nemos makes; `None` if it is another: of two devices, of other blocks than of 4096
    /// bytes, of another hash than SHA-256.
    pub fn parse(params: &str) -> Option<Self> {
        let words: Vec<&str> = params.split_whitespace().collect();
        let ["1", data, hashes, "4096", "4096", data_blocks, tree, "sha256", root_hash, salt, options @ ..] =
            &words[..]
        else {
            return None;
        };
        if data != hashes {
            return None;
        }
        Some(VerityTable {
            data_blocks: data_blocks.parse().ok()?,
            tree: tree.parse().ok()?,
            root_hash: root_hash.parse().ok()?,
            salt: if *salt == "-" { Vec::new() } else { bytes(salt)? },
            signed: options.contains(&"root_hash_sig_key_desc"),
            parity: parity(options),
        })
    }
}

fn parity(options: &[&str]) -> Option<Parity> {
    let value = |name| options.iter().skip_while(|option| **option != name).nth(1)?.parse().ok();
    Some(Parity { blocks: value("fec_blocks")?, roots: value("fec_roots")? })
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    if !hex.len().is_multiple_of(2) || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn the_kernels_letters_are_understood() {
        assert_eq!(VerityStatus::parse("V"), Some(VerityStatus::Verified));
        assert_eq!(VerityStatus::parse("C -"), Some(VerityStatus::Corrupted));
        assert_eq!(VerityStatus::parse("0 0 recalculating"), None);
    }

    #[test]
    fn a_table_is_read() {
        let table = VerityTable::parse(&format!("1 254:6 254:6 4096 4096 129 131 sha256 {HASH} 0a0b")).unwrap();
        assert_eq!((table.data_blocks, table.tree, table.salt.as_slice()), (129, 131, &[10, 11][..]));
        assert!(!table.signed);
        let signed = format!("1 254:6 254:6 4096 4096 129 131 sha256 {HASH} - 2 root_hash_sig_key_desc verity:1");
        assert!(VerityTable::parse(&signed).unwrap().signed);
        let mended = format!(
            "1 254:6 254:6 4096 4096 129 131 sha256 {HASH} - 8 use_fec_from_device 254:6 fec_blocks 1000 fec_start 133 fec_roots 2"
        );
        assert_eq!(VerityTable::parse(&mended).unwrap().parity, Some(Parity { blocks: 1000, roots: 2 }));
        let two_devices = format!("1 254:6 254:7 4096 4096 129 1 sha256 {HASH} -");
        assert_eq!(VerityTable::parse(&two_devices), None);
    }

    proptest! {
        #[test]
        fn each_block_is_in_the_code_word_that_is_named_after_it(blocks in 1_u64..100_000, roots in 2_u64..25, block: u64) {
            let (parity, block) = (Parity { blocks, roots }, block % blocks);
            let rounds = blocks.div_ceil(255 - roots);
            prop_assert!(parity.blocks_of(block % rounds * BLOCK).any(|other| other == block));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text: String) {
            let _ = VerityStatus::parse(&text);
            let _ = VerityTable::parse(&text);
            let _ = VerityTable::parse(&format!("1 a a 4096 4096 1 2 sha256 {HASH} {text}"));
        }
    }
}
