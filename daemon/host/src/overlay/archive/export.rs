//! Writes a configuration into an archive.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nemos_model::overlay::ConfigurationName;
use nemos_model::overlay::archive::layer::{Attribute, MAX_DEPTH, OPAQUE, WHITEOUT};
use nemos_model::overlay::archive::pax::{Modified, Records};
use nemos_model::overlay::archive::{Blob, BlobDigest, Description, Documents, INDEX_FILE, LAYOUT, LAYOUT_FILE};
use nemos_model::reset::KeptPath;
use rustix::fs::OFlags;
use tar::{Builder, EntryType, Header};
use thiserror::Error;

use super::super::changes::attributes;
use super::super::configuration::{self, ConfigurationError};
use super::Digested;

/// Extended attributes: names and values.
type Attributes = Vec<(String, Vec<u8>)>;

/// zstd's own default.
const LEVEL: i32 = 3;
/// Most paths that are told of as left out.
const MOST_LEFT_OUT: usize = 100;
/// Bytes that a tar header has for a name.
const HEADER_NAME: usize = 100;
/// What a tar archive is made of.
const BLOCK: u64 = 512;

/// A configuration that cannot be exported.
#[derive(Debug, Error)]
pub enum ExportError {
    /// There is none, or nothing is known of it.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// It has something that no archive carries to where it means the same.
    #[error("{} {why}, and cannot be exported", path.display())]
    NotCarried {
        /// The path, in the configuration.
        path: PathBuf,
        /// What it has.
        why: String,
    },
    /// Reading it failed.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Writing the archive failed.
    #[error("cannot write the archive: {0}")]
    Write(io::Error),
    /// It was not the same when it was read again.
    #[error("the configuration was changed while it was exported")]
    Changed,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ExportError {
    move |source| ExportError::Io { path: path.to_owned(), source }
}

/// What an export has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Digest of the manifest: what tells it from every other.
    pub digest: BlobDigest,
    /// What belongs to the device, and sockets and pipes, which mean something only to who made them. At most 100 of them.
    pub left_out: Vec<PathBuf>,
}

/// Writes the configuration of that name, on that volume, to `archive`, without what is at the paths that belong to the device.
/// The same configuration makes the same bytes.
///
/// It is read twice: the digest of the layer comes before the layer, and no room is needed for a copy of it.
pub fn export(
    volume: &Path,
    name: &ConfigurationName,
    belongings: &[KeptPath],
    archive: &mut impl Write,
) -> Result<Exported, ExportError> {
    let (about, tree) = (configuration::about(volume, name)?, configuration::tree(volume, name));
    let mut compressed = Digested::new(io::sink());
    let (unpacked, left_out) = write_layer(&tree, belongings, &mut compressed)?;
    let layer = Blob { digest: compressed.digest(), size: compressed.bytes };
    let documents = Documents::new(&Description::new(name.clone(), &about), &layer, &unpacked);
    let manifest = Blob::of(&documents.manifest);

    let mut files = Builder::new(&mut *archive);
    for (name, contents) in [
        (LAYOUT_FILE.to_owned(), LAYOUT.as_bytes()),
        (INDEX_FILE.to_owned(), &documents.index),
        (manifest.file(), &documents.manifest),
        (Blob::of(&documents.config).file(), &documents.config),
    ] {
        files.append(&file_header(&name, contents.len() as u64), contents).map_err(ExportError::Write)?;
    }
    files.get_mut().write_all(file_header(&layer.file(), layer.size).as_bytes()).map_err(ExportError::Write)?;
    let mut again = Digested::new(&mut **files.get_mut());
    write_layer(&tree, belongings, &mut again)?;
    if (Blob { digest: again.digest(), size: again.bytes }) != layer {
        return Err(ExportError::Changed);
    }
    let padding = layer.size.next_multiple_of(BLOCK) - layer.size;
    io::copy(&mut io::repeat(0).take(padding), files.get_mut()).map_err(ExportError::Write)?;
    files.into_inner().and_then(Write::flush).map_err(ExportError::Write)?;
    Ok(Exported { digest: manifest.digest, left_out })
}

/// The header of a file of the archive itself: whoever exports it, it is the same.
fn file_header(name: &str, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    set_name(&mut header, name.as_bytes());
    header.set_cksum();
    header
}

/// Writes a name that fits.
fn set_name(header: &mut Header, name: &[u8]) {
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
}

/// Writes the layer, and returns its digest before it was compressed, and what was left out.
fn write_layer(
    tree: &Path,
    belongings: &[KeptPath],
    to: &mut impl Write,
) -> Result<(BlobDigest, Vec<PathBuf>), ExportError> {
    let compressor = zstd::Encoder::new(to, LEVEL).map_err(ExportError::Write)?;
    let entries = Builder::new(Digested::new(compressor));
    let mut layer = Layer { tree, belongings, entries, names: HashMap::new(), left_out: Vec::new() };
    layer.folder(Path::new(""), 0)?;
    let Layer { entries, left_out, .. } = layer;
    let unpacked = entries.into_inner().map_err(ExportError::Write)?;
    let digest = unpacked.digest();
    unpacked.inner.finish().map_err(ExportError::Write)?;
    Ok((digest, left_out))
}

/// A layer that is being written.
struct Layer<'a, W: Write> {
    tree: &'a Path,
    belongings: &'a [KeptPath],
    entries: Builder<W>,
    /// Files that have more than one name, by device and number: the first name of each.
    names: HashMap<(u64, u64), PathBuf>,
    left_out: Vec<PathBuf>,
}

impl<W: Write> Layer<'_, W> {
    /// A folder, and what is in it, in the order that an import wants.
    fn folder(&mut self, path: &Path, depth: usize) -> Result<(), ExportError> {
        if depth > MAX_DEPTH {
            return Err(not_carried(path, format!("is more than {MAX_DEPTH} folders deep")));
        }
        let full = self.tree.join(path);
        let metadata = fs::symlink_metadata(&full).map_err(io_error(&full))?;
        let (attributes, is_opaque) = self.attributes(path)?;
        self.entry(path, EntryType::Directory, &metadata, Records { attributes, ..Records::default() }, io::empty())?;
        if is_opaque {
            self.mark(&path.join(OsStr::from_bytes(OPAQUE)))?;
        }
        let names = fs::read_dir(&full).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<OsString>>>()
        });
        let mut names = names.map_err(io_error(&full))?;
        names.sort_unstable();
        names.iter().try_for_each(|name| self.named(path, name, depth))
    }

    fn named(&mut self, folder: &Path, name: &OsStr, depth: usize) -> Result<(), ExportError> {
        let path = folder.join(name);
        let full = self.tree.join(&path);
        if name.as_bytes().starts_with(WHITEOUT) {
            return Err(not_carried(&path, "has a name that marks in OCI's layers what is deleted".to_owned()));
        }
        if self.belongings.iter().any(|kept| Path::new(kept.within()) == path) {
            self.leave_out(&path);
            return Ok(());
        }
        let metadata = fs::symlink_metadata(&full).map_err(io_error(&full))?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return self.folder(&path, depth + 1);
        }
        if kind.is_char_device() && metadata.rdev() == 0 {
            let mark = [WHITEOUT, name.as_bytes()].concat();
            return self.mark(&folder.join(OsStr::from_bytes(&mark)));
        }
        if kind.is_socket() || kind.is_fifo() {
            self.leave_out(&path);
            return Ok(());
        }
        if kind.is_char_device() || kind.is_block_device() {
            return Err(not_carried(&path, "is a device".to_owned()));
        }
        if kind.is_file() && metadata.nlink() > 1 {
            let file = (metadata.dev(), metadata.ino());
            if let Some(first) = self.names.get(&file) {
                let records = Records { link: Some(entry_name(first)), ..Records::default() };
                return self.entry(&path, EntryType::Link, &metadata, records, io::empty());
            }
            self.names.insert(file, path.clone());
        }
        let (attributes, _) = self.attributes(&path)?;
        let records = Records { attributes, ..Records::default() };
        if kind.is_symlink() {
            let target = fs::read_link(&full).map_err(io_error(&full))?;
            let records = Records { link: Some(target.into_os_string().into_encoded_bytes()), ..records };
            return self.entry(&path, EntryType::Symlink, &metadata, records, io::empty());
        }
        let not_followed = OFlags::NOFOLLOW.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(not_followed).open(&full).map_err(io_error(&full))?;
        self.entry(&path, EntryType::Regular, &metadata, records, Exactly { file, left: metadata.len() })
    }

    fn leave_out(&mut self, path: &Path) {
        if self.left_out.len() < MOST_LEFT_OUT {
            self.left_out.push(Path::new("/").join(path));
        }
    }

    /// The attributes that go along, and whether one of them marks a folder.
    fn attributes(&self, path: &Path) -> Result<(Attributes, bool), ExportError> {
        let full = self.tree.join(path);
        let (mut carried, mut is_opaque) = (Vec::new(), false);
        for (name, value) in attributes(&full).map_err(io_error(&full))? {
            let name = name.into_string();
            let name = name.map_err(|name| not_carried(path, format!("has the attribute {}", name.display())))?;
            match Attribute::of(&name, &value) {
                Attribute::Carried => carried.push((name, value)),
                Attribute::Left => {}
                Attribute::Opaque => is_opaque = true,
                Attribute::Refused => return Err(not_carried(path, format!("has the attribute {name}"))),
            }
        }
        Ok((carried, is_opaque))
    }

    fn entry(
        &mut self,
        path: &Path,
        kind: EntryType,
        metadata: &Metadata,
        mut records: Records,
        contents: impl Read,
    ) -> Result<(), ExportError> {
        let full = self.tree.join(path);
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(metadata.uid().into());
        header.set_gid(metadata.gid().into());
        header.set_size(if kind == EntryType::Regular { metadata.len() } else { 0 });
        header.set_mtime(metadata.mtime().try_into().unwrap_or_default());
        let nanoseconds = metadata.mtime_nsec().try_into().unwrap_or_default();
        let modified = Modified { seconds: metadata.mtime(), nanoseconds };
        records.modified = Some(modified).filter(|modified| modified.seconds < 0 || modified.nanoseconds > 0);
        if let Some(link) = records.link.take_if(|link| link.len() <= HEADER_NAME) {
            header.as_old_mut().linkname[..link.len()].copy_from_slice(&link);
        }
        let mut name = entry_name(path);
        if kind == EntryType::Directory && !path.as_os_str().is_empty() {
            name.push(b'/');
        }
        if name.len() <= HEADER_NAME {
            set_name(&mut header, &name);
        } else {
            records.path = Some(name);
        }
        header.set_cksum();
        let pairs = records.pairs();
        if !pairs.is_empty() {
            let pairs = pairs.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            self.entries.append_pax_extensions(pairs).map_err(ExportError::Write)?;
        }
        self.entries.append(&header, contents).map_err(io_error(&full))
    }

    /// An empty file whose name says what there is not.
    fn mark(&mut self, path: &Path) -> Result<(), ExportError> {
        let name = entry_name(path);
        let mut header = file_header("", 0);
        if name.len() <= HEADER_NAME {
            set_name(&mut header, &name);
        } else {
            self.entries.append_pax_extensions([("path", name.as_slice())]).map_err(ExportError::Write)?;
        }
        header.set_cksum();
        self.entries.append(&header, io::empty()).map_err(ExportError::Write)
    }
}

/// A path as a layer has it.
fn entry_name(path: &Path) -> Vec<u8> {
    [b"./", path.as_os_str().as_bytes()].concat()
}

fn not_carried(path: &Path, why: String) -> ExportError {
    ExportError::NotCarried { path: Path::new("/").join(path), why }
}

/// Exactly so many bytes of a file.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = (&mut self.file).take(self.left).read(buffer)?;
        self.left -= read as u64;
        if read == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has become shorter"));
        }
        Ok(read)
    }
}
