//! Changes of the key slots. Each is written down before its first step, so that whoever finds it later knows what to do.
//!
//! ```text
//!     enroll, rotate --> adding --proven--> enroll: done
//!                          |                rotate: unconfirmed --a later boot did not need the old slot--> removing --> done
//!              interrupted |
//!                          v
//!                 the new slot goes: nobody was told that it is there
//!
//!     remove --> removing --> done              interrupted: the slot goes, as was asked
//! ```
//!
//! At every moment a slot that was there before, or that was proven, opens the volume.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Timestamp;
use crate::job::Requester;
use crate::keys::slot::{KEYSLOTS, KeyslotId, Origin, Slot};
use crate::keys::{Place, Provider, Record};
use crate::words::words;

words! {
    /// How far a change is.
    Stage {
        /// The new slot may be there, and was not proven.
        Adding = "adding",
        /// The new slot opens the volume, and no boot has used it yet.
        Unconfirmed = "unconfirmed",
        /// The slot that goes may be there.
        Removing = "removing",
    }
}

/// What is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum Verb {
    /// A slot more.
    Enroll {
        /// The new one.
        new: KeyslotId,
    },
    /// A slot in place of another.
    Rotate {
        /// The new one.
        new: KeyslotId,
        /// The one that goes when a boot did not need it.
        old: KeyslotId,
    },
    /// A slot less.
    Remove {
        /// The one that goes.
        old: KeyslotId,
    },
}

/// A change of the key slots that has not come to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What is changed.
    #[serde(flatten)]
    pub verb: Verb,
    /// Of which provider.
    pub provider: Option<Provider>,
    /// Where the new key is, if it is kept elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// How far it is.
    pub stage: Stage,
    /// Who asked.
    pub by: Requester,
    /// When.
    pub at: Timestamp,
    /// In which boot, by the kernel's name for it: a boot that was opened before the change tells nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_in: Option<String>,
    /// The new key as its fleet reads it, if it is made for one: it is there as soon as the key counts, and no sooner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
}

/// A boot whose volume was opened.
#[derive(Debug, Clone, Copy)]
pub struct Boot<'a> {
    /// The kernel's name for it.
    pub id: &'a str,
    /// By which key slot.
    pub opened_by: KeyslotId,
    /// What is tried behind the provider that opened it: the boot did not come to that.
    pub untried: &'a [Provider],
}

/// What has to be done for a change that somebody finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Destroy this slot, if it is there; then the change has ended.
    Destroy(KeyslotId),
    /// Nothing: the next boot may confirm it.
    Wait,
}

/// Why a change was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refused {
    /// The demo key is what every copy of the image has.
    #[error("the demo key is the image's: it can be removed, and only a reset brings it back")]
    OfTheImage,
    /// No slot is of that provider.
    #[error("no key slot is of provider {0}; `nemosctl keys list` shows those that there are")]
    NoneOf(Provider),
    /// Which one?
    #[error("several key slots are of provider {0}; remove all but one first")]
    SeveralOf(Provider),
    /// The slot is not in use.
    #[error("key slot {0} is not in use; `nemosctl keys list` shows those that are")]
    NotInUse(KeyslotId),
    /// Nothing else is known to open the volume.
    #[error(
        "key slot {0} is the last that is known to open the overlay's volume: enroll another first, or have at hand what the others need (`nemosctl keys forecast`)"
    )]
    LastKey(KeyslotId),
    /// No slot is free.
    #[error("all {KEYSLOTS} key slots are in use; remove one first")]
    Full,
    /// Another change has not ended.
    #[error(
        "a key is being rotated, and the next boot that is opened without the old one ends that; reboot, or remove one of the two slots (the new one is {0})"
    )]
    Unconfirmed(KeyslotId),
    /// Another change has not ended.
    #[error("another change of the keys was interrupted and has not been cleared up; restart nemosd")]
    Interrupted,
    /// Not what was sealed.
    #[error("that is not the recovery key that is sealed for the fleet now; `nemosctl keys recovery show` prints it")]
    NotSealed,
}

/// What is known of the ways into the volume.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The slots that are in use.
    pub slots: &'a [Slot],
    /// The one that opened this boot.
    pub opened_by: Option<KeyslotId>,
}

impl Known<'_> {
    fn slot(&self, id: KeyslotId) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.id == id)
    }

    /// Whether it is known that the initrd gets in by this slot: it did, or what opens it was proven when it was recorded.
    fn is_way_in(&self, slot: &Slot) -> bool {
        matches!(slot.origin, Origin::Recorded(_)) || self.opened_by == Some(slot.id)
    }

    fn free(&self) -> Result<KeyslotId, Refused> {
        let ids = (0..u32::from(KEYSLOTS)).filter_map(|number| KeyslotId::try_from(number).ok());
        ids.into_iter().find(|id| self.slot(*id).is_none()).ok_or(Refused::Full)
    }

    fn only_one_of(&self, provider: Provider) -> Result<KeyslotId, Refused> {
        let mut slots = self.slots.iter().filter(|slot| slot.provider() == Some(provider));
        match (slots.next(), slots.next()) {
            (Some(slot), None) => Ok(slot.id),
            (None, _) => Err(Refused::NoneOf(provider)),
            (Some(_), Some(_)) => Err(Refused::SeveralOf(provider)),
        }
    }

    /// A boot tries the newest of a provider first, and a clock may have gone back.
    fn newest(&self, provider: Provider, at: Timestamp) -> Timestamp {
        let slots = self.slots.iter().filter(|slot| slot.provider() == Some(provider));
        let newest = slots.filter_map(Slot::created).max();
        newest.map_or(at, |Timestamp(made)| at.max(Timestamp(made + 1)))
    }

    /// Begins with a slot more.
    pub fn enroll(&self, provider: Provider, by: Requester, at: Timestamp) -> Result<Change, Refused> {
        let (provider, new) = (provider.of_a_caller()?, self.free()?);
        Ok(Change::begun(Verb::Enroll { new }, Some(provider), by, self.newest(provider, at)))
    }

    /// Begins with a slot in place of the one of that provider.
    pub fn rotate(&self, provider: Provider, by: Requester, at: Timestamp) -> Result<Change, Refused> {
        let (provider, old) = (provider.of_a_caller()?, self.only_one_of(provider)?);
        let verb = Verb::Rotate { new: self.free()?, old };
        Ok(Change::begun(verb, Some(provider), by, self.newest(provider, at)))
    }

    /// Begins with a slot less.
    pub fn remove(&self, old: KeyslotId, by: Requester, at: Timestamp) -> Result<Change, Refused> {
        let provider = self.slot(old).ok_or(Refused::NotInUse(old))?.provider();
        if !self.slots.iter().any(|slot| slot.id != old && self.is_way_in(slot)) {
            return Err(Refused::LastKey(old));
        }
        Ok(Change { stage: Stage::Removing, ..Change::begun(Verb::Remove { old }, provider, by, at) })
    }
}

impl Change {
    const fn begun(verb: Verb, provider: Option<Provider>, by: Requester, at: Timestamp) -> Self {
        Change { verb, provider, place: None, stage: Stage::Adding, by, at, made_in: None, sealed: None }
    }

    /// The slot that is new.
    pub const fn new_slot(&self) -> Option<KeyslotId> {
        match self.verb {
            Verb::Enroll { new } | Verb::Rotate { new, .. } => Some(new),
            Verb::Remove { .. } => None,
        }
    }

    /// The slot that goes in the end.
    pub const fn old_slot(&self) -> Option<KeyslotId> {
        match self.verb {
            Verb::Rotate { old, .. } | Verb::Remove { old } => Some(old),
            Verb::Enroll { .. } => None,
        }
    }

    /// What is recorded of the new slot.
    pub fn record(&self) -> Option<Record> {
        Some(Record { place: self.place.clone(), ..Record::new(self.provider?, self.at) })
    }

    /// The new slot opens the volume: what is left of the change, if anything.
    pub fn proven(self) -> Option<Change> {
        matches!(self.verb, Verb::Rotate { .. }).then_some(Change { stage: Stage::Unconfirmed, ..self })
    }

    /// This boot was opened by the new slot, and the old one can go.
    #[must_use]
    pub fn confirmed(self) -> Change {
        Change { stage: Stage::Removing, ..self }
    }

    /// The same, of a key that is at that place.
    #[must_use]
    pub fn at_place(self, place: Option<Place>) -> Change {
        Change { place, ..self }
    }

    /// The same, made in the boot of that name.
    #[must_use]
    pub fn made_in(self, boot: String) -> Change {
        Change { made_in: Some(boot), ..self }
    }

    /// The same, of a key that is sealed for the fleet so.
    #[must_use]
    pub fn sealed(self, sealed: Option<String>) -> Change {
        Change { sealed, ..self }
    }

    /// Whether a boot confirms it: a later one, opened by the new slot, or, of keys that somebody has to type or that are not
    /// tried in such a boot, by another than the old one. A recovery key that nobody needs opens no boot, and the one before it
    /// goes all the same.
    pub fn is_confirmed_by(&self, boot: &Boot<'_>) -> bool {
        let is_spare = self.provider.is_some_and(|own| own.needs_somebody() || boot.untried.contains(&own));
        let opened_by = Some(boot.opened_by);
        let did_without = opened_by == self.new_slot() || is_spare && opened_by != self.old_slot();
        self.stage == Stage::Unconfirmed && self.made_in.as_deref() != Some(boot.id) && did_without
    }

    /// What has to be done by whoever finds it.
    pub const fn next(&self) -> Next {
        match (self.stage, self.verb) {
            (Stage::Adding, Verb::Enroll { new } | Verb::Rotate { new, .. }) => Next::Destroy(new),
            (Stage::Removing | Stage::Adding, Verb::Remove { old }) | (Stage::Removing, Verb::Rotate { old, .. }) => {
                Next::Destroy(old)
            }
            (Stage::Unconfirmed, _) | (Stage::Removing, Verb::Enroll { .. }) => Next::Wait,
        }
    }

    /// Whether another change may begin in its place: to remove one of its slots ends a rotation, one way or the other.
    pub fn gives_way_to(&self, other: &Change) -> Result<(), Refused> {
        match (self.stage, self.new_slot(), other.verb) {
            (Stage::Unconfirmed, _, Verb::Remove { old })
                if [self.new_slot(), self.old_slot()].contains(&Some(old)) =>
            {
                Ok(())
            }
            (Stage::Unconfirmed, Some(new), _) => Err(Refused::Unconfirmed(new)),
            _ => Err(Refused::Interrupted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(number: u32) -> KeyslotId {
        number.try_into().unwrap()
    }

    fn slot(number: u32, provider: Option<Provider>) -> Slot {
        let record = |provider| Origin::Recorded(Record::new(provider, Timestamp(0)));
        Slot { id: id(number), origin: provider.map_or(Origin::Unrecorded, record) }
    }

    fn boot(opened_by: u32) -> Boot<'static> {
        Boot { id: "later", opened_by: id(opened_by), untried: &[] }
    }

    fn known(slots: &[Slot], opened_by: u32) -> Known<'_> {
        Known { slots, opened_by: Some(id(opened_by)) }
    }

    const AT: Timestamp = Timestamp(9);

    #[test]
    fn a_rotation_waits_for_a_boot_before_the_old_key_goes() {
        let slots = [slot(0, Some(Provider::DemoKey)), slot(3, Some(Provider::Tpm2))];
        let change = known(&slots, 0).rotate(Provider::Tpm2, Requester::image(), AT).unwrap();
        assert_eq!(change.verb, Verb::Rotate { new: id(1), old: id(3) });
        assert_eq!(change.next(), Next::Destroy(id(1)), "interrupted, nothing has changed");
        let change = change.proven().unwrap();
        assert_eq!(change.next(), Next::Wait);
        assert!(!change.is_confirmed_by(&boot(0)));
        assert!(change.is_confirmed_by(&boot(1)));
        assert!(
            !change.clone().made_in("later".into()).is_confirmed_by(&boot(1)),
            "it began before the change was made"
        );
        assert_eq!(change.confirmed().next(), Next::Destroy(id(3)));
    }

    #[test]
    fn a_recovery_key_that_nobody_needs_is_rotated_too() {
        let slots = [slot(0, Some(Provider::Tpm2)), slot(3, Some(Provider::RecoveryKey))];
        let rotate = |provider| known(&slots, 0).rotate(provider, Requester::image(), AT).unwrap().proven().unwrap();
        let change = rotate(Provider::RecoveryKey);
        assert!(change.is_confirmed_by(&boot(0)), "the TPM opened the boot");
        assert!(!change.is_confirmed_by(&boot(3)), "the old one opened it");
        assert!(!rotate(Provider::Tpm2).is_confirmed_by(&boot(3)), "the new one should have opened it");
        let untried = Boot { untried: &[Provider::Tpm2], ..boot(3) };
        assert!(rotate(Provider::Tpm2).is_confirmed_by(&untried), "it is tried behind what opened the boot");
    }

    #[test]
    fn what_takes_the_place_of_another_is_newer_whatever_the_clock_says() {
        let mut later = slot(0, Some(Provider::KeyFile));
        later.origin = Origin::Recorded(Record::new(Provider::KeyFile, Timestamp(100)));
        let slots = [later];
        let at = |now| known(&slots, 0).rotate(Provider::KeyFile, Requester::image(), Timestamp(now)).unwrap().at;
        assert_eq!((at(9), at(100), at(200)), (Timestamp(101), Timestamp(101), Timestamp(200)));
    }

    #[test]
    fn the_last_way_in_stays() {
        let by = Requester::image;
        let only = [slot(0, None)];
        assert_eq!(known(&only, 0).remove(id(0), by(), AT), Err(Refused::LastKey(id(0))));
        // Nobody knows what opens slot 4, or whether anything does.
        let foreign = [slot(0, Some(Provider::DemoKey)), Slot { id: id(4), origin: Origin::Foreign("clevis".into()) }];
        assert_eq!(known(&foreign, 0).remove(id(0), by(), AT), Err(Refused::LastKey(id(0))));
        assert!(known(&foreign, 0).remove(id(4), by(), AT).is_ok());
        assert_eq!(known(&foreign, 0).remove(id(5), by(), AT), Err(Refused::NotInUse(id(5))));
        let two = [slot(0, Some(Provider::DemoKey)), slot(1, Some(Provider::RecoveryKey))];
        assert!(known(&two, 0).remove(id(0), by(), AT).is_ok());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let full: Vec<Slot> = (0..32).map(|number| slot(number, Some(Provider::Passphrase))).collect();
        let known = known(&full, 0);
        assert_eq!(known.enroll(Provider::RecoveryKey, Requester::image(), AT), Err(Refused::Full));
        assert_eq!(
            known.rotate(Provider::Passphrase, Requester::image(), AT),
            Err(Refused::SeveralOf(Provider::Passphrase))
        );
        assert_eq!(
            known.rotate(Provider::RecoveryKey, Requester::image(), AT),
            Err(Refused::NoneOf(Provider::RecoveryKey))
        );
        assert_eq!(known.enroll(Provider::DemoKey, Requester::image(), AT), Err(Refused::OfTheImage));
    }

    proptest! {
        /// Whatever is asked, and wherever it is interrupted, a way in that was known before is still there, or one that was
        /// proven since.
        #[test]
        fn nobody_is_locked_out(
            providers in prop::collection::btree_map(0..32u32, prop::option::of(0..Provider::ALL.len()), 1..32),
            asked in 0..3usize, target in 0..32u32, boots_by in 0..32usize, proven: bool,
        ) {
            let slots: Vec<Slot> =
                providers.iter().map(|(n, provider)| slot(*n, provider.map(|index| Provider::ALL[index]))).collect();
            let opened_by = slots[0].id;
            let before = Known { slots: &slots, opened_by: Some(opened_by) };
            let begun = match asked {
                0 => before.enroll(Provider::Passphrase, Requester::image(), AT),
                1 => before.rotate(Provider::Passphrase, Requester::image(), AT),
                _ => before.remove(id(target), Requester::image(), AT),
            };
            let Ok(mut change) = begun else { return Ok(()) };
            let mut there = slots.clone();
            if let Some(new) = change.new_slot() {
                prop_assert!(before.slot(new).is_none(), "only a free slot is written to");
                there.push(Slot { id: new, origin: Origin::Recorded(change.record().unwrap()) });
                if proven {
                    let Some(left) = change.proven() else { return Ok(()) };
                    change = left;
                    let opened_by = there[boots_by % there.len()].id;
                    let by_new = Boot { id: "later", opened_by: new, untried: &[] };
                    prop_assert!(change.is_confirmed_by(&by_new));
                    if change.is_confirmed_by(&Boot { id: "later", opened_by, untried: &[] }) {
                        change = change.confirmed();
                    }
                }
            }
            if let Next::Destroy(gone) = change.next() {
                there.retain(|slot| slot.id != gone);
            }
            let is_way_in = |slot: &Slot| match before.slot(slot.id) {
                Some(slot) => before.is_way_in(slot),
                None => proven,
            };
            prop_assert!(there.iter().any(is_way_in));
        }
    }
}
