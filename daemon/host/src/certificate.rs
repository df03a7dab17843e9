//! The key that certificates of resets are signed with. It outlives every reset: it is in the TPM, or, where there is none,
//! in a file on `p.lxstate`.
//!
//! The TPM's key is not stored anywhere. It is a primary key: the TPM derives it from its own seed and our template, the
//! same one each time, until somebody clears the TPM. It is used through tpm2-tools.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nemos_model::certificate::{KEY_FILE_NAME, Keeping, PublicKey};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{self, Signature};
use p256::elliptic_curve::Generate as _;
use p256::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, LineEnding};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use thiserror::Error;

use crate::command::{CommandError, run};
use crate::keys::{KeyFileError, read_key_file};
use crate::state::{StateError, Store};

/// The TPM 2.0 of this device, through the kernel's resource manager.
const TPM: &str = "/dev/tpmrm0";
/// Making a key and signing take a chip less than a second; it may be busy with what others ask of it.
const TPM_LIMIT: Duration = Duration::from_secs(10);

/// A key that was found or made.
#[derive(Debug)]
pub enum SigningKey {
    /// In a TPM.
    Tpm(TpmKey),
    /// In a file. It is wiped on drop.
    File(ecdsa::SigningKey),
}

/// A key in a TPM.
#[derive(Debug)]
pub struct TpmKey {
    /// How tpm2-tools reach it.
    tcti: String,
    public: PublicKey,
    /// Holds the key's context, which the TPM encrypted for itself.
    folder: TempDir,
}

/// A key that cannot be used.
#[derive(Debug, Error)]
pub enum SigningKeyError {
    /// The file cannot be written.
    #[error(transparent)]
    Store(#[from] StateError),
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// The file holds something else.
    #[error(
        "{} holds no key ({reason}); if you move it away, the device makes another key, which verifies no certificate \
         that was signed before",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system has no random numbers.
    #[error("cannot make a key: {0}")]
    Random(String),
    /// The TPM, or a program that talks to it, does not do what it should.
    #[error("the key in the TPM cannot be used: {0}")]
    Tpm(#[from] CommandError),
    /// What the TPM gave cannot be understood.
    #[error("the key in the TPM cannot be used: its {what} is not one: {reason}")]
    TpmAnswer {
        /// What it should have given.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Files that are exchanged with tpm2-tools.
    #[error("cannot exchange files with tpm2-tools in {}: {source}", path.display())]
    Scratch {
        /// The folder or file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// How to reach this device's TPM, as tpm2-tools' option `--tcti` has it; `None` if it has none.
///
/// Where there is one, the key is in it: a TPM that does not work is an error, and no reason to sign with another key.
pub fn device_tpm() -> Option<String> {
    Path::new(TPM).exists().then(|| format!("device:{TPM}"))
}

impl SigningKey {
    /// The key of the TPM that is reached in this way.
    pub fn in_tpm(tcti: &str) -> Result<Self, SigningKeyError> {
        let folder = tempfile::tempdir().map_err(|source| scratch(&std::env::temp_dir(), source))?;
        let [unique, context, public] = ["unique", "context", "public.pem"].map(|name| folder.path().join(name));
        fs::write(&unique, unique_field()).map_err(|source| scratch(&unique, source))?;
        let mut arguments = vec!["--tcti", tcti, "--quiet", "--hierarchy", "o", "--hash-algorithm", "sha256"];
        arguments.extend(["--key-algorithm", "ecc256:ecdsa-sha256", "--attributes", ATTRIBUTES, "--format", "pem"]);
        let files = [("--unique-data", &unique), ("--key-context", &context), ("--output", &public)];
        run_tool("tpm2_createprimary", arguments, &files)?;
        let pem = fs::read_to_string(&public).map_err(|source| scratch(&public, source))?;
        let public = PublicKey::from_pem(&pem)
            .map_err(|error| SigningKeyError::TpmAnswer { what: "public key", reason: error.to_string() })?;
        Ok(SigningKey::Tpm(TpmKey { tcti: tcti.to_owned(), public, folder }))
    }

    /// The key in the store; it is made if there is none.
    pub fn in_file(store: &Store) -> Result<Self, SigningKeyError> {
        let path = store.path(KEY_FILE_NAME);
        match read_key_file(&path) {
            Ok(secret) => {
                let pem = str::from_utf8(secret.expose()).map_err(|error| damaged(&path, error))?;
                let key = ecdsa::SigningKey::from_pkcs8_pem(pem).map_err(|error| damaged(&path, error))?;
                Ok(SigningKey::File(key))
            }
            Err(error) if error.is_not_there() => make_file(store),
            Err(other) => Err(other.into()),
        }
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        match self {
            SigningKey::Tpm(key) => key.public,
            SigningKey::File(key) => (*key.verifying_key()).into(),
        }
    }

    /// Where it is.
    pub const fn keeping(&self) -> Keeping {
        match self {
            SigningKey::Tpm(_) => Keeping::Tpm,
            SigningKey::File(_) => Keeping::File,
        }
    }

    /// Signs a message, by its SHA-256.
    pub fn sign(&self, message: &[u8]) -> Result<Signature, SigningKeyError> {
        match self {
            SigningKey::Tpm(key) => key.sign(message),
            SigningKey::File(key) => Ok(key.sign(message)),
        }
    }
}

impl TpmKey {
    fn sign(&self, message: &[u8]) -> Result<Signature, SigningKeyError> {
        let [context, digest, signature] = ["context", "digest", "signature"].map(|name| self.folder.path().join(name));
        fs::write(&digest, Sha256::digest(message)).map_err(|source| scratch(&digest, source))?;
        let arguments = vec!["--tcti", &self.tcti, "--quiet", "--hash-algorithm", "sha256", "--scheme", "ecdsa"];
        // The last of them is an option without a value, and the file that it is about.
        let files = [("--key-context", &context), ("--signature", &signature), ("--digest", &digest)];
        run_tool("tpm2_sign", [arguments, vec!["--format", "plain"]].concat(), &files)?;
        let der = fs::read(&signature).map_err(|source| scratch(&signature, source))?;
        Signature::from_der(&der)
            .map_err(|error| SigningKeyError::TpmAnswer { what: "signature", reason: error.to_string() })
    }
}

/// A key that only signs, was made in the TPM and never leaves it, and whose use does not count as an attack.
const ATTRIBUTES: &str = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign|noda";

/// The template's `unique` field, as tpm2-tools read it: a `TPMS_ECC_POINT` of two `TPM2B_ECC_PARAMETER`s, each its length
/// and 128 bytes of which so many count. **Any other content makes another key of every TPM.**
///
/// Source: TPM 2.0 Library, part 2, section 11.2.5; `tss2_tpm2_types.h` of tpm2-tss.
fn unique_field() -> Vec<u8> {
    const OURS: &[u8; 32] = b"nemos: key of reset certificates";
    let parameter = |value: &[u8; 32]| [&32u16.to_ne_bytes()[..], value, &[0; 96]].concat();
    [parameter(OURS), parameter(&[0; 32])].concat()
}

fn make_file(store: &Store) -> Result<SigningKey, SigningKeyError> {
    let random = |error: &dyn std::fmt::Display| SigningKeyError::Random(error.to_string());
    let key = ecdsa::SigningKey::try_generate().map_err(|error| random(&error))?;
    let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(|error| random(&error))?;
    store.replace(KEY_FILE_NAME, pem.as_bytes())?;
    tracing::info!("made a key to sign certificates with");
    Ok(SigningKey::File(key))
}

fn run_tool<'a>(
    program: &str,
    mut arguments: Vec<&'a str>,
    files: &'a [(&'a str, &PathBuf)],
) -> Result<(), SigningKeyError> {
    for (option, path) in files {
        let unprintable = || scratch(path, io::Error::new(ErrorKind::InvalidFilename, "it is not UTF-8"));
        arguments.extend([option, path.to_str().ok_or_else(unprintable)?]);
    }
    Ok(run(program, &arguments, TPM_LIMIT)?)
}

fn scratch(path: &Path, source: io::Error) -> SigningKeyError {
    SigningKeyError::Scratch { path: path.to_owned(), source }
}

fn damaged(path: &Path, error: impl std::fmt::Display) -> SigningKeyError {
    SigningKeyError::Damaged { path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::opened;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_key_in_the_file_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let made = SigningKey::in_file(&opened(folder.path())).unwrap();
        let found = SigningKey::in_file(&opened(folder.path())).unwrap();
        assert_eq!(found.public(), made.public());
        let file = fs::metadata(folder.path().join(KEY_FILE_NAME)).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn two_devices_have_two_keys() {
        let key = || SigningKey::in_file(&Store::open(tempfile::tempdir().unwrap().path()).unwrap()).unwrap().public();
        assert_ne!(key(), key());
    }

    #[test]
    fn a_file_that_is_damaged_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        SigningKey::in_file(&store).unwrap();
        let path = folder.path().join(KEY_FILE_NAME);
        let half = fs::read_to_string(&path).unwrap().split_off(60);
        fs::write(&path, &half).unwrap();
        assert!(matches!(SigningKey::in_file(&store), Err(SigningKeyError::Damaged { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), half);
    }

    #[test]
    fn a_secret_key_does_not_print() {
        let folder = tempfile::tempdir().unwrap();
        let key = SigningKey::in_file(&Store::open(folder.path()).unwrap()).unwrap();
        assert_eq!(format!("{key:?}"), "File(SigningKey { .. })");
    }

    #[test]
    fn a_tpm_that_does_not_answer_is_an_error() {
        let nothing = SigningKey::in_tpm("device:/nonexistent/tpm");
        assert!(matches!(nothing, Err(SigningKeyError::Tpm(_))), "{nothing:?}");
    }
}
