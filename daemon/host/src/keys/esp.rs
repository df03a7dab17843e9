//! Reads a file of the ESP: where that is mounted, and else past the kernel. A mount of ours, read-only as it would be, would keep out
//! everybody who wants to write to it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fatfs::{FileSystem, FsOptions};
use nemos_model::partitions::Partition;
use rustix::fs::{Advice, fadvise};

use crate::mounts::{mounted_at, open_below, root_of};
use crate::partitions::{Disk, disk_of};

/// Bytes that are read from the device at once.
const PIECE: usize = 64 << 10;
/// How often it is read from in all, at most: one that leads round in circles has an end, too. A file of 64 MiB takes half a million.
const READS: u32 = 20_000_000;

/// A file, wherever its bytes come from.
pub(super) trait Bytes: Read + Seek {}

impl<T: Read + Seek> Bytes for T {}

/// The ESP of the disk that has this partition.
pub(super) fn esp(partition: &Path) -> Result<PathBuf, String> {
    let disk = disk_of(partition).ok_or_else(|| format!("no disk has {}", partition.display()))?;
    Disk::named(&disk.to_string_lossy()).partition(Partition::Esp, Duration::ZERO).map_err(|error| error.to_string())
}

/// Works on a file, of which the length is given as well.
pub(super) fn with_file<T, E: From<io::Error>>(
    esp: &Path,
    path: &str,
    work: impl FnOnce(&mut dyn Bytes, u64) -> Result<T, E>,
) -> Result<T, E> {
    if mounted_at(esp).is_some() {
        let root = root_of(esp, &[]).map_err(io::Error::other)?;
        let mut file = open_below(&root, path)?;
        let length = file.metadata()?.len();
        return work(&mut file, length);
    }
    let device = File::open(esp)?;
    // What the kernel has kept of it may be older than what somebody has written through a mount.
    fadvise(&device, 0, None, Advice::DontNeed).map_err(io::Error::from)?;
    let file_system = FileSystem::new(Pieces::of(device), FsOptions::new())?;
    let mut file = file_system.root_dir().open_file(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    work(&mut file, length)
}

/// A device that is read in pieces, of which two are kept: a file system is asked for what comes next, and where that is, in turns.
struct Pieces {
    device: File,
    position: u64,
    /// The one that was used last comes last.
    kept: [(u64, Vec<u8>); 2],
    /// Reads that are left.
    left: u32,
}

impl Pieces {
    fn of(device: File) -> Self {
        let none = || (u64::MAX, Vec::new());
        Pieces { device, position: 0, kept: [none(), none()], left: READS }
    }

    fn piece(&mut self, number: u64) -> io::Result<&[u8]> {
        if self.kept[1].0 != number {
            self.kept.swap(0, 1);
        }
        let (kept, bytes) = &mut self.kept[1];
        if *kept != number {
            *kept = u64::MAX;
            bytes.resize(PIECE, 0);
            let mut read = 0;
            while read < bytes.len() {
                match self.device.read_at(&mut bytes[read..], number * PIECE as u64 + read as u64)? {
                    0 => break,
                    more => read += more,
                }
            }
            bytes.truncate(read);
            *kept = number;
        }
        Ok(bytes)
    }
}

impl Read for Pieces {
    fn read(&mut self, wanted: &mut [u8]) -> io::Result<usize> {
        self.left =
            self.left.checked_sub(1).ok_or_else(|| io::Error::other("its file system leads round in circles"))?;
        let (number, within) = (self.position / PIECE as u64, self.position % PIECE as u64);
        let there = self.piece(number)?.get(usize::try_from(within).unwrap_or(PIECE)..).unwrap_or_default();
        let length = there.len().min(wanted.len());
        wanted[..length].copy_from_slice(&there[..length]);
        self.position += length as u64;
        Ok(length)
    }
}

impl Seek for Pieces {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        self.position = match to {
            SeekFrom::Start(position) => position,
            SeekFrom::Current(by) => self.position.checked_add_signed(by).ok_or_else(outside)?,
            SeekFrom::End(_) => self.device.seek(to)?,
        };
        Ok(self.position)
    }
}

/// The library wants it, and does not use it for what is only read.
impl Write for Pieces {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::command::run;

    const LIMIT: Duration = Duration::from_secs(60);

    /// A file system with that file in it, in two halves with another one's between them.
    fn file_system(folder: &Path, content: &[u8]) -> PathBuf {
        let (esp, file) = (folder.join("esp"), folder.join("file"));
        File::create(&esp).unwrap().set_len(64 << 20).unwrap();
        run("mkfs.vfat", &["-F", "32", &esp.to_string_lossy()], LIMIT).unwrap();
        let image = esp.to_string_lossy().into_owned();
        run("mmd", &["-i", &image, "::/EFI", "::/EFI/BOOT"], LIMIT).unwrap();
        let put = |name: &str, content: &[u8]| {
            fs::write(&file, content).unwrap();
            run("mcopy", &["-i", &image, &file.to_string_lossy(), &format!("::/EFI/BOOT/{name}")], LIMIT).unwrap();
        };
        put("A", &vec![1; 300_000]);
        put("B", &vec![2; 300_000]);
        run("mdel", &["-i", &image, "::/EFI/BOOT/A"], LIMIT).unwrap();
        put("BOOTX64.EFI", content);
        esp
    }

    #[test]
    fn a_file_is_read_from_its_beginning_to_its_end_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..2_000_003_u32).flat_map(u32::to_le_bytes).collect();
        let esp = file_system(folder.path(), &content);
        let read = with_file(&esp, "EFI/BOOT/BOOTX64.EFI", |file, length| {
            assert_eq!(length, content.len() as u64);
            let mut twice = Vec::new();
            for _ in 0..2 {
                file.seek(SeekFrom::Start(0))?;
                Read::read_to_end(&mut *file, &mut twice)?;
            }
            Ok::<_, io::Error>(twice)
        });
        assert!(read.unwrap() == content.repeat(2));
    }

    #[test]
    fn a_folder_without_an_end_is_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        let esp = file_system(folder.path(), b"an image");
        // The root's only cluster, which is number 2, is full of names that were deleted, and followed by itself.
        let mut device = fs::read(&esp).unwrap();
        let number =
            |at: usize, bytes: usize| (0..bytes).rev().fold(0, |sum, byte| sum << 8 | usize::from(device[at + byte]));
        let (cluster, fat) = (number(13, 1) * 512, number(14, 2) * 512);
        let root = fat + number(16, 1) * number(36, 4) * 512;
        device[root..root + cluster].fill(0xe5);
        device[fat + 8..fat + 12].copy_from_slice(&2_u32.to_le_bytes());
        fs::write(&esp, device).unwrap();
        let found = with_file(&esp, "EFI/BOOT/BOOTX64.EFI", |_, length| Ok::<_, io::Error>(length));
        assert!(found.unwrap_err().to_string().contains("in circles"));
    }

    #[test]
    fn what_is_not_there_or_no_file_system_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let esp = file_system(folder.path(), b"an image");
        let look = |esp: &Path, path: &str| with_file(esp, path, |_, length| Ok::<_, io::Error>(length));
        assert_eq!(look(&esp, "EFI/BOOT/BOOTX64.EFI").unwrap(), 8);
        assert_eq!(look(&esp, "EFI/BOOT/OTHER.EFI").unwrap_err().kind(), io::ErrorKind::NotFound);
        look(&esp, "EFI/BOOT").unwrap_err();
        fs::write(&esp, vec![7; 1 << 20]).unwrap();
        look(&esp, "EFI/BOOT/BOOTX64.EFI").unwrap_err();
        fs::write(&esp, "").unwrap();
        look(&esp, "EFI/BOOT/BOOTX64.EFI").unwrap_err();
    }
}
