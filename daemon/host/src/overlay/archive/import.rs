//! Makes a configuration of an archive: in a folder of its own, which becomes the configuration when all of it is there.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nemos_model::Timestamp;
use nemos_model::integrity::RootHash;
use nemos_model::overlay::ConfigurationName;
use nemos_model::overlay::archive::layer::{BadEntry, Budget, Kind, NoRoom, Reason, Step, Walk, What, is_carried};
use nemos_model::overlay::archive::pax::{BadRecords, MAX_RECORDS, Modified, Records};
use nemos_model::overlay::archive::signature::Refused;
use nemos_model::overlay::archive::{
    Blob, Description, Foreign, INDEX_FILE, LAYOUT, LAYOUT_FILE, MAX_DOCUMENT, Policy, Voucher, read_index,
    read_manifest,
};
use nemos_model::overlay::configuration::{ABOUT_FILE, About, BadName, FOLDER, Imported, TREE_FOLDER};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown,
    fsetxattr, futimens, linkat, lsetxattr, mkdirat, mknodat, openat, openat2, statat, statvfs, symlinkat, utimensat,
};
use tar::{Archive, Entries, Entry, EntryType};
use thiserror::Error;

use super::super::configuration::{self, ConfigurationError, put};
use super::{Digested, shipped_file};

/// Binary logarithm of the bytes that a decompressor may keep at hand: what zstd takes for its levels up to 19.
const WINDOW: u32 = 23;
/// Most zeros behind the last entry.
const MOST_PADDING: u64 = 64 << 10;
/// Marks a folder that hides the image's.
const OPAQUE: &str = "trusted.overlay.opaque";

/// An archive that is not imported. Nothing of it stays.
#[derive(Debug, Error)]
pub enum ImportError {
    /// It is something else.
    #[error("this is no configuration that nemos has exported: {0}")]
    NotOurs(String),
    /// A document in it is something else's.
    #[error("this is no configuration that nemos has exported: {0}")]
    Foreign(#[from] Foreign),
    /// It ends too early.
    #[error("the file is not whole: it ends too early")]
    Truncated,
    /// It is not what its digest says.
    #[error("the file is damaged: {file} in it is not what its digest says")]
    Damaged {
        /// The file in it.
        file: String,
    },
    /// Nobody may vouch for it who has.
    #[error("the configuration is refused: {0}")]
    Refused(#[from] Refused),
    /// No configuration can have that name.
    #[error(transparent)]
    Name(#[from] BadName),
    /// There is one of that name already, or it cannot be put in its place.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// An entry of its layer cannot be.
    #[error("the configuration is refused: {0}")]
    Entry(#[from] BadEntry),
    /// What is said of an entry cannot be read.
    #[error("the configuration is refused: {0}")]
    Records(#[from] BadRecords),
    /// It is too large.
    #[error("the configuration is refused: {0}")]
    NoRoom(#[from] NoRoom),
    /// Its layer cannot be read.
    #[error("the configuration's layer cannot be unpacked: {0}")]
    Layer(io::Error),
    /// It cannot be read.
    #[error("the file cannot be read: {0}")]
    Read(io::Error),
    /// It cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn io_error<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> ImportError {
    move |source| ImportError::Io { path: path.to_owned(), source: source.into() }
}

/// Where an archive comes from, and so who has to vouch for it.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// The verified root of the image.
    Image,
    /// Anywhere.
    Elsewhere {
        /// Whose signatures count.
        policy: &'a Policy,
        /// The signature that came with it.
        signature: Option<&'a str>,
    },
}

/// What is to become of an archive.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// The name; without one, that in the archive.
    pub name: Option<&'a ConfigurationName>,
    /// In place of the configuration that has the name.
    pub replace: bool,
    /// It is only read through.
    pub dry_run: bool,
    /// The image that runs: where its root is, and its hash. What it has is noted with a configuration that is of it.
    pub here: Option<(&'a Path, RootHash)>,
}

/// What was imported, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Its name here.
    pub name: ConfigurationName,
    /// What is known of it.
    pub about: About,
    /// Where it was made, as it says itself.
    pub described: Description,
    /// Files, folders, links, and what is deleted.
    pub entries: u64,
    /// Bytes of the files.
    pub bytes: u64,
}

/// Imports an archive into that volume. When it returns, the power may go; if it fails, all is as it was.
pub fn import(
    volume: &Path,
    archive: impl Read,
    source: Source<'_>,
    wanted: Wanted<'_>,
    now: Timestamp,
) -> Result<Unpacked, ImportError> {
    let mut archive = Archive::new(archive);
    let mut files = archive.entries().map_err(ImportError::Read)?.raw(true);
    let Head { described, imported, layer } = head(&mut files, source)?;
    let name = wanted.name.unwrap_or(&described.name).clone().saved()?;
    let folder = volume.join(FOLDER);
    let place = folder.join(name.as_str());
    if !wanted.replace && place.symlink_metadata().is_ok() {
        return Err(ConfigurationError::Exists(name).into());
    }
    let mut about = About::new(described.image.clone(), described.root_hash, now, None);
    about.imported = Some(imported);
    let file = next_file(&mut files, &layer.file())?;
    let budget = budget(volume)?;
    if wanted.dry_run {
        let (entries, bytes) = layer_through(file, &layer, None, budget)?;
        return Ok(Unpacked { name, about, described, entries, bytes });
    }
    // Goes by itself unless it becomes the configuration.
    let new =
        tempfile::Builder::new().prefix(".import-").permissions(Permissions::from_mode(0o700)).tempdir_in(&folder);
    let new = new.map_err(io_error(&folder))?;
    let tree = new.path().join(TREE_FOLDER);
    fs::create_dir(&tree).map_err(io_error(&tree))?;
    let root = File::open(&tree).map_err(io_error(&tree))?;
    let (entries, bytes) = layer_through(file, &layer, Some(Tree::new(root.into())), budget)?;
    let about_file = new.path().join(ABOUT_FILE);
    fs::write(&about_file, about.to_text()).map_err(io_error(&about_file))?;
    if let Some((lower, root_hash)) = wanted.here
        && root_hash == described.root_hash
    {
        configuration::note_base(new.path(), lower, None)?;
    }
    put(volume, new.path(), &place, wanted.replace && place.symlink_metadata().is_ok())?;
    if new.path().exists() {
        // What had the name is where what is new was, and goes with that.
        drop(new);
    } else {
        let _ = new.keep();
    }
    Ok(Unpacked { name, about, described, entries, bytes })
}

/// Has the configuration that the image ships under that name imported, if it is not yet. One of the device's own that has the
/// name stays; that of an older image does not.
pub fn import_shipped(volume: &Path, root: &Path, name: &ConfigurationName, now: Timestamp) -> Result<(), ImportError> {
    let there = match configuration::about(volume, name) {
        Err(ConfigurationError::NotThere(_)) => None,
        Ok(About { imported: Some(Imported { digest, voucher: Voucher::Image }), .. }) => Some(digest),
        _ => return Ok(()),
    };
    let archive = match File::open(shipped_file(root, name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(ImportError::Read)?,
    };
    if let Some(digest) = there
        && shipped_about(root, name)?.imported.is_some_and(|imported| imported.digest == digest)
    {
        return Ok(());
    }
    let wanted = Wanted { name: Some(name), replace: there.is_some(), ..Wanted::default() };
    import(volume, archive, Source::Image, wanted, now).map(drop)
}

/// What is known of a configuration that the image ships.
pub fn shipped_about(root: &Path, name: &ConfigurationName) -> Result<About, ImportError> {
    let mut archive = Archive::new(File::open(shipped_file(root, name)).map_err(ImportError::Read)?);
    let mut files = archive.entries().map_err(ImportError::Read)?.raw(true);
    let Head { described, imported, .. } = head(&mut files, Source::Image)?;
    let mut about = About::new(described.image, described.root_hash, described.made_at, None);
    about.imported = Some(imported);
    Ok(about)
}

/// What an archive says before its layer comes.
struct Head {
    described: Description,
    imported: Imported,
    layer: Blob,
}

/// Nothing of what it says is believed before it is known who says so.
fn head<R: Read>(files: &mut Entries<'_, R>, source: Source<'_>) -> Result<Head, ImportError> {
    if document(files, LAYOUT_FILE)? != LAYOUT.as_bytes() {
        return Err(ImportError::NotOurs(format!("its {LAYOUT_FILE} is of another version")));
    }
    let index = document(files, INDEX_FILE)?;
    let voucher = match source {
        Source::Image => Voucher::Image,
        Source::Elsewhere { policy, signature } => policy.admit(&index, signature)?,
    };
    let manifest = read_index(&index)?;
    let (described, config, layer) = read_manifest(&blob(files, &manifest)?)?;
    blob(files, &config)?;
    Ok(Head { described, imported: Imported { digest: manifest.digest, voucher }, layer })
}

fn budget(volume: &Path) -> Result<Budget, ImportError> {
    let room = statvfs(volume).map_err(io_error(volume))?;
    Ok(Budget::new(room.f_bavail.saturating_mul(room.f_frsize), room.f_blocks.saturating_mul(room.f_frsize)))
}

/// The next file of the archive, which must be that one.
fn next_file<'a, R: Read>(files: &mut Entries<'a, R>, name: &str) -> Result<Entry<'a, R>, ImportError> {
    let file = files.next().ok_or(ImportError::Truncated)?.map_err(not_read)?;
    if file.header().entry_type() != EntryType::Regular || *file.path_bytes() != *name.as_bytes() {
        let there = String::from_utf8_lossy(&file.path_bytes()).escape_debug().take(80).collect::<String>();
        return Err(ImportError::NotOurs(format!("it has `{there}` where there is {name}")));
    }
    Ok(file)
}

fn document<R: Read>(files: &mut Entries<'_, R>, name: &str) -> Result<Vec<u8>, ImportError> {
    let mut file = next_file(files, name)?;
    let size = file.size();
    if size > MAX_DOCUMENT {
        return Err(ImportError::NotOurs(format!("its {name} has more than {MAX_DOCUMENT} bytes")));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(not_read)?;
    if bytes.len() as u64 == size { Ok(bytes) } else { Err(ImportError::Truncated) }
}

fn blob<R: Read>(files: &mut Entries<'_, R>, blob: &Blob) -> Result<Vec<u8>, ImportError> {
    let file = blob.file();
    let bytes = document(files, &file)?;
    if Blob::of(&bytes) == *blob { Ok(bytes) } else { Err(ImportError::Damaged { file }) }
}

/// tar's own complaints have no kind.
fn not_read(error: io::Error) -> ImportError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ImportError::Truncated,
        io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            // Its end is only known as a sentence.
            let is_short =
                error.to_string().contains("EOF") || error.to_string().contains("failed to read entire block");
            if is_short { ImportError::Truncated } else { ImportError::NotOurs(error.to_string()) }
        }
        _ => ImportError::Read(error),
    }
}

/// Unpacks the layer, or only reads it, and says how many entries and bytes there are.
fn layer_through(
    file: impl Read,
    layer: &Blob,
    tree: Option<Tree>,
    mut budget: Budget,
) -> Result<(u64, u64), ImportError> {
    let mut file = Digested::new(file);
    let unpacked = unpack(&mut file, tree, &mut budget);
    if matches!(unpacked, Err(ImportError::Io { .. } | ImportError::NoRoom(_))) {
        return unpacked;
    }
    // What was damaged on its way is told as that, whatever came of reading it.
    io::copy(&mut file, &mut io::sink()).map_err(not_read)?;
    if file.bytes < layer.size {
        return Err(ImportError::Truncated);
    }
    if (Blob { digest: file.digest(), size: file.bytes }) != *layer {
        return Err(ImportError::Damaged { file: layer.file() });
    }
    unpacked
}

fn unpack(file: impl Read, mut tree: Option<Tree>, budget: &mut Budget) -> Result<(u64, u64), ImportError> {
    let mut decompressed = zstd::Decoder::new(file).map_err(ImportError::Layer)?;
    decompressed.window_log_max(WINDOW).map_err(ImportError::Layer)?;
    let mut archive = Archive::new(decompressed);
    let (mut walk, mut records, mut count, mut bytes) = (Walk::default(), None, 0, 0);
    for entry in archive.entries().map_err(ImportError::Layer)?.raw(true) {
        let mut entry = entry.map_err(ImportError::Layer)?;
        if entry.header().entry_type() == EntryType::XHeader {
            if records.replace(read_records(&mut entry)?).is_some() {
                return Err(BadRecords::Malformed.into());
            }
            continue;
        }
        let records = records.take().unwrap_or_default();
        let (step, made) = step(&mut walk, &entry, records)?;
        let attributes = made.attributes.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum();
        budget.take(entry.size(), attributes)?;
        count += 1;
        bytes += entry.size();
        if let Some(tree) = &mut tree {
            tree.place(&step, made, &mut entry)?;
        }
    }
    if records.is_some() || count == 0 {
        return Err(ImportError::Layer(io::ErrorKind::UnexpectedEof.into()));
    }
    if let Some(tree) = tree {
        tree.complete()?;
    }
    // To the end of the layer, so that its digest is of all of it.
    let mut rest = Vec::new();
    archive.into_inner().take(MOST_PADDING).read_to_end(&mut rest).map_err(ImportError::Layer)?;
    let is_padding = (rest.len() as u64) < MOST_PADDING && rest.iter().all(|byte| *byte == 0);
    if is_padding {
        Ok((count, bytes))
    } else {
        Err(ImportError::NotOurs("its layer has something behind its end".into()))
    }
}

fn read_records(entry: &mut Entry<'_, impl Read>) -> Result<Records, ImportError> {
    if entry.size() > MAX_RECORDS {
        return Err(BadRecords::Malformed.into());
    }
    let size = entry.size();
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(ImportError::Layer)?;
    if (bytes.len() as u64) < size {
        return Err(ImportError::Layer(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(Records::parse(&bytes)?)
}

/// What a file has besides its contents.
#[derive(Debug)]
struct Made {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    modified: Modified,
    attributes: Vec<(String, Vec<u8>)>,
}

/// What the next entry is, if it may be there.
fn step(walk: &mut Walk, entry: &Entry<'_, impl Read>, records: Records) -> Result<(Step, Made), ImportError> {
    let header = entry.header();
    let kind = match header.entry_type() {
        EntryType::Regular => Kind::File,
        EntryType::Directory => Kind::Folder,
        EntryType::Symlink => Kind::Link,
        EntryType::Link => Kind::HardLink,
        _ => Kind::Other,
    };
    let path = records.path.unwrap_or_else(|| entry.path_bytes().into_owned());
    let link = records.link.or_else(|| entry.link_name_bytes().map(std::borrow::Cow::into_owned)).unwrap_or_default();
    let step = walk.next(&path, kind, &link, entry.size())?;
    let bad = |reason| BadEntry { path: String::from_utf8_lossy(&path).escape_debug().take(120).collect(), reason };
    let may_have = matches!(step.what, What::Root | What::Folder | What::File | What::Link(_));
    if records.attributes.iter().any(|(name, _)| !may_have || !is_carried(name)) {
        return Err(bad(Reason::Attribute).into());
    }
    // The largest number means that the owner stays.
    let id = |id: io::Result<u64>| {
        let id = id.map_err(ImportError::Layer)?;
        u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| ImportError::from(bad(Reason::Kind)))
    };
    let seconds = header.mtime().map_err(ImportError::Layer)?;
    let seconds = seconds.try_into().map_err(|_| bad(Reason::Kind))?;
    let made = Made {
        uid: Uid::from_raw(id(header.uid())?),
        gid: Gid::from_raw(id(header.gid())?),
        mode: Mode::from_raw_mode(header.mode().map_err(ImportError::Layer)? & 0o7777),
        modified: records.modified.unwrap_or(Modified { seconds, nanoseconds: 0 }),
        attributes: records.attributes,
    };
    Ok((step, made))
}

/// A tree that grows. Whatever is made is made in a folder that is open, by a name without a slash: nothing leads out.
#[derive(Debug)]
struct Tree {
    root: OwnedFd,
    /// The folders that are not complete, and what each is to have then.
    open: Vec<(OwnedFd, PathBuf, Made)>,
}

impl Tree {
    fn new(root: OwnedFd) -> Self {
        Tree { root, open: Vec::new() }
    }

    fn place(&mut self, step: &Step, made: Made, contents: &mut Entry<'_, impl Read>) -> Result<(), ImportError> {
        for _ in 0..step.leaves {
            self.leave()?;
        }
        let path = step.path.as_path();
        // Only the root itself is in none.
        let folder = self.open.last().map_or(self.root.as_fd(), |(folder, _, _)| folder.as_fd());
        let is_folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match &step.what {
            What::Root => {
                let root = self.root.try_clone().map_err(io_error(path))?;
                self.open.push((root, path.to_owned(), made));
            }
            What::Folder => {
                mkdirat(folder, &step.name, Mode::RWXU).map_err(io_error(path))?;
                let new = openat(folder, &step.name, is_folder, Mode::empty()).map_err(io_error(path))?;
                self.open.push((new, path.to_owned(), made));
            }
            What::File => {
                let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(folder, &step.name, new, Mode::RUSR | Mode::WUSR).map_err(io_error(path))?;
                let mut file = File::from(file);
                fill(&mut file, contents, path)?;
                finish(file.as_fd(), &made).map_err(io_error(path))?;
            }
            What::Link(target) => {
                symlinkat(target, folder, &step.name).map_err(io_error(path))?;
                finish_link(folder, Path::new(&step.name), &made).map_err(io_error(path))?;
            }
            What::HardLink(target) => self.link(target, folder, step)?,
            What::Whiteout => {
                mknodat(folder, &step.name, FileType::CharacterDevice, Mode::empty(), 0).map_err(io_error(path))?;
            }
            What::Opaque => fsetxattr(folder, OPAQUE, b"y", XattrFlags::empty()).map_err(io_error(path))?,
        }
        Ok(())
    }

    /// Another name of a file of this tree.
    fn link(&self, target: &Path, folder: BorrowedFd<'_>, step: &Step) -> Result<(), ImportError> {
        let no_target = || BadEntry { path: step.path.display().to_string(), reason: Reason::Target };
        let around = target.parent().filter(|around| !around.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = target.file_name().ok_or_else(no_target)?;
        let stays =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let around = openat2(&self.root, around, flags, Mode::empty(), stays).map_err(|_| no_target())?;
        let there = statat(&around, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| no_target())?;
        if FileType::from_raw_mode(there.st_mode) != FileType::RegularFile {
            return Err(no_target().into());
        }
        linkat(&around, name, folder, &step.name, AtFlags::empty()).map_err(io_error(&step.path))
    }

    /// All of the folder that is open is there: writing to it does not change it any more.
    fn leave(&mut self) -> Result<(), ImportError> {
        let Some((folder, path, made)) = self.open.pop() else { return Ok(()) };
        finish(folder.as_fd(), &made).map_err(io_error(&path))
    }

    fn complete(mut self) -> Result<(), ImportError> {
        while !self.open.is_empty() {
            self.leave()?;
        }
        Ok(())
    }
}

/// Copies the contents: what fails there is the layer's fault, or the file system's.
fn fill(file: &mut File, contents: &mut Entry<'_, impl Read>, path: &Path) -> Result<(), ImportError> {
    let mut left = contents.size();
    let mut chunk = vec![0; 64 << 10];
    while left > 0 {
        let read = contents.read(&mut chunk).map_err(ImportError::Layer)?;
        if read == 0 {
            return Err(ImportError::Layer(io::ErrorKind::UnexpectedEof.into()));
        }
        file.write_all(&chunk[..read]).map_err(io_error(path))?;
        left = left.saturating_sub(read as u64);
    }
    Ok(())
}

/// The owner first: whoever changes it takes set-id bits and capabilities away.
fn finish(file: BorrowedFd<'_>, made: &Made) -> io::Result<()> {
    fchown(file, Some(made.uid), Some(made.gid))?;
    for (name, value) in &made.attributes {
        fsetxattr(file, name.as_str(), value, XattrFlags::empty())?;
    }
    fchmod(file, made.mode)?;
    Ok(futimens(file, &times(made))?)
}

fn finish_link(folder: BorrowedFd<'_>, name: &Path, made: &Made) -> io::Result<()> {
    chownat(folder, name, Some(made.uid), Some(made.gid), AtFlags::SYMLINK_NOFOLLOW)?;
    // There is no call that sets an attribute of a link in a folder that is open.
    let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    for (attribute, value) in &made.attributes {
        lsetxattr(&path, attribute.as_str(), value, XattrFlags::empty())?;
    }
    Ok(utimensat(folder, name, &times(made), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn times(made: &Made) -> Timestamps {
    let modified = Timespec { tv_sec: made.modified.seconds, tv_nsec: made.modified.nanoseconds.into() };
    Timestamps { last_access: modified, last_modification: modified }
}
