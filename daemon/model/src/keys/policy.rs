//! Which keys take the demo key's place, as the image's recipe says, and what is still to be done for it.
//!
//! ```text
//!     demo key alone --> + a key of the TPM --> + a recovery key, sealed --a boot was opened by the TPM--> demo key gone
//! ```
//!
//! Without a TPM the demo key stays, and health says so. Once it is gone, the keys are their owner's, and the policy rests, but
//! for the recovery key that it had sealed: whoever used that has seen it. Another is sealed, and it goes once the fleet has that.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::keys::Provider;
use crate::keys::change::Known;
use crate::keys::measured::SECURE_BOOT_PCR;
use crate::keys::recovery::Sealed;
use crate::keys::slot::{KeyslotId, Slot};

/// Where the policy is in the root; read it below [`LOWER_MOUNT`](crate::overlay::LOWER_MOUNT), which is verified. Without the
/// file, nothing is to be done.
pub const FILE: &str = "usr/share/nemos/keys.json";

/// The policy: also the table `[keys]` of a recipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// The TPM opens the overlay, where there is one.
    pub tpm2: bool,
    /// Registers that must be what they were for it: 0 to 7, which the firmware extends before it starts the kernel's image. What
    /// that image must be is said by its signature over PCR 11, if it has one.
    pub tpm2_pcrs: Vec<u8>,
    /// So does a recovery key, for when the TPM does not.
    pub recovery_key: bool,
    /// Whose age keys (`age1...`) a recovery key is sealed for. Without any, somebody has to have it made and write it down
    /// before the demo key goes.
    pub recipients: Vec<String>,
    /// Which providers a boot tries first. Those that are not named come behind, in their usual order: no key that is there is
    /// passed over.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<Provider>,
}

/// A policy that cannot be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadPolicy {
    /// A key of the TPM that every boot gets.
    #[error("there is no register in tpm2-pcrs: any system that runs on the device would get the key")]
    Unbound,
    /// It changes while the system runs, or with each image.
    #[error("PCR {0} is not one of 0 to 7, which the firmware extends before it starts the kernel's image")]
    NotOfTheFirmware(u8),
    /// A register has one value.
    #[error("PCR {0} is in tpm2-pcrs twice")]
    PcrTwice(u8),
    /// A recovery key alone would have somebody type it at each boot.
    #[error("a recovery-key is for when the TPM does not open the overlay: set tpm2, too")]
    RecoveryAlone,
    /// Recipients of nothing.
    #[error("there are recipients, and no recovery-key to seal for them")]
    NothingToSeal,
    /// A provider is tried once.
    #[error("{0} is in the order twice")]
    Twice(Provider),
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Have the TPM make a key.
    EnrollTpm2,
    /// Make a recovery key that only the recipients can read.
    SealRecoveryKey,
    /// Destroy the slot of the demo key.
    RemoveDemoKey(KeyslotId),
    /// Destroy the slot of a recovery key that was used, and that the fleet has another for.
    RemoveUsedRecoveryKey(KeyslotId),
}

/// What the policy goes by, besides the key slots.
#[derive(Debug, Clone, Default)]
pub struct Circumstances {
    /// The device has a TPM 2.0.
    pub has_tpm2: bool,
    /// A key opened this boot without anybody, and so is at hand.
    pub needed_nobody: bool,
    /// The recovery keys that were sealed for the fleet, and open a slot.
    pub sealed: Vec<Sealed>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::EnrollTpm2 => "have the TPM keep a key",
            Step::SealRecoveryKey => "seal a recovery key for its recipients",
            Step::RemoveDemoKey(_) => "destroy the demo key",
            Step::RemoveUsedRecoveryKey(_) => "destroy a recovery key that was used",
        })
    }
}

impl Default for Policy {
    fn default() -> Self {
        let tpm2_pcrs = vec![SECURE_BOOT_PCR];
        Policy { tpm2: false, tpm2_pcrs, recovery_key: false, recipients: Vec::new(), order: Vec::new() }
    }
}

impl Policy {
    /// Whether it can be carried out.
    pub fn check(&self) -> Result<(), BadPolicy> {
        self.check_pcrs()?;
        match (self.named_twice(), self.tpm2, self.recovery_key) {
            (Some(index), ..) => Err(BadPolicy::Twice(self.order[index])),
            (None, false, true) => Err(BadPolicy::RecoveryAlone),
            (None, _, false) if !self.recipients.is_empty() => Err(BadPolicy::NothingToSeal),
            _ => Ok(()),
        }
    }

    fn check_pcrs(&self) -> Result<(), BadPolicy> {
        let mut seen = BTreeSet::new();
        for pcr in &self.tpm2_pcrs {
            if *pcr > SECURE_BOOT_PCR {
                return Err(BadPolicy::NotOfTheFirmware(*pcr));
            }
            if !seen.insert(pcr) {
                return Err(BadPolicy::PcrTwice(*pcr));
            }
        }
        if seen.is_empty() { Err(BadPolicy::Unbound) } else { Ok(()) }
    }

    /// Where in the order a provider is that was named before.
    pub fn named_twice(&self) -> Option<usize> {
        (0..self.order.len()).find(|index| self.order[..*index].contains(&self.order[*index]))
    }

    /// All providers, in the order in which a boot tries them.
    pub fn order(&self) -> Vec<Provider> {
        let others = Provider::ALL.iter().filter(|provider| !self.order.contains(provider));
        self.order.iter().chain(others).copied().collect()
    }

    /// What is to be done next on a device with these keys, if anything is, or can be.
    pub fn next(&self, known: &Known<'_>, now: &Circumstances) -> Option<Step> {
        self.for_the_demo_key(known, now.has_tpm2).or_else(|| self.for_a_used_recovery_key(known, now))
    }

    fn for_the_demo_key(&self, known: &Known<'_>, has_tpm2: bool) -> Option<Step> {
        let of = |provider| known.slots.iter().filter(move |slot| slot.provider() == Some(provider));
        let demo_key = of(Provider::DemoKey).next()?;
        if !has_tpm2 || !self.tpm2 {
            return None;
        }
        if of(Provider::Tpm2).next().is_none() {
            return Some(Step::EnrollTpm2);
        }
        if self.recovery_key && of(Provider::RecoveryKey).next().is_none() {
            return (!self.recipients.is_empty()).then_some(Step::SealRecoveryKey);
        }
        let tpm2_opened = of(Provider::Tpm2).any(|slot| known.opened_by == Some(slot.id));
        tpm2_opened.then_some(Step::RemoveDemoKey(demo_key.id))
    }

    /// A recovery key that somebody has had made for themselves is theirs, used or not.
    fn for_a_used_recovery_key(&self, known: &Known<'_>, now: &Circumstances) -> Option<Step> {
        let is_wanted = self.recovery_key && !self.recipients.is_empty() && now.needed_nobody;
        let was_used = |slot: &Slot| slot.record().is_some_and(|record| record.used.is_some());
        let of_the_fleet = now.sealed.iter().filter_map(|sealed| Some((sealed, sealed.slot(known.slots)?)));
        let (used, fresh): (Vec<_>, Vec<_>) = of_the_fleet.partition(|(_, slot)| was_used(slot));
        let (_, used) = used.first().filter(|_| is_wanted)?;
        match fresh.last() {
            None => Some(Step::SealRecoveryKey),
            Some((fresh, _)) => fresh.acknowledged.then_some(Step::RemoveUsedRecoveryKey(used.id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;
    use crate::keys::{Origin, Record, Slot};
    use proptest::prelude::*;

    fn slots(providers: &[Provider]) -> Vec<Slot> {
        let slot = |(number, provider): (u32, &Provider)| Slot {
            id: number.try_into().unwrap(),
            origin: Origin::Recorded(Record::new(*provider, Timestamp(0))),
        };
        (0..).zip(providers).map(slot).collect()
    }

    fn policy(recipients: &[&str]) -> Policy {
        let recipients = recipients.iter().map(ToString::to_string).collect();
        Policy { tpm2: true, recovery_key: true, recipients, ..Policy::default() }
    }

    fn next(policy: &Policy, providers: &[Provider], opened_by: u32, has_tpm2: bool) -> Option<Step> {
        let slots = slots(providers);
        let now = Circumstances { has_tpm2, needed_nobody: true, sealed: Vec::new() };
        policy.next(&Known { slots: &slots, opened_by: opened_by.try_into().ok() }, &now)
    }

    #[test]
    fn the_demo_key_goes_once_a_boot_was_opened_without_it() {
        use Provider::{DemoKey, RecoveryKey, Tpm2};
        let fleet = policy(&["age1fleet"]);
        assert_eq!(next(&fleet, &[DemoKey], 0, true), Some(Step::EnrollTpm2));
        assert_eq!(next(&fleet, &[DemoKey, Tpm2], 0, true), Some(Step::SealRecoveryKey));
        assert_eq!(next(&fleet, &[DemoKey, Tpm2, RecoveryKey], 0, true), None, "the TPM has opened no boot yet");
        let remove = Some(Step::RemoveDemoKey(0.try_into().unwrap()));
        assert_eq!(next(&fleet, &[DemoKey, Tpm2, RecoveryKey], 1, true), remove);
        assert_eq!(next(&fleet, &[Tpm2, RecoveryKey], 0, true), None);
    }

    #[test]
    fn without_a_tpm_or_somebody_who_has_a_recovery_key_the_demo_key_stays() {
        use Provider::{DemoKey, Tpm2};
        assert_eq!(next(&policy(&["age1fleet"]), &[DemoKey], 0, false), None);
        assert_eq!(next(&policy(&[]), &[DemoKey, Tpm2], 1, true), None);
        assert_eq!(next(&Policy::default(), &[DemoKey], 0, true), None);
    }

    #[test]
    fn a_sealed_recovery_key_that_was_used_goes_once_the_fleet_has_another() {
        use Provider::{RecoveryKey, Tpm2};
        let unused = |created| Record::new(RecoveryKey, Timestamp(created));
        let used = |created| Record { used: Some(Timestamp(9)), ..unused(created) };
        let sealed = |created, acknowledged| Sealed { created: Timestamp(created), text: String::new(), acknowledged };
        let next = |policy: &Policy, keys: &[Record], needed_nobody, sealed: &[Sealed]| {
            let keys = [&[Record::new(Tpm2, Timestamp(0))], keys].concat();
            let slot = |(number, record): (u32, Record)| Slot {
                id: number.try_into().unwrap(),
                origin: Origin::Recorded(record),
            };
            let slots: Vec<Slot> = (0..).zip(keys).map(slot).collect();
            let now = Circumstances { has_tpm2: true, needed_nobody, sealed: sealed.to_vec() };
            policy.next(&Known { slots: &slots, opened_by: Some(slots[0].id) }, &now)
        };
        let fleet = policy(&["age1fleet"]);
        let old = [sealed(5, true)];
        assert_eq!(next(&fleet, &[unused(5)], true, &old), None);
        assert_eq!(next(&fleet, &[used(5)], true, &old), Some(Step::SealRecoveryKey));
        assert_eq!(next(&fleet, &[used(5)], false, &old), None, "nothing is at hand");
        assert_eq!(next(&fleet, &[used(4), unused(5)], true, &old), None, "that one is somebody's own");
        assert_eq!(next(&policy(&[]), &[used(5)], true, &old), None, "the image names no fleet any more");
        let both = |acknowledged| [sealed(5, true), sealed(7, acknowledged)];
        assert_eq!(next(&fleet, &[used(5), unused(7)], true, &both(false)), None, "nobody has the new one");
        let gone = Some(Step::RemoveUsedRecoveryKey(1.try_into().unwrap()));
        assert_eq!(next(&fleet, &[used(5), unused(7)], true, &both(true)), gone);
        assert_eq!(next(&fleet, &[used(5)], true, &both(true)), Some(Step::SealRecoveryKey), "the new one was removed");
    }

    #[test]
    fn what_cannot_be_carried_out_is_told() {
        assert_eq!(Policy { tpm2: false, ..policy(&[]) }.check(), Err(BadPolicy::RecoveryAlone));
        assert_eq!(Policy { recovery_key: false, ..policy(&["age1fleet"]) }.check(), Err(BadPolicy::NothingToSeal));
        assert_eq!(policy(&["age1fleet"]).check(), Ok(()));
        let order = vec![Provider::DemoKey, Provider::Tpm2, Provider::DemoKey];
        assert_eq!(Policy { order, ..policy(&[]) }.check(), Err(BadPolicy::Twice(Provider::DemoKey)));
        let bound = |tpm2_pcrs: &[u8]| Policy { tpm2_pcrs: tpm2_pcrs.to_vec(), ..policy(&[]) }.check();
        assert_eq!(bound(&[0, 2, 7]), Ok(()));
        assert_eq!(bound(&[]), Err(BadPolicy::Unbound));
        assert_eq!(bound(&[7, 11]), Err(BadPolicy::NotOfTheFirmware(11)));
        assert_eq!(bound(&[7, 2, 7]), Err(BadPolicy::PcrTwice(7)));
        assert_eq!(Policy::default().check(), Ok(()));
    }

    #[test]
    fn what_is_not_named_is_tried_behind_what_is() {
        let ordered = |order: &[Provider]| Policy { order: order.to_vec(), ..Policy::default() }.order();
        assert_eq!(ordered(&[]), Provider::ALL);
        let first = ordered(&[Provider::RecoveryKey, Provider::DemoKey]);
        assert_eq!(first[..3], [Provider::RecoveryKey, Provider::DemoKey, Provider::Tpm2]);
        assert_eq!(first.len(), Provider::ALL.len());
        assert!(serde_json::from_str::<Policy>(r#"{"order": ["luck"]}"#).is_err());
        assert_eq!(serde_json::to_string(&Policy::default()).unwrap().find("order"), None);
    }

    proptest! {
        /// Whatever keys there are, the demo key is destroyed only if the TPM has opened this boot and still has its key.
        #[test]
        fn no_policy_takes_the_last_way_in(
            providers in prop::collection::vec(prop::sample::select(Provider::ALL.to_vec()), 0..8),
            opened_by in 0..8u32, has_tpm2: bool, recovery: bool, sealed: bool,
        ) {
            let mut policy = policy(if sealed { &["age1fleet"] } else { &[] });
            policy.recovery_key = recovery;
            if let Some(Step::RemoveDemoKey(slot)) = next(&policy, &providers, opened_by, has_tpm2) {
                let slots = slots(&providers);
                let opened = slots.iter().find(|slot| u32::from(slot.id) == opened_by).unwrap();
                prop_assert_eq!(opened.provider(), Some(Provider::Tpm2));
                prop_assert!(slot != opened.id);
                prop_assert!(!recovery || providers.contains(&Provider::RecoveryKey));
            }
        }
    }
}
