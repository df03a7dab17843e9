//! The signature that a TPM asks for: over what it will have measured of a unified kernel image in PCR 11.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nemos_model::uki::pcr::{self, PCR, PHASES, Signature, Signatures, expected};
use rsa::pkcs1::EncodeRsaPublicKey;
use thiserror::Error;

use crate::build::Digest;
use crate::keys::{KeyError, Keys, Purpose, Scheme, Trusted, public_key};

/// Why a signature lets no TPM give a secret to the image.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadPolicy {
    /// Not what systemd reads.
    #[error("section .pcrsig is not what systemd reads: {0}")]
    Malformed(String),
    /// For another image.
    #[error("no signature is for this image in each phase of its boot")]
    Measurement,
    /// By another key.
    #[error("the signature was made by another key")]
    Key,
}

/// Signs what a TPM will have measured of these sections; the text of section `.pcrsig` is returned.
pub fn sign(keys: &Keys, sections: &[(&str, pcr::Digest)]) -> Result<String, KeyError> {
    let fingerprint = fingerprint(keys.trusted(Purpose::Pcr));
    let sign = |phases| {
        let policy = pcr::policy(expected(sections, phases));
        let signature = keys.sign(Purpose::Pcr, Scheme::Pkcs1, policy.as_bytes())?;
        let pkfp = fingerprint.clone();
        Ok(Signature { pcrs: vec![PCR], pkfp, pol: policy, sig: BASE64.encode(signature) })
    };
    let sha256 = PHASES.into_iter().map(sign).collect::<Result<_, KeyError>>()?;
    Ok(serde_json::to_string(&Signatures { sha256 }).unwrap_or_default())
}

fn fingerprint(trusted: &Trusted) -> String {
    let key = public_key(trusted.certificate()).and_then(|key| key.to_pkcs1_der().ok());
    key.map_or_else(String::new, |key| Digest::of_bytes(key.as_bytes()).hex())
}

/// Whether a TPM that trusts a key will give its secrets to what has these sections, in each phase of its boot.
pub fn check(text: &str, sections: &[(&str, pcr::Digest)], trusted: Option<&Trusted>) -> Result<(), BadPolicy> {
    let signatures: Signatures = serde_json::from_str(text).map_err(|error| BadPolicy::Malformed(error.to_string()))?;
    for phases in PHASES {
        let register = expected(sections, phases);
        let signature = signatures.of(register).ok_or(BadPolicy::Measurement)?;
        let bytes = BASE64.decode(&signature.sig).map_err(|error| BadPolicy::Malformed(error.to_string()))?;
        let policy = pcr::policy(register);
        if trusted.is_some_and(|trusted| !trusted.confirms(Scheme::Pkcs1, policy.as_bytes(), &bytes)) {
            return Err(BadPolicy::Key);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::tests::folder;

    #[test]
    fn a_signature_is_for_one_image_and_by_one_key() {
        let keys = Keys::open(folder(), None).expect("keys");
        let sections = [(".cmdline", "quiet"), (".linux", "kernel")];
        let sections =
            sections.map(|(name, text)| (name, pcr::Digest::from_bytes(Digest::of_bytes(text.as_bytes()).0)));
        let text = sign(&keys, &sections).expect("a signature");
        assert_eq!(check(&text, &sections, Some(keys.trusted(Purpose::Pcr))), Ok(()));
        assert_eq!(check(&text, &sections, Some(keys.trusted(Purpose::Root))), Err(BadPolicy::Key));
        assert_eq!(check(&text, &sections[1..], None), Err(BadPolicy::Measurement));
        assert!(matches!(check("{}", &sections, None), Err(BadPolicy::Malformed(_))));
    }
}
