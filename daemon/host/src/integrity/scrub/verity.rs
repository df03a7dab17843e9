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

type Damage = Vec<(Area, u64)>;

/// Reads a volume on from `position`, a byte of its data.
pub fn read_through(
    device: &Path,
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
    let goes_on = step(Step { position, read: tree.upper_size(), total, damaged: damage });
    while goes_on && group < groups {
        let end = (group + threads * GROUPS).min(groups);
        let (read, damaged) = tree.check_groups(group, end, threads).map_err(failed("read", device))?;
        group = end;
        let position = (group * PER_BLOCK).min(table.data_blocks) * BLOCK as u64;
        if !step(Step { position, read, total, damaged }) {
            break;
        }
    }
    Ok(())
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
    Ok(Step { position: BLOCK as u64, read: BLOCK as u64, total: BLOCK as u64, damaged })
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
