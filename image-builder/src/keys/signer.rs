//! Who has the private keys: files, or a command.

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};

use rsa::PrivateKey;
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use rsa::rand_core::{TryCryptoRng, TryRng};
use rsa::traits::PublicKeyParts;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use super::{KeyError, Purpose, Scheme, encoding};
use crate::build::Tool;

/// Who signs.
pub(super) enum Signer {
    /// Keys of a folder.
    Files { folder: PathBuf, keys: Box<[PrivateKey; 3]> },
    /// A line of shell. It is given two more words, the purpose and the scheme, and the message on stdin; it prints the
    /// bare signature.
    Command(String),
}

impl Signer {
    /// The private keys of a folder, unencrypted, in PEM.
    pub(super) fn read(folder: &Path) -> Result<Self, KeyError> {
        let [secure_boot, root, pcr] = Purpose::ALL.map(|purpose| read(&file(folder, purpose)));
        Ok(Signer::Files { folder: folder.to_owned(), keys: Box::new([secure_boot?, root?, pcr?]) })
    }

    /// For errors.
    pub(super) fn name(&self, purpose: Purpose) -> String {
        match self {
            Signer::Files { folder, .. } => file(folder, purpose).display().to_string(),
            Signer::Command(command) => format!("`{command} {purpose}`"),
        }
    }

    pub(super) fn sign(&self, purpose: Purpose, scheme: Scheme, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match self {
            Signer::Files { keys, .. } => {
                let unusable = |why| KeyError::Unusable { signer: self.name(purpose), why };
                sign(&keys[purpose as usize], scheme, message)?.map_err(unusable)
            }
            Signer::Command(command) => {
                let words = ["-c", &format!("{command} \"$@\""), "--sign-with", purpose.name(), scheme.name()];
                Ok(Tool::new("sh").args(words).output_with_input(message)?)
            }
        }
    }
}

fn file(folder: &Path, purpose: Purpose) -> PathBuf {
    folder.join(format!("{purpose}.key"))
}

fn read(path: &Path) -> Result<PrivateKey, KeyError> {
    let text = fs::read_to_string(path).map_err(|source| KeyError::Unreadable { path: path.to_owned(), source })?;
    PrivateKey::from_pkcs8_pem(&Zeroizing::new(text)).map_err(|error| KeyError::Malformed {
        path: path.to_owned(),
        what: "an RSA key in PEM (PKCS#8, not encrypted)",
        why: error.to_string(),
    })
}

fn sign(key: &PrivateKey, scheme: Scheme, message: &[u8]) -> Result<Result<Vec<u8>, rsa::Error>, KeyError> {
    Ok(match scheme {
        Scheme::Pkcs1 => key.pkcs1v15_sign::<Sha256>(message),
        Scheme::Pss => {
            let mut randomness = Derived::new(key, message)?;
            key.pss_sign_with_rng::<Sha256, _>(&mut randomness, message)
        }
    })
}

/// Bytes that only who has the key can foresee, and that are the same for the same message, so that images are: what
/// RFC 6979 does for ECDSA, here for the salt of PSS.
struct Derived {
    seed: [u8; 32],
    block: u64,
    left: Vec<u8>,
}

impl Derived {
    fn new(key: &PrivateKey, message: &[u8]) -> Result<Self, KeyError> {
        let secret = key.to_pkcs8_der().map_err(encoding("the private key"))?;
        let seed = Sha256::new().chain_update(secret.as_bytes()).chain_update(key.n_bytes()).chain_update(message);
        Ok(Derived { seed: seed.finalize().into(), block: 0, left: Vec::new() })
    }
}

impl Drop for Derived {
    fn drop(&mut self) {
        self.seed.zeroize();
        self.left.zeroize();
    }
}

impl TryRng for Derived {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Infallible> {
        for byte in to {
            if self.left.is_empty() {
                let block = Sha256::new().chain_update(self.seed).chain_update(self.block.to_le_bytes());
                self.left = block.finalize().to_vec();
                self.block += 1;
            }
            *byte = self.left.pop().unwrap_or_default();
        }
        Ok(())
    }
}

impl TryCryptoRng for Derived {}
