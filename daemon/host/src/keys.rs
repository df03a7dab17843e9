//! Secrets, and where they come from.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

/// Most bytes of a key file that are used: cryptsetup's own limit (8 MiB) is far beyond any key.
const MAX_KEY_FILE: u64 = 64 * 1024;

/// Bytes that open a volume. They are wiped on drop and cannot be printed.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// The bytes, for the one call that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A key file that cannot be used.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("cannot read the key file {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is empty, or larger than a key can be.
    #[error("the key file {} has {size} bytes; a key has 1 to {MAX_KEY_FILE}", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
}

/// Reads a key file whole, a newline at its end included: as cryptsetup does with `--key-file`.
pub fn read_key_file(path: &Path) -> Result<Secret, KeyFileError> {
    let io = |source| KeyFileError::Io { path: path.to_owned(), source };
    let size = fs::metadata(path).map_err(io)?.len();
    if size == 0 || size > MAX_KEY_FILE {
        return Err(KeyFileError::Size { path: path.to_owned(), size });
    }
    Ok(Secret(Zeroizing::new(fs::read(path).map_err(io)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print() {
        let secret = Secret(Zeroizing::new(b"insecure".to_vec()));
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }

    #[test]
    fn an_empty_key_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(read_key_file(file.path()), Err(KeyFileError::Size { size: 0, .. })));
    }
}
