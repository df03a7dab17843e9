//! The partition table: GPT, and in front of it a hybrid MBR as `sgdisk -h 1:2:3` makes it.

use std::io::{self, Seek, SeekFrom, Write};

use gptman::{GPT, GPTPartitionEntry};
use thiserror::Error;

use super::ids::Ids;
use crate::layout::{Layout, SECTOR};
use crate::mbr;

/// The table could not be written.
#[derive(Debug, Error)]
pub enum TableError {
    /// The crate that makes it refuses.
    #[error("the partition table: {0}")]
    Gpt(#[from] gptman::Error),
    /// The disk cannot be written.
    #[error("the partition table: {0}")]
    Io(#[from] io::Error),
}

/// Writes both copies of the GPT and the MBR to a disk that has its full size already.
pub fn write(disk: &mut (impl io::Read + Write + Seek), layout: &Layout, ids: &Ids) -> Result<(), TableError> {
    let mut gpt = GPT::new_from(disk, SECTOR, ids.uuid("disk").to_bytes_le())?;
    for (number, extent) in (1..).zip(&layout.extents) {
        gpt[number] = GPTPartitionEntry {
            partition_type_guid: extent.slot.type_guid().to_bytes_le(),
            unique_partition_guid: ids.uuid(&extent.slot.label()).to_bytes_le(),
            starting_lba: extent.first_sector(),
            ending_lba: extent.last_sector(),
            attribute_bits: 0,
            partition_name: extent.slot.label().as_str().into(),
        };
    }
    gpt.write_into(disk)?;
    disk.seek(SeekFrom::Start(0))?;
    let shown = layout.extents.iter().map(|extent| (extent.start, extent.start + extent.size));
    disk.write_all(&mbr::encode(&mbr::hybrid(shown)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::cache::Digest;
    use crate::build::tool::Tool;
    use std::fs::File;
    use std::io::Read;

    fn written() -> (tempfile::NamedTempFile, Layout) {
        let layout = Layout::new(|_| 20 << 20, [("data", 30 << 20)]);
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(layout.disk_size).expect("its size");
        write(file.as_file_mut(), &layout, &Ids::new(Digest::of([]))).expect("a table");
        (file, layout)
    }

    #[test]
    fn sgdisk_and_sfdisk_find_no_fault() {
        let (file, _) = written();
        let said = Tool::new("sgdisk").arg("-v").arg(file.path()).output().expect("sgdisk runs");
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("No problems found"), "{said}");
        Tool::new("sfdisk").arg("--verify").arg(file.path()).run().expect("sfdisk agrees");
    }

    #[test]
    fn the_mbr_is_the_one_that_sgdisk_makes() {
        let (file, _) = written();
        let mut ours = [0; 512];
        File::open(file.path()).and_then(|mut disk| disk.read_exact(&mut ours)).expect("our MBR");
        Tool::new("sgdisk").args(["-h", "1:2:3"]).arg(file.path()).output().expect("sgdisk runs");
        let mut theirs = [0; 512];
        File::open(file.path()).and_then(|mut disk| disk.read_exact(&mut theirs)).expect("their MBR");
        assert_eq!(ours[446..], theirs[446..]);
    }
}
