//! The image's policy of the overlay.

use std::convert::Infallible;
use std::path::Path;

use nemos_model::overlay::policy::{FILE, Policy};

use crate::policy::{self, PolicyError};

/// Reads the policy of the image whose root is mounted there.
pub fn policy(root: &Path) -> Result<Policy, PolicyError> {
    policy::read(root, FILE, "the overlay", |_| Ok::<_, Infallible>(()))
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
    use std::fs;

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
