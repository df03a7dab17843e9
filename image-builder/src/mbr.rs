//! The first sector: a hybrid MBR, as `sgdisk -h 1:2:3` makes it.
//!
//! The cover of the GPT comes first, so that who looks for a GPT finds it: Linux takes a table for a hybrid one, and reads
//! the GPT, as long as one entry is the cover. Behind it, the first partitions are shown to who knows nothing but an MBR.

use std::fmt;

use crate::layout::SECTOR;

/// Partitions that are shown, besides the entry that covers the GPT.
pub const SHOWN: usize = 3;

/// Types: the cover of a GPT, an EFI system partition, Linux.
const COVER: u8 = 0xee;
const EFI: u8 = 0xef;
const LINUX: u8 = 0x83;

/// Where the four entries begin in the sector, and how long each is.
const ENTRIES: usize = 446;
const ENTRY: usize = 16;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];

/// One of the four entries; no boot flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its type.
    pub kind: u8,
    /// Its first sector.
    pub start: u32,
    /// How many sectors it has.
    pub sectors: u32,
}

/// The entries for partitions that begin and end at these bytes of the disk, the EFI system partition first.
pub fn hybrid(partitions: impl IntoIterator<Item = (u64, u64)>) -> Vec<Entry> {
    let sector = |byte: u64| u32::try_from(byte / SECTOR).unwrap_or(u32::MAX);
    let shown = partitions.into_iter().take(SHOWN).enumerate().map(|(at, (start, end))| Entry {
        kind: if at == 0 { EFI } else { LINUX },
        start: sector(start),
        sectors: sector(end - start),
    });
    let shown: Vec<_> = shown.collect();
    let before = shown.first().map_or(u32::MAX, |first| first.start.saturating_sub(1));
    let cover = Entry { kind: COVER, start: 1, sectors: before };
    [cover].into_iter().chain(shown).collect()
}

/// The sector with these entries.
pub fn encode(entries: &[Entry]) -> [u8; 512] {
    let mut sector = [0; 512];
    for (entry, place) in entries.iter().zip(sector[ENTRIES..].chunks_exact_mut(ENTRY)) {
        place[1..4].copy_from_slice(&cylinder_head_sector(entry.start.into()));
        place[4] = entry.kind;
        place[5..8].copy_from_slice(&cylinder_head_sector(
            (u64::from(entry.start) + u64::from(entry.sectors)).saturating_sub(1),
        ));
        place[8..12].copy_from_slice(&entry.start.to_le_bytes());
        place[12..].copy_from_slice(&entry.sectors.to_le_bytes());
    }
    sector[510..].copy_from_slice(&SIGNATURE);
    sector
}

/// The entries in use of a sector; `None` if there is no MBR in it.
pub fn parse(sector: &[u8; 512]) -> Option<Vec<Entry>> {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
    let places = sector[ENTRIES..510].chunks_exact(ENTRY);
    let entries = places.map(|place| Entry { kind: place[4], start: word(&place[8..12]), sectors: word(&place[12..]) });
    (sector[510..] == SIGNATURE).then(|| entries.filter(|entry| entry.kind != 0).collect())
}

/// The address in the geometry that everybody pretends: 255 heads, 63 sectors. What lies beyond cylinder 1023 has none.
fn cylinder_head_sector(lba: u64) -> [u8; 3] {
    let (cylinder, rest) = (lba / (255 * 63), lba % (255 * 63));
    if cylinder > 1023 {
        return [0xfe, 0xff, 0xff];
    }
    let low = |value: u64| value.to_le_bytes()[0];
    [low(rest / 63), low(rest % 63 + 1) | low(cylinder >> 8) << 6, low(cylinder)]
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry { kind, start, sectors } = self;
        write!(f, "type {kind:02X}, sectors {start} to {}", (u64::from(*start) + u64::from(*sectors)).saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(sizes in prop::collection::vec(1..100_u64, 1..6)) {
            let mut at = 2048;
            let partitions: Vec<_> = sizes.iter().map(|size| {
                let start = at;
                at += size * 2048;
                (start * SECTOR, at * SECTOR)
            }).collect();
            let entries = hybrid(partitions);
            prop_assert_eq!(entries.len(), 1 + sizes.len().min(SHOWN));
            prop_assert_eq!(parse(&encode(&entries)), Some(entries));
        }

        #[test]
        fn no_sector_makes_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 512)) {
            let mut sector: [u8; 512] = bytes.try_into().expect("its size");
            sector[510..].copy_from_slice(&SIGNATURE);
            let entries = parse(&sector).expect("the signature is there");
            prop_assert!(entries.iter().all(|entry| !entry.to_string().is_empty()));
        }
    }
}
