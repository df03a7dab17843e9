//! What an image has at each path, as fingerprints: so that a device knows what a newer image has changed, long after the older one is gone.
//!
//! The builder writes the index of a root into it ([`FILE`]). The same format holds what of an image somebody's changes were made
//! on, and which changes hide something newer.
//!
//! ```text
//!     "nemosidx" | version, 4 bytes | fingerprints to a path, 4 bytes
//!     for each path, in the order of their components:
//!         bytes that it begins with like the one before it, 2 bytes | how many follow, 2 bytes | these | its fingerprints, 16 bytes each
//!     0xffff | 0xffff | how many paths there are, 8 bytes
//! ```
//!
//! Numbers are little-endian. Paths have no slash at their beginning; that of the root is empty.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::iter::Peekable;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// Where the index is in the root that it is of; it does not tell of itself.
pub const FILE: &str = "usr/share/nemos/index";

const MAGIC: &[u8; 8] = b"nemosidx";
/// Version of the format and of what a fingerprint is of: numbers of another version cannot be compared.
const VERSION: u32 = 1;
const END: u16 = u16::MAX;

/// What there is at a path, in 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 16]);

impl Fingerprint {
    /// There is nothing.
    pub const NOTHING: Fingerprint = Fingerprint([0; 16]);

    /// Of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Fingerprint::first_of(&Sha256::digest(bytes).into())
    }

    fn first_of(digest: &[u8; 32]) -> Self {
        let mut first = [0; 16];
        first.copy_from_slice(&digest[..16]);
        Fingerprint(first)
    }
}

/// All that a fingerprint is of. Times are not: each build would have others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Mode, with the bits of the kind.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Target of a link.
    pub target: Vec<u8>,
    /// Extended attributes.
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// SHA-256 of a file's content.
    pub content: [u8; 32],
}

impl Entry {
    /// SHA-256 of its fields in this order, numbers of 4 bytes, and before what has a length, that in 8 bytes; the first half.
    pub fn fingerprint(&self) -> Fingerprint {
        let Entry { mode, owner, device, target, attributes, content } = self;
        let mut hash = Sha256::new();
        for number in [*mode, owner.0, owner.1, device.0, device.1] {
            hash.update(number.to_le_bytes());
        }
        let mut long = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        long(target);
        long(&(attributes.len() as u64).to_le_bytes());
        for (name, value) in attributes {
            long(name);
            long(value);
        }
        hash.update(content);
        Fingerprint::first_of(&hash.finalize().into())
    }
}

/// Why an index cannot be written.
#[derive(Debug, Error)]
pub enum NotWritten {
    /// Its place takes no more.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A path comes after one that it should come before, or is longer than Linux takes one.
    #[error("{} does not belong there in an index", .0.display())]
    Path(PathBuf),
}

/// Writes an index, path by path; of `N` fingerprints to a path.
#[derive(Debug)]
pub struct Writer<W, const N: usize> {
    to: W,
    last: Option<PathBuf>,
    count: u64,
}

impl<W: Write, const N: usize> Writer<W, N> {
    /// Begins it.
    pub fn new(mut to: W) -> io::Result<Self> {
        to.write_all(MAGIC)?;
        to.write_all(&VERSION.to_le_bytes())?;
        to.write_all(&fingerprints::<N>().to_le_bytes())?;
        Ok(Writer { to, last: None, count: 0 })
    }

    /// Adds a path, behind all that were added.
    pub fn add(&mut self, path: &Path, fingerprints: [Fingerprint; N]) -> Result<(), NotWritten> {
        let misplaced = || NotWritten::Path(path.to_owned());
        if self.last.as_deref().is_some_and(|last| last >= path) {
            return Err(misplaced());
        }
        let last = self.last.as_deref().map_or(&b""[..], |last| last.as_os_str().as_bytes());
        let bytes = path.as_os_str().as_bytes();
        let same = last.iter().zip(bytes).take_while(|(one, other)| one == other).count();
        let (shared, rest) = (u16::try_from(same), u16::try_from(bytes.len() - same));
        let (Ok(shared), Ok(rest)) = (shared, rest) else { return Err(misplaced()) };
        if shared == END || rest == END {
            return Err(misplaced());
        }
        self.to.write_all(&shared.to_le_bytes())?;
        self.to.write_all(&rest.to_le_bytes())?;
        self.to.write_all(&bytes[same..])?;
        self.to.write_all(fingerprints.map(|fingerprint| fingerprint.0).as_flattened())?;
        self.last = Some(path.to_owned());
        self.count += 1;
        Ok(())
    }

    /// Ends it, and gives back what it was written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.to.write_all(&[0xff; 4])?;
        self.to.write_all(&self.count.to_le_bytes())?;
        self.to.flush()?;
        Ok(self.to)
    }
}

fn fingerprints<const N: usize>() -> u32 {
    u32::try_from(N).unwrap_or(u32::MAX)
}

/// Bytes that are no index.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidIndex {
    /// They begin otherwise.
    #[error("it is no index")]
    Foreign,
    /// It is of a version that this program does not know.
    #[error("it is an index of version {0}, and version {VERSION} is known")]
    Version(u32),
    /// It ends before its end, or contradicts itself.
    #[error("the index is damaged behind path {0}")]
    Damaged(u64),
}

/// What comes next in an index.
enum Record<const N: usize> {
    Path(PathBuf, [Fingerprint; N]),
    End,
}

/// The paths of an index and their fingerprints, in order. Copies go on where the original was.
#[derive(Debug, Clone)]
pub struct Entries<const N: usize> {
    bytes: Arc<[u8]>,
    at: usize,
    path: Vec<u8>,
    count: u64,
    ended: bool,
}

impl<const N: usize> Entries<N> {
    /// Those of an index.
    pub fn new(bytes: Arc<[u8]>) -> Result<Self, InvalidIndex> {
        let word = |at: usize| {
            let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
            word.map(u32::from_le_bytes).ok_or(InvalidIndex::Foreign)
        };
        if !bytes.starts_with(MAGIC) {
            return Err(InvalidIndex::Foreign);
        }
        match (word(8)?, word(12)?) {
            (VERSION, count) if count == fingerprints::<N>() => {}
            (VERSION, _) => return Err(InvalidIndex::Foreign),
            (version, _) => return Err(InvalidIndex::Version(version)),
        }
        Ok(Entries { bytes, at: 16, path: Vec::new(), count: 0, ended: false })
    }

    fn take<const COUNT: usize>(&mut self) -> Option<[u8; COUNT]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(COUNT)?)?.try_into().ok()?;
        self.at += COUNT;
        Some(taken)
    }

    /// `None` if it is damaged.
    fn read(&mut self) -> Option<Record<N>> {
        let (shared, rest) = (u16::from_le_bytes(self.take()?), u16::from_le_bytes(self.take()?));
        if (shared, rest) == (END, END) {
            let is_whole = u64::from_le_bytes(self.take()?) == self.count && self.at == self.bytes.len();
            return is_whole.then_some(Record::End);
        }
        let shared = usize::from(shared);
        let end = self.at.checked_add(usize::from(rest))?;
        let rest = self.bytes.get(self.at..end)?;
        let mut path = self.path.get(..shared)?.to_vec();
        path.extend_from_slice(rest);
        let is_behind =
            self.count == 0 || Path::new(OsStr::from_bytes(&self.path)) < Path::new(OsStr::from_bytes(&path));
        if !is_behind {
            return None;
        }
        self.at = end;
        let mut fingerprints = [Fingerprint::NOTHING; N];
        for fingerprint in &mut fingerprints {
            *fingerprint = Fingerprint(self.take()?);
        }
        self.count += 1;
        self.path.clone_from(&path);
        Some(Record::Path(OsStr::from_bytes(&path).into(), fingerprints))
    }
}

impl<const N: usize> Iterator for Entries<N> {
    type Item = Result<(PathBuf, [Fingerprint; N]), InvalidIndex>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let read = self.read();
        self.ended = !matches!(read, Some(Record::Path(..)));
        match read {
            Some(Record::Path(path, fingerprints)) => Some(Ok((path, fingerprints))),
            Some(Record::End) => None,
            None => Some(Err(InvalidIndex::Damaged(self.count))),
        }
    }
}

/// Looks paths up that come in order.
#[derive(Debug, Clone)]
pub struct Lookup<const N: usize>(Peekable<Entries<N>>);

impl<const N: usize> Lookup<N> {
    /// In an index.
    pub fn new(bytes: Arc<[u8]>) -> Result<Self, InvalidIndex> {
        Ok(Lookup(Entries::new(bytes)?.peekable()))
    }

    /// The fingerprints of a path, which comes after all that were looked up before, or is the last of them.
    pub fn at(&mut self, path: &Path) -> Result<Option<[Fingerprint; N]>, InvalidIndex> {
        while let Some(entry) = self.0.next_if(|entry| entry.as_ref().is_ok_and(|(next, _)| next.as_path() < path)) {
            entry?;
        }
        match self.0.peek() {
            Some(Err(error)) => Err(error.clone()),
            Some(Ok((next, fingerprints))) if next == path => Ok(Some(*fingerprints)),
            _ => Ok(None),
        }
    }
}

impl Lookup<1> {
    /// What an image has at a path; with `hidden`, all that it has at and below it, as one.
    pub fn factory(&mut self, path: &Path, hidden: bool) -> Result<Fingerprint, InvalidIndex> {
        let Some([own]) = self.at(path)? else { return Ok(Fingerprint::NOTHING) };
        if !hidden {
            return Ok(own);
        }
        let mut all = Vec::new();
        for entry in self.0.clone() {
            let (below, [fingerprint]) = entry?;
            let Ok(below) = below.strip_prefix(path) else { break };
            let name = below.as_os_str().as_bytes();
            all.extend((name.len() as u64).to_le_bytes());
            all.extend(name);
            all.extend(fingerprint.0);
        }
        Ok(Fingerprint::of(&all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fingerprint(text: &str) -> Fingerprint {
        Fingerprint::of(text.as_bytes())
    }

    fn index(paths: &[(&str, &str)]) -> Arc<[u8]> {
        let mut writer = Writer::new(Vec::new()).unwrap();
        for (path, what) in paths {
            writer.add(Path::new(path), [fingerprint(what)]).unwrap();
        }
        writer.finish().unwrap().into()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            paths in prop::collection::btree_map("[a-c/]{0,6}", any::<[u8; 16]>(), 0..20),
            cut: prop::sample::Index,
        ) {
            let paths: BTreeMap<PathBuf, [u8; 16]> =
                paths.into_iter().map(|(path, bytes)| (Path::new(path.trim_matches('/')).components().collect(), bytes)).collect();
            let mut writer = Writer::new(Vec::new()).unwrap();
            for (path, bytes) in &paths {
                writer.add(path, [Fingerprint(*bytes)]).unwrap();
            }
            let bytes: Arc<[u8]> = writer.finish().unwrap().into();
            let read: Vec<_> = Entries::<1>::new(Arc::clone(&bytes)).unwrap().map(Result::unwrap).collect();
            let written: Vec<_> = paths.into_iter().map(|(path, bytes)| (path, [Fingerprint(bytes)])).collect();
            prop_assert_eq!(read, written);
            let cut: Arc<[u8]> = bytes[..cut.index(bytes.len())].into();
            let whole = Entries::<1>::new(cut).and_then(|mut entries| entries.try_for_each(|entry| entry.map(drop)));
            prop_assert!(whole.is_err());
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, headed: bool) {
            let head = index(&[])[..16].to_vec();
            let bytes = if headed { [head, bytes].concat() } else { bytes };
            if let Ok(entries) = Entries::<1>::new(bytes.into()) {
                let read: Vec<_> = entries.map_while(Result::ok).map(|(path, _)| path).collect();
                prop_assert!(read.is_sorted());
            }
        }
    }

    #[test]
    fn a_fingerprint_tells_all_but_times() {
        let entry = Entry { mode: 0o100_644, content: [7; 32], ..Entry::default() };
        let name = b"security.capability".to_vec();
        let others = [
            Entry { mode: 0o100_755, ..entry.clone() },
            Entry { owner: (0, 1), ..entry.clone() },
            Entry { device: (1, 0), ..entry.clone() },
            Entry { device: (0, 1), ..entry.clone() },
            Entry { target: b"x".to_vec(), ..entry.clone() },
            Entry { attributes: [(name.clone(), Vec::new())].into(), ..entry.clone() },
            Entry { attributes: [(name, vec![1])].into(), ..entry.clone() },
            Entry { content: [8; 32], ..entry.clone() },
        ];
        let mut told: Vec<Fingerprint> = others.iter().chain([&entry]).map(Entry::fingerprint).collect();
        told.sort_unstable();
        told.dedup();
        assert_eq!(told.len(), others.len() + 1);
        assert!(!told.contains(&Fingerprint::NOTHING));
    }

    #[test]
    fn a_fingerprint_is_the_same_for_ever() {
        let entry = Entry { mode: 0o120_777, target: b"usr/bin".to_vec(), ..Entry::default() };
        let hex = entry.fingerprint().0.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        assert_eq!(hex, "8daafd80d9ed5d8aebabe0957d711294");
    }

    #[test]
    fn paths_are_looked_up_in_order() {
        let bytes =
            index(&[("", "root"), ("etc", "folder"), ("etc/a", "1"), ("etc/a/b", "2"), ("etc/a.c", "3"), ("usr", "4")]);
        let mut lookup = Lookup::new(bytes).unwrap();
        let mut at = |path: &str| lookup.at(Path::new(path)).unwrap().map(|[found]| found);
        assert_eq!(at(""), Some(fingerprint("root")));
        assert_eq!(at("etc/a"), Some(fingerprint("1")));
        assert_eq!(at("etc/a"), Some(fingerprint("1")), "again");
        assert_eq!(at("etc/a/a"), None);
        assert_eq!(at("etc/a.c"), Some(fingerprint("3")));
        assert_eq!(at("var"), None);
    }

    #[test]
    fn what_is_hidden_is_all_that_is_below() {
        let hidden = |child: &str| {
            let bytes = index(&[("etc", "folder"), ("etc/a", child), ("etc.d", "another"), ("usr", "4")]);
            let mut lookup = Lookup::new(bytes).unwrap();
            (lookup.factory(Path::new("etc"), false).unwrap(), lookup.factory(Path::new("etc"), true).unwrap())
        };
        let (one, other) = (hidden("1"), hidden("2"));
        assert_eq!(one.0, other.0);
        assert_ne!(one.1, other.1);
        assert_eq!(Lookup::new(index(&[])).unwrap().factory(Path::new("a"), true), Ok(Fingerprint::NOTHING));
    }

    #[test]
    fn what_is_no_index_is_told_apart() {
        assert_eq!(Entries::<1>::new((*b"something else").into()).unwrap_err(), InvalidIndex::Foreign);
        assert_eq!(Entries::<2>::new(index(&[])).unwrap_err(), InvalidIndex::Foreign);
        let mut newer = index(&[]).to_vec();
        newer[8] = 9;
        assert_eq!(Entries::<1>::new(newer.into()).unwrap_err(), InvalidIndex::Version(9));
        let mut writer = Writer::<_, 0>::new(Vec::new()).unwrap();
        writer.add(Path::new("b"), []).unwrap();
        assert!(matches!(writer.add(Path::new("a"), []), Err(NotWritten::Path(_))));
    }
}
