//! Whose configurations a device takes: signatures of OpenSSH, by Ed25519 keys that the image names.
//!
//! The archive's [`INDEX_FILE`](super::INDEX_FILE) is what is signed. It names all else by its digest, and is there before
//! anything is unpacked; `ssh-keygen -Y sign -n nemos-configuration` makes the signature.
//!
//! Source: PROTOCOL.sshsig of OpenSSH.

use serde::{Deserialize, Serialize};
use ssh_key::{Algorithm, HashAlg, PublicKey, SshSig};
use thiserror::Error;

/// What the signatures are for, as OpenSSH calls its namespaces: one that was made for something else is none.
pub const NAMESPACE: &str = "nemos-configuration";
/// Most bytes of a signature.
pub const MAX_SIGNATURE: usize = 8 << 10;

/// Where the policy is in the root; read it below [`LOWER_MOUNT`](crate::overlay::LOWER_MOUNT), which is verified. Without the
/// file, whoever may import may import anything.
pub const FILE: &str = "usr/share/nemos/configurations.json";

/// The policy: also in the table `[configurations]` of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// Whose signatures count: Ed25519 keys as ssh-keygen(1) writes them into `.pub` files.
    pub signers: Vec<String>,
    /// What nobody has signed is not imported.
    pub require_signature: bool,
}

/// A policy that cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadPolicy {
    /// Nothing could be imported.
    #[error("a signature is required, and there are no signers")]
    NoSigners,
    /// A signer is no key.
    #[error("`{key}` is not the public half of an Ed25519 key, as `ssh-ed25519 AAAA... comment`: {reason}")]
    Signer {
        /// What is written there.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

/// A configuration that is not taken, for who signed it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refused {
    /// It must be signed.
    #[error("it is not signed, and this image takes only configurations that are; sign it with: nemosctl overlay sign")]
    Unsigned,
    /// It is no signature.
    #[error("its signature is none that `nemosctl overlay sign` or `ssh-keygen -Y sign` makes: {0}")]
    Malformed(String),
    /// Nobody knows the key.
    #[error("it is signed with the key {0}, which is none of this image's signers")]
    Stranger(String),
    /// The key has signed something else.
    #[error("its signature by {0} is of something else: it was altered, or is the signature of another file")]
    Wrong(String),
}

/// Who vouches for a configuration that was imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Voucher {
    /// Nobody: it is not signed.
    Nobody,
    /// The image: it was shipped in its verified root.
    Image,
    /// A signer: the fingerprint of the key, and the comment that it has in the policy.
    Signer(String),
}

impl Policy {
    /// Whether it can be carried out.
    pub fn check(&self) -> Result<(), BadPolicy> {
        self.keys()?;
        if self.require_signature && self.signers.is_empty() { Err(BadPolicy::NoSigners) } else { Ok(()) }
    }

    fn keys(&self) -> Result<Vec<PublicKey>, BadPolicy> {
        let key = |text: &String| {
            let bad = |reason| BadPolicy::Signer { key: text.escape_debug().take(80).collect(), reason };
            let key = PublicKey::from_openssh(text).map_err(|error| bad(error.to_string()))?;
            let algorithm = key.algorithm();
            if algorithm == Algorithm::Ed25519 { Ok(key) } else { Err(bad(format!("it is of {algorithm}"))) }
        };
        self.signers.iter().map(key).collect()
    }

    /// Who vouches for the archive with that index, if it may be imported.
    pub fn admit(&self, index: &[u8], signature: Option<&str>) -> Result<Voucher, Refused> {
        let Some(signature) = signature else {
            return if self.require_signature { Err(Refused::Unsigned) } else { Ok(Voucher::Nobody) };
        };
        if signature.len() > MAX_SIGNATURE {
            return Err(Refused::Malformed(format!("it has more than {MAX_SIGNATURE} bytes")));
        }
        let signature: SshSig =
            signature.parse().map_err(|error: ssh_key::Error| Refused::Malformed(error.to_string()))?;
        let fingerprint = signature.public_key().fingerprint(HashAlg::Sha256).to_string();
        // A policy that does not hold has no signers.
        let signers = self.keys().unwrap_or_default();
        let signer = signers.into_iter().find(|signer| signer.key_data() == signature.public_key());
        let Some(signer) = signer else { return Err(Refused::Stranger(fingerprint)) };
        let name = format!("{fingerprint} {}", signer.comment()).trim_end().to_owned();
        match signer.verify(NAMESPACE, index, &signature) {
            Ok(()) => Ok(Voucher::Signer(name)),
            Err(_) => Err(Refused::Wrong(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Made with `ssh-keygen -t ed25519` and `printf index | ssh-keygen -Y sign -n NAMESPACE`.
    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFAIMVDDfukdER4Vvap6bWE0F0OAjGOR5TkSSH+rBVmW fleet@example";
    const SIGNATURE: &str = "-----BEGIN SSH SIGNATURE-----\n\
        U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgUAgxUMN+6R0RHhW9qnptYTQXQ4\n\
        CMY5HlORJIf6sFWZYAAAATbmVtb3MtY29uZmlndXJhdGlvbgAAAAAAAAAGc2hhNTEyAAAA\n\
        UwAAAAtzc2gtZWQyNTUxOQAAAEAJWUoAXb570N5YgvqSoXgQnOIaQf/e1gmW6j+fPAkIGU\n\
        jtQGHqOOB55PKMTHYh95xELBAXeVKUT65cSieS/cYD\n\
        -----END SSH SIGNATURE-----";
    const OF_OTHER_NAMESPACE: &str = "-----BEGIN SSH SIGNATURE-----\n\
        U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgUAgxUMN+6R0RHhW9qnptYTQXQ4\n\
        CMY5HlORJIf6sFWZYAAAAEZmlsZQAAAAAAAAAGc2hhNTEyAAAAUwAAAAtzc2gtZWQyNTUx\n\
        OQAAAEDEMsBoP+3bm2vHe7mm+zCT3J0iavEGywN/TZo5neb/ZT5kpEA8uofSo2Bcp00M3d\n\
        fF9KbcVfx+J9gAo4zBTnkA\n\
        -----END SSH SIGNATURE-----";

    fn policy(signers: &[&str], require_signature: bool) -> Policy {
        Policy { signers: signers.iter().map(ToString::to_string).collect(), require_signature }
    }

    #[test]
    fn a_signer_vouches_for_what_it_signed() {
        for required in [false, true] {
            let Voucher::Signer(name) = policy(&[KEY], required).admit(b"index", Some(SIGNATURE)).unwrap() else {
                panic!()
            };
            assert!(name.starts_with("SHA256:") && name.ends_with(" fleet@example"), "{name}");
        }
    }

    #[test]
    fn no_other_signature_is_taken_for_one() {
        let known = policy(&[KEY], false);
        assert!(matches!(known.admit(b"other", Some(SIGNATURE)), Err(Refused::Wrong(_))));
        assert!(matches!(known.admit(b"index", Some(OF_OTHER_NAMESPACE)), Err(Refused::Wrong(_))));
        assert!(matches!(policy(&[], false).admit(b"index", Some(SIGNATURE)), Err(Refused::Stranger(_))));
        for text in ["", "signed", &SIGNATURE[..100], &"x".repeat(MAX_SIGNATURE + 1)] {
            assert!(matches!(known.admit(b"index", Some(text)), Err(Refused::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn without_a_signature_the_policy_decides() {
        assert_eq!(policy(&[KEY], false).admit(b"index", None), Ok(Voucher::Nobody));
        assert_eq!(policy(&[KEY], true).admit(b"index", None), Err(Refused::Unsigned));
    }

    #[test]
    fn a_policy_that_cannot_be_followed_is_told() {
        assert_eq!(policy(&[KEY], true).check(), Ok(()));
        assert_eq!(policy(&[], false).check(), Ok(()));
        assert_eq!(policy(&[], true).check(), Err(BadPolicy::NoSigners));
        let ecdsa = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2HMM5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkbqAcEc= x";
        for key in ["", "ssh-ed25519", "age1fleet", ecdsa] {
            assert!(matches!(policy(&[key], false).check(), Err(BadPolicy::Signer { .. })), "{key}");
        }
    }

    proptest! {
        #[test]
        fn one_changed_byte_is_enough(at in 0..SIGNATURE.len(), byte in b' '..b'~') {
            let mut altered = SIGNATURE.to_owned().into_bytes();
            prop_assume!(altered[at] != byte);
            altered[at] = byte;
            let altered = String::from_utf8(altered).unwrap();
            // What is left of white space and padding signs the same.
            if let Ok(voucher) = policy(&[KEY], true).admit(b"index", Some(&altered)) {
                let parsed = |text: &str| text.parse::<SshSig>().unwrap();
                prop_assert_eq!(parsed(&altered), parsed(SIGNATURE));
                prop_assert!(matches!(voucher, Voucher::Signer(_)));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = policy(&[KEY], true).admit(b"index", Some(&text));
        }
    }
}
