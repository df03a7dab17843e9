//! Where files lie in a squashfs.

use std::fs::File;
use std::io::BufReader;

use backhand::v4::filesystem::node::InnerNode;
use backhand::v4::filesystem::reader::FilesystemReader;
use libtest_mimic::Failed;
use nemos_model::partitions::Partition;

use crate::disk::Disk;
use crate::partitions::extent;

impl Disk {
    /// The first block of 4096 bytes of a partition that only this file's content is in, in bytes from its beginning. Of the
    /// file's path, the end is enough.
    pub fn block_of(&mut self, partition: Partition, file: &str) -> Result<u64, Failed> {
        let disk = File::open(self.bytes()?)?;
        let start = extent(&disk, partition)?.start;
        let squashfs = FilesystemReader::from_reader_with_offset(BufReader::new(disk), start)?;
        let node = squashfs.files().find(|node| node.fullpath.ends_with(file.trim_start_matches('/')));
        match node.map(|node| &node.inner) {
            Some(InnerNode::File(found)) if found.block_sizes().iter().any(|size| size.size() > 2 * 4096) => {
                Ok(found.blocks_start().next_multiple_of(4096))
            }
            _ => Err(format!("{partition} has no file {file} of more than two blocks").into()),
        }
    }

    /// The byte of the root's hash tree with which the digest of a block begins.
    pub fn digest_of(&mut self, block: u64) -> Result<u64, Failed> {
        let (_, leaves) = self.tree_of_root()?;
        Ok(leaves * 4096 + block / 4096 * 32)
    }

    /// Damages the parity that mends the root, all of it: what is damaged besides stays so.
    pub fn loses_parity(&mut self) -> Result<(), Failed> {
        let (blocks, leaves) = self.tree_of_root()?;
        let parity = (leaves + blocks.div_ceil(128)) * 4096;
        let partition = extent(&File::open(self.bytes()?)?, Partition::Readonly)?;
        let last_block = 4096;
        self.corrupt(
            Partition::Readonly,
            parity,
            usize::try_from(partition.end - partition.start - parity - last_block)?,
        )
    }

    /// Blocks of the root, and the first of its tree that vouches for data: behind the superblock and the levels above.
    fn tree_of_root(&mut self) -> Result<(u64, u64), Failed> {
        let blocks = self.blocks_of_squashfs(Partition::Readonly)?;
        let (mut level, mut above) = (blocks.div_ceil(128), 0);
        while level > 1 {
            level = level.div_ceil(128);
            above += level;
        }
        Ok((blocks, blocks + 1 + above))
    }

    /// Blocks of 4096 bytes that the squashfs of a partition has.
    pub fn blocks_of_squashfs(&mut self, partition: Partition) -> Result<u64, Failed> {
        let size = self.read(partition, 40, 8)?;
        let size = size.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        Ok(size.div_ceil(4096))
    }
}
