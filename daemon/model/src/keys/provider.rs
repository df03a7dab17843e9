//! What opens the volume, by the names that everybody knows: what the rest asks of a provider without touching anything.

use crate::keys::Refused;
use crate::words::words;

words! {
    /// What opened the volume, or could; in the order in which a boot tries them, unless the image's policy has another one.
    Provider {
        /// A key that the device's TPM keeps, and gives out to a boot that Secure Boot has let through as before.
        Tpm2 = "tpm2",
        /// A key that a PKCS#11 token keeps: a security key, a smart card, OP-TEE.
        Pkcs11 = "pkcs11",
        /// A file on another device, as a USB stick.
        KeyFile = "key-file",
        /// [`DEMO_KEY_FILE`](crate::keys::DEMO_KEY_FILE).
        DemoKey = "demo-key",
        /// What somebody types at the console.
        Passphrase = "passphrase",
        /// A key that the device made, kept elsewhere, and typed when nothing else works.
        RecoveryKey = "recovery-key",
    }
}

impl Provider {
    /// Whether somebody types it.
    pub const fn needs_somebody(self) -> bool {
        matches!(self, Provider::Passphrase | Provider::RecoveryKey)
    }

    /// Those that a boot does not come to that this one opens, in the order in which it tries them. Where somebody was asked, all
    /// that need nobody were tried before.
    pub fn leaves_untried(self, order: &[Provider], somebody_was_asked: bool) -> Vec<Provider> {
        if somebody_was_asked {
            return Vec::new();
        }
        order.iter().copied().skip_while(|tried| *tried != self).skip(1).collect()
    }

    /// Whether a token in the header says how to get at it.
    pub const fn is_token(self) -> bool {
        matches!(self, Provider::Tpm2 | Provider::Pkcs11)
    }

    /// Whether somebody chose it, word by word: what was made at random need not be stretched.
    pub const fn can_be_guessed(self) -> bool {
        matches!(self, Provider::Passphrase)
    }

    /// What a caller may ask for; the demo key is the image's.
    pub fn of_a_caller(self) -> Result<Self, Refused> {
        if self == Provider::DemoKey { Err(Refused::OfTheImage) } else { Ok(self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_that_asked_somebody_had_tried_all_others() {
        use Provider::{DemoKey, KeyFile, Passphrase, Pkcs11, RecoveryKey, Tpm2};
        assert_eq!(KeyFile.leaves_untried(Provider::ALL, false), [DemoKey, Passphrase, RecoveryKey]);
        assert_eq!(Tpm2.leaves_untried(&[Passphrase, Tpm2, KeyFile], false), [KeyFile]);
        assert_eq!(Pkcs11.leaves_untried(&[Pkcs11, KeyFile], false), [KeyFile], "a token without a PIN");
        assert_eq!(Pkcs11.leaves_untried(&[Pkcs11, KeyFile], true), []);
    }
}
