//! Policies: what an image's recipe says to the device, each in a file of the verified root.

use std::error::Error as StdError;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
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
    #[error("{} is no policy of {of}: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Of what it should be one.
        of: &'static str,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// It asks for what cannot be.
    #[error("{}: {source}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<dyn StdError + Send + Sync>,
    },
}

/// Reads a policy of the image whose root is mounted there; the default one if the image has none.
pub(crate) fn read<P: DeserializeOwned + Default, E: StdError + Send + Sync + 'static>(
    root: &Path,
    file: &str,
    of: &'static str,
    check: impl FnOnce(&P) -> Result<(), E>,
) -> Result<P, PolicyError> {
    let path = root.join(file);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(P::default()),
        read => read.map_err(|source| PolicyError::Io { path: path.clone(), source })?,
    };
    let policy = serde_json::from_slice(&text);
    let policy = policy.map_err(|source| PolicyError::Malformed { path: path.clone(), of, source })?;
    check(&policy).map_err(|source| PolicyError::Bad { path, source: source.into() })?;
    Ok(policy)
}
