//! Keys that a PKCS#11 token keeps, as systemd has them: a security key, a smart card, or OP-TEE, whose token is in the device
//! itself. The token decrypts what the header has for it, and may want a PIN for that.

use std::cmp::Reverse;
use std::path::Path;

use nemos_model::keys::slot::PKCS11_TOKEN_TYPE;
use nemos_model::keys::{Closed, KeyslotId, Place, Provider, Slot};
use tracing::warn;

use crate::cryptsetup::CryptError;
use crate::keys::ask::answer;
use crate::keys::way::{Given, Moment, Unlocked, Way};
use crate::keys::{ChangeError, Key, NewKey, Secret, Token, cryptenroll, try_key};

/// The credential that systemd-cryptsetup(8) takes a PIN from.
const CREDENTIAL: &str = "cryptsetup.pkcs11-pin";

pub(super) struct Pkcs11;

impl Way for Pkcs11 {
    fn provider(&self) -> Provider {
        Provider::Pkcs11
    }

    fn key(&self, _: &Slot, _: Moment) -> Result<Key, Closed> {
        Ok(key(None))
    }

    fn refusal(&self, error: &CryptError) -> Closed {
        if error.needs_pin() {
            Closed::NeedsSomebody("somebody types the PIN of its token at the console".to_owned())
        } else {
            Closed::Locked(error.to_string())
        }
    }

    fn ask(&self, partition: &Path, slots: &[Slot]) -> Result<Unlocked, String> {
        let mut slots: Vec<&Slot> = slots.iter().filter(|slot| self.fits(slot)).collect();
        slots.sort_by_key(|slot| Reverse((slot.created(), slot.id)));
        answer(CREDENTIAL, "PIN of the token that opens this device", |pin| {
            let key = key(Some(pin));
            for slot in &slots {
                match try_key(partition, &key, Some(slot.id)) {
                    Ok(slot) => {
                        return Some(Unlocked { key, provider: Provider::Pkcs11, slot, was_asked_for: true });
                    }
                    Err(error) => {
                        warn!("{error}");
                        // A token that is given wrong PINs is locked: not once more for each slot.
                        if error.needs_pin() {
                            break;
                        }
                    }
                }
            }
            None
        })
    }

    fn takes_secret(&self) -> bool {
        false
    }

    fn new_key(&self, given: Given) -> Result<NewKey, ChangeError> {
        let Given { place: Some(place @ Place::Token(_)), pin, .. } = given else {
            let what = "is named by the URI of its token: `pkcs11:token=...;object=...`";
            return Err(ChangeError::unfit(Provider::Pkcs11, what.to_owned()));
        };
        Ok(NewKey { provider: Provider::Pkcs11, key: key(pin), place: Some(place) })
    }

    fn enroll(&self, partition: &Path, _: KeyslotId, unlock: &Key, new: &NewKey) -> Result<(), ChangeError> {
        let uri = new.place.as_ref().map(|place| format!("--pkcs11-token-uri={place}")).unwrap_or_default();
        let pin = match &new.key {
            Key::Token(token) => token.pin.as_ref(),
            Key::Secret(_) => None,
        };
        cryptenroll::enroll(partition, unlock, &[&uri], pin)
    }
}

fn key(pin: Option<Secret>) -> Key {
    Key::Token(Token { kind: PKCS11_TOKEN_TYPE, pin })
}
