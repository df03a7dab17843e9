//! Which volume it is: one that this device made, or another that somebody has put in its place.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::digest::sha256;

sha256! {
    /// What the header of a volume says of its volume key, so that there is no other key that fits: LUKS2 opens a volume only if its
    /// volume key has the digest of the header. Changes of the key slots do not change it.
    KeyDigest,
    /// Text that is not a digest of a volume key.
    InvalidKeyDigest: "the digest of a volume key",
}

/// A volume, known again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its LUKS UUID, which everybody can give to a volume.
    pub uuid: Uuid,
    /// The digest of its volume key; unknown of a volume that an older nemos made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyDigest>,
}

impl Identity {
    /// The volume with that UUID and that metadata of its header.
    pub fn new(uuid: Uuid, metadata: &Value) -> Self {
        // Written out again, members are in the order of their names.
        let digests = metadata["digests"].as_object().filter(|digests| !digests.is_empty());
        let keyless = digests.map(|digests| {
            let parts = digests.iter().map(|(number, digest)| {
                let [kind, salt, value] = ["type", "salt", "digest"].map(|name| &digest[name]);
                format!("{number} {kind} {} {salt} {value}\n", digest["iterations"])
            });
            parts.collect::<String>()
        });
        Identity { uuid, key: keyless.map(|text| KeyDigest::from_bytes(Sha256::digest(text).into())) }
    }

    /// Whether what was found is this volume.
    pub fn is(&self, found: &Identity) -> bool {
        self.uuid == found.uuid && (self.key.is_none() || self.key == found.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn another_volume_key_is_another_volume_and_other_key_slots_are_not() {
        let metadata = |digest: &str, slots: &str| {
            json!({"keyslots": {slots: {}}, "digests": {"0": {"type": "pbkdf2", "keyslots": [slots], "segments": ["0"],
                   "hash": "sha256", "iterations": 1000, "salt": "c2FsdA==", "digest": digest}}})
        };
        let identity = |digest, slots| Identity::new(Uuid::from_u128(7), &metadata(digest, slots));
        let ours = identity("b3Vycw==", "0");
        assert!(ours.is(&identity("b3Vycw==", "3")));
        assert!(!ours.is(&identity("dGhlaXJz", "0")));
        assert!(!ours.is(&Identity { uuid: Uuid::from_u128(8), ..ours }));
        let of_old = Identity { key: None, ..ours };
        assert!(of_old.is(&ours), "an older nemos did not note it");
        assert!(!ours.is(&of_old), "a header that says nothing of its key is none of ours");
        let text = serde_json::to_string(&ours).unwrap();
        assert_eq!(serde_json::from_str::<Identity>(&text).unwrap(), ours);
    }
}
