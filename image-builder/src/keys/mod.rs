//! The keys that an image is signed with, and who uses them.
//!
//! ```text
//!     secure-boot   the firmware      the unified kernel image, before it runs it
//!     root          the kernel        the root hash, before it makes the mapping; and the metadata behind the root
//!     pcr           a TPM             that what was measured is an image of ours, before it gives a secret away
//! ```
//!
//! A folder holds `NAME.crt` for each, and `NAME.key` unless somebody else signs.

mod generate;
pub mod pkcs7;
mod signer;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rsa::PublicKey;
use rsa::pkcs8::{DecodePublicKey, LineEnding};
use rsa::traits::PublicKeyParts;
use sha2::Sha256;
use thiserror::Error;
use x509_cert::Certificate;
use x509_cert::der::{DecodePem, Encode, EncodePem};

pub use self::generate::{KeysArgs, generate};
use self::signer::Signer;
use crate::build::ToolError;

/// Written into the subject of each certificate that `nemos-image keys` makes.
pub const DEVELOPMENT: &str = "DEVELOPMENT ONLY";

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Unified kernel images.
    SecureBoot,
    /// Root hashes, and metadata.
    Root,
    /// Policies for a TPM.
    Pcr,
}

/// How a signature is made; all over SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// RSASSA-PKCS1-v1_5 (RFC 8017).
    Pkcs1,
    /// RSASSA-PSS with MGF1 over SHA-256 and a salt of 32 bytes (RFC 8017).
    Pss,
}

/// Why something is not signed.
#[derive(Debug, Error)]
pub enum KeyError {
    /// A file of the set.
    #[error("{path}: {source}; `nemos-image keys --output DIR` makes a set for development")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{path} is not {what}: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Its time is over.
    #[error("{path} expired on {since}; have it renewed, or sign with another set")]
    Expired {
        /// The certificate.
        path: PathBuf,
        /// When.
        since: String,
    },
    /// A signature that its certificate does not confirm.
    #[error("{signer} made a signature that {certificate} does not confirm: they belong to different keys")]
    Mismatch {
        /// The file of the private key, or the command.
        signer: String,
        /// The file of the certificate.
        certificate: PathBuf,
    },
    /// The private key cannot be used.
    #[error("{signer} cannot sign: {why}")]
    Unusable {
        /// The file of the private key.
        signer: String,
        /// Why.
        why: rsa::Error,
    },
    /// The command failed.
    #[error("--sign-with: {0}")]
    Command(#[from] ToolError),
    /// The folder has keys already.
    #[error("{0} is there already: choose another folder with --output, or remove it")]
    Exists(PathBuf),
    /// The new keys cannot be stored.
    #[error("{path} cannot be written: {source}; choose another folder with --output")]
    Unwritable {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key or certificate cannot be made, or not be put into its form.
    #[error("{doing}: {why}")]
    Encoding {
        /// What was being made.
        doing: &'static str,
        /// Why it was not.
        why: String,
    },
}

/// For `map_err`: what was being made.
fn encoding<E: fmt::Display>(doing: &'static str) -> impl Fn(E) -> KeyError {
    move |why| KeyError::Encoding { doing, why: why.to_string() }
}

/// The public half of a key.
#[derive(Debug, Clone)]
pub struct Trusted {
    path: PathBuf,
    certificate: Certificate,
    key: PublicKey,
}

/// A set of keys, ready to sign.
pub struct Keys {
    trusted: [Trusted; 3],
    signer: Signer,
}

impl Purpose {
    /// All of them.
    pub const ALL: [Purpose; 3] = [Purpose::SecureBoot, Purpose::Root, Purpose::Pcr];

    /// Its name, and that of its files.
    pub const fn name(self) -> &'static str {
        match self {
            Purpose::SecureBoot => "secure-boot",
            Purpose::Root => "root",
            Purpose::Pcr => "pcr",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Scheme {
    /// Its name for a command that signs.
    pub const fn name(self) -> &'static str {
        match self {
            Scheme::Pkcs1 => "rsa-pkcs1-sha256",
            Scheme::Pss => "rsa-pss-sha256",
        }
    }
}

impl Trusted {
    /// A certificate, in PEM.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let text = fs::read(path).map_err(|source| KeyError::Unreadable { path: path.to_owned(), source })?;
        let malformed = |why: String| KeyError::Malformed { path: path.to_owned(), what: "a certificate in PEM", why };
        let certificate = Certificate::from_pem(text).map_err(|error| malformed(error.to_string()))?;
        let key = public_key(&certificate)
            .ok_or_else(|| malformed("its key is not an RSA key, and nothing else is signed with here".to_owned()))?;
        Ok(Trusted { path: path.to_owned(), certificate, key })
    }

    /// The certificate for one purpose in a folder.
    pub fn of(folder: &Path, purpose: Purpose) -> Result<Self, KeyError> {
        Trusted::read(&folder.join(format!("{purpose}.crt")))
    }

    /// Its certificate.
    pub const fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Its certificate, in DER.
    pub fn der(&self) -> Result<Vec<u8>, KeyError> {
        self.certificate.to_der().map_err(encoding("the certificate"))
    }

    /// Its public key alone, in PEM.
    pub fn public_key_pem(&self) -> Result<String, KeyError> {
        let key = self.certificate.tbs_certificate().subject_public_key_info();
        key.to_pem(LineEnding::LF).map_err(encoding("the public key"))
    }

    /// Who it says it is.
    pub fn subject(&self) -> String {
        self.certificate.tbs_certificate().subject().to_string()
    }

    /// Bytes of a signature by it.
    pub fn signature_size(&self) -> usize {
        self.key.size()
    }

    /// Whether it confirms a signature.
    pub fn confirms(&self, scheme: Scheme, message: &[u8], signature: &[u8]) -> bool {
        confirms(&self.key, scheme, message, signature)
    }

    fn check_validity(&self, now: SystemTime) -> Result<(), KeyError> {
        let until = self.certificate.tbs_certificate().validity().not_after;
        if until.to_system_time() < now {
            return Err(KeyError::Expired { path: self.path.clone(), since: until.to_string() });
        }
        Ok(())
    }
}

/// The RSA key of a certificate.
pub fn public_key(certificate: &Certificate) -> Option<PublicKey> {
    let der = certificate.tbs_certificate().subject_public_key_info().to_der().ok()?;
    PublicKey::from_public_key_der(&der).ok()
}

/// Whether a public key confirms a signature.
pub fn confirms(key: &PublicKey, scheme: Scheme, message: &[u8], signature: &[u8]) -> bool {
    match scheme {
        Scheme::Pkcs1 => key.pkcs1v15_verify::<Sha256>(message, signature).is_ok(),
        Scheme::Pss => key.pss_verify::<Sha256>(message, signature).is_ok(),
    }
}

impl Keys {
    /// The set in a folder. With a command that signs, no private key is read.
    pub fn open(folder: &Path, sign_with: Option<&str>) -> Result<Self, KeyError> {
        let [secure_boot, root, pcr] = Purpose::ALL.map(|purpose| {
            let trusted = Trusted::of(folder, purpose)?;
            trusted.check_validity(SystemTime::now())?;
            Ok::<_, KeyError>(trusted)
        });
        let signer = match sign_with {
            Some(command) => Signer::Command(command.to_owned()),
            None => Signer::read(folder)?,
        };
        Ok(Keys { trusted: [secure_boot?, root?, pcr?], signer })
    }

    /// The public half of a key.
    pub const fn trusted(&self, purpose: Purpose) -> &Trusted {
        &self.trusted[purpose as usize]
    }

    /// Signs, and makes sure that the certificate confirms it.
    pub fn sign(&self, purpose: Purpose, scheme: Scheme, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signature = self.signer.sign(purpose, scheme, message)?;
        let trusted = self.trusted(purpose);
        if !trusted.confirms(scheme, message, &signature) {
            return Err(KeyError::Mismatch { signer: self.signer.name(purpose), certificate: trusted.path.clone() });
        }
        Ok(signature)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::OnceLock;
    use tempfile::TempDir;

    /// A set of keys, made once: that takes a second.
    pub(crate) fn folder() -> &'static Path {
        static FOLDER: OnceLock<TempDir> = OnceLock::new();
        let made = FOLDER.get_or_init(|| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            generate(&KeysArgs { output: folder.path().join("keys") }).expect("keys");
            folder
        });
        made.path().join("keys").leak()
    }

    fn copied() -> TempDir {
        let copy = tempfile::tempdir().expect("a temporary folder");
        for entry in fs::read_dir(folder()).expect("the keys").flatten() {
            fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("a copy");
        }
        copy
    }

    #[test]
    fn what_is_signed_twice_is_signed_alike_and_confirmed_by_nobody_else() {
        let keys = Keys::open(folder(), None).expect("keys");
        for scheme in [Scheme::Pkcs1, Scheme::Pss] {
            let signature = keys.sign(Purpose::Root, scheme, b"message").expect("a signature");
            assert_eq!(signature, keys.sign(Purpose::Root, scheme, b"message").expect("another one"));
            assert!(keys.trusted(Purpose::Root).confirms(scheme, b"message", &signature));
            assert!(!keys.trusted(Purpose::Root).confirms(scheme, b"another", &signature));
            assert!(!keys.trusted(Purpose::Pcr).confirms(scheme, b"message", &signature));
        }
    }

    #[test]
    fn a_command_signs_without_a_private_key_in_the_folder() {
        let public = copied();
        for purpose in Purpose::ALL {
            fs::remove_file(public.path().join(format!("{purpose}.key"))).expect("a key");
        }
        let command = format!(
            r#"sh -c 'case $2 in rsa-pss-sha256) set -- "$1" -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32;; *) set -- "$1";; esac
               key={}/$1.key; shift; openssl dgst -sha256 "$@" -sign $key' sh"#,
            folder().display()
        );
        let keys = Keys::open(public.path(), Some(&command)).expect("certificates");
        for (purpose, scheme) in [(Purpose::SecureBoot, Scheme::Pkcs1), (Purpose::Root, Scheme::Pss)] {
            let signature = keys.sign(purpose, scheme, b"message").expect("a signature");
            assert!(keys.trusted(purpose).confirms(scheme, b"message", &signature));
        }
        let refused = Keys::open(public.path(), Some("false")).expect("certificates");
        let told = refused.sign(Purpose::Root, Scheme::Pss, b"message").expect_err("a failure").to_string();
        assert!(told.starts_with("--sign-with: "), "{told}");
        assert!(Keys::open(public.path(), None).is_err());
    }

    #[test]
    fn a_key_of_another_certificate_is_found_out() {
        let mixed = copied();
        fs::copy(folder().join("pcr.key"), mixed.path().join("root.key")).expect("a key");
        let keys = Keys::open(mixed.path(), None).expect("keys");
        let told = keys.sign(Purpose::Root, Scheme::Pkcs1, b"message").expect_err("they differ").to_string();
        assert!(told.contains("root.key") && told.contains("root.crt"), "{told}");
    }

    #[test]
    fn an_expired_certificate_is_told_with_its_date() {
        let trusted = Trusted::of(folder(), Purpose::Root).expect("a certificate");
        trusted.check_validity(SystemTime::now()).expect("it is valid now");
        let later = SystemTime::now() + std::time::Duration::from_secs(40 * 365 * 86400);
        let told = trusted.check_validity(later).expect_err("it is over").to_string();
        assert!(told.contains("root.crt expired on 20"), "{told}");
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let mixed = copied();
        fs::write(mixed.path().join("pcr.crt"), "text").expect("a file");
        let told = Keys::open(mixed.path(), None).err().expect("not a certificate").to_string();
        assert!(told.contains("pcr.crt is not a certificate"), "{told}");
    }
}
