//! Checks what is under dm-verity in full, its hash tree included, against its root hash. The kernel is not asked: it would answer from memory,
//! and with one processor.
//!
//! ```text
//!     superblock | top | ... | digests of 128 blocks of data each
//!                  ^ held in memory, verified      ^ a group: one such block, and the data that it vouches for
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use nemos_model::integrity::VerityTable;
use nemos_model::integrity::event::Area;
use nemos_model::integrity::scrub::Step;
use sha2::{Digest, Sha256};

use super::{Buffer, ScrubError, failed, is_damage, open_direct};

/// Bytes of a block of data and of the tree.
const BLOCK: usize = 4096;
const DIGEST: usize = 32;
/// Digests in a block of the tree.
const PER_BLOCK: u64 = (BLOCK / DIGEST) as u64;
/// Groups that each thread reads in one step.
const GROUPS: u64 = 16;

/// What is damaged, and where it begins on the device.
type Damage = Vec<(Area, u64)>;

/// Reads a volume on from `position`, a byte of its data. What is damaged on `device` is read from `mapping` too: there the
/// kernel may mend it.
pub fn read_through(
    device: &Path,
    mapping: &Path,
    table: &VerityTable,
    position: u64,
    step: &mut dyn FnMut(Step) -> bool,
) -> Result<(), ScrubError> {
    let file = open_direct(device)?;
    if table.data_blocks == 1 {
        let single = check_single(&file, table).map_err(failed("read", device))?;
        step(single);
        return Ok(());
    }
    let mut damage = Damage::new();
    let tree = Tree::read(&file, table, &mut damage).map_err(failed("read the hash tree on", device))?;
    let total = tree.size() + table.data_blocks * BLOCK as u64;
    let threads = thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let groups = tree.levels[0];
    let mut group = position / (PER_BLOCK * BLOCK as u64);
    let mut step = |position, read, found: Damage| -> Result<bool, ScrubError> {
        let (corrected, damaged) = tree.split(found, mapping)?;
        Ok(step(Step { position, read, total, damaged, corrected }))
    };
    let goes_on = step(position, tree.upper_size(), damage)?;
    while goes_on && group < groups {
        let end = (group + threads * GROUPS).min(groups);
        let (read, damaged) = tree.check_groups(group, end, threads).map_err(failed("read", device))?;
        group = end;
        let position = (group * PER_BLOCK).min(table.data_blocks) * BLOCK as u64;
        if !step(position, read, damaged)? {
            break;
        }
    }
    Ok(())
}

/// The damaged blocks of a code word, which is what the kernel names when it has mended one of them.
pub fn damaged_in(device: &Path, table: &VerityTable, code_word: u64) -> Result<Damage, ScrubError> {
    let Some(parity) = table.parity else { return Ok(Damage::new()) };
    let file = open_direct(device)?;
    let mut damage = Damage::new();
    let tree = Tree::read(&file, table, &mut damage).map_err(failed("read the hash tree on", device))?;
    let (mut found, mut buffer, mut digests) = (Damage::new(), Buffer::new(BLOCK), Buffer::new(BLOCK));
    for block in parity.blocks_of(code_word) {
        let place = tree.place(block);
        let is_damaged = tree.is_damaged(block, &mut buffer, &mut digests).map_err(failed("read", device))?;
        found.extend(is_damaged.then_some(place));
    }
    Ok(found)
}

/// A single block has no tree: the root hash is its digest.
fn check_single(file: &File, table: &VerityTable) -> io::Result<Step> {
    let mut buffer = Buffer::new(BLOCK);
    let bytes = buffer.first(BLOCK);
    let is_sound = match file.read_exact_at(bytes, 0) {
        Ok(()) => {
            let digest = Sha256::new_with_prefix(&table.salt).chain_update(&bytes).finalize();
            digest[..] == table.root_hash.as_bytes()[..]
        }
        Err(error) if is_damage(&error) => false,
        Err(error) => return Err(error),
    };
    let damaged = if is_sound { Vec::new() } else { vec![(Area::Data, 0)] };
    let size = BLOCK as u64;
    Ok(Step { position: size, read: size, total: size, damaged, corrected: Vec::new() })
}

/// The tree, from its top down to the level above the groups.
struct Tree<'a> {
    file: &'a File,
    table: &'a VerityTable,
    salted: Sha256,
    /// Blocks of each level, the groups' first.
    levels: Vec<u64>,
    /// Of each level above the groups: its blocks, `None` where one is damaged.
    upper: Vec<Vec<Option<Box<[u8]>>>>,
}

impl<'a> Tree<'a> {
    fn read(file: &'a File, table: &'a VerityTable, damage: &mut Damage) -> io::Result<Self> {
        let mut levels = vec![table.data_blocks.div_ceil(PER_BLOCK)];
        while let Some(below @ 2..) = levels.last() {
            levels.push(below.div_ceil(PER_BLOCK));
        }
        let upper = vec![Vec::new(); levels.len()];
        let mut tree = Tree { file, table, salted: Sha256::new_with_prefix(&table.salt), levels, upper };
        for level in (1..tree.levels.len()).rev() {
            let mut blocks = Vec::new();
            for block in 0..tree.levels[level] {
                let mut buffer = Buffer::new(BLOCK);
                let bytes = tree.read_block(tree.start(level) + block, &mut buffer)?;
                let sound = bytes.filter(|bytes| tree.vouches(level, block, bytes) == Some(true));
                if sound.is_none() {
                    damage.push((Area::Tree, (tree.start(level) + block) * BLOCK as u64));
                }
                blocks.push(sound.map(|bytes| bytes.to_vec().into_boxed_slice()));
            }
            tree.upper[level] = blocks;
        }
        Ok(tree)
    }

    /// The first block of a level on the device: the top comes first.
    fn start(&self, level: usize) -> u64 {
        self.table.tree + self.levels[level + 1..].iter().sum::<u64>()
    }

    fn upper_size(&self) -> u64 {
        self.levels[1..].iter().sum::<u64>() * BLOCK as u64
    }

    fn size(&self) -> u64 {
        self.levels.iter().sum::<u64>() * BLOCK as u64
    }

    /// Reads one block; `None` if the disk cannot.
    fn read_block<'b>(&self, block: u64, buffer: &'b mut Buffer) -> io::Result<Option<&'b [u8]>> {
        let bytes = buffer.first(BLOCK);
        match self.file.read_exact_at(bytes, block * BLOCK as u64) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) if is_damage(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn digest(&self, block: &[u8]) -> [u8; DIGEST] {
        self.salted.clone().chain_update(block).finalize().into()
    }

    /// Whether a block of the tree is what the level above says; `None` if that is damaged itself.
    fn vouches(&self, level: usize, block: u64, bytes: &[u8]) -> Option<bool> {
        let found = self.digest(bytes);
        if level + 1 == self.levels.len() {
            return Some(found == *self.table.root_hash.as_bytes());
        }
        let parent = self.upper[level + 1].get(usize::try_from(block / PER_BLOCK).ok()?)?.as_ref()?;
        Some(found[..] == *digest_in(parent, block % PER_BLOCK))
    }

    /// What a block is that the parity covers: the data come first, then the tree.
    fn place(&self, block: u64) -> (Area, u64) {
        match block.checked_sub(self.table.data_blocks) {
            None => (Area::Data, block * BLOCK as u64),
            Some(of_tree) => (Area::Tree, (self.table.tree + of_tree) * BLOCK as u64),
        }
    }

    /// Whether a block that the parity covers is other than what vouches for it says.
    fn is_damaged(&self, block: u64, buffer: &mut Buffer, digests: &mut Buffer) -> io::Result<bool> {
        let Some(of_tree) = block.checked_sub(self.table.data_blocks) else {
            let group = block / PER_BLOCK;
            let Some(digests) = self.read_block(self.start(0) + group, digests)? else { return Ok(false) };
            let bytes = self.read_block(block, buffer)?;
            let is_sound = |bytes: &[u8]| self.digest(bytes)[..] == *digest_in(digests, block % PER_BLOCK);
            return Ok(self.vouches(0, group, digests) == Some(true) && !bytes.is_some_and(is_sound));
        };
        let at = self.table.tree + of_tree;
        let level = (0..self.levels.len()).find(|level| self.start(*level) <= at);
        let Some(level) = level else { return Ok(false) };
        let bytes = self.read_block(at, buffer)?;
        Ok(bytes.is_none_or(|bytes| self.vouches(level, at - self.start(level), bytes) == Some(false)))
    }

    /// Tells what the kernel mends from what it does not. Of the tree's blocks it is seen by the data that they vouch for; the
    /// kernel may have read one before it was damaged, and still know it.
    fn split(&self, found: Damage, mapping: &Path) -> Result<(Damage, Damage), ScrubError> {
        if self.table.parity.is_none() || found.is_empty() {
            return Ok((Damage::new(), found));
        }
        let mapped = open_direct(mapping)?;
        let mut buffer = Buffer::new(BLOCK);
        let mut is_mended = |place: &(Area, u64)| {
            let block = self.first_of(place);
            mapped.read_exact_at(buffer.first(BLOCK), block * BLOCK as u64).is_ok()
        };
        Ok(found.into_iter().partition(|place| is_mended(place)))
    }

    /// The first block of data that cannot be read unless this one is right.
    fn first_of(&self, (area, start): &(Area, u64)) -> u64 {
        let at = start / BLOCK as u64;
        match (0..self.levels.len()).find(|level| *area == Area::Tree && self.start(*level) <= at) {
            Some(level) => (0..=level).fold(at - self.start(level), |index, _| index * PER_BLOCK),
            None => at,
        }
    }

    /// Checks groups on several processors. Gives bytes that were read, and what is damaged.
    fn check_groups(&self, from: u64, to: u64, threads: u64) -> io::Result<(u64, Damage)> {
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|worker| {
                    let groups = (from + worker..to).step_by(usize::try_from(threads).unwrap_or(1));
                    scope.spawn(move || self.check_each(groups))
                })
                .collect();
            let mut all = (0, Damage::new());
            for worker in workers {
                let (read, damage) = worker.join().map_err(|_| io::Error::other("a thread of the scrub failed"))??;
                all.0 += read;
                all.1.extend(damage);
            }
            Ok(all)
        })
    }

    fn check_each(&self, groups: impl Iterator<Item = u64>) -> io::Result<(u64, Damage)> {
        let (mut digests, mut data) =
            (Buffer::new(BLOCK), Buffer::new(BLOCK * usize::try_from(PER_BLOCK).unwrap_or(1)));
        let (mut read, mut damage) = (0, Damage::new());
        for group in groups {
            let first = group * PER_BLOCK;
            let blocks = PER_BLOCK.min(self.table.data_blocks - first);
            read += (1 + blocks) * BLOCK as u64;
            let block = self.start(0) + group;
            let digests = self.read_block(block, &mut digests)?;
            let sound = digests.filter(|digests| self.vouches(0, group, digests) == Some(true));
            let Some(digests) = sound else {
                // Nothing vouches for the data then; the kernel gives none of it either.
                damage.push((Area::Tree, block * BLOCK as u64));
                continue;
            };
            self.check_data(first, blocks, digests, &mut data, &mut damage)?;
        }
        Ok((read, damage))
    }

    fn check_data(
        &self,
        first: u64,
        blocks: u64,
        digests: &[u8],
        buffer: &mut Buffer,
        damage: &mut Damage,
    ) -> io::Result<()> {
        let bytes = buffer.first(BLOCK * usize::try_from(blocks).unwrap_or_default());
        match self.file.read_exact_at(bytes, first * BLOCK as u64) {
            Ok(()) => {
                let wrong = |(index, bytes): &(u64, &[u8])| self.digest(bytes)[..] != *digest_in(digests, *index);
                let wrong = (0..).zip(bytes.chunks(BLOCK)).filter(wrong);
                damage.extend(wrong.map(|(index, _)| (Area::Data, (first + index) * BLOCK as u64)));
            }
            // The disk cannot read some of it: find out which.
            Err(error) if is_damage(&error) => {
                for index in 0..blocks {
                    let bytes = self.read_block(first + index, buffer)?;
                    if bytes.is_none_or(|bytes| self.digest(bytes)[..] != *digest_in(digests, index)) {
                        damage.push((Area::Data, (first + index) * BLOCK as u64));
                    }
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn digest_in(block: &[u8], index: u64) -> &[u8] {
    let at = usize::try_from(index % PER_BLOCK).unwrap_or_default() * DIGEST;
    &block[at..at + DIGEST]
}
