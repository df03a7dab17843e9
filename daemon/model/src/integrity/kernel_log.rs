//! Reads the kernel's log for damage.
//!
//! Sources: `verity_handle_err()` in the kernel's `drivers/md/dm-verity-target.c`, `fec_decode_bufs()` and
//! `verity_fec_decode()` in `dm-verity-fec.c`, `crypt_convert_block_aead()` in `dm-crypt.c`, `integrity_metadata()` and
//! `dm_integrity_io_error()` in `dm-integrity.c`, `squashfs_read_data()` in `fs/squashfs/block.c`, `xfs_corruption_error()`
//! and `xfs_verifier_error()` in `fs/xfs/xfs_error.c`, `__ext4_error()` in `fs/ext4/super.c`; as of Linux 6.1 and 6.12.

use crate::integrity::event::{Area, Kind};

/// Bytes of a sector in the kernel's messages, whatever the device's own sectors are.
const SECTOR: u64 = 512;
/// Bytes of a block of dm-verity, of its tree, and of a sector of the overlay's volume.
pub const BLOCK: u64 = 4096;

/// One record of `/dev/kmsg`.
///
/// Source: the kernel's `Documentation/ABI/testing/dev-kmsg`: `priority,sequence,microseconds,flags[,...];message`, then lines
/// that begin with a space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its place in the log of this boot.
    pub sequence: u64,
    /// Microseconds since the boot.
    pub at: u64,
    /// What was said.
    pub message: &'a str,
}

impl<'a> Record<'a> {
    /// Reads a record of the kernel's own. What a program wrote to `/dev/kmsg` is none: the kernel gives it another facility.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (head, message) = text.split_once(';')?;
        let mut fields = head.split(',');
        let priority: u32 = fields.next()?.parse().ok()?;
        let sequence = fields.next()?.parse().ok()?;
        let at = fields.next()?.parse().ok()?;
        let is_the_kernels = priority >> 3 == 0;
        is_the_kernels.then(|| Record { sequence, at, message: message.lines().next().unwrap_or_default() })
    }
}

/// Who found something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// dm-verity, and its error correction.
    Verity,
    /// dm-crypt.
    Crypt,
    /// dm-integrity.
    Integrity,
    /// squashfs.
    Squashfs,
    /// XFS.
    Xfs,
    /// ext4.
    Ext4,
}

/// What a message says of damage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Who says it.
    pub driver: Driver,
    /// The device, as the kernel names it; `None` if it does not.
    pub device: Option<String>,
    /// How bad.
    pub kind: Kind,
    /// What was damaged.
    pub area: Area,
    /// Where in it, in bytes; `None` if that is not said.
    pub start: Option<u64>,
}

/// Reads messages, one after the other.
#[derive(Debug, Default)]
pub struct Reader {
    /// Blocks that a squashfs could not unpack and has not named yet.
    not_unpacked: u32,
}

impl Reader {
    /// Reads the next message; `None` if it tells of no damage.
    ///
    /// A squashfs whose block could not be read says the same as one whose block could not be unpacked. The first is the report
    /// of whoever is below it; the second says before that it could not unpack.
    pub fn next(&mut self, message: &str) -> Option<Report> {
        if message.starts_with("SQUASHFS error: ") && message.ends_with(" decompression failed, data probably corrupt")
        {
            self.not_unpacked = self.not_unpacked.saturating_add(1);
        }
        let report = report(message)?;
        if report.driver == Driver::Squashfs {
            self.not_unpacked = self.not_unpacked.checked_sub(1)?;
        }
        Some(report)
    }
}

fn report(message: &str) -> Option<Report> {
    // dm-crypt's messages begin with the words of a header that it includes, `keys/trusted-type.h`.
    let message = message.strip_prefix("trusted_key: ").unwrap_or(message);
    if let Some(message) = message.strip_prefix("device-mapper: ") {
        let (target, message) = message.split_once(": ")?;
        return match target {
            "verity" => verity(message),
            "verity-fec" => correction(message),
            "crypt" => crypt(message),
            "integrity" => integrity(message),
            _ => None,
        };
    }
    let file_system = [squashfs, xfs, ext4];
    file_system.iter().find_map(|parse| parse(message))
}

/// `254:6: data block 17 is corrupted`, or `metadata`.
fn verity(message: &str) -> Option<Report> {
    let (device, rest) = message.split_once(": ")?;
    let (area, block) = rest.strip_suffix(" is corrupted")?.split_once(" block ")?;
    let area = match area {
        "data" => Area::Data,
        "metadata" => Area::Tree,
        _ => return None,
    };
    let start = block.parse::<u64>().ok()?.checked_mul(BLOCK);
    Some(Report { start, ..damage(Driver::Verity, device, area) })
}

/// `254:6: FEC 8192: corrected 3 errors`, or `failed to correct`. The number is where the code word begins in the first of the
/// columns that it spans: several blocks share it. A failure is told again, by block, by dm-verity itself.
fn correction(message: &str) -> Option<Report> {
    let (device, rest) = message.split_once(": FEC ")?;
    let (code_word, rest) = rest.split_once(": ")?;
    let start = Some(code_word.parse().ok()?);
    let corrected = rest.strip_prefix("corrected ")?.strip_suffix(" errors")?;
    corrected.parse::<u32>().ok()?;
    Some(Report { kind: Kind::Corrected, start, ..damage(Driver::Verity, device, Area::CodeWord) })
}

/// `dm-1: INTEGRITY AEAD ERROR, sector 1024`.
fn crypt(message: &str) -> Option<Report> {
    let (device, sector) = message.split_once(": INTEGRITY AEAD ERROR, sector ")?;
    Some(Report { start: block_of(sector.parse().ok()?), ..damage(Driver::Crypt, device, Area::Data) })
}

/// `dm-0: Checksum failed at sector 0x400`.
fn integrity(message: &str) -> Option<Report> {
    let (device, sector) = message.split_once(": Checksum failed at sector 0x")?;
    let sector = u64::from_str_radix(sector, 16).ok()?;
    Some(Report { start: block_of(sector), ..damage(Driver::Integrity, device, Area::Data) })
}

/// `SQUASHFS error: Failed to read block 0x1f00: -5`. Its other messages are about the same block and do not name it.
fn squashfs(message: &str) -> Option<Report> {
    let block = message.strip_prefix("SQUASHFS error: Failed to read block 0x")?.split(':').next()?;
    let start = Some(u64::from_str_radix(block, 16).ok()?);
    Some(Report { device: None, start, ..damage(Driver::Squashfs, "", Area::Data) })
}

/// `XFS (vda3): Metadata CRC error detected at xfs_agf_read_verify+0x9/0x40 [xfs], xfs_agf block 0x1`, or `Metadata corruption`,
/// or `Corruption of in-memory data`, which shuts the file system down.
fn xfs(message: &str) -> Option<Report> {
    let (device, rest) = message.strip_prefix("XFS (")?.split_once("): ")?;
    let start = if rest.starts_with("Metadata CRC error detected") || rest.starts_with("Metadata corruption detected") {
        let block = rest.rsplit_once(" block 0x").and_then(|(_, block)| block.split_whitespace().next());
        block.and_then(|block| u64::from_str_radix(block, 16).ok()).and_then(block_of)
    } else if rest.starts_with("Corruption of ") || rest.starts_with("log has mismatched uuid") {
        None
    } else {
        return None;
    };
    Some(Report { start, ..damage(Driver::Xfs, device, Area::FileSystem) })
}

/// `EXT4-fs error (device vda2): ext4_lookup:1784: inode #2: comm ls: ...`.
fn ext4(message: &str) -> Option<Report> {
    let (device, _) = message.strip_prefix("EXT4-fs error (device ")?.split_once(')')?;
    Some(damage(Driver::Ext4, device, Area::FileSystem))
}

fn damage(driver: Driver, device: &str, area: Area) -> Report {
    Report { driver, device: Some(device.to_owned()), kind: Kind::Corrupted, area, start: None }
}

/// Where the block with that sector begins.
pub(super) fn block_of(sector: u64) -> Option<u64> {
    sector.checked_mul(SECTOR).map(|byte| byte / BLOCK * BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn told(message: &str) -> (Driver, &str, Kind, Area, Option<u64>) {
        let report = report(message).unwrap_or_else(|| panic!("nothing is read in `{message}`"));
        let device = report.device.map_or("", |device| Box::leak(device.into_boxed_str()));
        (report.driver, device, report.kind, report.area, report.start)
    }

    #[test]
    fn dm_verity_is_understood() {
        let data = told("device-mapper: verity: 254:6: data block 17 is corrupted");
        assert_eq!(data, (Driver::Verity, "254:6", Kind::Corrupted, Area::Data, Some(17 * BLOCK)));
        let tree = told("device-mapper: verity: 7:0: metadata block 26001 is corrupted");
        assert_eq!(tree, (Driver::Verity, "7:0", Kind::Corrupted, Area::Tree, Some(26001 * BLOCK)));
        let corrected = told("device-mapper: verity-fec: 254:6: FEC 8192: corrected 3 errors");
        assert_eq!(corrected, (Driver::Verity, "254:6", Kind::Corrected, Area::CodeWord, Some(8192)));
    }

    #[test]
    fn the_overlays_drivers_are_understood() {
        let crypt = told("device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector 1028");
        assert_eq!(crypt, (Driver::Crypt, "dm-1", Kind::Corrupted, Area::Data, Some(1024 * 512)));
        // As Debian's kernels print it.
        assert_eq!(told("trusted_key: device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector 1028"), crypt);
        let integrity = told("device-mapper: integrity: dm-0: Checksum failed at sector 0x408");
        assert_eq!(integrity, (Driver::Integrity, "dm-0", Kind::Corrupted, Area::Data, Some(0x408 * 512)));
    }

    #[test]
    fn file_systems_are_understood() {
        let squashfs = told("SQUASHFS error: Failed to read block 0x60: -5");
        assert_eq!(squashfs, (Driver::Squashfs, "", Kind::Corrupted, Area::Data, Some(0x60)));
        let crc = "XFS (vda3): Metadata CRC error detected at xfs_agf_read_verify+0xa/0xf0 [xfs], xfs_agf block 0x1 ";
        assert_eq!(told(crc), (Driver::Xfs, "vda3", Kind::Corrupted, Area::FileSystem, Some(0)));
        let shutdown = "XFS (dm-1): Corruption of in-memory data (0x8) detected at xfs_trans_cancel+0x13c/0x160 [xfs] (fs/xfs/xfs_trans.c:1098).  Shutting down filesystem.";
        assert_eq!(told(shutdown), (Driver::Xfs, "dm-1", Kind::Corrupted, Area::FileSystem, None));
        let ext4 = "EXT4-fs error (device vda2): ext4_lookup:1784: inode #2: comm ls: iget: checksum invalid";
        assert_eq!(told(ext4), (Driver::Ext4, "vda2", Kind::Corrupted, Area::FileSystem, None));
    }

    #[test]
    fn a_squashfs_that_was_given_no_block_reports_none() {
        let mut reader = Reader::default();
        let failed = "SQUASHFS error: Failed to read block 0x60: -5";
        assert_eq!(reader.next(failed), None, "it is the report of whoever did not give it");
        assert_eq!(reader.next("SQUASHFS error: zstd decompression failed, data probably corrupt"), None);
        assert!(reader.next(failed).is_some());
        assert_eq!(reader.next(failed), None);
    }

    #[test]
    fn what_only_repeats_a_report_or_tells_of_none_is_passed_over() {
        for message in [
            "device-mapper: verity: 254:6: reached maximum errors",
            "device-mapper: verity: sha256 using implementation \"sha256-ni\"",
            "device-mapper: verity-fec: 254:6: FEC 8192: failed to correct: -74",
            "device-mapper: integrity: Error on reading journal: -5",
            "device-mapper: uevent: version 1.0.3",
            "Buffer I/O error on dev dm-0, logical block 4, async page read",
            "SQUASHFS error: zstd decompression failed, data probably corrupt",
            "XFS (dm-1): Mounting V5 Filesystem 5dd85a1e-5a9c-4f4e-9d80-04b7a6f2a1c3",
            "EXT4-fs (vda2): mounted filesystem r/w with ordered data mode. Quota mode: none.",
            "verity_handle_err: 25 callbacks suppressed",
            "data block 17 is corrupted",
        ] {
            assert_eq!(report(message), None, "{message}");
        }
    }

    #[test]
    fn only_the_kernels_own_records_count() {
        let message = "device-mapper: verity: 254:6: data block 1 is corrupted";
        let kernels = format!("3,1041,5243041,-;{message}\n SUBSYSTEM=block\n DEVICE=b254:0\n");
        assert_eq!(Record::parse(&kernels), Some(Record { sequence: 1041, at: 5_243_041, message }));
        let with_caller = format!("3,1041,5243041,-,caller=T12;{message}\n");
        assert_eq!(Record::parse(&with_caller).map(|record| record.message), Some(message));
        let a_programs = format!("11,1042,5243042,-;{message}\n");
        assert_eq!(Record::parse(&a_programs), None);
    }

    proptest! {
        #[test]
        fn no_noise_makes_the_parsers_panic(text: String, prefix in 0_usize..6) {
            let prefix = ["", "device-mapper: verity: ", "device-mapper: crypt: dm-1: ", "XFS (", "3,1,1,-;", "SQUASHFS error: "][prefix];
            let _ = report(&format!("{prefix}{text}"));
            let _ = Record::parse(&format!("{prefix}{text}"));
        }

        #[test]
        fn a_message_survives_among_noise_and_a_cut_one_is_none(block: u32, cut in 1_usize..13) {
            let message = format!("device-mapper: verity: 254:6: data block {block} is corrupted");
            prop_assert_eq!(told(&message).4, Some(u64::from(block) * BLOCK));
            prop_assert_eq!(report(&message[..message.len() - cut]), None);
        }

        #[test]
        fn any_sector_of_a_block_is_that_block(block in 0_u64..1 << 40, sector in 0_u64..8) {
            let message = format!("device-mapper: crypt: dm-1: INTEGRITY AEAD ERROR, sector {}", block * 8 + sector);
            prop_assert_eq!(told(&message).4, Some(block * BLOCK));
        }
    }
}
