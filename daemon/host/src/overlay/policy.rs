//! The image's policy of the overlay.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nemos_model::overlay::policy::{FILE, Policy};
use thiserror::Error;

/// A policy that cannot be used.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not what a builder writes.
    #[error("{} is no policy of the overlay: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// Reads the policy of the image whose root is mounted there.
pub fn policy(root: &Path) -> Result<Policy, PolicyError> {
    let path = root.join(FILE);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Policy::default()),
        read => read.map_err(|source| PolicyError::Io { path: path.clone(), source })?,
    };
    serde_json::from_slice(&text).map_err(|source| PolicyError::Malformed { path, source })
}

/// Bytes of memory that this machine has.
pub fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nemos_model::overlay::policy::MemorySize;

    #[test]
    fn it_comes_from_the_image() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(policy(root.path()).unwrap(), Policy::default());
        let file = root.path().join(FILE);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, r#"{"volatile-size": "64MiB"}"#).unwrap();
        assert_eq!(policy(root.path()).unwrap().volatile_size, Some(MemorySize::Mib(64)));
        fs::write(&file, r#"{"volatile-size": "all"}"#).unwrap();
        assert!(matches!(policy(root.path()), Err(PolicyError::Malformed { .. })));
    }

    #[test]
    fn a_machine_has_memory() {
        assert!(memory() > 64 << 20);
    }
}
