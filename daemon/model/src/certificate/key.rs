//! The public half of the key that a device signs certificates with.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use p256::ecdsa::VerifyingKey;
use p256::pkcs8::{DecodePublicKey as _, EncodePublicKey as _, LineEnding};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// Where the secret half is: what a signature of it is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keeping {
    /// In the device's TPM: it never leaves it. Who is root on the device can have it sign, and nobody elsewhere.
    Tpm,
    /// In a file on the device's disk: whoever could read the disk has it.
    File,
}

impl Keeping {
    /// The name used in certificates and on the bus.
    pub const fn name(self) -> &'static str {
        match self {
            Keeping::Tpm => "tpm",
            Keeping::File => "file",
        }
    }
}

impl fmt::Display for Keeping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A point on P-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// A text that is not a public key of ours.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("it is not a public key on P-256 in PEM, as `nemosctl reset certificate-key` gives it: {0}")]
pub struct NotAKey(String);

impl PublicKey {
    /// Reads PEM with a `SubjectPublicKeyInfo` (RFC 7468, section 13).
    pub fn from_pem(pem: &str) -> Result<Self, NotAKey> {
        VerifyingKey::from_public_key_pem(pem).map(PublicKey).map_err(|error| NotAKey(error.to_string()))
    }

    /// Writes PEM with a `SubjectPublicKeyInfo`, a newline at its end.
    #[allow(clippy::missing_panics_doc, reason = "it does not panic")]
    pub fn to_pem(&self) -> String {
        self.0.to_public_key_pem(LineEnding::LF).expect("91 bytes of DER always fit")
    }

    /// Its name: the thumbprint of RFC 7638 with SHA-256, base64url.
    #[allow(clippy::missing_panics_doc, reason = "it does not panic")]
    pub fn id(&self) -> String {
        let point = self.0.to_sec1_point(false);
        let [x, y] = [point.x(), point.y()]
            .map(|coordinate| BASE64.encode(coordinate.expect("a point that is not compressed has both")));
        let jwk = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        BASE64.encode(Sha256::digest(jwk))
    }

    pub(super) fn verifying(&self) -> &VerifyingKey {
        &self.0
    }
}

impl From<VerifyingKey> for PublicKey {
    fn from(key: VerifyingKey) -> Self {
        PublicKey(key)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use p256::ecdsa::SigningKey;

    /// A key like no other number's.
    pub fn key(number: u8) -> SigningKey {
        SigningKey::from_slice(&[number; 32]).unwrap()
    }

    pub fn public(key: &SigningKey) -> PublicKey {
        PublicKey(*key.verifying_key())
    }

    /// The key of RFC 7515, appendix A.3; its thumbprint was computed with OpenSSL.
    const PEM: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf83OJ3D2xF1Bg8vub9tLe1gHMzV7
6e8Tus9uPHvRVEXH8UTNG72bfocs3+257rn0s2ldbqkLJK2KRiMohYjlrQ==
-----END PUBLIC KEY-----
";

    #[test]
    fn a_key_is_known_by_its_thumbprint() {
        let key = PublicKey::from_pem(PEM).unwrap();
        assert_eq!(key.id(), "oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U");
        assert_eq!(key.to_pem(), PEM);
    }

    #[test]
    fn what_is_not_a_key_of_ours_is_refused() {
        let secret = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
        let ed25519 = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        for text in ["", "key", secret, ed25519, &PEM[..80]] {
            assert!(PublicKey::from_pem(text).is_err(), "{text}");
        }
    }
}
