//! All that was written to a disk, in order, as dm-log-writes logs it.
//!
//! Format: `Documentation/admin-guide/device-mapper/log-writes.rst`, and `struct log_write_super` and
//! `struct log_write_entry` in the kernel's `drivers/md/dm-log-writes.c`: a head, then for each write a sector that
//! describes it, and its data.
//!
//! The kernel logs a write once a flush made it last, so what stands between two flushes is what the second of them
//! made last, and until then a power cut may take any part of it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use fastrand::Rng;

/// Bytes of a sector: of the log, and of the disk, which writes each one whole or not at all.
pub(crate) const SECTOR: u64 = 512;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;

/// Bytes that were written, or a part of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Write {
    /// Where on the disk.
    pub(crate) at: u64,
    /// How many.
    pub(crate) length: u64,
    /// Where they are in the log.
    pub(crate) data: u64,
}

impl Write {
    pub(crate) fn is_in(&self, range: &Range<u64>) -> bool {
        self.at < range.end && range.start < self.at + self.length
    }

    /// Some sectors of it, counted from its first.
    fn sectors(&self, range: Range<u64>) -> Self {
        let offset = range.start * SECTOR;
        Write { at: self.at + offset, length: (range.end - range.start) * SECTOR, data: self.data + offset }
    }
}

/// Reads the log without its data: what each flush made last, and at the end what none did.
///
/// What was discarded stays as it was, as a disk may have it.
pub(crate) fn flushes(log: &File) -> io::Result<Vec<Vec<Write>>> {
    let [magic, version, count] = numbers(log, 0)?;
    if (magic, version) != (MAGIC, 1) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not a log of dm-log-writes"));
    }
    let mut flushes = Vec::new();
    let mut writes = Vec::new();
    let mut next = SECTOR;
    for _ in 0..count {
        let [sector, sectors, flags] = numbers(log, next)?;
        next += SECTOR;
        // A flush is of what was written before it; what is written with it comes after.
        if flags & FLUSH != 0 {
            flushes.push(std::mem::take(&mut writes));
        }
        if sectors > 0 && flags & (DISCARD | MARK) == 0 {
            writes.push(Write { at: sector * SECTOR, length: sectors * SECTOR, data: next });
            next += sectors * SECTOR;
        }
    }
    flushes.push(writes);
    Ok(flushes)
}

/// The first three numbers of a sector: of the log's head, or of an entry.
fn numbers(log: &File, offset: u64) -> io::Result<[u64; 3]> {
    let mut bytes = [0; 24];
    log.read_exact_at(&mut bytes, offset)?;
    Ok([0, 8, 16].map(|at| bytes[at..at + 8].iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte))))
}

/// What a power cut may leave of writes that no flush made last: any of them, and any sectors of each.
///
/// Half of the cuts are like those of a disk that writes in order, the others like those of one that does not.
pub(crate) fn survivors(writes: &[Write], random: &mut Rng) -> Vec<Write> {
    if random.bool() {
        let (before, after) = writes.split_at(random.usize(..=writes.len()));
        let torn = after.first().map(|write| torn(write, random)).unwrap_or_default();
        return before.iter().copied().chain(torn).collect();
    }
    let part = |write: &Write| match random.u8(..3) {
        0 => Vec::new(),
        1 => vec![*write],
        _ => torn(write, random),
    };
    writes.iter().flat_map(part).collect()
}

/// Some sectors of a write, in a few runs.
fn torn(write: &Write, random: &mut Rng) -> Vec<Write> {
    let sectors = write.length / SECTOR;
    let mut runs = Vec::new();
    let mut next = 0;
    while next < sectors {
        let end = random.u64(next + 1..=sectors);
        if random.bool() {
            runs.push(write.sectors(next..end));
        }
        next = end;
    }
    runs
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "panicking is how a test fails")]
mod tests {
    use super::*;
    use fastrand::Rng;
    use proptest::prelude::*;

    #[test]
    fn a_log_is_read_as_it_is_documented() {
        let sector = |numbers: [u64; 3]| {
            let mut sector: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            sector.resize(512, 0);
            sector
        };
        let sectors = [
            sector([MAGIC, 1, 6]),
            sector([8, 2, 0]),
            vec![0xaa; 1024],
            sector([0, 0, FLUSH]),
            sector([0, 4096, DISCARD]),
            sector([1, 1, FLUSH]),
            vec![0xbb; 512],
            sector([0, 0, MARK]),
            sector([9, 1, 0]),
            vec![0xcc; 512],
        ];
        let log = tempfile::tempfile().unwrap();
        log.write_all_at(&sectors.concat(), 0).unwrap();
        let write = |at, length, data| Write { at, length, data };
        let first = vec![write(4096, 1024, 1024)];
        let last = vec![write(512, 512, 3584), write(4608, 512, 5120)];
        assert_eq!(flushes(&log).unwrap(), [first, vec![], last]);
    }

    #[test]
    fn something_else_is_not_taken_for_a_log() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(flushes(&file).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        /// In order, whole sectors, each at its place.
        #[test]
        fn what_survives_was_written(sizes in prop::collection::vec(1..300u64, 0..20), seed: u64) {
            let writes: Vec<_> = (1..).zip(&sizes).map(|(n, size)| Write { at: n << 30, length: size * SECTOR, data: n << 20 }).collect();
            let mut last = 0;
            for survivor in survivors(&writes, &mut Rng::with_seed(seed)) {
                let write = writes[usize::try_from(survivor.at >> 30).unwrap() - 1];
                let offset = survivor.at - write.at;
                prop_assert!(survivor.at >= last && survivor.length > 0);
                prop_assert!(offset % SECTOR == 0 && survivor.length % SECTOR == 0);
                prop_assert!(offset + survivor.length <= write.length);
                prop_assert_eq!(survivor.data, write.data + offset);
                last = survivor.at + survivor.length;
            }
        }
    }
}
