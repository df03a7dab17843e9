//! The key that certificates of resets are verified with.

use nemos_model::certificate::{Keeping, PublicKey};
use zbus::{DeserializeDict, SerializeDict, Type};

/// What is known of a key, besides the key.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct KeyRecord {
    /// Its name, which certificates have in their header as `kid`.
    pub id: String,
    /// Where its secret half is: `tpm` or `file`.
    pub kept_in: String,
}

impl KeyRecord {
    /// What is known of that key.
    pub fn new(key: &PublicKey, keeping: Keeping) -> Self {
        KeyRecord { id: key.id(), kept_in: keeping.name().to_owned() }
    }
}
