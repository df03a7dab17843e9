//! Secrets, and where they come from.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nemos_model::keys::recovery::{self, RECOVERY_KEY_BYTES};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;
use zeroize::Zeroizing;

mod ask;
mod change;
mod context;
mod escrow;
mod header;
mod tpm2;

pub use ask::{ask, credential};
pub use change::{BACKUP, ChangeError, Keys, Memory, NewKey, destroy_backup};
pub use escrow::{EscrowError, Recipient};
pub(crate) use header::{keyslot, open_by_tpm2, pbkdf, record};
pub use header::{slots, try_key, try_secret};

/// Most bytes of a key file that are used: cryptsetup's own limit (8 MiB) is far beyond any key.
const MAX_KEY_FILE: u64 = 64 * 1024;
/// Most bytes that cryptsetup(8) takes from a terminal.
const MAX_TYPED: usize = 512;
const MAX_SECRET: usize = 64 * 1024;

/// What opens a volume.
#[derive(Debug)]
pub enum Key {
    /// These bytes.
    Secret(Secret),
    /// What the device's TPM keeps.
    Tpm2,
}

/// Bytes that open a volume. They are wiped on drop and cannot be printed.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// The bytes, for the one call that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Self {
        Secret(Zeroizing::new(bytes))
    }

    /// A secret that somebody typed.
    pub fn typed(text: &str) -> Self {
        Secret(Zeroizing::new(text.as_bytes().to_vec()))
    }

    /// Reads a secret to the end of a file or pipe: 1 byte to 64 KiB, taken as they are.
    pub fn read(file: &mut File) -> Result<Self, SecretError> {
        // Room for all of it: a vector that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 1));
        file.take(MAX_KEY_FILE + 1).read_to_end(&mut bytes).map_err(SecretError::Io)?;
        if bytes.is_empty() || bytes.len() > MAX_SECRET { Err(SecretError::Size) } else { Ok(Secret(bytes)) }
    }

    /// Reads a secret that somebody sends, to its end.
    pub fn receive(sender: OwnedFd, limit: Duration) -> Result<Self, SecretError> {
        let (begin, mut sender) = (Instant::now(), File::from(sender));
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 1));
        let mut chunk = Zeroizing::new([0; 4096]);
        while bytes.len() <= MAX_SECRET {
            let left = limit.checked_sub(begin.elapsed()).ok_or(SecretError::Late)?;
            let left = Timespec::try_from(left).map_err(|_| SecretError::Late)?;
            let mut waits = [PollFd::new(&sender, PollFlags::IN)];
            if poll(&mut waits, Some(&left)).map_err(|error| SecretError::Io(error.into()))? == 0 {
                return Err(SecretError::Late);
            }
            match sender.read(&mut chunk[..]).map_err(SecretError::Io)? {
                0 => break,
                read => {
                    let room = MAX_SECRET + 1 - bytes.len();
                    bytes.extend_from_slice(&chunk[..read.min(room)]);
                }
            }
        }
        if bytes.is_empty() || bytes.len() > MAX_SECRET { Err(SecretError::Size) } else { Ok(Secret(bytes)) }
    }

    /// Whether somebody can type it where systemd asks for a passphrase.
    pub fn can_be_typed(&self) -> bool {
        let text = std::str::from_utf8(&self.0).unwrap_or_default();
        (1..=MAX_TYPED).contains(&text.len()) && !text.contains(char::is_control)
    }

    /// A pipe that holds the secret, for somebody to read: a pipe takes the 64 KiB that a secret can have.
    pub fn send(&self) -> io::Result<OwnedFd> {
        let (reader, mut writer) = io::pipe()?;
        writer.write_all(&self.0)?;
        Ok(reader.into())
    }

    /// A new recovery key, in letters.
    pub fn new_recovery_key() -> io::Result<Self> {
        let mut bytes = Zeroizing::new([0; RECOVERY_KEY_BYTES]);
        let mut filled = 0;
        while filled < bytes.len() {
            filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
        }
        Ok(Secret::typed(&recovery::format(&bytes)))
    }

    /// The recovery key that was meant, if what was typed is one.
    pub fn as_recovery_key(&self) -> Option<Self> {
        let typed = std::str::from_utf8(&self.0).ok()?;
        recovery::normalize(typed.trim_end_matches('\n')).map(|key| Secret::typed(&key))
    }
}

/// A secret that cannot be taken.
#[derive(Debug, Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error("the secret cannot be read: {0}")]
    Io(io::Error),
    /// It does not come.
    #[error("the secret did not come through its file descriptor in time: its other end must be closed")]
    Late,
    /// It is empty, or larger than a secret can be.
    #[error("a secret has 1 to {MAX_KEY_FILE} bytes")]
    Size,
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
