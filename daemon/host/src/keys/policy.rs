//! The image's policy of keys.

use std::path::Path;

use nemos_model::keys::policy::FILE;
use nemos_model::keys::{Policy, Provider};
use tracing::warn;

use crate::policy::{self, PolicyError};

/// Reads the policy of the image whose root is mounted there.
pub fn policy(root: &Path) -> Result<Policy, PolicyError> {
    policy::read(root, FILE, "keys", Policy::check)
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
    use std::fs;

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
