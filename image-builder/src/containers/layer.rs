//! The files of a layer, as overlayfs has them: what the layer says of lower ones in names of its own (`.wh.NAME` for a file
//! that is gone, `.wh..wh..opq` for a folder that hides the one below) becomes a device 0:0 and an attribute.
//!
//! Sources: the OCI image specification, `layer.md`; the kernel's `Documentation/filesystems/overlayfs.rst`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Component, Path, PathBuf};

use tar::{Entry, EntryType, Header};

const GONE: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";
const XATTR: &str = "SCHILY.xattr.";

/// What has to be known of a layer beforehand.
#[derive(Debug, Default)]
pub struct Contents {
    /// Owners of its files.
    pub uids: BTreeSet<u64>,
    /// Groups of its files.
    pub gids: BTreeSet<u64>,
    /// It says itself what its root is like.
    has_root: bool,
    opaque: BTreeSet<PathBuf>,
}

impl Contents {
    /// Reads a layer through.
    pub fn read(layer: &mut File) -> io::Result<Self> {
        layer.rewind()?;
        let mut contents = Contents::default();
        for entry in tar::Archive::new(layer).entries_with_seek()? {
            let entry = entry?;
            let path = inside(&entry.path()?)?;
            contents.uids.insert(entry.header().uid()?);
            contents.gids.insert(entry.header().gid()?);
            contents.has_root |= path.as_os_str().is_empty();
            if path.file_name().is_some_and(|name| name == OPAQUE) {
                contents.opaque.insert(path.parent().unwrap_or(Path::new("")).to_owned());
            }
        }
        Ok(contents)
    }
}

/// Copies a layer's files into another archive, below a folder of it.
pub fn copy(
    layer: &mut File,
    contents: &Contents,
    below: &Path,
    mtime: u64,
    to: &mut tar::Builder<impl Write>,
) -> io::Result<()> {
    layer.rewind()?;
    if !contents.has_root {
        folder(to, below, 0o755, mtime)?;
    }
    for entry in tar::Archive::new(layer).entries()? {
        copy_entry(entry?, contents, below, to)?;
    }
    Ok(())
}

/// Adds a folder of root's.
pub fn folder(to: &mut tar::Builder<impl Write>, path: &Path, mode: u32, mtime: u64) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Directory);
    header.set_mode(mode);
    header.set_mtime(mtime);
    header.set_size(0);
    to.append_data(&mut header, path, io::empty())
}

fn copy_entry(
    mut entry: Entry<'_, impl Read>,
    contents: &Contents,
    below: &Path,
    to: &mut tar::Builder<impl Write>,
) -> io::Result<()> {
    let path = inside(&entry.path()?)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name == OPAQUE {
        return Ok(());
    }
    let mut header = Header::new_gnu();
    header.set_uid(entry.header().uid()?);
    header.set_gid(entry.header().gid()?);
    header.set_mtime(entry.header().mtime()?);
    header.set_size(0);
    if let Some(gone) = name.strip_prefix(GONE) {
        header.set_entry_type(EntryType::Char);
        header.set_mode(0);
        header.set_device_major(0)?;
        header.set_device_minor(0)?;
        return to.append_data(&mut header, below.join(path.with_file_name(gone)), io::empty());
    }
    let kind = entry.header().entry_type();
    header.set_mode(entry.header().mode()?);
    header.set_entry_type(if kind.is_file() { EntryType::Regular } else { kind });
    let mut attributes = attributes(&mut entry)?;
    if contents.opaque.contains(&path) {
        attributes.push((format!("{XATTR}trusted.overlay.opaque"), b"y".to_vec()));
    }
    let to_path = if path.as_os_str().is_empty() { below.to_owned() } else { below.join(&path) };
    to.append_pax_extensions(attributes.iter().map(|(name, value)| (name.as_str(), value.as_slice())))?;
    match kind {
        EntryType::Link => {
            let target = entry.link_name()?.ok_or_else(|| io::Error::other("a link leads nowhere"))?;
            to.append_link(&mut header, to_path, below.join(inside(&target)?))
        }
        EntryType::Symlink => {
            let target = entry.link_name()?.ok_or_else(|| io::Error::other("a link leads nowhere"))?;
            to.append_link(&mut header, to_path, target)
        }
        EntryType::Char | EntryType::Block => {
            header.set_device_major(entry.header().device_major()?.unwrap_or(0))?;
            header.set_device_minor(entry.header().device_minor()?.unwrap_or(0))?;
            to.append_data(&mut header, to_path, io::empty())
        }
        _ => {
            header.set_size(entry.size());
            to.append_data(&mut header, to_path, entry)
        }
    }
}

/// Extended attributes: capabilities of programs, mostly.
fn attributes(entry: &mut Entry<'_, impl Read>) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        match extension.key() {
            Ok(key) if key.starts_with(XATTR) => found.push((key.to_owned(), extension.value_bytes().to_owned())),
            _ => {}
        }
    }
    Ok(found)
}

/// A path in a layer, from the layer's root.
fn inside(path: &Path) -> io::Result<PathBuf> {
    let mut found = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => found.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::other(format!("{} leads out of the layer", path.display())));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(files: &[(&str, EntryType)]) -> File {
        let mut archive = tar::Builder::new(tempfile::tempfile().expect("a temporary file"));
        for (path, kind) in files {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_uid(7);
            header.set_gid(7);
            header.set_mtime(0);
            header.set_size(0);
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            if *kind == EntryType::Link {
                header.set_link_name("./bin/one").expect("a link");
            }
            header.set_cksum();
            archive.append(&header, io::empty()).expect("an entry");
        }
        archive.into_inner().expect("the layer")
    }

    fn copied(files: &[(&str, EntryType)]) -> Vec<(String, EntryType, Option<String>, bool)> {
        let mut layer = layer(files);
        let contents = Contents::read(&mut layer).expect("its contents");
        let mut to = tar::Builder::new(Vec::new());
        copy(&mut layer, &contents, Path::new("diff"), 0, &mut to).expect("a copy");
        let bytes = to.into_inner().expect("the copy");
        let mut found = Vec::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            let link = entry.link_name().expect("a link").map(|to| to.display().to_string());
            let path = entry.path().expect("a path").display().to_string();
            let opaque = attributes(&mut entry).expect("attributes").iter().any(|(name, _)| name.ends_with("opaque"));
            found.push((path, entry.header().entry_type(), link, opaque));
        }
        found
    }

    #[test]
    fn files_and_links_move_below_the_folder() {
        let files = [("./", EntryType::Directory), ("./bin/one", EntryType::Regular), ("./bin/two", EntryType::Link)];
        assert_eq!(
            copied(&files),
            [
                ("diff".to_owned(), EntryType::Directory, None, false),
                ("diff/bin/one".to_owned(), EntryType::Regular, None, false),
                ("diff/bin/two".to_owned(), EntryType::Link, Some("diff/bin/one".to_owned()), false),
            ]
        );
    }

    #[test]
    fn what_a_layer_takes_away_is_said_in_the_words_of_overlayfs() {
        let files = [
            ("etc/", EntryType::Directory),
            ("etc/.wh.old", EntryType::Regular),
            ("etc/.wh..wh..opq", EntryType::Regular),
        ];
        assert_eq!(
            copied(&files),
            [
                ("diff".to_owned(), EntryType::Directory, None, false),
                ("diff/etc".to_owned(), EntryType::Directory, None, true),
                ("diff/etc/old".to_owned(), EntryType::Char, None, false),
            ]
        );
    }

    #[test]
    fn nothing_leads_out_of_a_layer() {
        let told = Contents::read(&mut layer(&[("../etc/shadow", EntryType::Regular)])).expect_err("it leads out");
        assert!(told.to_string().contains("leads out"), "{told}");
    }
}
