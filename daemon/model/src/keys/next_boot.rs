//! What the next boot measures, beside what this one did.
//!
//! ```text
//!     log of this boot: variables --are they still the same?-------------------------> PCR 7
//!                       programs  --is the kernel's image on the ESP one of them?----> PCR 4
//!                       authority --is that image signed with the same certificate?--> PCR 7
//!                                   and what of it is signed for a TPM?--------------> PCR 11
//! ```
//!
//! A running system can change all of that. A key of the TPM is bound to what was.

use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};

use crate::keys::measured::{Measured, PROGRAMS_PCR, SECURE_BOOT_PCR, certificates};
use crate::keys::slot::Tpm2Token;
use crate::uki::pcr::{Digest, Key};

/// What the next boot measures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextBoot {
    /// What Secure Boot decides by.
    pub secure_boot: SecureBoot,
    /// What the firmware starts.
    pub image: KernelImage,
    /// Whether the TPM keeps another volume than the one that is there, so that it is not opened.
    pub is_foreign: bool,
}

/// The variables that Secure Boot decides by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecureBoot {
    /// As they were measured at this boot.
    Same,
    /// These have another value now.
    Differs(Vec<String>),
    /// That cannot be told, and why.
    Unknown(String),
}

/// The kernel's image on the ESP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelImage {
    /// The firmware starts it.
    Starts {
        /// Whether it is what it started at this boot.
        is_same: bool,
        /// Whether it trusts it as it trusted that.
        is_trusted_as_now: bool,
        /// Who signed what a TPM measures of it in the initrd.
        signed_for_tpm: Option<Key>,
    },
    /// It does not, and why.
    Refused(String),
    /// That cannot be told, and why.
    Unknown(String),
}

/// An image as it is on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The firmware's digest of it.
    pub digest: Digest,
    /// Its signature: PKCS#7.
    pub signature: Option<Vec<u8>>,
    /// Who signed what a TPM measures of it in the initrd.
    pub signed_for_tpm: Option<Key>,
}

impl KernelImage {
    /// What the firmware will do with an image. `trusted` is the file of `db`.
    pub fn judge(found: Found, measured: &Measured, trusted: &[u8]) -> Self {
        let is_same = measured.programs.contains(&found.digest);
        let is_trusted_as_now = if is_same || !measured.is_secured() {
            true
        } else {
            match is_signed_as_now(&found, measured, trusted) {
                Ok(as_now) => as_now,
                Err(why) => return KernelImage::Refused(why.to_owned()),
            }
        };
        KernelImage::Starts { is_same, is_trusted_as_now, signed_for_tpm: found.signed_for_tpm }
    }
}

/// Whether it is signed with a certificate that this boot's programs were signed with, or with another one that is trusted.
///
/// What must be in a signature that the firmware believes is looked for, and the signature itself is not checked: an image that
/// somebody made to deceive is refused by the firmware, and not foreseen.
fn is_signed_as_now(found: &Found, measured: &Measured, trusted: &[u8]) -> Result<bool, &'static str> {
    let signature = found.signature.as_deref().ok_or("it is not signed, and Secure Boot is on")?;
    if !contains(signature, found.digest.as_bytes()) {
        return Err("it was changed after it was signed, and Secure Boot is on");
    }
    let now: Vec<&[u8]> = measured.authorities.iter().map(Vec::as_slice).collect();
    let all = certificates(trusted);
    let has = |certificate: &&[u8]| contains(signature, certificate);
    let names = |certificate: &&[u8]| issuer(certificate).is_some_and(|name| contains(signature, &name));
    // A certificate that issued the signer's is named in it. Two may have one name, so those that are there themselves come first.
    if now.iter().any(has) {
        Ok(true)
    } else if all.iter().any(has) {
        Ok(false)
    } else if now.iter().any(names) {
        Ok(true)
    } else if all.iter().any(names) {
        Ok(false)
    } else {
        Err("no certificate that the firmware trusts (db) is in its signature, and Secure Boot is on")
    }
}

/// The name by which a certificate is known to those that it issued.
fn issuer(certificate: &[u8]) -> Option<Vec<u8>> {
    Certificate::from_der(certificate).ok()?.tbs_certificate().subject().to_der().ok()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}

impl NextBoot {
    /// Why there is none.
    pub fn refusal(&self) -> Option<String> {
        match &self.image {
            KernelImage::Refused(why) => {
                Some(format!("the firmware will not start the kernel's image on the ESP: {why}"))
            }
            _ if self.is_foreign => {
                Some("the TPM vouches for another volume than this one; `nemosctl reset --overlay` makes one that it vouches for".into())
            }
            KernelImage::Starts { .. } | KernelImage::Unknown(_) => None,
        }
    }

    /// Why a key of the TPM that is given out now is not given out then; else, what is not known of that.
    pub fn keeps(&self, token: &Tpm2Token) -> Result<Vec<String>, String> {
        let mut unknown = Vec::new();
        let is_other = |pcr: &u8| *pcr != PROGRAMS_PCR && token.is_bound_to(*pcr);
        let others: Vec<String> = (0..SECURE_BOOT_PCR).filter(is_other).map(|pcr| pcr.to_string()).collect();
        if !others.is_empty() {
            unknown
                .push(format!("what the firmware will measure of itself and its settings (PCR {})", others.join(", ")));
        }
        match &self.secure_boot {
            SecureBoot::Differs(names) if token.is_bound_to(SECURE_BOOT_PCR) => {
                return Err(format!("Secure Boot's {} changed since this one began (PCR 7)", names.join(", ")));
            }
            SecureBoot::Unknown(why) => unknown.push(format!("whether Secure Boot is the same: {why}")),
            SecureBoot::Same | SecureBoot::Differs(_) => {}
        }
        match &self.image {
            KernelImage::Starts { is_trusted_as_now: false, .. } if token.is_bound_to(SECURE_BOOT_PCR) => {
                Err("the kernel's image on the ESP is signed with another certificate than that of this boot (PCR 7)"
                    .into())
            }
            KernelImage::Starts { is_same: false, .. } if token.is_bound_to(PROGRAMS_PCR) => {
                Err("the kernel's image on the ESP is another one than that of this boot (PCR 4)".into())
            }
            KernelImage::Starts { signed_for_tpm, .. } => {
                let is_signed = |pem: &str| signed_for_tpm.is_some() && *signed_for_tpm == Key::from_pem(pem);
                if token.signer.as_deref().is_none_or(is_signed) {
                    return Ok(unknown);
                }
                Err("what the kernel's image on the ESP measures is not signed with the key that the TPM asks for (PCR 11)".into())
            }
            KernelImage::Refused(why) | KernelImage::Unknown(why) => {
                unknown.push(format!("what the kernel's image on the ESP is: {why}"));
                Ok(unknown)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::measured::tests::{db, log};
    use crate::keys::slot::tpm2_tokens;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use serde_json::json;

    const IMAGE: Digest = Digest::from_bytes([7; 32]);
    const ANOTHER: Digest = Digest::from_bytes([8; 32]);
    /// As it is made by `openssl rsa -pubout`.
    const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEApm731VLXDS+nFMmQDVNo
DH5mr6KFl4P11n5SHcbqokQsArUmdG36k6BmU+qmzuPZB9LF+GTU1cHNzPJCRKOe
yPEdlAQ4OLWCgRXpbugVfTxM33ias8KVD1iPSV+RH1uxkKR+TLXQ6/q8MJDPdg1Q
zB+bjdVFi1esUfsY7kJNRs3jI03aFQcnsbrp+cLb1uDWaoInU3BzAccb9B0Mcr6G
G+yGbsHoEJP9rvsWz+hCqpYY7SWvmdXx+bWtRsgNQzp8oPvcLDo09ASHMR8T4fcq
YT8SkSNDcq9ZElh6AziZ7rXak1RMw/dks0X36iAdvwyF7VizdBZBQmjqAhSP6xff
6wIDAQAB
-----END PUBLIC KEY-----
";

    fn token(pcrs: &[u8], signer: Option<&str>) -> Tpm2Token {
        let mut token = json!({"type": "systemd-tpm2", "keyslots": ["1"], "tpm2-pcrs": pcrs});
        if let Some(pem) = signer {
            token["tpm2_pubkey"] = BASE64.encode(pem).into();
        }
        tpm2_tokens(&json!({"tokens": {"0": token}, "keyslots": {"1": {}}})).remove(0)
    }

    fn found(digest: Digest, signature: &[&[u8]]) -> Found {
        let signature = (!signature.is_empty()).then(|| signature.concat());
        Found { digest, signature, signed_for_tpm: None }
    }

    fn judged(digest: Digest, signature: &[&[u8]], secured: bool) -> KernelImage {
        let measured = Measured::parse(&log(secured, b"our certificate", IMAGE)).unwrap();
        KernelImage::judge(found(digest, signature), &measured, &db(&[b"our certificate", b"another certificate"]))
    }

    fn starts(is_same: bool, is_trusted_as_now: bool) -> KernelImage {
        KernelImage::Starts { is_same, is_trusted_as_now, signed_for_tpm: None }
    }

    #[test]
    fn the_image_of_this_boot_starts_again() {
        assert_eq!(judged(IMAGE, &[], true), starts(true, true), "the firmware has started it");
        assert_eq!(judged(IMAGE, &[], false), starts(true, true));
    }

    #[test]
    fn another_image_starts_if_it_is_signed_or_nobody_asks() {
        let signed: &[u8] = ANOTHER.as_bytes();
        assert_eq!(judged(ANOTHER, &[], false), starts(false, true));
        assert_eq!(judged(ANOTHER, &[signed, b"our certificate"], true), starts(false, true));
        assert_eq!(judged(ANOTHER, &[signed, b"another certificate"], true), starts(false, false));
        for (signature, why) in [
            (&[][..], "it is not signed"),
            (&[IMAGE.as_bytes().as_slice(), b"our certificate"], "it was changed after it was signed"),
            (&[signed, b"a stranger's certificate"], "no certificate that the firmware trusts"),
        ] {
            let refused = judged(ANOTHER, signature, true);
            assert!(matches!(&refused, KernelImage::Refused(told) if told.contains(why)), "{refused:?}");
        }
    }

    #[test]
    fn a_key_of_the_tpm_is_lost_by_what_it_is_bound_to() {
        let next = |secure_boot, image| NextBoot { secure_boot, image, is_foreign: false };
        let loses = |next: &NextBoot, token: &Tpm2Token| next.keeps(token).unwrap_err();
        let changed = next(SecureBoot::Differs(vec!["db".into(), "dbx".into()]), starts(true, true));
        assert!(loses(&changed, &token(&[7], None)).contains("Secure Boot's db, dbx changed"));
        let of_itself = "what the firmware will measure of itself and its settings (PCR 0, 2)";
        assert_eq!(changed.keeps(&token(&[0, 2], None)), Ok(vec![of_itself.to_owned()]));

        let updated = next(SecureBoot::Same, starts(false, true));
        assert_eq!(updated.keeps(&token(&[7], None)), Ok(Vec::new()));
        assert!(loses(&updated, &token(&[4, 7], None)).ends_with("(PCR 4)"));
        assert!(loses(&updated, &token(&[7], Some(PUBLIC_KEY))).ends_with("(PCR 11)"));
        let signed = KernelImage::Starts {
            is_same: false,
            is_trusted_as_now: true,
            signed_for_tpm: Some(Key::from_pem(PUBLIC_KEY).unwrap()),
        };
        let signed = next(SecureBoot::Same, signed);
        assert_eq!(signed.keeps(&token(&[7], Some(PUBLIC_KEY))), Ok(Vec::new()));
        assert!(loses(&signed, &token(&[7], Some("no key"))).ends_with("(PCR 11)"));

        let otherwise = next(SecureBoot::Same, starts(false, false));
        assert!(loses(&otherwise, &token(&[7], None)).contains("another certificate"));
        assert!(otherwise.keeps(&token(&[2], None)).is_ok());
    }

    #[test]
    fn what_is_not_known_is_said() {
        let unknown = NextBoot {
            secure_boot: SecureBoot::Unknown("there is no log".into()),
            image: KernelImage::Unknown("the ESP cannot be read".into()),
            is_foreign: false,
        };
        assert_eq!(unknown.keeps(&token(&[7], None)).unwrap().len(), 2);
        assert_eq!(unknown.refusal(), None);
    }
}
