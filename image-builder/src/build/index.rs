//! Puts the index of a root into its archive as it goes by: what there is at each path is read once.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use nemos_model::overlay::index::{Entry, FILE, Fingerprint, NotWritten, Writer};
use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType, Header, PaxExtensions};

/// Bytes of a block of an archive.
const BLOCK: usize = 512;
/// Bytes that the extended header of a file may have.
const MOST: u64 = 1 << 20;
/// What extended headers call an extended attribute, before its name.
const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";
/// Names of attributes that a squashfs keeps begin so.
const KEPT: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// Copies an archive of a root, with the root's index as one more file at its end.
pub fn add(from: impl Read, mut to: impl Write, epoch: u64) -> io::Result<()> {
    let mut known = BTreeMap::new();
    // mksquashfs makes the root folder itself, as it is told.
    known.insert(PathBuf::new(), Entry { mode: 0o040_755, ..Entry::default() }.fingerprint());
    let mut ahead = Ahead::default();
    for entry in Archive::new(from).entries()?.raw(true) {
        let mut entry = entry?;
        to.write_all(entry.header().as_bytes())?;
        let header = entry.header().clone();
        let kind = header.entry_type();
        let content = match kind {
            EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink => {
                let mut bytes = Vec::new();
                (&mut entry).take(MOST).read_to_end(&mut bytes)?;
                to.write_all(&bytes)?;
                ahead.read(kind, &bytes)?;
                bytes.len() as u64
            }
            _ => {
                let (digest, length) = copy(&mut entry, &mut to)?;
                if kind != EntryType::XGlobalHeader {
                    let (path, fingerprint) = std::mem::take(&mut ahead).fingerprint(&header, digest, &known)?;
                    known.entry(path).or_insert(fingerprint);
                }
                length
            }
        };
        if content != header.entry_size()? {
            return Err(malformed("it ends inside of a file, or a header is too long"));
        }
        pad(content, &mut to)?;
    }
    let index = write(&known)?;
    to.write_all(header_of(&index, epoch)?.as_bytes())?;
    to.write_all(&index)?;
    pad(index.len() as u64, &mut to)?;
    to.write_all(&[0; 2 * BLOCK])?;
    to.flush()
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the archive of the root: {what}"))
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<([u8; 32], u64)> {
    let (mut hash, mut length, mut chunk) = (Sha256::new(), 0, vec![0; 1 << 16]);
    loop {
        match from.read(&mut chunk)? {
            0 => return Ok((hash.finalize().into(), length)),
            read => {
                hash.update(&chunk[..read]);
                to.write_all(&chunk[..read])?;
                length += read as u64;
            }
        }
    }
}

/// Fills the last block of so many bytes.
fn pad(length: u64, to: &mut impl Write) -> io::Result<()> {
    let over = usize::try_from(length % BLOCK as u64).unwrap_or_default();
    to.write_all(&[0; BLOCK][..(BLOCK - over) % BLOCK])
}

fn write(known: &BTreeMap<PathBuf, Fingerprint>) -> io::Result<Vec<u8>> {
    let mut writer = Writer::new(Vec::new())?;
    for (path, fingerprint) in known {
        writer.add(path, [*fingerprint]).map_err(|error| match error {
            NotWritten::Io(error) => error,
            error @ NotWritten::Path(_) => malformed(&error.to_string()),
        })?;
    }
    writer.finish()
}

fn header_of(index: &[u8], epoch: u64) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(FILE)?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(epoch);
    header.set_size(index.len() as u64);
    header.set_cksum();
    Ok(header)
}

/// What is said of a file before its header comes.
#[derive(Debug, Default)]
struct Ahead {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Ahead {
    fn read(&mut self, kind: EntryType, bytes: &[u8]) -> io::Result<()> {
        let name = || bytes.strip_suffix(b"\0").unwrap_or(bytes).to_vec();
        match kind {
            EntryType::GNULongName => self.path = Some(name()),
            EntryType::GNULongLink => self.target = Some(name()),
            _ => {
                for said in PaxExtensions::new(bytes) {
                    let said = said?;
                    let value = said.value_bytes().to_vec();
                    match said.key_bytes() {
                        b"path" => self.path = Some(value),
                        b"linkpath" => self.target = Some(value),
                        b"size" => return Err(malformed("a file is larger than 8 GiB")),
                        key => {
                            if let Some(name) = key.strip_prefix(ATTRIBUTE)
                                && KEPT.iter().any(|kept| name.starts_with(kept))
                            {
                                self.attributes.insert(name.to_vec(), value);
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Where a file is, and what.
    fn fingerprint(
        self,
        header: &Header,
        content: [u8; 32],
        known: &BTreeMap<PathBuf, Fingerprint>,
    ) -> io::Result<(PathBuf, Fingerprint)> {
        let path = plain(&self.path.unwrap_or_else(|| header.path_bytes().into_owned()))?;
        let target = self.target.or_else(|| Some(header.link_name_bytes()?.into_owned())).unwrap_or_default();
        let bits = match header.entry_type() {
            EntryType::Link => {
                let first = known.get(&plain(&target)?).ok_or_else(|| malformed("a name of a file comes before it"))?;
                return Ok((path, *first));
            }
            EntryType::Regular => 0o100_000,
            EntryType::Directory => 0o040_000,
            EntryType::Symlink => 0o120_000,
            EntryType::Char => 0o020_000,
            EntryType::Block => 0o060_000,
            EntryType::Fifo => 0o010_000,
            other => return Err(malformed(&format!("something of type {other:?} is in it"))),
        };
        let id = |number: u64| u32::try_from(number).map_err(|_| malformed("a user's number is too large"));
        let is_device = matches!(header.entry_type(), EntryType::Char | EntryType::Block);
        let number = |number: Option<u32>| number.filter(|_| is_device).unwrap_or_default();
        let entry = Entry {
            mode: bits | header.mode()? & 0o7777,
            owner: (id(header.uid()?)?, id(header.gid()?)?),
            device: (number(header.device_major()?), number(header.device_minor()?)),
            target: if header.entry_type() == EntryType::Symlink { target } else { Vec::new() },
            attributes: self.attributes,
            content: if header.entry_type() == EntryType::Regular { content } else { [0; 32] },
        };
        Ok((path, entry.fingerprint()))
    }
}

/// The path without the dot that it begins with.
fn plain(path: &[u8]) -> io::Result<PathBuf> {
    let parts = Path::new(std::ffi::OsStr::from_bytes(path)).components();
    let parts = parts.filter(|part| !matches!(part, Component::CurDir | Component::RootDir));
    let plain = parts.collect::<PathBuf>();
    if plain.components().all(|part| matches!(part, Component::Normal(_))) {
        Ok(plain)
    } else {
        Err(malformed("a path leads out of it"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::sync::Arc;

    use super::*;
    use crate::build::Tool;
    use nemos_model::overlay::index::Entries;

    /// The archive of a folder, as mmdebstrap makes one of a root.
    fn archive(folder: &Path) -> Vec<u8> {
        let options = ["--sort=name", "--format=pax", "--numeric-owner", "--owner=0", "--group=7", "--mtime=@1"];
        let made = Tool::new("tar").args(options).arg("--create").arg("--directory").arg(folder).arg("./").output();
        made.expect("tar works")
    }

    fn index_of(archive: &[u8]) -> (Vec<u8>, BTreeMap<PathBuf, Fingerprint>) {
        let mut made = Vec::new();
        add(archive, &mut made, 1).expect("an archive");
        let mut bytes = Vec::new();
        for entry in Archive::new(made.as_slice()).entries().expect("an archive") {
            let mut entry = entry.expect("an entry");
            if entry.path().expect("a path") == Path::new(FILE) {
                entry.read_to_end(&mut bytes).expect("the index");
            }
        }
        let entries = Entries::<1>::new(Arc::from(bytes)).expect("an index");
        let known = entries.map(|entry| entry.map(|(path, [fingerprint])| (path, fingerprint)).expect("an entry"));
        (made.clone(), known.collect())
    }

    #[test]
    fn an_archive_passes_unchanged_with_its_index_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        let long = format!("{}/{}", "deep".repeat(30), "down".repeat(40));
        for path in ["etc/config", "usr/share/nemos/manifest.json", &long] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
            fs::write(path, "content").expect("a file");
        }
        fs::set_permissions(folder.path().join("etc/config"), fs::Permissions::from_mode(0o640)).expect("a mode");
        fs::hard_link(folder.path().join("etc/config"), folder.path().join("etc/second")).expect("a link");
        symlink("usr/bin", folder.path().join("bin")).expect("a link");
        let archive = archive(folder.path());
        let (made, known) = index_of(&archive);
        let end = archive.iter().rposition(|byte| *byte != 0).expect("content");
        assert_eq!(made[..=end], archive[..=end]);

        let of = |path: &str| known[Path::new(path)];
        let file = |mode| Entry { mode, owner: (0, 7), content: Sha256::digest("content").into(), ..Entry::default() };
        assert_eq!(of("etc/config"), file(0o100_640).fingerprint());
        assert_eq!(of("etc/second"), of("etc/config"));
        assert_eq!(of(&long), file(0o100_644).fingerprint());
        let link = Entry { mode: 0o120_777, owner: (0, 7), target: b"usr/bin".to_vec(), ..Entry::default() };
        assert_eq!(of("bin"), link.fingerprint());
        assert_eq!(of("etc"), Entry { mode: 0o040_755, owner: (0, 7), ..Entry::default() }.fingerprint());
        assert!(!known.contains_key(Path::new(FILE)), "it cannot tell of itself");
        assert_eq!(index_of(&archive).0, made, "it is the same each time");

        let image = folder.path().join("image");
        let path = folder.path().join("made.tar");
        fs::write(&path, &made).expect("the archive");
        let mksquashfs = Tool::new("mksquashfs").arg("-").arg(&image).stdin(fs::File::open(path).expect("it is there"));
        let mksquashfs = mksquashfs.args(["-tar", "-quiet", "-no-progress", "-exit-on-error"]);
        mksquashfs.run().expect("mksquashfs takes it");
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("file"), vec![1; 5000]).expect("a file");
        let archive = archive(folder.path());
        let end = archive.iter().rposition(|byte| *byte == 1).expect("content");
        assert!(add(&archive[..end - 1000], io::sink(), 1).is_err());
    }
}
