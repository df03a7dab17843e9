//! The ways into the overlay's volume.

pub mod bound;
pub mod change;
pub mod forecast;
pub mod identity;
pub mod lockout;
pub mod measured;
pub mod next_boot;
pub mod nv;
pub mod place;
pub mod policy;
pub mod provider;
pub mod recovery;
pub mod slot;

pub use change::{Boot, Change, Next, Refused, Stage, Verb};
pub use forecast::{Closed, Forecast, forecast};
pub use identity::{Identity, KeyDigest};
pub use next_boot::NextBoot;
pub use place::{FilePlace, InvalidPlace, Place, TokenUri};
pub use policy::Policy;
pub use provider::Provider;
pub use slot::{KeyslotId, Origin, Record, Slot};

/// Where the initrd leaves the demo key for the daemon, if it has one.
pub const DEMO_KEY_COPY: &str = "/run/nemos/demo.key";

/// The demo key file in the initramfs: public, so a device that has only this key keeps no secret from its owner's
/// enemies. Content `insecure`, no newline.
pub const DEMO_KEY_FILE: &str = "/etc/cryptsetup-keys.d/luks.key";

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
