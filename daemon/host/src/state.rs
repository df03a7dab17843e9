//! The state store: the one writer of `state.json`, and of what lies beside it.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nemos_model::state::{DeviceState, FILE_NAME, Unreadable};
use thiserror::Error;

/// Largest document that is read, in bytes: what 64 jobs can fill, many times over.
const MAX_BYTES: u64 = 4 << 20;

/// A problem with the store.
#[derive(Debug, Error)]
pub enum StateError {
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The document is there and not usable. It is left as it is.
    #[error("{} cannot be used: {source}", path.display())]
    Unreadable {
        /// The document.
        path: PathBuf,
        /// Why not.
        source: Unreadable,
    },
    /// Another process has the store.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
}

impl StateError {
    /// Whether the file system is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, StateError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// The store, held by one process at a time.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    /// Locked for as long as the store lives.
    folder_handle: File,
}

impl Store {
    /// Takes the store in `folder`: the root of `p.lxstate`.
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        let at = |action| move |source| StateError::Io { action, path: folder.to_owned(), source };
        let folder_handle = File::open(folder).map_err(at("open"))?;
        match folder_handle.try_lock() {
            Ok(()) => Ok(Store { folder: folder.to_owned(), folder_handle }),
            Err(TryLockError::WouldBlock) => Err(StateError::InUse { path: folder.to_owned() }),
            Err(TryLockError::Error(source)) => Err(at("lock")(source)),
        }
    }

    /// Reads the document.
    pub fn read(&self) -> Result<DeviceState, StateError> {
        let path = self.path(FILE_NAME);
        let at = |source| StateError::Io { action: "read", path: path.clone(), source };
        if fs::metadata(&path).map_err(at)?.len() > MAX_BYTES {
            return Err(at(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than any document of ours")));
        }
        let text = fs::read(&path).map_err(at)?;
        DeviceState::parse(&text).map_err(|source| StateError::Unreadable { path, source })
    }

    /// Replaces the document. When this returns, the new one is on the disk; a power cut before that leaves the old.
    pub fn write(&self, state: &DeviceState) -> Result<(), StateError> {
        self.replace(FILE_NAME, state.to_text().as_bytes())
    }

    /// Where a file of that name is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Replaces a file, which its owner alone can read. When this returns, the new one is on the disk; a power cut before
    /// that leaves the old, or none if there was none.
    pub(crate) fn replace(&self, name: &str, contents: &[u8]) -> Result<(), StateError> {
        let (path, new) = (self.path(name), self.path(&format!("{name}.new")));
        let at = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { action, path, source }
        };
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&new).map_err(at("create", &new))?;
        file.write_all(contents).map_err(at("write", &new))?;
        file.sync_all().map_err(at("sync", &new))?;
        fs::rename(&new, &path).map_err(at("replace", &path))?;
        self.folder_handle.sync_all().map_err(at("sync", &self.folder))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::thread;
    use std::time::{Duration, Instant};

    /// Opens a store that was closed before. A program that another test starts at that moment has its lock until it runs.
    pub(crate) fn opened(folder: &Path) -> Store {
        let begin = Instant::now();
        loop {
            match Store::open(folder) {
                Err(StateError::InUse { .. }) if begin.elapsed() < Duration::from_secs(10) => {
                    thread::sleep(Duration::from_millis(1));
                }
                opened => return opened.unwrap(),
            }
        }
    }

    #[test]
    fn what_was_written_is_read_back_by_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let written = DeviceState::shipped();
        opened(folder.path()).write(&written).unwrap();
        assert_eq!(opened(folder.path()).read().unwrap(), written);
    }

    #[test]
    fn two_processes_never_hold_it_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let _held = Store::open(folder.path()).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(StateError::InUse { .. })));
    }

    #[test]
    fn a_damaged_document_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        fs::write(&path, "{\"version\": 1").unwrap();
        let error = Store::open(folder.path()).unwrap().read().unwrap_err();
        assert!(matches!(error, StateError::Unreadable { .. }));
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"version\": 1");
    }

    #[test]
    fn a_write_that_was_cut_short_leaves_the_old_document() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.write(&DeviceState::shipped()).unwrap();
        fs::write(folder.path().join("state.json.new"), "{\"ver").unwrap();
        assert_eq!(store.read().unwrap(), DeviceState::shipped());
    }
}
