//! Bytes that open a volume, and how they come and go.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nemos_model::keys::recovery::{self, RECOVERY_KEY_BYTES};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;
use zeroize::Zeroizing;

/// Most bytes of a secret: cryptsetup's own limit (8 MiB) is far beyond any key, and this many fit into a pipe.
const MAX_SECRET: usize = 64 * 1024;
/// Most bytes that cryptsetup(8) takes from a terminal.
const MAX_TYPED: usize = 512;

/// Bytes that open a volume. They are wiped on drop and cannot be printed.
pub struct Secret(Zeroizing<Vec<u8>>);

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
    #[error("a secret has 1 to {MAX_SECRET} bytes")]
    Size,
}

/// A key file that cannot be used.
#[derive(Debug, Error)]
#[error("cannot read the key file {}: {source}", path.display())]
pub struct KeyFileError {
    /// The file.
    path: PathBuf,
    /// Why not.
    source: SecretError,
}

impl KeyFileError {
    /// Whether there is no such file.
    pub fn is_not_there(&self) -> bool {
        matches!(&self.source, SecretError::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

impl Secret {
    /// The bytes, for the one call that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn from_bytes(bytes: Zeroizing<Vec<u8>>) -> Self {
        Secret(bytes)
    }

    /// A secret that somebody typed.
    pub fn typed(text: &str) -> Self {
        Secret(Zeroizing::new(text.as_bytes().to_vec()))
    }

    /// Reads a secret to the end of a file or pipe: 1 byte to 64 KiB, taken as they are.
    pub fn read(reader: impl Read) -> Result<Self, SecretError> {
        // Room for all of it: a vector that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 1));
        let read = reader.take(MAX_SECRET as u64 + 1).read_to_end(&mut bytes);
        match read.map_err(|error| {
            if error.kind() == io::ErrorKind::TimedOut { SecretError::Late } else { SecretError::Io(error) }
        })? {
            1..=MAX_SECRET => Ok(Secret(bytes)),
            _ => Err(SecretError::Size),
        }
    }

    /// Reads a secret that somebody sends, to its end.
    pub fn receive(sender: OwnedFd, limit: Duration) -> Result<Self, SecretError> {
        Secret::read(Sender { file: sender.into(), begin: Instant::now(), limit })
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

    /// The same without the newline at its end; `None` if there is none.
    pub fn without_newline(&self) -> Option<Self> {
        self.0.strip_suffix(b"\n").filter(|rest| !rest.is_empty()).map(|rest| Secret(Zeroizing::new(rest.to_vec())))
    }

    /// The recovery key that was meant, if what was typed is one.
    pub fn as_recovery_key(&self) -> Option<Self> {
        let typed = std::str::from_utf8(&self.0).ok()?;
        recovery::normalize(typed.trim_end_matches('\n')).map(|key| Secret::typed(&key))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Reads a key file whole, a newline at its end included: as cryptsetup does with `--key-file`.
pub fn read_key_file(path: &Path) -> Result<Secret, KeyFileError> {
    let read = File::open(path).map_err(SecretError::Io).and_then(Secret::read);
    read.map_err(|source| KeyFileError { path: path.to_owned(), source })
}

/// Somebody who sends, and is not waited for forever.
struct Sender {
    file: File,
    begin: Instant,
    limit: Duration,
}

impl Read for Sender {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = self.limit.saturating_sub(self.begin.elapsed());
        let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::TimedOut)?;
        let comes = poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&left))?;
        if comes == 0 { Err(io::ErrorKind::TimedOut.into()) } else { self.file.read(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", Secret::typed("insecure")), "Secret(..)");
    }

    #[test]
    fn what_has_the_wrong_size_is_no_secret() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = read_key_file(file.path()).unwrap_err();
        assert!(refused.to_string().contains("a secret has 1 to 65536 bytes"), "{refused}");
        assert!(matches!(Secret::read(&vec![7; MAX_SECRET + 1][..]), Err(SecretError::Size)));
        assert_eq!(Secret::read(&vec![7; MAX_SECRET][..]).unwrap().expose().len(), MAX_SECRET);
    }

    #[test]
    fn who_does_not_send_is_not_waited_for() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"half a sec").unwrap();
        let refused = Secret::receive(reader.into(), Duration::from_millis(20));
        assert!(matches!(refused, Err(SecretError::Late)), "{refused:?}");
    }

    #[test]
    fn what_is_sent_arrives() {
        let sent = Secret::typed("correct horse");
        let received = Secret::receive(sent.send().unwrap(), Duration::from_secs(10)).unwrap();
        assert_eq!(received.expose(), sent.expose());
    }
}
