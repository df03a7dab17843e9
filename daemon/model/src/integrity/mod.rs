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

use crate::digest::sha256;

/// dm-verity mapping of the read-only root.
pub const VERITY_MAPPING: &str = "verityRoot";

/// dm-verity mapping of the containers that are shipped with the image.
pub const PRELOADED_MAPPING: &str = "verityPreloaded";

/// Where the initrd of a signed image has the signature over the root hash's text: PKCS#7, detached, in DER.
pub const ROOT_SIGNATURE: &str = "/usr/lib/nemos/roothash.p7s";
/// The same of the containers that are shipped.
pub const PRELOADED_SIGNATURE: &str = "/usr/lib/nemos/preloadedhash.p7s";

sha256! {
    /// The SHA-256 root hash of a verity hash tree.
    RootHash,
    /// Text that is not a root hash.
    InvalidRootHash: "a root hash",
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
