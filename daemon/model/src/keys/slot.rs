//! Key slots of a LUKS2 header, and what is recorded of them.
//!
//! Source: LUKS2 On-Disk Format Specification 1.1, 3.3 and 3.6: 32 key slots; a token names the slots that it is about and may
//! hold what an application wants to know of them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

use crate::Timestamp;
use crate::keys::{Place, Provider};

/// How many key slots there are.
pub const KEYSLOTS: u8 = 32;

/// The type of our tokens.
pub const TOKEN_TYPE: &str = "nemos";

/// Number of a key slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct KeyslotId(u8);

/// A number that no key slot has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("there is no key slot {0}: they are numbered from 0 to {last}", last = KEYSLOTS - 1)]
pub struct InvalidKeyslot(pub u32);

impl TryFrom<u32> for KeyslotId {
    type Error = InvalidKeyslot;

    fn try_from(number: u32) -> Result<Self, InvalidKeyslot> {
        u8::try_from(number).ok().filter(|id| *id < KEYSLOTS).map(KeyslotId).ok_or(InvalidKeyslot(number))
    }
}

impl From<KeyslotId> for u32 {
    fn from(id: KeyslotId) -> u32 {
        id.0.into()
    }
}

impl fmt::Display for KeyslotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is recorded of a key slot in the header itself, so that it goes where the header goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What opens it.
    pub provider: Provider,
    /// When it was made.
    pub created: Timestamp,
    /// Where its key is, if it is kept elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// When somebody brought it, to open a boot or to change the keys, if it is a recovery key: whoever did has seen it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Timestamp>,
}

impl Record {
    /// A key that is kept nowhere else.
    pub const fn new(provider: Provider, created: Timestamp) -> Self {
        Record { provider, created, place: None, used: None }
    }

    /// The token that holds it.
    pub fn token(&self, slot: KeyslotId) -> Value {
        let mut token = json!({
            "type": TOKEN_TYPE,
            "keyslots": [slot.to_string()],
            "provider": self.provider,
            "created": self.created,
        });
        if let Some(place) = &self.place {
            token["place"] = json!(place);
        }
        if let Some(used) = self.used {
            token["used"] = json!(used);
        }
        token
    }
}

/// Whose a key slot is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// This device made it.
    Recorded(Record),
    /// A token of another program is about it; the type of that token.
    Foreign(String),
    /// No token is about it.
    Unrecorded,
}

/// A key slot that is in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Its number.
    pub id: KeyslotId,
    /// Whose it is.
    pub origin: Origin,
}

impl Slot {
    /// What is recorded of it, if it is one of ours.
    pub const fn record(&self) -> Option<&Record> {
        match &self.origin {
            Origin::Recorded(record) => Some(record),
            Origin::Foreign(_) | Origin::Unrecorded => None,
        }
    }

    /// When it was made, if it is one of ours.
    pub fn created(&self) -> Option<Timestamp> {
        self.record().map(|record| record.created)
    }

    /// Where its key is, if it is one of ours and kept elsewhere.
    pub fn place(&self) -> Option<&Place> {
        self.record()?.place.as_ref()
    }

    /// What opens it, if it is one of ours.
    pub fn provider(&self) -> Option<Provider> {
        self.record().map(|record| record.provider)
    }

    /// Whether another program may have made it for somebody to type: as cryptsetup does, which records nothing, or as
    /// systemd-cryptenroll(1) makes recovery keys.
    pub fn may_be_typed(&self) -> bool {
        match &self.origin {
            Origin::Recorded(_) => false,
            Origin::Foreign(kind) => kind == RECOVERY_TOKEN_TYPE,
            Origin::Unrecorded => true,
        }
    }

    /// What is to be recorded of it now that somebody brought its key, or a boot was opened by it: that a recovery key was used,
    /// if that is not recorded yet.
    pub fn brought(&self, at: Timestamp) -> Option<Record> {
        let unused = self.record().filter(|record| record.provider == Provider::RecoveryKey && record.used.is_none());
        unused.map(|record| Record { used: Some(at), ..record.clone() })
    }
}

/// The key slots that are in use, by their numbers: what the metadata of a header says.
///
/// What cannot be read of a token says nothing: it is another program's, and its slot is left to it.
pub fn slots(metadata: &Value) -> Vec<Slot> {
    let tokens: Vec<&Value> = metadata["tokens"].as_object().into_iter().flat_map(|tokens| tokens.values()).collect();
    let numbers = metadata["keyslots"].as_object().into_iter().flat_map(|slots| slots.keys());
    let mut slots: Vec<Slot> = numbers
        .filter_map(|number| {
            let about_it = |token: &&&Value| {
                token["keyslots"].as_array().is_some_and(|slots| slots.iter().any(|slot| slot == number.as_str()))
            };
            let id = KeyslotId::try_from(number.parse::<u32>().ok()?).ok()?;
            let mut origins = tokens.iter().filter(about_it).map(|token| origin(token));
            let ours = origins.clone().find(|origin| matches!(origin, Origin::Recorded(_)));
            Some(Slot { id, origin: ours.or_else(|| origins.next()).unwrap_or(Origin::Unrecorded) })
        })
        .collect();
    slots.sort_by_key(|slot| slot.id);
    slots
}

fn origin(token: &Value) -> Origin {
    let kind = token["type"].as_str().unwrap_or_default();
    let record = (kind == TOKEN_TYPE).then(|| Record::deserialize(token).ok()).flatten();
    record
        .map_or_else(|| Origin::Foreign(kind.chars().filter(|c| !c.is_control()).take(80).collect()), Origin::Recorded)
}

/// A token of systemd's for a key that a TPM keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tpm2Token {
    /// Its number.
    pub number: u32,
    /// The key slot that it opens.
    pub slot: KeyslotId,
    /// The public key in PEM, if what the TPM has measured in PCR 11 must be signed with it.
    pub signer: Option<String>,
    pcrs: Vec<u64>,
}

impl Tpm2Token {
    /// Whether that PCR must be what it was.
    pub fn is_bound_to(&self, pcr: u8) -> bool {
        self.pcrs.contains(&pcr.into())
    }

    /// The PCRs that must be what they were, as systemd-cryptenroll(1) has them: `7+14`.
    pub fn pcrs(&self) -> String {
        self.pcrs.iter().map(u64::to_string).collect::<Vec<_>>().join("+")
    }
}

/// systemd's type of such tokens. Source: systemd-cryptenroll(1).
pub const TPM2_TOKEN_TYPE: &str = "systemd-tpm2";

/// systemd's type of tokens for keys that a PKCS#11 token keeps.
pub const PKCS11_TOKEN_TYPE: &str = "systemd-pkcs11";

/// systemd's type of tokens for recovery keys.
const RECOVERY_TOKEN_TYPE: &str = "systemd-recovery";

/// The tokens of that type, the newest key slot first, as far as we recorded when they were made: number, and key slot.
pub fn tokens_of(metadata: &Value, kind: &str) -> Vec<(u32, KeyslotId)> {
    let tokens = metadata["tokens"].as_object().into_iter().flatten().filter(|(_, token)| token["type"] == kind);
    let mut tokens: Vec<(u32, KeyslotId)> = tokens
        .filter_map(|(number, token)| {
            let slot = token["keyslots"].as_array()?.first()?.as_str()?.parse::<u32>().ok()?.try_into().ok()?;
            Some((number.parse().ok()?, slot))
        })
        .collect();
    let slots = slots(metadata);
    let created = |id| slots.iter().find(|slot| slot.id == id).and_then(Slot::created);
    tokens.sort_by_key(|(_, slot)| std::cmp::Reverse((created(*slot), *slot)));
    tokens
}

/// The tokens of a TPM; the newest first, as far as we recorded when their key slots were made.
pub fn tpm2_tokens(metadata: &Value) -> Vec<Tpm2Token> {
    let tokens = metadata["tokens"].as_object().into_iter().flatten();
    let mut tokens: Vec<Tpm2Token> = tokens
        .filter(|(_, token)| token["type"] == TPM2_TOKEN_TYPE)
        .filter_map(|(number, token)| {
            let slot = token["keyslots"].as_array()?.first()?.as_str()?.parse::<u32>().ok()?.try_into().ok()?;
            let pcrs = token["tpm2-pcrs"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
            let signer = token["tpm2_pubkey"].as_str().map(|text| BASE64.decode(text).unwrap_or_default());
            let signer = signer.map(|pem| String::from_utf8_lossy(&pem).into_owned());
            Some(Tpm2Token { number: number.parse().ok()?, slot, signer, pcrs })
        })
        .collect();
    let slots = slots(metadata);
    let created = |token: &Tpm2Token| slots.iter().find(|slot| slot.id == token.slot).and_then(Slot::created);
    tokens.sort_by_key(|token| std::cmp::Reverse((created(token), token.slot)));
    tokens
}

/// The tokens that we made, or had systemd make, that are about no key slot that is there: numbers of tokens.
pub fn stale_tokens(metadata: &Value) -> Vec<u32> {
    let is_there = |slot: &Value| slot.as_str().is_some_and(|slot| metadata["keyslots"].get(slot).is_some());
    let is_stale = |token: &Value| {
        [TOKEN_TYPE, TPM2_TOKEN_TYPE, PKCS11_TOKEN_TYPE].iter().any(|ours| token["type"] == *ours)
            && !token["keyslots"].as_array().is_some_and(|slots| slots.iter().any(is_there))
    };
    let tokens = metadata["tokens"].as_object().into_iter().flatten();
    tokens.filter(|(_, token)| is_stale(token)).filter_map(|(number, _)| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(number: u32) -> KeyslotId {
        number.try_into().unwrap()
    }

    #[test]
    fn what_is_recorded_is_read_back_and_what_is_not_ours_is_left_to_others() {
        let record = Record::new(Provider::Passphrase, Timestamp(7));
        let place = Some("LABEL=KEYS:/nemos.key".parse().unwrap());
        let in_a_file = Record { provider: Provider::KeyFile, place, ..record.clone() };
        let metadata = json!({
            "keyslots": {"10": {}, "0": {}, "2": {}, "11": {}, "12": {}},
            "tokens": {
                "0": record.token(id(2)),
                "1": {"type": "systemd-tpm2", "keyslots": ["10"], "tpm2-blob": "x"},
                "2": {"type": "nemos", "keyslots": ["10"], "provider": "from the future", "created": 1},
                "3": record.token(id(5)),
                "4": in_a_file.token(id(11)),
                "5": {"type": "nemos", "keyslots": ["12"], "provider": "key-file", "created": 1, "place": "/etc/key"},
            },
        });
        let slot = |number, origin| Slot { id: id(number), origin };
        let foreign = Origin::Foreign("systemd-tpm2".into());
        let (strange, in_a_file) = (Origin::Foreign("nemos".into()), Origin::Recorded(in_a_file));
        let expected = [
            slot(0, Origin::Unrecorded),
            slot(2, Origin::Recorded(record)),
            slot(10, foreign),
            slot(11, in_a_file),
            slot(12, strange),
        ];
        assert_eq!(slots(&metadata), expected);
        assert_eq!(stale_tokens(&metadata), [3]);
    }

    #[test]
    fn a_recovery_key_is_recorded_as_used_once() {
        let slot = |provider| Slot { id: id(3), origin: Origin::Recorded(Record::new(provider, Timestamp(7))) };
        let used = slot(Provider::RecoveryKey).brought(Timestamp(9)).unwrap();
        let metadata = json!({"keyslots": {"3": {}}, "tokens": {"0": used.token(id(3))}});
        let read = slots(&metadata).remove(0);
        assert_eq!(
            read.record(),
            Some(&Record { used: Some(Timestamp(9)), ..Record::new(Provider::RecoveryKey, Timestamp(7)) })
        );
        assert_eq!((read.brought(Timestamp(11)), slot(Provider::Passphrase).brought(Timestamp(9))), (None, None));
    }

    #[test]
    fn a_number_that_no_slot_has_is_refused() {
        assert_eq!(KeyslotId::try_from(32), Err(InvalidKeyslot(32)));
        assert!(serde_json::from_str::<KeyslotId>("32").is_err());
        assert_eq!(serde_json::from_str::<KeyslotId>("31").unwrap(), id(31));
    }

    proptest! {
        /// Whatever is in a header.
        #[test]
        fn no_metadata_is_too_strange(keys: Vec<String>, kind: String, slots_of: Vec<String>) {
            let slots_there: serde_json::Map<String, Value> = keys.into_iter().map(|key| (key, Value::Null)).collect();
            let metadata = json!({"keyslots": slots_there, "tokens": {"0": {"type": kind, "keyslots": slots_of}}});
            prop_assert!(slots(&metadata).len() <= usize::from(KEYSLOTS) * 2);
            stale_tokens(&metadata);
            slots(&Value::String(kind));
        }
    }
}
