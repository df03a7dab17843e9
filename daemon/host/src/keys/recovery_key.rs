//! Recovery keys: made here, kept elsewhere, typed when nothing else works.

use std::path::Path;

use nemos_model::keys::{Closed, Provider, Slot};

use crate::keys::ask::{by_somebody, typed_at_boot};
use crate::keys::way::{Given, Moment, Unlocked, Way};
use crate::keys::{ChangeError, Key, NewKey};

pub(super) struct RecoveryKey;

impl Way for RecoveryKey {
    fn provider(&self) -> Provider {
        Provider::RecoveryKey
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
        let secret = given
            .secret
            .ok_or_else(|| ChangeError::unfit(Provider::RecoveryKey, "is made before it is added".to_owned()))?;
        Ok(NewKey { provider: Provider::RecoveryKey, key: Key::Secret(secret), place: None })
    }
}
