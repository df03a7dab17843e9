//! Whether the next boot opens the overlay's volume by itself.

use std::collections::BTreeMap;

use crate::health::{Finding, Health};
use crate::keys::Provider;
use crate::keys::next_boot::NextBoot;
use crate::keys::slot::{KeyslotId, Origin, Slot, Tpm2Token};
use crate::words::words;

words! {
    /// How the next boot gets in.
    Outlook {
        /// Without anybody.
        ByItself = "by-itself",
        /// Somebody has to type something at the console.
        NeedsSomebody = "needs-somebody",
        /// Nothing that is known opens it.
        LockedOut = "locked-out",
    }
}

/// A way in, and what came of trying it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The key slot.
    pub slot: KeyslotId,
    /// Its provider, or another program's name for it.
    pub provider: String,
    /// How the next boot gets in by it.
    pub outlook: Outlook,
    /// Why.
    pub why: String,
}

/// What the next boot will be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forecast {
    /// As the best of the ways.
    pub outlook: Outlook,
    /// Each key slot.
    pub ways: Vec<Way>,
}

/// Why a key slot is not opened now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// Somebody has to do this at boot.
    NeedsSomebody(String),
    /// What should open it does not, and why.
    Locked(String),
}

/// What came of trying, for each key slot that a provider may fit: the one that opens it, or why none does.
pub type Tried = BTreeMap<KeyslotId, Result<Provider, Closed>>;

/// Forecasts the next boot. The tokens say what the keys of the TPM are bound to.
pub fn forecast(slots: &[Slot], tried: &Tried, tokens: &[Tpm2Token], next: &NextBoot) -> Forecast {
    let ways = slots.iter().map(|slot| {
        let now = way(slot, tried);
        let token = tokens.iter().find(|token| token.slot == slot.id);
        match (next.refusal(), now.outlook, token) {
            (Some(why), ..) => Way { outlook: Outlook::LockedOut, why, ..now },
            (None, Outlook::ByItself, Some(token)) => kept(now, next.keeps(token)),
            (None, ..) => now,
        }
    });
    let ways: Vec<Way> = ways.collect();
    let has = |outlook: &Outlook| ways.iter().any(|way: &Way| way.outlook == *outlook);
    let outlook = Outlook::ALL.iter().copied().find(has);
    Forecast { outlook: outlook.unwrap_or(Outlook::LockedOut), ways }
}

impl Forecast {
    /// Whether the key in that slot can go: another one opens the volume now, and another one will, as far as this one does.
    pub fn spares(&self, slot: KeyslotId, tried: &Tried) -> bool {
        let opens = |way: &Way| !matches!(tried.get(&way.slot), None | Some(Err(Closed::Locked(_))));
        let will_open = |way: &Way| way.outlook != Outlook::LockedOut;
        self.has_another(slot, opens) && self.has_another(slot, will_open)
    }

    /// Whether it is so with another way, or not with that one, either.
    fn has_another(&self, slot: KeyslotId, is_so: impl Fn(&Way) -> bool) -> bool {
        let (own, others): (Vec<&Way>, Vec<&Way>) = self.ways.iter().partition(|way| way.slot == slot);
        others.into_iter().any(&is_so) || !own.into_iter().any(is_so)
    }

    /// What health says of it: a way that should need nobody and does not work any more, or that there is none at all.
    pub fn finding(&self) -> Option<Finding> {
        let broken = self.ways.iter().find(|way| {
            let needs_nobody = way.provider.parse().is_ok_and(|provider: Provider| !provider.needs_somebody());
            way.outlook == Outlook::LockedOut && needs_nobody
        });
        match (self.outlook, broken) {
            (Outlook::ByItself, _) | (Outlook::NeedsSomebody, None) => None,
            (Outlook::NeedsSomebody, Some(Way { slot, provider, why, .. })) => {
                let message = format!(
                    "the next boot waits at its console for a passphrase or recovery key: {provider} in key slot {slot} will not open the overlay ({why})"
                );
                Some(Finding { health: Health::Warning, message })
            }
            (Outlook::LockedOut, _) => {
                let message = "nothing that is known opens the overlay at the next boot; `nemosctl keys forecast` says why, `nemosctl keys enroll` adds a key";
                Some(Finding { health: Health::Critical, message: message.into() })
            }
        }
    }
}

/// As it is now.
fn way(slot: &Slot, tried: &Tried) -> Way {
    let named = match &slot.origin {
        Origin::Recorded(record) => record.provider.name().to_owned(),
        Origin::Foreign(kind) => kind.clone(),
        Origin::Unrecorded => "unknown".to_owned(),
    };
    let (provider, outlook, why) = match tried.get(&slot.id) {
        Some(Ok(provider)) => (provider.name().to_owned(), Outlook::ByItself, "it was tried now".to_owned()),
        Some(Err(Closed::NeedsSomebody(what))) => (named, Outlook::NeedsSomebody, what.clone()),
        Some(Err(Closed::Locked(why))) => (named, Outlook::LockedOut, why.clone()),
        None => (named, Outlook::LockedOut, "nothing that nemos-initrd knows opens it".to_owned()),
    };
    Way { slot: slot.id, provider, outlook, why }
}

/// What becomes of a way that is open now.
fn kept(now: Way, kept: Result<Vec<String>, String>) -> Way {
    match kept {
        Err(lost) => Way {
            outlook: Outlook::LockedOut,
            why: format!("it opens now, and not at the next boot: {lost}, and the TPM's key is bound to that"),
            ..now
        },
        Ok(unknown) if unknown.is_empty() => now,
        Ok(unknown) => Way { why: format!("{}; not known is {}", now.why, unknown.join(", and ")), ..now },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;
    use crate::keys::Record;
    use crate::keys::next_boot::{KernelImage, SecureBoot};
    use crate::keys::slot::tpm2_tokens;
    use serde_json::json;

    fn same() -> NextBoot {
        let image = KernelImage::Starts { is_same: true, is_trusted_as_now: true, signed_for_tpm: None };
        NextBoot { secure_boot: SecureBoot::Same, image, is_foreign: false }
    }

    #[test]
    fn the_best_way_counts_and_each_says_why() {
        let id = |number: u32| KeyslotId::try_from(number).unwrap();
        let recorded =
            |number, provider| Slot { id: id(number), origin: Origin::Recorded(Record::new(provider, Timestamp(0))) };
        let (demo, typed) = (recorded(0, Provider::DemoKey), recorded(1, Provider::RecoveryKey));
        let typed_at_the_console = |mut tried: Tried| {
            tried.insert(id(1), Err(Closed::NeedsSomebody("somebody types it".to_owned())));
            tried
        };
        let forecast =
            |slots: &[Slot], tried: &Tried| forecast(slots, &typed_at_the_console(tried.clone()), &[], &same());
        let outlook = |slots: &[Slot], tried: Tried| forecast(slots, &tried).outlook;
        let opens = |number, provider| Tried::from([(id(number), Ok(provider))]);
        let fails = |number| Tried::from([(id(number), Err(Closed::Locked("the TPM says no".to_owned())))]);
        assert_eq!(outlook(&[demo.clone(), typed.clone()], opens(0, Provider::DemoKey)), Outlook::ByItself);
        assert_eq!(outlook(&[demo.clone(), typed], fails(0)), Outlook::NeedsSomebody);
        assert_eq!(outlook(&[demo], fails(0)), Outlook::LockedOut);
        assert_eq!(outlook(&[recorded(2, Provider::Tpm2)], opens(2, Provider::Tpm2)), Outlook::ByItself);
        let told = forecast(&[recorded(2, Provider::Tpm2)], &fails(2));
        assert_eq!((told.outlook, told.ways[0].why.as_str()), (Outlook::LockedOut, "the TPM says no"));
        let health = |slots: &[Slot], tried| forecast(slots, &tried).finding().map(|finding| finding.health);
        let both = [recorded(2, Provider::Tpm2), recorded(1, Provider::RecoveryKey)];
        assert_eq!(health(&both, opens(2, Provider::Tpm2)), None);
        assert_eq!(health(&both, fails(2)), Some(Health::Warning));
        assert_eq!(health(&both[..1], fails(2)), Some(Health::Critical));
        assert_eq!(health(&both[1..], Tried::new()), None, "that is how its owner wants it");
        let unrecorded = Slot { id: id(5), origin: Origin::Unrecorded };
        assert_eq!(outlook(std::slice::from_ref(&unrecorded), opens(5, Provider::DemoKey)), Outlook::ByItself);
        assert_eq!(outlook(&[unrecorded], Tried::new()), Outlook::LockedOut);
    }

    #[test]
    fn a_tpm_that_opens_now_does_not_once_something_was_changed() {
        let recorded = |number: u32, provider| Slot {
            id: number.try_into().unwrap(),
            origin: Origin::Recorded(Record::new(provider, Timestamp(0))),
        };
        let slots = [recorded(0, Provider::Tpm2), recorded(1, Provider::RecoveryKey), recorded(2, Provider::DemoKey)];
        let opens = |slot: &Slot| match slot.provider()? {
            Provider::RecoveryKey => Some((slot.id, Err(Closed::NeedsSomebody("somebody types it".to_owned())))),
            provider => Some((slot.id, Ok(provider))),
        };
        let tokens = tpm2_tokens(&json!({
            "tokens": {"0": {"type": "systemd-tpm2", "keyslots": ["0"], "tpm2-pcrs": [7]}}, "keyslots": {"0": {}},
        }));
        let told =
            |slots: &[Slot], next: &NextBoot| forecast(slots, &slots.iter().filter_map(opens).collect(), &tokens, next);
        let differs = NextBoot { secure_boot: SecureBoot::Differs(vec!["db".into()]), ..same() };
        let changed = told(&slots[..2], &differs);
        assert_eq!(changed.outlook, Outlook::NeedsSomebody);
        assert!(changed.ways[0].why.contains("Secure Boot's db changed"), "{changed:?}");
        assert_eq!(changed.finding().unwrap().health, Health::Warning);
        assert_eq!(told(&slots[..1], &differs).finding().unwrap().health, Health::Critical);
        assert_eq!(told(&slots[2..], &differs).outlook, Outlook::ByItself, "the demo key is bound to nothing");
        let unknown = told(&slots[..2], &NextBoot { secure_boot: SecureBoot::Unknown("no log".into()), ..same() });
        assert_eq!(unknown.outlook, Outlook::ByItself);
        assert!(unknown.ways[0].why.ends_with("whether Secure Boot is the same: no log"), "{unknown:?}");
    }

    #[test]
    fn a_key_is_spared_by_one_that_works_and_not_by_one_that_is_there() {
        let slots = [0, 1, 2].map(|number: u32| Slot { id: number.try_into().unwrap(), origin: Origin::Unrecorded });
        let opens = |slot: &Slot| (slot.id, Ok(Provider::DemoKey));
        let fails = |slot: &Slot| (slot.id, Err(Closed::Locked("the stick is not there".to_owned())));
        let [demo, typed, stick] = &slots;
        let typed = (typed.id, Err(Closed::NeedsSomebody("somebody types it".to_owned())));
        let spared = |tried: &[(KeyslotId, Result<Provider, Closed>)]| {
            let tried: Tried = tried.iter().cloned().collect();
            let there: Vec<Slot> = slots.iter().filter(|slot| tried.contains_key(&slot.id)).cloned().collect();
            let told = forecast(&there, &tried, &[], &same());
            tried.keys().copied().filter(|slot| told.spares(*slot, &tried)).collect::<Vec<_>>()
        };
        assert_eq!(spared(&[opens(demo), fails(stick)]), [stick.id]);
        assert_eq!(spared(&[opens(demo), typed.clone(), fails(stick)]), [demo.id, typed.0, stick.id]);
        assert_eq!(spared(&[typed, fails(stick)]), [stick.id]);
    }

    #[test]
    fn nothing_opens_what_does_not_start() {
        let slots = [0, 1].map(|number: u32| Slot { id: number.try_into().unwrap(), origin: Origin::Unrecorded });
        let tried = Tried::from([
            (slots[0].id, Ok(Provider::DemoKey)),
            (slots[1].id, Err(Closed::NeedsSomebody("somebody types it".to_owned()))),
        ]);
        let refused = NextBoot { image: KernelImage::Refused("it is not signed".into()), ..same() };
        let told = forecast(&slots, &tried, &[], &refused);
        assert_eq!(told.outlook, Outlook::LockedOut);
        assert!(slots.iter().all(|slot| told.spares(slot.id, &tried)), "it is not by its keys that it does not start");
        let only = Tried::from([(slots[0].id, Ok(Provider::DemoKey))]);
        let told_of_it = forecast(&slots, &only, &[], &refused);
        assert!(!told_of_it.spares(slots[0].id, &only), "once it starts again, nothing else opens it");
        assert!(told.ways.iter().all(|way| way.why.ends_with("on the ESP: it is not signed")), "{told:?}");
        assert_eq!(told.finding().unwrap().health, Health::Critical);
        let foreign = forecast(&slots, &tried, &[], &NextBoot { is_foreign: true, ..same() });
        assert_eq!(foreign.outlook, Outlook::LockedOut);
    }
}
