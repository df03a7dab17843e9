//! What does not have to be made again: folders named by a digest of everything that went into them.
//!
//! ```text
//! CACHE/root-3f2a.../root.tar        the files that a step makes
//!                    SHA256SUMS      their digests, checked at each use
//! ```

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

const SUMS: &str = "SHA256SUMS";
/// Entries of a kind that stay: switching between two recipes should not empty the cache.
const KEPT: usize = 3;

/// A SHA-256 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of several things; where one ends and the next begins matters.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Digest(hash.finalize().into())
    }

    /// The digest of these bytes alone, as `sha256sum` prints it.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Digest(Sha256::digest(bytes).into())
    }

    /// The digest of a file's content, as `sha256sum` prints it. Holes, which a disk is full of, are not read.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        const CHUNK: usize = 1 << 20;
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let (zeros, mut chunk) = (vec![0; CHUNK], vec![0; CHUNK]);
        let mut hash = Sha256::new();
        let mut at = 0;
        while at < size {
            let data = match seek(&file, SeekFrom::Data(at)) {
                Err(Errno::NXIO) => size,
                found => found?,
            };
            while at < data {
                let length = (data - at).min(CHUNK as u64);
                hash.update(&zeros[..usize::try_from(length).unwrap_or(CHUNK)]);
                at += length;
            }
            let hole = if at < size { seek(&file, SeekFrom::Hole(at))? } else { size };
            while at < hole {
                let length = usize::try_from(hole - at).unwrap_or(CHUNK).min(CHUNK);
                file.read_exact_at(&mut chunk[..length], at)?;
                hash.update(&chunk[..length]);
                at += length as u64;
            }
        }
        Ok(Digest(hash.finalize().into()))
    }

    /// In hexadecimal.
    pub fn hex(&self) -> String {
        self.0.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// The cache cannot be used.
#[derive(Debug, Error)]
#[error("the cache {path}: {source}; remove it, or choose another one with --cache DIR")]
pub struct CacheError {
    path: PathBuf,
    source: io::Error,
}

/// A folder of results.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// A result, and whether it had to be made.
#[derive(Debug)]
pub struct Entry {
    /// Its folder.
    pub folder: PathBuf,
    /// It was there before.
    pub found: bool,
}

impl Cache {
    /// The cache in that folder, which is made if need be.
    pub fn open(folder: PathBuf) -> Result<Self, CacheError> {
        match fs::create_dir_all(&folder) {
            Ok(()) => Ok(Cache { folder }),
            Err(source) => Err(CacheError { path: folder, source }),
        }
    }

    /// The result for `key`, or else what `make` puts into the folder it is given.
    pub fn get<E: From<CacheError>>(
        &self,
        kind: &str,
        key: &Digest,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Entry, E> {
        let failed = |source| CacheError { path: self.folder.clone(), source };
        let folder = self.folder.join(format!("{kind}-{}", &key.hex()[..32]));
        if is_sound(&folder) {
            is_used(&folder);
            return Ok(Entry { folder, found: true });
        }
        let new = tempfile::Builder::new().prefix(".new-").tempdir_in(&self.folder).map_err(failed)?;
        make(new.path())?;
        write_sums(new.path()).map_err(failed)?;
        if is_sound(&folder) {
            // Another build was faster, and may be reading it.
            return Ok(Entry { folder, found: true });
        }
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(failed)?;
        }
        fs::rename(new.path(), &folder).map_err(failed)?;
        let _ = new.keep();
        is_used(&folder);
        self.prune(kind).map_err(failed)?;
        Ok(Entry { folder, found: false })
    }

    fn prune(&self, kind: &str) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let is_ours = entry.file_name().to_string_lossy().starts_with(&format!("{kind}-"));
            if let Some(used) = fs::metadata(entry.path().join(SUMS)).and_then(|sums| sums.modified()).ok()
                && is_ours
            {
                entries.push((used, entry.path()));
            }
        }
        entries.sort();
        entries.iter().rev().skip(KEPT).try_for_each(|(_, folder)| fs::remove_dir_all(folder))
    }
}

/// Notes when it was used, more exactly than the kernel does.
fn is_used(folder: &Path) {
    let _ = File::open(folder.join(SUMS)).and_then(|sums| sums.set_modified(SystemTime::now()));
}

fn write_sums(folder: &Path) -> io::Result<()> {
    let mut files = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    files.sort();
    let mut sums = String::new();
    for file in files {
        let digest = Digest::of_file(&folder.join(&file))?.hex();
        let _ = writeln!(sums, "{digest}  {}", file.to_string_lossy());
    }
    fs::write(folder.join(SUMS), sums)
}

fn is_sound(folder: &Path) -> bool {
    let Ok(sums) = fs::read_to_string(folder.join(SUMS)) else { return false };
    let is_whole = |line: &str| {
        line.split_once("  ").is_some_and(|(digest, file)| {
            Digest::of_file(&folder.join(file)).is_ok_and(|actual| actual.hex() == digest)
        })
    };
    !sums.is_empty() && sums.lines().all(is_whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(cache: &Cache, key: &Digest, content: &str) -> Entry {
        cache
            .get::<CacheError>("root", key, |folder| {
                fs::write(folder.join("root.tar"), content).expect("a file in the cache");
                Ok(())
            })
            .expect("an entry")
    }

    #[test]
    fn what_was_made_once_is_found_again_until_it_is_damaged() {
        let home = tempfile::tempdir().expect("a temporary folder");
        let cache = Cache::open(home.path().join("cache")).expect("a cache");
        let key = Digest::of([b"inputs".as_slice()]);
        assert!(!get(&cache, &key, "first").found);
        let again = get(&cache, &key, "never made");
        assert!(again.found);

        fs::write(again.folder.join("root.tar"), "damaged").expect("a damaged entry");
        let repaired = get(&cache, &key, "second");
        assert!(!repaired.found);
        assert_eq!(fs::read_to_string(repaired.folder.join("root.tar")).expect("the entry"), "second");
    }

    #[test]
    fn a_file_hashes_to_the_same_whether_its_zeros_are_written_or_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("file");
        let content = |at: usize| {
            let mut content = vec![0; (3 << 20) + 5];
            content[at] = 1;
            content
        };
        for at in [0, 5 << 18, (3 << 20) + 4] {
            let file = File::create(&path).expect("a file");
            file.set_len(content(at).len() as u64).expect("its size");
            file.write_all_at(&[1], at as u64).expect("its only byte");
            assert_eq!(Digest::of_file(&path).expect("its digest"), Digest::of_bytes(&content(at)));
            fs::write(&path, content(at)).expect("a file without holes");
            assert_eq!(Digest::of_file(&path).expect("its digest"), Digest::of_bytes(&content(at)));
        }
        File::create(&path).expect("an empty file");
        assert_eq!(Digest::of_file(&path).expect("its digest"), Digest::of_bytes(&[]));
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let home = tempfile::tempdir().expect("a temporary folder");
        let cache = Cache::open(home.path().to_owned()).expect("a cache");
        let failed = cache.get("root", &Digest::of([]), |folder| {
            fs::write(folder.join("half"), "").expect("a file");
            Err(CacheError { path: PathBuf::new(), source: io::Error::other("no") })
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(home.path()).expect("the cache").count(), 0);
    }

    #[test]
    fn only_the_last_few_entries_stay() {
        let home = tempfile::tempdir().expect("a temporary folder");
        let cache = Cache::open(home.path().to_owned()).expect("a cache");
        for number in 0..6_u8 {
            get(&cache, &Digest::of([[number].as_slice()]), "x");
        }
        assert_eq!(fs::read_dir(home.path()).expect("the cache").count(), KEPT);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(Digest::of([b"ab".as_slice(), b"c"]), Digest::of([b"a".as_slice(), b"bc"]));
    }
}
