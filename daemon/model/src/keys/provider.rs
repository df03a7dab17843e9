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
