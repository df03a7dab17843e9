//! Passphrases: what somebody types at the console of a boot.

use std::path::Path;

use nemos_model::keys::{Closed, Provider, Slot};

use crate::keys::ask::{by_somebody, typed_at_boot};
use crate::keys::way::{Given, Moment, Unlocked, Way};
use crate::keys::{ChangeError, Key, NewKey, Secret};

pub(super) struct Passphrase;

impl Way for Passphrase {
    fn provider(&self) -> Provider {
        Provider::Passphrase
    }

    /// What somebody else has added may be typed as well.
    fn fits(&self, slot: &Slot) -> bool {
        slot.provider() == Some(Provider::Passphrase) || slot.may_be_typed()
    }

    fn key(&self, _: &Slot, _: Moment) -> Result<Key, Closed> {
        Err(typed_at_boot())
    }

    fn ask(&self, partition: &Path, slots: &[Slot]) -> Result<Unlocked, String> {
        by_somebody(partition, slots)
    }

    fn takes_secret(&self) -> bool {
        true
    }

    fn new_key(&self, given: Given) -> Result<NewKey, ChangeError> {
        const TYPED: &str = "is typed at the console: UTF-8 text of at most 512 bytes, without control characters";
        let secret = given.secret.filter(Secret::can_be_typed);
        let secret = secret.ok_or_else(|| ChangeError::unfit(Provider::Passphrase, TYPED.to_owned()))?;
        Ok(NewKey { provider: Provider::Passphrase, key: Key::Secret(secret), place: None })
    }
}
