//! What a TPM will have measured of a unified kernel image in PCR 11, and the policy that a signature allows.
//!
//! ```text
//!     section .pcrsig  --systemd-stub--> /.extra  --nemos-initrd--> /run/systemd  --> systemd's plugin for libcryptsetup
//! ```
//!
//! Sources: `docs/UEFI_KERNEL_IMAGE`, `src/boot/measure.c` and `src/fundamental/uki.c` of systemd for what systemd-stub
//! measures, in which order; "TPM 2.0 Library, Part 3: Commands", `TPM2_PolicyPCR`, for the policy.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rsa::PublicKey;
use rsa::pkcs8::DecodePublicKey as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::digest::sha256;

/// Where systemd-stub leaves what is in the sections `.pcrsig` and `.pcrpkey`. Source: systemd-stub(7).
pub const LEFT_BY_STUB: &str = "/.extra";
/// Where systemd looks for it, in the initrd and later.
pub const RUNTIME: &str = "/run/systemd";
/// The file of the signatures, [`Signatures`].
pub const SIGNATURES_FILE: &str = "tpm2-pcr-signature.json";
/// The file of the public key, in PEM.
pub const PUBLIC_KEY_FILE: &str = "tpm2-pcr-public-key.pem";

/// The register.
pub const PCR: u8 = 11;

/// Sections that are measured, in their order; the signature itself is not.
pub const MEASURED: [&str; 14] = [
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey", ".profile",
    ".dtbauto", ".hwids", ".efifw",
];

/// Moments that a signature is good for: in the initrd, which measures nothing itself, and in the system that it starts, where
/// systemd measures that it set itself up (`systemd-pcrphase-sysinit.service`) and that it is up (`systemd-pcrphase.service`).
pub const PHASES: [&str; 3] = [INITRD, "sysinit", "sysinit:ready"];

/// In the initrd.
pub const INITRD: &str = "";

/// `TPM_CC_PolicyPCR`, and a selection of PCR 11 of the SHA-256 bank: one selection, the bank, three bytes of bits.
const POLICY_PCR: [u8; 4] = [0x00, 0x00, 0x01, 0x7f];
const SELECTION: [u8; 10] = [0x00, 0x00, 0x00, 0x01, 0x00, 0x0b, 0x03, 0x00, 0x08, 0x00];

sha256! {
    /// A digest of the bank of SHA-256: a register's value, what it is extended with, or a policy.
    Digest,
    /// Something else.
    InvalidDigest: "a digest of a PCR",
}

/// The signatures in section `.pcrsig`, by bank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signatures {
    /// Of the bank of SHA-256.
    pub sha256: Vec<Signature>,
}

/// A signature, over a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The registers that the policy is about.
    pub pcrs: Vec<u8>,
    /// SHA-256 of the public key, in PKCS#1.
    pub pkfp: String,
    /// The policy.
    pub pol: Digest,
    /// The signature itself, in Base64.
    pub sig: String,
}

impl Signatures {
    /// The one for an image while the register has that value, if there is one.
    pub fn of(&self, register: Digest) -> Option<&Signature> {
        let policy = policy(register);
        self.sha256.iter().find(|signature| signature.pol == policy && signature.pcrs == [PCR])
    }
}

/// A key that policies are signed with: the public half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(PublicKey);

impl Key {
    /// Reads one in PEM: RSA, as a TPM confirms no other.
    pub fn from_pem(text: &str) -> Option<Self> {
        PublicKey::from_public_key_pem(text).ok().map(Key)
    }

    /// Whether it signed that the register has that value.
    pub fn allows(&self, register: Digest, signatures: &Signatures) -> bool {
        let signature = signatures.of(register).and_then(|signature| BASE64.decode(&signature.sig).ok());
        let policy = policy(register);
        signature.is_some_and(|bytes| self.0.pkcs1v15_verify::<Sha256>(policy.as_bytes(), &bytes).is_ok())
    }
}

/// The register after these sections, and after the phases of the boot: names with the digests of the contents, and words with
/// `:` between.
pub fn expected(sections: &[(&str, Digest)], phases: &str) -> Digest {
    let mut pcr = Digest([0; 32]);
    let mut extend = |Digest(measured)| pcr = digest(&[&pcr.0, &measured]);
    for name in MEASURED {
        if let Some((_, content)) = sections.iter().find(|(found, _)| *found == name) {
            extend(digest(&[name.as_bytes(), b"\0"]));
            extend(*content);
        }
    }
    for phase in phases.split(':').filter(|phase| !phase.is_empty()) {
        extend(digest(&[phase.as_bytes()]));
    }
    pcr
}

/// The policy that is fulfilled while the register has that value.
pub fn policy(pcr: Digest) -> Digest {
    let Digest(values) = digest(&[&pcr.0]);
    digest(&[&[0; 32], &POLICY_PCR, &SELECTION, &values])
}

fn digest(parts: &[&[u8]]) -> Digest {
    Digest(parts.iter().fold(Sha256::new(), Sha256::chain_update).finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemd_measure_calculates_is_calculated() {
        // systemd-measure 257 calculate --linux=... --osrel=... --cmdline=... --bank=sha256 --phase=... --phase=enter-initrd
        let sections = [(".cmdline", "quiet"), (".linux", "kernel"), (".osrel", "ID=nemos\n")];
        let sections = sections.map(|(name, content)| (name, digest(&[content.as_bytes()])));
        let in_initrd = expected(&sections, INITRD).to_string();
        assert_eq!(in_initrd, "381a53620d115a9707dd924c5294ded8050291bfeac9ab33ce78fd067a19d5f9");
        let entered = expected(&sections, "enter-initrd");
        assert_eq!(entered.to_string(), "a2b7aa1a94182498e1a68820babbd49cbe4fbd88e1b3ed15ff1ffb34f68ac67c");
        // And its sign, field "pol".
        assert_eq!(policy(entered).to_string(), "3d302b08a8150a7cd6d16e9cf6158faf133637c748863330c331592c325c1331");
    }

    #[test]
    fn a_signature_is_for_one_value_of_that_register() {
        let register = Digest([7; 32]);
        let signature = |pcrs: &[u8]| Signature {
            pcrs: pcrs.to_vec(),
            pkfp: String::new(),
            pol: policy(register),
            sig: String::new(),
        };
        let of = |pcrs| Signatures { sha256: vec![signature(pcrs)] };
        assert!(of(&[PCR]).of(register).is_some());
        assert!(of(&[PCR]).of(Digest([8; 32])).is_none());
        assert!(of(&[PCR, 12]).of(register).is_none());
    }
}
