//! The image's policy of keys.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nemos_model::keys::policy::{BadPolicy, FILE};
use nemos_model::keys::{Policy, Provider};
use thiserror::Error;
use tracing::warn;

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
    #[error("{} is no policy of keys: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// It asks for what cannot be.
    #[error("{}: {source}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: BadPolicy,
    },
}

/// Reads the policy of the image whose root is mounted there.
pub fn policy(root: &Path) -> Result<Policy, PolicyError> {
    let path = root.join(FILE);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Policy::default()),
        read => read.map_err(|source| PolicyError::Io { path: path.clone(), source })?,
    };
    let policy: Policy =
        serde_json::from_slice(&text).map_err(|source| PolicyError::Malformed { path: path.clone(), source })?;
    policy.check().map_err(|source| PolicyError::Bad { path, source })?;
    Ok(policy)
}

/// The order in which that image has the providers tried. Without a policy that can be read, the usual one: a device must open.
pub fn order(root: &Path) -> Vec<Provider> {
    let policy = policy(root).unwrap_or_else(|error| {
        warn!("the keys are tried in their usual order: {error}");
        Policy::default()
    });
    policy.order()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_from_the_image() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(policy(root.path()).unwrap(), Policy::default());
        let file = root.path().join(FILE);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, r#"{"tpm2": true}"#).unwrap();
        assert!(policy(root.path()).unwrap().tpm2);
        fs::write(&file, r#"{"recovery-key": true}"#).unwrap();
        assert!(matches!(policy(root.path()), Err(PolicyError::Bad { .. })));
        assert_eq!(order(root.path()), Provider::ALL, "a policy that is none must not lock a device");
        fs::write(&file, r#"{"order": ["demo-key"]}"#).unwrap();
        assert_eq!(order(root.path())[..2], [Provider::DemoKey, Provider::Tpm2]);
        fs::write(&file, "enroll").unwrap();
        assert!(matches!(policy(root.path()), Err(PolicyError::Malformed { .. })));
    }
}
