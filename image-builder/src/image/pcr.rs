//! What a TPM will have measured of a unified kernel image in PCR 11, and the policy that a signature allows.
//!
//! Sources: `docs/UEFI_KERNEL_IMAGE`, `src/boot/measure.c` and `src/fundamental/uki.c` of systemd for what systemd-stub
//! measures, in which order; "TPM 2.0 Library, Part 3: Commands", `TPM2_PolicyPCR`, for the policy.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rsa::pkcs1::EncodeRsaPublicKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::build::Digest;
use crate::keys::{KeyError, Keys, Purpose, Scheme, Trusted, public_key};

/// The register.
pub const PCR: u8 = 11;

/// Sections that are measured, in their order; the signature itself is not.
pub const MEASURED: [&str; 14] = [
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey", ".profile",
    ".dtbauto", ".hwids", ".efifw",
];

/// Moments of a boot that a signature is good for: in the initrd, whether or not it has systemd's
/// `systemd-pcrphase-initrd.service`, which measures that it was entered.
pub const PHASES: [&str; 2] = ["", "enter-initrd"];

/// `TPM_CC_PolicyPCR`, and a selection of PCR 11 of the SHA-256 bank: one selection, the bank, three bytes of bits.
const POLICY_PCR: [u8; 4] = [0x00, 0x00, 0x01, 0x7f];
const SELECTION: [u8; 10] = [0x00, 0x00, 0x00, 0x01, 0x00, 0x0b, 0x03, 0x00, 0x08, 0x00];

/// The signatures in section `.pcrsig`, by bank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signatures {
    sha256: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Signature {
    pcrs: Vec<u8>,
    /// SHA-256 of the public key, in PKCS#1.
    pkfp: String,
    /// The policy.
    pol: String,
    sig: String,
}

/// Why a signature lets no TPM give a secret to the image.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadPolicy {
    /// Not what systemd reads.
    #[error("section .pcrsig is not what systemd reads: {0}")]
    Malformed(String),
    /// For another image.
    #[error("no signature is for this image as it is in the initrd")]
    Measurement,
    /// By another key.
    #[error("the signature was made by another key")]
    Key,
}

/// The register after these sections, and after the phases of the boot: words with `:` between.
pub fn expected(sections: &[(&str, &[u8])], phases: &str) -> Digest {
    let mut pcr = [0; 32];
    let mut extend = |data: &[u8]| {
        pcr = Sha256::new().chain_update(pcr).chain_update(Sha256::digest(data)).finalize().into();
    };
    for name in MEASURED {
        if let Some((_, content)) = sections.iter().find(|(found, _)| *found == name) {
            extend(&[name.as_bytes(), b"\0"].concat());
            extend(content);
        }
    }
    for phase in phases.split(':').filter(|phase| !phase.is_empty()) {
        extend(phase.as_bytes());
    }
    Digest(pcr)
}

/// The policy that is fulfilled while the register has that value.
fn policy(pcr: Digest) -> Digest {
    let values = Sha256::digest(pcr.0);
    Digest::of_bytes(&[[0; 32].as_slice(), &POLICY_PCR, &SELECTION, &values].concat())
}

/// Signs what a TPM will have measured of these sections; the text of section `.pcrsig` is returned.
pub fn sign(keys: &Keys, sections: &[(&str, &[u8])]) -> Result<String, KeyError> {
    let fingerprint = fingerprint(keys.trusted(Purpose::Pcr));
    let sign = |phases| {
        let policy = policy(expected(sections, phases));
        let signature = keys.sign(Purpose::Pcr, Scheme::Pkcs1, &policy.0)?;
        let pkfp = fingerprint.clone();
        Ok(Signature { pcrs: vec![PCR], pkfp, pol: policy.hex(), sig: BASE64.encode(signature) })
    };
    let sha256 = PHASES.into_iter().map(sign).collect::<Result<_, KeyError>>()?;
    Ok(serde_json::to_string(&Signatures { sha256 }).unwrap_or_default())
}

fn fingerprint(trusted: &Trusted) -> String {
    let key = public_key(trusted.certificate()).and_then(|key| key.to_pkcs1_der().ok());
    key.map_or_else(String::new, |key| Digest::of_bytes(key.as_bytes()).hex())
}

/// Whether a TPM that trusts a key will give its secrets to what has these sections, in the initrd.
pub fn check(text: &str, sections: &[(&str, &[u8])], trusted: Option<&Trusted>) -> Result<(), BadPolicy> {
    let signatures: Signatures = serde_json::from_str(text).map_err(|error| BadPolicy::Malformed(error.to_string()))?;
    for phases in PHASES {
        let policy = policy(expected(sections, phases));
        let of_policy = signatures.sha256.iter().find(|signature| signature.pol == policy.hex());
        let signature = of_policy.filter(|signature| signature.pcrs == [PCR]).ok_or(BadPolicy::Measurement)?;
        let bytes = BASE64.decode(&signature.sig).map_err(|error| BadPolicy::Malformed(error.to_string()))?;
        if trusted.is_some_and(|trusted| !trusted.confirms(Scheme::Pkcs1, &policy.0, &bytes)) {
            return Err(BadPolicy::Key);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::tests::folder;

    const SECTIONS: [(&str, &[u8]); 3] = [(".cmdline", b"quiet"), (".linux", b"kernel"), (".osrel", b"ID=nemos\n")];

    #[test]
    fn what_systemd_measure_calculates_is_calculated() {
        // systemd-measure 257 calculate --linux=... --osrel=... --cmdline=... --bank=sha256 --phase=... --phase=enter-initrd
        assert_eq!(expected(&SECTIONS, "").hex(), "381a53620d115a9707dd924c5294ded8050291bfeac9ab33ce78fd067a19d5f9");
        assert_eq!(
            expected(&SECTIONS, "enter-initrd").hex(),
            "a2b7aa1a94182498e1a68820babbd49cbe4fbd88e1b3ed15ff1ffb34f68ac67c"
        );
        // And its sign, field "pol".
        assert_eq!(
            policy(expected(&SECTIONS, "enter-initrd")).hex(),
            "3d302b08a8150a7cd6d16e9cf6158faf133637c748863330c331592c325c1331"
        );
    }

    #[test]
    fn a_signature_is_for_one_image_and_by_one_key() {
        let keys = Keys::open(folder(), None).expect("keys");
        let text = sign(&keys, &SECTIONS).expect("a signature");
        assert_eq!(check(&text, &SECTIONS, Some(keys.trusted(Purpose::Pcr))), Ok(()));
        assert_eq!(check(&text, &SECTIONS, Some(keys.trusted(Purpose::Root))), Err(BadPolicy::Key));
        assert_eq!(check(&text, &SECTIONS[1..], None), Err(BadPolicy::Measurement));
        assert!(matches!(check("{}", &SECTIONS, None), Err(BadPolicy::Malformed(_))));
    }
}
