//! Whose a damaged block is: which file's, and which package's.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::fs::{DirEntryExt, FileExt};
use std::path::{Path, PathBuf};

use backhand::v4::filesystem::node::InnerNode;
use backhand::v4::filesystem::reader::FilesystemReader;
use nemos_model::integrity::event::{Area, Owner, Place};
use nemos_model::integrity::kernel_log::BLOCK;
use nemos_model::integrity::{PRELOADED_MAPPING, VERITY_MAPPING, Volume};
use nemos_model::overlay::{LOWER_MOUNT, UPPER_FOLDER};
use nemos_model::partitions::Partition;
use rustix::fs::{Advice, fadvise};
use tracing::debug;

use crate::integrity::fsmap;
use crate::overlay::volume_mount;

/// As much as one read takes: what dm-verity compares at once.
const BLOCK_SIZE: usize = 4096;
/// Where dpkg lists the files of each package, below a root.
const DPKG_LISTS: &str = "var/lib/dpkg/info";
/// What a squashfs keeps of itself: inodes, folders, tables.
const METADATA: &str = "metadata of the file system";

/// Whose each block is; `None` where that cannot be told. Of several at once, what lists the files is read once.
pub fn find_all(places: &[&Place]) -> Vec<Option<Owner>> {
    let (mut root, mut preloaded) = (None, None);
    let mut find = |place: &Place| {
        let start = place.start.filter(|_| place.area == Area::Data)?;
        let found = match place.volume {
            Volume::Root => in_root(&mut root, start),
            Volume::Preloaded => in_preloaded(&mut preloaded, start),
            Volume::Overlay => on_overlay(volume_mount(), start),
            Volume::OverlayTags | Volume::Storage | Volume::Home | Volume::State => Ok(None),
        };
        found.unwrap_or_else(|error| {
            debug!(%error, volume = place.volume.name(), start, "it cannot be told whose block this is");
            None
        })
    };
    places.iter().map(|place| find(place)).collect()
}

fn in_root(files: &mut Option<Files>, start: u64) -> io::Result<Option<Owner>> {
    let files = match files {
        Some(files) => files,
        none => none.insert(Files::of_squashfs(Path::new(&mapping(VERITY_MAPPING)))?),
    };
    Ok(files.at(start, BLOCK).map(|file| of_package(Path::new(LOWER_MOUNT), file.to_owned())))
}

fn in_preloaded(files: &mut Option<Files>, start: u64) -> io::Result<Option<Owner>> {
    let folder = Partition::OciPreloaded.mount_point().unwrap_or_default();
    let files = match files {
        Some(files) => files,
        none => none.insert(Files::of_squashfs(&source_of(folder)?)?),
    };
    // dm-verity tells of a block, the squashfs itself of where a file's piece begins.
    let length = if Path::new(&mapping(PRELOADED_MAPPING)).exists() { BLOCK } else { 1 };
    Ok(files.at(start, length).map(|file| {
        let file = if file == METADATA { file.to_owned() } else { format!("{folder}{file}") };
        Owner { file, package: None }
    }))
}

fn mapping(name: &str) -> String {
    format!("/dev/mapper/{name}")
}

/// Whether the block is one of the overlay's that no file has: it may never have been written, and nothing is lost with it.
pub fn is_free(place: &Place) -> bool {
    if (place.volume, place.area) != (Volume::Overlay, Area::Data) {
        return false;
    }
    let extent = place.start.map(|start| fsmap::at(volume_mount(), start));
    matches!(extent, Some(Ok(Some(extent))) if extent.owner == fsmap::Owner::Free)
}

/// What is where in a squashfs.
pub struct Files {
    /// From, to, and the path; files that share a block of their ends have it both.
    contents: Vec<(u64, u64, String)>,
    /// Where the contents end, and the file system.
    tables: (u64, u64),
}

impl Files {
    /// Reads what lists the files. Where that is damaged it cannot be read: then nothing is known of contents.
    pub fn of_squashfs(device: &Path) -> io::Result<Self> {
        let tables = tables(device)?;
        let device = File::open(device)?;
        // Nothing is read ahead: next to what is looked for is what is damaged, and each read of that is told anew.
        let _ = fadvise(&device, 0, None, Advice::Random);
        let reader = BufReader::with_capacity(BLOCK_SIZE, device);
        let Ok(squashfs) = FilesystemReader::from_reader(reader) else {
            return Ok(Files { contents: Vec::new(), tables });
        };
        let fragments = squashfs.fragments.as_deref().unwrap_or_default();
        let mut contents = Vec::new();
        for node in squashfs.files() {
            let InnerNode::File(file) = &node.inner else { continue };
            let path = node.fullpath.display().to_string();
            let size: u64 = file.block_sizes().iter().map(|size| u64::from(size.size())).sum();
            if size > 0 {
                contents.push((file.blocks_start(), file.blocks_start() + size, path.clone()));
            }
            // A file without an end in a block of ends has the number -1.
            let end = u32::try_from(file.frag_index()).ok().filter(|index| *index != u32::MAX);
            if let Some(end) = end.and_then(|index| fragments.get(usize::try_from(index).ok()?)) {
                contents.push((end.start, end.start + u64::from(end.size.size()), path));
            }
        }
        Ok(Files { contents, tables })
    }

    /// The file that has one of these bytes, the first of several; or what the file system keeps of itself.
    pub fn at(&self, start: u64, length: u64) -> Option<&str> {
        let end = start + length;
        let overlaps = |from: u64, to: u64| from < end && start < to;
        let file = self.contents.iter().find(|(from, to, _)| overlaps(*from, *to));
        file.map(|(_, _, path)| path.as_str()).or_else(|| overlaps(self.tables.0, self.tables.1).then_some(METADATA))
    }
}

/// Where the contents of files end, and where the file system does.
///
/// Source: `struct squashfs_super_block` in the kernel's `fs/squashfs/squashfs_fs.h`: `bytes_used` at 40, `inode_table_start` at 64.
fn tables(device: &Path) -> io::Result<(u64, u64)> {
    let mut superblock = [0; 96];
    File::open(device)?.read_exact_at(&mut superblock, 0)?;
    let number = |at: usize| superblock[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    Ok((number(64), number(40)))
}

/// A file of the root that is mounted there, with the package that it is of.
fn of_package(root: &Path, file: String) -> Owner {
    let package = package_of(&root.join(DPKG_LISTS), &file).unwrap_or_else(|error| {
        debug!(%error, "the lists of packages cannot be read");
        None
    });
    Owner { file, package }
}

/// The package whose list has that file.
///
/// Source: dpkg(1): `info/<package>[:<architecture>].list`, one path a line. Packages of before the merge of `/usr` list what is in
/// `/usr/lib` as in `/lib`.
pub fn package_of(lists: &Path, file: &str) -> io::Result<Option<String>> {
    let names = [file, file.strip_prefix("/usr").unwrap_or(file)];
    for entry in fs::read_dir(lists)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "list") {
            continue;
        }
        // A list that is damaged itself tells nothing; the others do.
        let Ok(list) = fs::read_to_string(&path) else { continue };
        if list.lines().any(|line| names.contains(&line)) {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            return Ok(Some(name.split(':').next().unwrap_or_default().to_owned()));
        }
    }
    Ok(None)
}

/// Whose a block of the overlay's XFS is.
pub fn on_overlay(mount: &Path, start: u64) -> io::Result<Option<Owner>> {
    let owner = |file: String| Some(Owner { file, package: None });
    Ok(match fsmap::at(mount, start)?.map(|extent| extent.owner) {
        Some(fsmap::Owner::Inode(inode)) => path_of(mount, inode)?.and_then(|path| owner(as_on_the_root(mount, &path))),
        Some(fsmap::Owner::Metadata) => owner(METADATA.to_owned()),
        Some(fsmap::Owner::Free | fsmap::Owner::Unknown) | None => None,
    })
}

/// What is in `upper` is seen on `/`.
fn as_on_the_root(mount: &Path, path: &Path) -> String {
    match path.strip_prefix(mount.join(UPPER_FOLDER)) {
        Ok(file) => format!("/{}", file.display()),
        Err(_) => path.display().to_string(),
    }
}

/// The path of an inode: the first that is found. Folders that go while it is looked for have not got it any more.
fn path_of(folder: &Path, inode: u64) -> io::Result<Option<PathBuf>> {
    let device = rustix::fs::stat(folder)?.st_dev;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            if entry.ino() == inode {
                return Ok(Some(entry.path()));
            }
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && rustix::fs::lstat(entry.path()).is_ok_and(|stat| stat.st_dev == device) {
                folders.push(entry.path());
            }
        }
    }
    Ok(None)
}

/// The device that is mounted there.
fn source_of(target: &str) -> io::Result<PathBuf> {
    let mounts = crate::mounts::mounted()?;
    let mount = mounts.into_iter().find(|mount| mount.target == target);
    let not_mounted = || io::Error::new(io::ErrorKind::NotFound, format!("{target} is not mounted"));
    mount.map(|mount| mount.source.into()).ok_or_else(not_mounted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_file_of_a_block_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (content, image) = (folder.path().join("content"), folder.path().join("image"));
        let noise = |seed: u64, length: usize| {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                u8::try_from(state >> 56).unwrap()
            };
            (0..length).map(|_| next()).collect::<Vec<_>>()
        };
        fs::create_dir_all(content.join("usr/bin")).unwrap();
        for (name, size) in [("first", 300_000), ("second", 310_000), ("small", 5000)] {
            fs::write(content.join("usr/bin").join(name), noise(size, usize::try_from(size).unwrap())).unwrap();
        }
        let mut mksquashfs = Command::new("mksquashfs");
        mksquashfs.arg(&content).arg(&image).args(["-quiet", "-no-progress", "-comp", "zstd"]);
        assert!(mksquashfs.output().unwrap().status.success());
        let image_bytes = fs::read(&image).unwrap();
        let place = |name: &str| {
            let bytes = fs::read(content.join("usr/bin").join(name)).unwrap();
            let middle = &bytes[bytes.len() / 2..bytes.len() / 2 + 64];
            // zstd leaves noise as it is.
            image_bytes.windows(64).position(|window| window == middle).unwrap() as u64 / BLOCK * BLOCK
        };
        let files = Files::of_squashfs(&image).unwrap();
        for name in ["first", "second", "small"] {
            assert_eq!(files.at(place(name), BLOCK), Some(format!("/usr/bin/{name}").as_str()));
        }
        let inodes = u64::from_le_bytes(image_bytes[64..72].try_into().unwrap());
        assert_eq!(files.at(inodes, 1), Some(METADATA));
    }

    #[test]
    fn the_package_of_a_file_is_found_before_and_after_the_merge_of_usr() {
        let lists = tempfile::tempdir().unwrap();
        fs::write(lists.path().join("bar.list"), "/.\n/usr\n/usr/bin\n/usr/bin/foo\n").unwrap();
        fs::write(lists.path().join("old:amd64.list"), "/lib\n/lib/old.so\n").unwrap();
        fs::write(lists.path().join("bar.md5sums"), "0 usr/bin/none\n").unwrap();
        let package = |file| package_of(lists.path(), file).unwrap();
        assert_eq!(package("/usr/bin/foo").as_deref(), Some("bar"));
        assert_eq!(package("/usr/lib/old.so").as_deref(), Some("old"));
        assert_eq!(package("/usr/bin/fo"), None);
    }

    #[test]
    fn a_path_on_the_overlay_is_told_as_it_is_seen() {
        let mount = Path::new("/run/nemos/overlay");
        assert_eq!(as_on_the_root(mount, Path::new("/run/nemos/overlay/upper/etc/hosts")), "/etc/hosts");
        assert_eq!(as_on_the_root(mount, Path::new("/run/nemos/overlay/work/x")), "/run/nemos/overlay/work/x");
    }

    #[test]
    fn an_inode_leads_back_to_its_path() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        let file = folder.path().join("a/b/file");
        fs::write(&file, "").unwrap();
        let inode = fs::metadata(&file).unwrap().ino();
        assert_eq!(path_of(folder.path(), inode).unwrap(), Some(file));
        assert_eq!(path_of(folder.path(), u64::MAX).unwrap(), None);
    }
}
