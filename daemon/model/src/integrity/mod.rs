//! What the kernel says about the integrity of a volume, and what follows from it.
//!
//! ```text
//!     kernel log, uevents, audit records --> Report --(Names)--> Sighting --> Event, kept in the ledger
//! ```

pub mod audit;
pub mod event;
pub mod kernel_log;
pub mod protection;
pub mod scrub;
pub mod status;
pub mod uevent;
pub mod verity;
pub mod volume;

pub use event::{Event, Sighting};
pub use protection::Protection;
pub use scrub::Scrub;
pub use verity::{VerityStatus, VerityTable};
pub use volume::Volume;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// dm-verity mapping of the read-only root.
pub const VERITY_MAPPING: &str = "verityRoot";

/// dm-verity mapping of the containers that are shipped with the image.
pub const PRELOADED_MAPPING: &str = "verityPreloaded";

/// Where the initrd of a signed image has the signature over the root hash's text: PKCS#7, detached, in DER.
pub const ROOT_SIGNATURE: &str = "/usr/lib/nemos/roothash.p7s";
/// The same of the containers that are shipped.
pub const PRELOADED_SIGNATURE: &str = "/usr/lib/nemos/preloadedhash.p7s";

/// The SHA-256 root hash of a verity hash tree.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootHash([u8; 32]);

/// Text that is not a root hash.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a root hash is 64 hexadecimal digits, not `{0}`")]
pub struct InvalidRootHash(pub String);

impl RootHash {
    /// The 32 bytes that the kernel compares with.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for RootHash {
    type Err = InvalidRootHash;

    fn from_str(text: &str) -> Result<Self, InvalidRootHash> {
        let invalid = || InvalidRootHash(text.chars().take(80).collect());
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| invalid())?;
        }
        Ok(RootHash(bytes))
    }
}

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootHash({self})")
    }
}

impl TryFrom<String> for RootHash {
    type Error = InvalidRootHash;

    fn try_from(text: String) -> Result<Self, InvalidRootHash> {
        text.parse()
    }
}

impl From<RootHash> for String {
    fn from(hash: RootHash) -> String {
        hash.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_root_hash_survives_being_written_and_read(bytes: [u8; 32]) {
            let hash = RootHash(bytes);
            prop_assert_eq!(hash.to_string().parse::<RootHash>(), Ok(hash));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<RootHash>();
        }
    }
}
