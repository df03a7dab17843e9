//! The header of a LUKS2 volume, as far as a reset has to know it again.
//!
//! Source: "LUKS2 On-Disk Format Specification" 1.1.3, sections 2 and 3.

use serde::Deserialize;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Bytes of the binary part of a header, before its JSON.
pub const BINARY_SIZE: usize = 4096;
/// Largest header, binary part and JSON, in bytes.
pub const MAX_SIZE: u64 = 4 << 20;

const MAGICS: [&[u8; 6]; 2] = [b"LUKS\xba\xbe", b"SKUL\xba\xbe"];
const VERSION: u16 = 2;

/// The binary part of a header: the first or the second copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The volume's UUID.
    pub uuid: Uuid,
    /// Bytes of the header, binary part and JSON.
    pub size: u64,
}

/// Where a key slot's key material is, in bytes from the beginning of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotArea {
    /// Its first byte.
    pub offset: u64,
    /// How many there are.
    pub size: u64,
}

impl Header {
    /// Reads a block that may be one; `None` if it is not.
    pub fn parse(block: &[u8]) -> Option<Self> {
        let magic = block.get(..6)?;
        let version = u16::from_be_bytes(*block.get(6..)?.first_chunk()?);
        let size = u64::from_be_bytes(*block.get(8..)?.first_chunk()?);
        let uuid = block.get(168..208)?;
        let text = std::str::from_utf8(uuid).ok()?.trim_end_matches('\0');
        let is_header = MAGICS.iter().any(|known| magic == *known) && version == VERSION;
        let uuid = Uuid::try_parse(text).ok()?;
        (is_header && (BINARY_SIZE as u64..=MAX_SIZE).contains(&size)).then_some(Header { uuid, size })
    }
}

/// The UUID of the XFS or ext4 file system that begins with these bytes (2 KiB, or more).
///
/// Source: `struct xfs_dsb` in `fs/xfs/libxfs/xfs_format.h`; `struct ext4_super_block`, at byte 1024, in `fs/ext4/ext4.h`.
pub fn file_system_uuid(first: &[u8]) -> Option<Uuid> {
    let uuid = |at: usize| first.get(at..)?.first_chunk().copied().map(Uuid::from_bytes);
    if first.starts_with(b"XFSB") {
        uuid(32)
    } else if first.get(1024 + 56..1024 + 58) == Some(&[0x53, 0xef]) {
        uuid(1024 + 104)
    } else {
        None
    }
}

/// How large an XFS is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XfsSize {
    /// Bytes of a block.
    pub block: u32,
    /// How many there are.
    pub blocks: u64,
    /// How much of that inodes may take.
    pub inode_percent: u8,
}

impl XfsSize {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.blocks.saturating_mul(self.block.into())
    }
}

/// How large the XFS is that begins with these bytes.
///
/// Source: `struct xfs_dsb`.
pub fn xfs_size(first: &[u8]) -> Option<XfsSize> {
    let block = u32::from_be_bytes(*first.strip_prefix(b"XFSB")?.first_chunk()?);
    let blocks = u64::from_be_bytes(*first.get(8..)?.first_chunk()?);
    let inode_percent = *first.get(127)?;
    (block > 0).then_some(XfsSize { block, blocks, inode_percent })
}

/// The areas of all key slots, from a header's JSON (what follows the binary part; NUL bytes may follow it).
pub fn slot_areas(json: &[u8]) -> Option<Vec<SlotArea>> {
    #[derive(Deserialize)]
    struct Metadata {
        keyslots: BTreeMap<String, Slot>,
    }
    #[derive(Deserialize)]
    struct Slot {
        area: Area,
    }
    #[derive(Deserialize)]
    struct Area {
        offset: String,
        size: String,
    }
    let end = json.iter().position(|byte| *byte == 0).unwrap_or(json.len());
    let metadata: Metadata = serde_json::from_slice(json.get(..end)?).ok()?;
    let areas = metadata
        .keyslots
        .into_values()
        .map(|slot| Some(SlotArea { offset: slot.area.offset.parse().ok()?, size: slot.area.size.parse().ok()? }));
    areas.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(magic: [u8; 6], uuid: &str) -> Vec<u8> {
        let mut block = vec![0; BINARY_SIZE];
        block[..6].copy_from_slice(&magic);
        block[6..8].copy_from_slice(&2_u16.to_be_bytes());
        block[8..16].copy_from_slice(&16384_u64.to_be_bytes());
        block[168..168 + uuid.len()].copy_from_slice(uuid.as_bytes());
        block
    }

    #[test]
    fn both_copies_of_a_header_are_known() {
        let uuid = "8a2d7a2e-5a24-4f4e-9d80-04b7a6f2a1c3";
        let expected = Some(Header { uuid: uuid.parse().unwrap(), size: 16384 });
        for magic in MAGICS {
            assert_eq!(Header::parse(&block(*magic, uuid)), expected);
        }
        assert_eq!(Header::parse(&block(*b"LUKS\0\0", uuid)), None);
        assert_eq!(Header::parse(&vec![0; BINARY_SIZE]), None);
    }

    #[test]
    fn the_areas_of_key_slots_are_found() {
        let json = br#"{"keyslots":{"0":{"type":"luks2","area":{"type":"raw","offset":"32768","size":"65536"}},
            "1":{"area":{"offset":"98304","size":"65536"}}},"tokens":{}}"#;
        let areas = slot_areas(&[json.as_slice(), &[0; 100]].concat()).unwrap();
        let expected = [(32768, 65536), (98304, 65536)].map(|(offset, size)| SlotArea { offset, size });
        assert_eq!(areas, expected);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
            let _ = (Header::parse(&bytes), slot_areas(&bytes), file_system_uuid(&bytes), xfs_size(&bytes));
        }
    }
}
