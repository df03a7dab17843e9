//! The providers, each with what it has to open the volume, and the order in which they are tried.
//!
//! One more is a module with a [`Way`] in it, and a line in [`way`].

use std::path::Path;

use nemos_model::keys::{Closed, KeyslotId, Place, Provider, Slot};
use tracing::{info, warn};

use crate::cryptsetup::CryptError;
use crate::keys::demo_key::DemoKey;
use crate::keys::key_file::KeyFile;
use crate::keys::passphrase::Passphrase;
use crate::keys::pkcs11::Pkcs11;
use crate::keys::recovery_key::RecoveryKey;
use crate::keys::tpm2::Tpm2;
use crate::keys::{ChangeError, Key, NewKey, Secret, header};

/// When a key is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// At boot: what comes late is waited for, and somebody is asked.
    Boot,
    /// While the system runs.
    Running,
}

/// A key that opens the volume.
#[derive(Debug)]
pub struct Unlocked {
    /// It.
    pub key: Key,
    /// What it is.
    pub provider: Provider,
    /// The key slot that it opens.
    pub slot: KeyslotId,
    /// Whether somebody was asked for it.
    pub was_asked_for: bool,
}

/// What is given for a new key.
#[derive(Debug, Default)]
pub struct Given {
    /// The secret; `None` if its provider makes it.
    pub secret: Option<Secret>,
    /// Where it is.
    pub place: Option<Place>,
    /// What its token wants to be given.
    pub pin: Option<Secret>,
}

/// A provider, as this machine has it.
pub trait Way: Sync {
    /// Which one.
    fn provider(&self) -> Provider;

    /// Whether it may open a key slot.
    fn fits(&self, slot: &Slot) -> bool {
        slot.provider() == Some(self.provider())
    }

    /// Its key for a slot that it fits, as far as nobody is needed for it.
    fn key(&self, slot: &Slot, moment: Moment) -> Result<Key, Closed>;

    /// Why that key does not open its slot.
    fn refusal(&self, error: &CryptError) -> Closed {
        Closed::Locked(error.to_string())
    }

    /// Asks somebody for a key, at boot. These are the slots that there are.
    fn ask(&self, _partition: &Path, _slots: &[Slot]) -> Result<Unlocked, String> {
        Err(format!("nobody is asked for a key of provider {}", self.provider()))
    }

    /// Whether a caller who wants a new key sends its secret.
    fn takes_secret(&self) -> bool;

    /// The new key that a caller means.
    fn new_key(&self, given: Given) -> Result<NewKey, ChangeError>;

    /// Adds it to a slot, the lowest that is free, with a key that opens another one.
    fn enroll(&self, partition: &Path, slot: KeyslotId, unlock: &Key, new: &NewKey) -> Result<(), ChangeError> {
        match &new.key {
            Key::Secret(secret) => Ok(header::add(partition, slot, self.provider(), unlock, secret)?),
            Key::Token(_) => Err(ChangeError::unfit(self.provider(), "is a secret".to_owned())),
        }
    }
}

/// Each provider's.
pub fn way(provider: Provider) -> &'static dyn Way {
    match provider {
        Provider::Tpm2 => &Tpm2,
        Provider::Pkcs11 => &Pkcs11,
        Provider::KeyFile => &KeyFile,
        Provider::DemoKey => &DemoKey,
        Provider::Passphrase => &Passphrase,
        Provider::RecoveryKey => &RecoveryKey,
    }
}

/// Finds a key that opens the volume: of the providers in that order, those that have a slot, the newest slot first. Somebody is
/// asked when nothing opens it without.
pub fn unlock(partition: &Path, slots: &[Slot], order: &[Provider], moment: Moment) -> Result<Unlocked, String> {
    let mut newest_first: Vec<&Slot> = slots.iter().collect();
    newest_first.sort_by_key(|slot| std::cmp::Reverse((slot.created(), slot.id)));
    let (mut refusals, mut asking) = (Vec::new(), Vec::<&dyn Way>::new());
    for way in order.iter().copied().map(way) {
        for slot in newest_first.iter().filter(|slot| way.fits(slot)) {
            match open(way, partition, slot, moment) {
                Ok(unlocked) => return Ok(unlocked),
                Err(Closed::NeedsSomebody(_)) if asks_as_well(&asking, way) => {}
                Err(Closed::NeedsSomebody(_)) => asking.push(way),
                Err(Closed::Locked(why)) => {
                    warn!("{} does not open key slot {}: {why}", way.provider(), slot.id);
                    refusals.push(why);
                }
            }
        }
    }
    if moment == Moment::Boot {
        for way in asking {
            info!("{}: somebody has to open the overlay", way.provider());
            match way.ask(partition, slots) {
                Ok(unlocked) => return Ok(unlocked),
                Err(why) => refusals.push(why),
            }
        }
    }
    if refusals.is_empty() {
        return Err(format!("no key slot of {} is of a provider that opens it without anybody", partition.display()));
    }
    Err(refusals.join("; "))
}

/// Whether one that asks already takes its answers, too: who is asked for a passphrase may type a recovery key.
fn asks_as_well(asking: &[&dyn Way], way: &dyn Way) -> bool {
    let both_typed = |other: Provider| other.needs_somebody() && way.provider().needs_somebody();
    asking.iter().any(|other| other.provider() == way.provider() || both_typed(other.provider()))
}

/// What comes of trying a slot with each provider that may open it: the best of it; `None` if none may.
pub fn try_slot(partition: &Path, slot: &Slot, order: &[Provider]) -> Option<Result<Provider, Closed>> {
    let ways = order.iter().copied().map(way).filter(|way| way.fits(slot));
    let tries = ways.map(|way| open(way, partition, slot, Moment::Running).map(|unlocked| unlocked.provider));
    tries.min_by_key(|tried| match tried {
        Ok(_) => 0,
        Err(Closed::NeedsSomebody(_)) => 1,
        Err(Closed::Locked(_)) => 2,
    })
}

fn open(way: &dyn Way, partition: &Path, slot: &Slot, moment: Moment) -> Result<Unlocked, Closed> {
    let key = way.key(slot, moment)?;
    let opened = header::try_key(partition, &key, Some(slot.id)).map_err(|error| way.refusal(&error))?;
    Ok(Unlocked { key, provider: way.provider(), slot: opened, was_asked_for: false })
}
