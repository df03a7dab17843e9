//! Recovery keys, in the form that systemd-cryptenroll(1) gives them: 256 bits in modhex, in eight groups of eight letters.
//!
//! modhex uses only letters that are in the same place on most keyboards. Source: systemd, `src/shared/recovery-key.c`.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::health::{Finding, Health};
use crate::keys::{Provider, Slot};
use crate::time::Timestamp;

/// Bytes of a recovery key.
pub const RECOVERY_KEY_BYTES: usize = 32;

const MODHEX: [char; 16] = ['c', 'b', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'n', 'r', 't', 'u', 'v'];
/// Letters of a group.
const GROUP: usize = 8;
/// Letters of a key, and the dashes between its groups.
const LENGTH: usize = RECOVERY_KEY_BYTES * 2 + RECOVERY_KEY_BYTES * 2 / GROUP - 1;

/// The key as people see and type it. These letters, dashes included, open the volume.
pub fn format(bytes: &[u8; RECOVERY_KEY_BYTES]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(LENGTH));
    for (index, byte) in bytes.iter().enumerate() {
        if index > 0 && index % (GROUP / 2) == 0 {
            text.push('-');
        }
        text.push(MODHEX[usize::from(byte >> 4)]);
        text.push(MODHEX[usize::from(byte & 15)]);
    }
    text
}

/// The key that somebody may have typed: without its dashes, with spaces, in capitals. `None` if it is none.
pub fn normalize(typed: &str) -> Option<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(LENGTH));
    let mut letters = 0;
    for letter in typed.chars().filter(|letter| !matches!(letter, '-' | ' ')) {
        let letter = letter.to_ascii_lowercase();
        if !MODHEX.contains(&letter) || letters == RECOVERY_KEY_BYTES * 2 {
            return None;
        }
        if letters > 0 && letters % GROUP == 0 {
            text.push('-');
        }
        text.push(letter);
        letters += 1;
    }
    (letters == RECOVERY_KEY_BYTES * 2).then_some(text)
}

/// A recovery key that only its recipients can read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// When its slot was made: tells the slot.
    pub created: Timestamp,
    /// It, as age writes it.
    pub text: String,
    /// Whether the fleet has said that it keeps it. Until then the only copy may be on this device.
    #[serde(default)]
    pub acknowledged: bool,
}

impl Sealed {
    /// The one of these slots that it opens.
    pub fn slot<'a>(&self, slots: &'a [Slot]) -> Option<&'a Slot> {
        let is_its =
            |slot: &&Slot| slot.provider() == Some(Provider::RecoveryKey) && slot.created() == Some(self.created);
        slots.iter().find(is_its)
    }

    /// What health says of it.
    pub fn finding(&self) -> Option<Finding> {
        let message = "as far as this device knows, nobody else has the recovery key that is sealed for its fleet: keep what `nemosctl keys recovery show` prints, and say so (`nemosctl keys recovery acknowledge FILE`)";
        (!self.acknowledged).then(|| Finding { health: Health::Warning, message: message.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_looks_as_systemds_does() {
        let bytes: [u8; RECOVERY_KEY_BYTES] = std::array::from_fn(|index| u8::try_from(index * 8).unwrap());
        let expected = "cccjbcbj-dcdjecej-fcfjgcgj-hchjicij-jcjjkckj-lcljncnj-rcrjtctj-ucujvcvj";
        assert_eq!(*format(&bytes), expected);
    }

    proptest! {
        #[test]
        fn what_is_typed_is_understood(bytes: [u8; RECOVERY_KEY_BYTES]) {
            let key = format(&bytes);
            prop_assert_eq!(key.len(), LENGTH);
            let typed = key.replace('-', " ").to_uppercase();
            prop_assert_eq!(normalize(&typed).unwrap(), key.clone());
            prop_assert_eq!(normalize(&key[1..]), None);
        }

        #[test]
        fn anything_else_is_no_key(text: String) {
            if let Some(key) = normalize(&text) {
                prop_assert_eq!(key.len(), LENGTH);
            }
        }
    }
}
