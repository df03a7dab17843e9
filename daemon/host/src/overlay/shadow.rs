//! Finds the changes that hide something newer.
//!
//! On the volume, beside the changes: `images/HASH`, the index of the image with that root hash, which is the newest that the device has
//! run; and `images/HASH.shadowed`, which changes hide something of it. Both are there once what they say is whole, the
//! index last, and only then those of the image before go. The initrd does that before anything can be changed on the new image.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nemos_model::integrity::RootHash;
use nemos_model::overlay::UPPER_FOLDER;
use nemos_model::overlay::changes::{Kind, Upper};
use nemos_model::overlay::index::{Entries, FILE, Fingerprint, InvalidIndex, Lookup, NotWritten, Writer};
use nemos_model::overlay::shadow::{IMAGES_FOLDER, judge};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use thiserror::Error;

use super::changes::{ChangesError, Trees, Walk};

/// What a name in the folder ends with that is no root hash alone.
const SHADOWED: &str = ".shadowed";
/// What is still being written.
const NEW: &str = "new";

/// What is known of images cannot be told, or noted.
#[derive(Debug, Error)]
pub enum ShadowError {
    /// A file.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An index.
    #[error("{}: {source}", path.display())]
    Index {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: InvalidIndex,
    },
    /// Something that is to be noted.
    #[error("cannot write {}: {source}", path.display())]
    NotWritten {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: NotWritten,
    },
    /// A change.
    #[error(transparent)]
    Changes(#[from] ChangesError),
    /// The initrd could not.
    #[error("this boot has not noted it; `journalctl --boot` says why")]
    NotNoted,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ShadowError {
    move |source| ShadowError::Io { path: path.to_owned(), source }
}

fn bad_index(path: &Path) -> impl FnOnce(InvalidIndex) -> ShadowError {
    move |source| ShadowError::Index { path: path.to_owned(), source }
}

/// An index, in memory: some ten bytes for each path of its image besides the path itself, and its fingerprint.
#[derive(Debug, Clone)]
pub struct Index {
    path: PathBuf,
    bytes: Arc<[u8]>,
}

impl Index {
    /// Reads one; `None` if there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, ShadowError> {
        match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => Ok(Some(Index { path: path.to_owned(), bytes: read.map_err(io_error(path))?.into() })),
        }
    }

    /// That of the image whose root is mounted there; `None` if its builder has made none.
    pub fn of_image(root: &Path) -> Result<Option<Self>, ShadowError> {
        Index::read(&root.join(FILE))
    }

    fn lookup<const N: usize>(&self) -> Result<Lookup<N>, ShadowError> {
        Lookup::new(Arc::clone(&self.bytes)).map_err(bad_index(&self.path))
    }
}

/// What an image has at each path that somebody's changes are made at: beside a saved configuration, so that it is known later
/// which of them hide something newer.
#[derive(Debug, Clone)]
pub struct Base(Index);

impl Base {
    /// Writes what each change of the tree was made on, and returns it: what the image with that index has there, or, of what is
    /// shadowed in the changes that the tree is a copy of, what was noted of that.
    pub fn note(tree: &Path, index: &Index, mut copied: Option<Noted<'_>>, to: &Path) -> Result<Self, ShadowError> {
        let mut factory = index.lookup::<1>()?;
        let trees = Trees { upper: tree, lower: tree };
        replace(to, |file| {
            let mut writer = Writer::<_, 1>::new(file).map_err(io_error(to))?;
            let mut walk = Walk::new(Path::new(""), None);
            while let Some((path, upper)) = walk.step(&trees)? {
                let known = match &mut copied {
                    Some(noted) => noted.base(&path)?,
                    None => None,
                };
                let base = match known {
                    Some(base) => base,
                    None => factory.factory(&path, hides_all(&upper)).map_err(bad_index(&index.path))?,
                };
                add(&mut writer, to, &path, [base])?;
            }
            writer.finish().map(drop).map_err(io_error(to))
        })?;
        Base::read(to)
    }

    /// Reads what was noted.
    pub fn read(path: &Path) -> Result<Self, ShadowError> {
        let missing = || io_error(path)(io::ErrorKind::NotFound.into());
        Index::read(path)?.map(Base).ok_or_else(missing)
    }

    /// The paths at which the image with that index has something else, in order.
    pub fn shadowed(
        &self,
        index: &Index,
    ) -> Result<impl Iterator<Item = Result<PathBuf, ShadowError>> + use<>, ShadowError> {
        let entries = Entries::<1>::new(Arc::clone(&self.0.bytes)).map_err(bad_index(&self.0.path))?;
        let (mut factory, base, of_image) = (index.lookup::<1>()?, self.0.path.clone(), index.path.clone());
        let mut judged = move |(path, [base]): (PathBuf, [Fingerprint; 1])| {
            let own = factory.factory(&path, false)?;
            Ok(judge(None, base, own, || factory.factory(&path, true))?.map(|_| path))
        };
        Ok(entries.filter_map(move |entry| match entry {
            Ok(entry) => judged(entry).map_err(bad_index(&of_image)).transpose(),
            Err(error) => Some(Err(bad_index(&base)(error))),
        }))
    }
}

/// Notes on the volume which changes hide something of this image, if it is another one than at the last boot, and its index.
/// Returns how many do, if it was another one.
pub fn note_image(volume: &Path, lower: &Path, root_hash: RootHash) -> Result<Option<usize>, ShadowError> {
    let folder = volume.join(IMAGES_FOLDER);
    let (index, list) = names(&folder, root_hash);
    if index.exists() {
        return forget_others(&folder, root_hash).map(|()| None);
    }
    let Some(now) = Index::of_image(lower)? else { return Ok(None) };
    fs::create_dir_all(&folder).map_err(io_error(&folder))?;
    let mut count = None;
    if !list.exists()
        && let Some((older, noted)) = older(&folder)?
    {
        count = Some(note_shadowed(&volume.join(UPPER_FOLDER), lower, &older, noted.as_ref(), &now, &list)?);
    }
    replace(&index, |file| file.write_all(&now.bytes).map_err(io_error(&index)))?;
    forget_others(&folder, root_hash)?;
    Ok(count)
}

/// The names of the index, and of the list of what is shadowed.
fn names(folder: &Path, root_hash: RootHash) -> (PathBuf, PathBuf) {
    (folder.join(root_hash.to_string()), folder.join(format!("{root_hash}{SHADOWED}")))
}

/// The index of the image before, and what was shadowed then.
fn older(folder: &Path) -> Result<Option<(Index, Option<Index>)>, ShadowError> {
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let name = entry.map_err(io_error(folder))?.file_name();
        let Some(Ok(root_hash)) = name.to_str().map(str::parse::<RootHash>) else { continue };
        let (index, list) = names(folder, root_hash);
        // One of another version tells nothing.
        if let Some(index) = Index::read(&index)?
            && index.lookup::<1>().is_ok()
        {
            return Ok(Some((index, Index::read(&list)?)));
        }
    }
    Ok(None)
}

fn note_shadowed(
    upper: &Path,
    lower: &Path,
    older: &Index,
    noted: Option<&Index>,
    now: &Index,
    to: &Path,
) -> Result<usize, ShadowError> {
    let trees = Trees { upper, lower };
    let (mut before, mut after) = (older.lookup::<1>()?, now.lookup::<1>()?);
    let mut noted = noted.map(Shadows::of).transpose()?;
    let mut count = 0;
    replace(to, |file| {
        let mut writer = Writer::<_, 2>::new(file).map_err(io_error(to))?;
        let mut walk = Walk::new(Path::new(""), None);
        while let Some((path, upper)) = walk.step(&trees)? {
            let base = before.factory(&path, hides_all(&upper)).map_err(bad_index(&older.path))?;
            let own = after.factory(&path, false).map_err(bad_index(&now.path))?;
            let known = match &mut noted {
                Some(noted) => noted.base(&path, &trees, &upper)?,
                None => None,
            };
            // What is as the new image has it is no change, and what is done to it from now on is done to that.
            let judged = judge(known, base, own, || after.factory(&path, true)).map_err(bad_index(&now.path))?;
            if let Some(base) = judged
                && trees.judged(&path, &upper)?.is_some()
            {
                add(&mut writer, to, &path, [base, mark(&trees.upper.join(&path), &upper)?])?;
                count += 1;
            }
        }
        writer.finish().map(drop).map_err(io_error(to))
    })?;
    Ok(count)
}

/// Which changes are shadowed at this boot.
#[derive(Debug, Clone)]
pub struct Shadows {
    path: PathBuf,
    lookup: Lookup<2>,
}

impl Shadows {
    fn of(list: &Index) -> Result<Self, ShadowError> {
        Ok(Shadows { path: list.path.clone(), lookup: list.lookup()? })
    }

    /// Of the image with that root hash, as far as the volume that is mounted there says; `None` if it says nothing.
    pub fn read(volume: &Path, root_hash: RootHash) -> Result<Option<Self>, ShadowError> {
        let (_, list) = names(&volume.join(IMAGES_FOLDER), root_hash);
        Index::read(&list)?.as_ref().map(Shadows::of).transpose()
    }

    /// Whether what the overlay has at the path is shadowed. Paths are asked for in order.
    pub fn hides(&mut self, path: &Path, trees: &Trees<'_>) -> Result<bool, ShadowError> {
        // Hardly any path is noted, and of the others nothing need be looked at.
        if self.lookup.at(path).map_err(bad_index(&self.path))?.is_none() {
            return Ok(false);
        }
        let Some(upper) = trees.upper_at(path)? else { return Ok(false) };
        Ok(self.base(path, trees, &upper)?.is_some())
    }

    /// What the change at the path was made on, if it is still the one that was noted.
    fn base(&mut self, path: &Path, trees: &Trees<'_>, upper: &Upper) -> Result<Option<Fingerprint>, ShadowError> {
        let Some([base, noted]) = self.lookup.at(path).map_err(bad_index(&self.path))? else { return Ok(None) };
        Ok((mark(&trees.upper.join(path), upper)? == noted).then_some(base))
    }
}

/// What is noted of the changes that the overlay has.
#[derive(Debug)]
pub struct Noted<'a> {
    shadows: Shadows,
    trees: Trees<'a>,
}

impl<'a> Noted<'a> {
    /// Of the image with that root hash, as far as the volume says; `None` if it says nothing.
    pub fn read(volume: &Path, root_hash: RootHash, trees: Trees<'a>) -> Result<Option<Self>, ShadowError> {
        Ok(Shadows::read(volume, root_hash)?.map(|shadows| Noted { shadows, trees }))
    }

    /// What the change at the path was made on, if it is shadowed. Paths are asked for in order.
    fn base(&mut self, path: &Path) -> Result<Option<Fingerprint>, ShadowError> {
        let Some(upper) = self.trees.upper_at(path)? else { return Ok(None) };
        self.shadows.base(path, &self.trees, &upper)
    }
}

/// How many changes are shadowed at this boot, on the volume that is mounted there.
pub fn count(volume: &Path, lower: &Path, root_hash: RootHash) -> Result<usize, ShadowError> {
    let (index, list) = names(&volume.join(IMAGES_FOLDER), root_hash);
    if !index.exists() && lower.join(FILE).exists() {
        return Err(ShadowError::NotNoted);
    }
    let Some(list) = Index::read(&list)? else { return Ok(0) };
    let mut shadows = Shadows::of(&list)?;
    let upper = volume.join(UPPER_FOLDER);
    let trees = Trees { upper: &upper, lower };
    let mut count = 0;
    for entry in Entries::<2>::new(Arc::clone(&list.bytes)).map_err(bad_index(&list.path))? {
        let (path, _) = entry.map_err(bad_index(&list.path))?;
        count += usize::from(shadows.hides(&path, &trees)?);
    }
    Ok(count)
}

/// Nothing of what the image has below it is to be seen.
fn hides_all(upper: &Upper) -> bool {
    match upper {
        Upper::Whiteout => true,
        Upper::There { seen, opaque, .. } => seen.kind != Kind::Folder || *opaque,
    }
}

/// By what a change is known again, until it is made anew. The times of a folder change with what is in it. The kernel links all
/// whiteouts of a boot to one, so that only its birth does not change.
fn mark(full: &Path, upper: &Upper) -> Result<Fingerprint, ShadowError> {
    let found: Metadata = fs::symlink_metadata(full).map_err(io_error(full))?;
    let told = match upper {
        Upper::Whiteout => {
            let born = statx(CWD, full, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BTIME).map_err(io::Error::from);
            let born = born.map_err(io_error(full))?;
            let is_known = StatxFlags::from_bits_retain(born.stx_mask).contains(StatxFlags::BTIME);
            let born = is_known.then_some((born.stx_btime.tv_sec, born.stx_btime.tv_nsec));
            format!("whiteout {} {born:?}", found.ino())
        }
        Upper::There { seen, opaque, redirect, .. } if seen.kind == Kind::Folder => {
            let attributes: &BTreeMap<_, _> = &seen.attributes;
            format!("folder {} {} {:?} {attributes:?} {opaque} {redirect:?}", found.ino(), seen.mode, seen.owner)
        }
        Upper::There { .. } => format!("{} {} {}", found.ino(), found.ctime(), found.ctime_nsec()),
    };
    Ok(Fingerprint::of(told.as_bytes()))
}

fn add<W: Write, const N: usize>(
    writer: &mut Writer<W, N>,
    to: &Path,
    path: &Path,
    fingerprints: [Fingerprint; N],
) -> Result<(), ShadowError> {
    writer.add(path, fingerprints).map_err(|source| ShadowError::NotWritten { path: to.to_owned(), source })
}

/// Writes a file whole: it is the old one, or the new one, whenever the power goes.
fn replace(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<(), ShadowError>,
) -> Result<(), ShadowError> {
    let new = path.with_extension(NEW);
    let mut file = BufWriter::new(File::create(&new).map_err(io_error(&new))?);
    let written = write(&mut file).and_then(|()| {
        let file = file.into_inner().map_err(io::IntoInnerError::into_error);
        file.and_then(|file| file.sync_all()).map_err(io_error(&new))
    });
    if let Err(error) = written {
        // It takes room that somebody else may need.
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    fs::rename(&new, path).map_err(io_error(path))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error(folder))
}

/// Removes what is there of other images, and what was not written to its end.
fn forget_others(folder: &Path, root_hash: RootHash) -> Result<(), ShadowError> {
    let (index, list) = names(folder, root_hash);
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let path = entry.map_err(io_error(folder))?.path();
        if path != index && path != list {
            fs::remove_file(&path).map_err(io_error(&path))?;
        }
    }
    Ok(())
}
