//! Certificates: what a device says of a reset that was done, signed so that it can be checked without the device.
//!
//! A certificate is a JSON Web Signature in compact form (RFC 7515, section 3.1), and its payload a claims set (RFC 7519):
//! any JOSE library can check it.
//!
//! ```text
//!     base64url(header) . base64url(claims) . base64url(signature)
//!
//!     header      {"alg":"ES256","kid":"<thumbprint of the key, RFC 7638>","typ":"nemos-reset-certificate+jwt"}
//!     claims      {"version":1,"iat":...}: see Claims
//!     signature   ECDSA on P-256 with SHA-256, r and s (RFC 7518, section 3.4)
//! ```
//!
//! The algorithm is not the certificate's choice: whatever its header asks for, ES256 with the key that the verifier
//! brought is the only way it is checked (RFC 8725, section 3.1).

mod claims;
mod key;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use p256::ecdsa::Signature;
use p256::ecdsa::signature::Verifier as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

pub use claims::{Checked, Claims, NoCertificate, Target, VERSION, certifiable};
pub use key::{Keeping, NotAKey, PublicKey};

/// Name of the key's file in the root of `p.lxstate`, where there is no TPM: PKCS#8 (RFC 5958) in PEM.
pub const KEY_FILE_NAME: &str = "certificate.key";

/// Largest certificate that is looked at, in bytes: that of a reset which kept the most and longest paths has half of it.
pub const MAX_BYTES: usize = 1 << 20;

const ALGORITHM: &str = "ES256";
/// Media type of a certificate, without `application/`, as RFC 7515 (section 4.1.9) has it.
const TYPE: &str = "nemos-reset-certificate+jwt";

/// What stands in front of the claims. A header that says more may mean something by it (`crit`, `b64`): it is refused.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    kid: String,
    typ: String,
}

/// A certificate that holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// What it says, as far as this code knows it.
    pub claims: Claims,
    /// Everything that was signed.
    pub signed: Value,
}

/// Why a text is not a certificate that holds.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Invalid {
    /// It is too large to be looked at.
    #[error("it is larger than {MAX_BYTES} bytes, and no certificate is")]
    TooLarge,
    /// It has not the form of one.
    #[error("it is not a certificate of a reset: {0}")]
    NotACertificate(String),
    /// It asks for another way of checking it.
    #[error("it is not signed with {ALGORITHM} but `{0}`, which no certificate is")]
    Algorithm(String),
    /// Another key signed it.
    #[error("it was signed with another key: with `{signed}`, and the one given is `{given}`")]
    OtherKey {
        /// The key that it names.
        signed: String,
        /// The key that was given.
        given: String,
    },
    /// The signature is not one of these bytes by that key.
    #[error("its signature does not match: it was altered after the device signed it, or signed by somebody else")]
    Altered,
    /// It was signed by a newer (or unknown) nemos.
    #[error("it has version {0}, and this nemos knows only version {VERSION}; the signature is good")]
    Version(u64),
}

/// Writes the claims down and has them signed by the key's owner: `sign` gets the bytes, and hashes them itself.
pub fn issue<E>(
    claims: &Claims,
    key: &PublicKey,
    sign: impl FnOnce(&[u8]) -> Result<Signature, E>,
) -> Result<String, E> {
    let header = Header { alg: ALGORITHM.into(), kid: key.id(), typ: TYPE.into() };
    let input = format!("{}.{}", encode_json(&header), encode_json(claims));
    let signature = sign(input.as_bytes())?;
    Ok(format!("{input}.{}", BASE64.encode(signature.to_bytes())))
}

/// Checks a certificate with a key that is known to be the device's. A newline at its end is not part of it.
pub fn verify(certificate: &[u8], key: &PublicKey) -> Result<Verified, Invalid> {
    if certificate.len() > MAX_BYTES {
        return Err(Invalid::TooLarge);
    }
    let text = str::from_utf8(certificate).map_err(|_| not_one("it is not text"))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let (input, signature) = text.rsplit_once('.').ok_or_else(|| not_one("it has not three parts"))?;
    let (header, claims) = input.split_once('.').ok_or_else(|| not_one("it has not three parts"))?;

    let Header { alg, kid, typ } = decode_json("header", header)?;
    if alg != ALGORITHM {
        return Err(Invalid::Algorithm(shown(&alg)));
    }
    if typ != TYPE {
        return Err(not_one(&format!("it is of type `{}`", shown(&typ))));
    }
    if kid != key.id() {
        return Err(Invalid::OtherKey { signed: shown(&kid), given: key.id() });
    }
    let signature = Signature::from_slice(&decode("signature", signature)?).map_err(|_| Invalid::Altered)?;
    key.verifying().verify(input.as_bytes(), &signature).map_err(|_| Invalid::Altered)?;

    let signed: Value = decode_json("content", claims)?;
    match signed.get("version").and_then(Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => return Err(Invalid::Version(version)),
        None => return Err(not_one("its content has no version")),
    }
    let claims = Claims::deserialize(&signed).map_err(|error| not_one(&format!("its content: {error}")))?;
    Ok(Verified { claims, signed })
}

fn encode_json(value: &impl Serialize) -> String {
    let json = serde_json::to_vec(value).expect("structs of strings, numbers and lists always serialize");
    BASE64.encode(json)
}

fn decode(part: &str, text: &str) -> Result<Vec<u8>, Invalid> {
    BASE64.decode(text).map_err(|error| not_one(&format!("its {part} is not base64url: {error}")))
}

fn decode_json<T: for<'de> Deserialize<'de>>(part: &str, text: &str) -> Result<T, Invalid> {
    let json = decode(part, text)?;
    serde_json::from_slice(&json).map_err(|error| not_one(&format!("its {part}: {error}")))
}

/// `reason` may hold what the certificate's author wrote, who is nobody yet.
fn not_one(reason: &str) -> Invalid {
    Invalid::NotACertificate(shown(reason))
}

/// A stranger's text, short and without characters that a terminal obeys.
fn shown(text: &str) -> String {
    text.chars().take(160).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::claims::tests::claims;
    use super::key::tests::{key, public};
    use super::*;
    use p256::ecdsa::SigningKey;
    use p256::ecdsa::signature::Signer as _;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    /// A certificate, and the key that it is checked with.
    static GOOD: LazyLock<(String, PublicKey)> = LazyLock::new(|| (certificate(&claims(), &key(1)), public(&key(1))));

    fn certificate(claims: &Claims, key: &SigningKey) -> String {
        issue::<()>(claims, &public(key), |bytes| Ok(key.sign(bytes))).unwrap()
    }

    /// A certificate with this header and these claims, signed by the key with the algorithm that it should be.
    fn forged(header: &str, claims: &str, key: &SigningKey) -> String {
        let input = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
        let signature: Signature = key.sign(input.as_bytes());
        format!("{input}.{}", BASE64.encode(signature.to_bytes()))
    }

    fn header(alg: &str, typ: &str) -> String {
        format!(r#"{{"alg":"{alg}","kid":"{}","typ":"{typ}"}}"#, public(&key(1)).id())
    }

    #[test]
    fn what_the_device_said_is_read_back_with_its_key() {
        let text = certificate(&claims(), &key(1));
        let verified = verify(format!("{text}\n").as_bytes(), &public(&key(1))).unwrap();
        assert_eq!(verified.claims, claims());
        assert_eq!(verified.signed, serde_json::to_value(claims()).unwrap());
    }

    #[test]
    fn another_key_is_told_from_an_alteration() {
        let text = certificate(&claims(), &key(1));
        let other = public(&key(2));
        let expected = Invalid::OtherKey { signed: public(&key(1)).id(), given: other.id() };
        assert_eq!(verify(text.as_bytes(), &other), Err(expected));
        let (input, _) = text.rsplit_once('.').unwrap();
        let signature: Signature = key(2).sign(input.as_bytes());
        let stolen = format!("{input}.{}", BASE64.encode(signature.to_bytes()));
        assert_eq!(verify(stolen.as_bytes(), &public(&key(1))), Err(Invalid::Altered));
    }

    #[test]
    fn no_header_talks_the_verifier_into_another_algorithm() {
        let content = serde_json::to_string(&claims()).unwrap();
        for algorithm in ["none", "HS256", "RS256", "ES384", "es256", ""] {
            let text = forged(&header(algorithm, TYPE), &content, &key(1));
            let expected = Invalid::Algorithm(algorithm.to_owned());
            assert_eq!(verify(text.as_bytes(), &public(&key(1))), Err(expected), "{algorithm}");
        }
        let critical = header(ALGORITHM, TYPE).replace('}', r#","crit":["b64"],"b64":false}"#);
        let text = forged(&critical, &content, &key(1));
        assert!(matches!(verify(text.as_bytes(), &public(&key(1))), Err(Invalid::NotACertificate(_))));
    }

    #[test]
    fn something_else_that_the_key_signed_is_no_certificate() {
        let content = serde_json::to_string(&claims()).unwrap();
        for (typ, content) in [("JWT", content.as_str()), (TYPE, "{}"), (TYPE, "7"), (TYPE, r#"{"version":1}"#)] {
            let text = forged(&header(ALGORITHM, typ), content, &key(1));
            let refused = verify(text.as_bytes(), &public(&key(1)));
            assert!(matches!(refused, Err(Invalid::NotACertificate(_))), "{typ} {content}: {refused:?}");
        }
    }

    #[test]
    fn a_version_that_is_not_known_is_named() {
        let text = forged(&header(ALGORITHM, TYPE), r#"{"version":2,"new":true}"#, &key(1));
        assert_eq!(verify(text.as_bytes(), &public(&key(1))), Err(Invalid::Version(2)));
    }

    #[test]
    fn what_a_later_nemos_adds_is_kept_though_it_is_not_understood() {
        let mut content = serde_json::to_value(claims()).unwrap();
        content["added"] = "later".into();
        let text = forged(&header(ALGORITHM, TYPE), &content.to_string(), &key(1));
        assert_eq!(verify(text.as_bytes(), &public(&key(1))).unwrap().signed, content);
    }

    #[test]
    fn a_stranger_cannot_write_to_the_terminal() {
        let text = forged(&header("\\u001b[2J", TYPE), "{}", &key(1));
        let said = verify(text.as_bytes(), &public(&key(1))).unwrap_err().to_string();
        assert!(!said.chars().any(char::is_control), "{said:?}");
    }

    #[test]
    fn what_is_too_large_is_not_looked_at() {
        assert_eq!(verify(&vec![b'a'; MAX_BYTES + 1], &public(&key(1))), Err(Invalid::TooLarge));
    }

    proptest! {
        #[test]
        fn any_byte_that_changes_is_noticed(at: prop::sample::Index, flip in 1..=255u8) {
            let mut text = format!("{}\n", GOOD.0).into_bytes();
            let at = at.index(text.len());
            text[at] ^= flip;
            prop_assert!(verify(&text, &GOOD.1).is_err());
        }

        #[test]
        fn any_end_that_is_missing_is_noticed(length: prop::sample::Index) {
            let length = length.index(GOOD.0.len());
            prop_assert!(verify(&GOOD.0.as_bytes()[..length], &GOOD.1).is_err());
        }

        #[test]
        fn no_bytes_make_the_verifier_panic(bytes: Vec<u8>, content: String) {
            let _ = verify(&bytes, &GOOD.1);
            let _ = verify(format!("{}..", BASE64.encode(&content)).as_bytes(), &GOOD.1);
            let _ = verify(forged(&header(ALGORITHM, TYPE), &content, &key(1)).as_bytes(), &GOOD.1);
        }
    }
}
