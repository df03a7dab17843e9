//! Where files lie in a squashfs.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use backhand::v4::filesystem::node::InnerNode;
use backhand::v4::filesystem::reader::FilesystemReader;
use libtest_mimic::Failed;
use nemos_model::partitions::Partition;

use crate::disk::Disk;
use crate::partitions::extent;

impl Disk {
    /// The first block of 4096 bytes of a partition that only this file's content is in, in bytes from its beginning.
    pub fn block_of(&mut self, partition: Partition, file: &str) -> Result<u64, Failed> {
        let disk = File::open(self.bytes()?)?;
        let start = extent(&disk, partition)?.start;
        let squashfs = FilesystemReader::from_reader_with_offset(BufReader::new(disk), start)?;
        let node = squashfs.files().find(|node| node.fullpath == Path::new(file));
        match node.map(|node| &node.inner) {
            Some(InnerNode::File(found)) if found.block_sizes().iter().any(|size| size.size() > 2 * 4096) => {
                Ok(found.blocks_start().next_multiple_of(4096))
            }
            _ => Err(format!("{partition} has no file {file} of more than two blocks").into()),
        }
    }

    /// Blocks of 4096 bytes that the squashfs of a partition has.
    pub fn blocks_of_squashfs(&mut self, partition: Partition) -> Result<u64, Failed> {
        let size = self.read(partition, 40, 8)?;
        let size = size.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        Ok(size.div_ceil(4096))
    }
}
