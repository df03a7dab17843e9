//! The disk image: contents copied to where the layout has them, holes left where there is nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nemos_model::partitions::Partition;

use super::Context;
use super::error::BuildError;
use super::ids::Ids;
use super::progress::mib;
use super::table;
use super::tool::Tool;
use crate::layout::Layout;

/// What is compared with zero before it is written.
const CHUNK: usize = 64 << 10;

/// Writes the whole disk under a temporary name: what each partition begins with, and what one ends with.
pub fn write(
    context: &Context,
    layout: &Layout,
    contents: &[(Partition, PathBuf)],
    (ends, end): (Partition, &[u8]),
    ids: &Ids,
) -> Result<PathBuf, BuildError> {
    let path = context.scratch.join(format!("nemos-{}.raw", context.profile));
    let failed = BuildError::io("writing", &path);
    let mut disk = OpenOptions::new().read(true).write(true).create_new(true).open(&path).map_err(&failed)?;
    disk.set_len(layout.disk_size).map_err(&failed)?;
    table::write(&mut disk, layout, ids)?;
    for (partition, file) in contents {
        let extent = layout.extent(*partition);
        let copied = File::open(file).and_then(|content| copy_sparse(content, &mut disk, extent.start));
        copied.map_err(&failed)?;
    }
    let extent = layout.extent(ends);
    disk.write_all_at(end, extent.start + extent.size - end.len() as u64).map_err(&failed)?;
    disk.sync_all().map_err(&failed)?;
    Ok(path)
}

fn copy_sparse(mut content: File, disk: &mut File, mut at: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let mut filled = 0;
        while filled < CHUNK {
            match content.read(&mut chunk[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        let filled = &chunk[..filled];
        if filled.is_empty() {
            return Ok(());
        }
        if filled.iter().any(|byte| *byte != 0) {
            disk.seek(SeekFrom::Start(at))?;
            disk.write_all(filled)?;
        }
        at += filled.len() as u64;
    }
}

/// Writes a disk as a qcow2 file next to it, and says how large that is.
pub fn convert(disk: &Path) -> Result<(PathBuf, String), BuildError> {
    let to = disk.with_extension("qcow2");
    Tool::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).args([disk, &to]).run()?;
    let told = mib(allocated(&to)?);
    Ok((to, told))
}

/// Bytes that a sparse file takes.
pub fn allocated(path: &Path) -> Result<u64, BuildError> {
    Ok(fs::metadata(path).map_err(BuildError::io("reading", path))?.blocks() * 512)
}

/// Gives a finished file its final name, in one step.
pub fn publish(file: &Path, folder: &Path) -> Result<PathBuf, BuildError> {
    let to = folder.join(file.file_name().unwrap_or_default());
    fs::rename(file, &to).map_err(BuildError::io("naming", &to))?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_zero_is_not_written() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let mut content = vec![0; 4 << 20];
        content[3 << 20] = 7;
        fs::write(&from, &content).expect("a content");
        let mut disk = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&to).expect("a disk");
        disk.set_len(8 << 20).expect("its size");
        copy_sparse(File::open(&from).expect("the content"), &mut disk, 1 << 20).expect("a copy");
        let copied = fs::read(&to).expect("the disk");
        assert_eq!(copied[1 << 20..5 << 20], content);
        assert!(allocated(&to).expect("its size") < 1 << 20);
    }
}
