//! The ways into the overlay's volume.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The demo key file in the initramfs: public, so a device that has only this key keeps no secret from its owner's
/// enemies. Content `insecure`, no newline.
pub const DEMO_KEY_FILE: &str = "/etc/cryptsetup-keys.d/luks.key";

/// What opened the volume, or could.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    /// [`DEMO_KEY_FILE`].
    DemoKey,
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Provider::DemoKey => "demo-key",
        })
    }
}

/// How the overlay's volume is encrypted and authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cipher {
    /// Cipher of dm-crypt.
    pub name: &'static str,
    /// Its mode: how an initialization vector is made.
    pub mode: &'static str,
    /// LUKS2 integrity: `aead`, or a MAC.
    pub integrity: &'static str,
    /// Bytes of volume key.
    pub volume_key_bytes: usize,
}

/// The reference's cipher: `aegis128-random`, integrity `aead`, key size 128 bits.
pub const OVERLAY_CIPHER: Cipher = Cipher { name: "aegis128", mode: "random", integrity: "aead", volume_key_bytes: 16 };

/// Bytes of a sector of the overlay's volume: each has one tag.
pub const OVERLAY_SECTOR_BYTES: u32 = 4096;
