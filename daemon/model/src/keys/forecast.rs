//! Whether the next boot opens the overlay's volume by itself.

use std::collections::BTreeMap;

use crate::health::{Finding, Health};
use crate::keys::Provider;
use crate::keys::measured::NextBoot;
use crate::keys::slot::{KeyslotId, Origin, Slot};
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

/// Forecasts the next boot.
pub fn forecast(slots: &[Slot], tried: &Tried, next: &NextBoot) -> Forecast {
    let ways: Vec<Way> = slots.iter().map(|slot| way(slot, tried, next)).collect();
    let has = |outlook: &Outlook| ways.iter().any(|way: &Way| way.outlook == *outlook);
    let outlook = Outlook::ALL.iter().copied().find(has);
    Forecast { outlook: outlook.unwrap_or(Outlook::LockedOut), ways }
}

impl Forecast {
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

fn way(slot: &Slot, tried: &Tried, next: &NextBoot) -> Way {
    let named = match &slot.origin {
        Origin::Recorded(record) => record.provider.name().to_owned(),
        Origin::Foreign(kind) => kind.clone(),
        Origin::Unrecorded => "unknown".to_owned(),
    };
    let (provider, outlook, why) = match tried.get(&slot.id) {
        Some(Ok(provider)) => {
            let (outlook, why) = at_the_next_boot(*provider, next);
            (provider.name().to_owned(), outlook, why)
        }
        Some(Err(Closed::NeedsSomebody(what))) => (named, Outlook::NeedsSomebody, what.clone()),
        Some(Err(Closed::Locked(why))) => (named, Outlook::LockedOut, why.clone()),
        None => (named, Outlook::LockedOut, "nothing that nemos-initrd knows opens it".to_owned()),
    };
    Way { slot: slot.id, provider, outlook, why }
}

/// Of a way that is open now.
fn at_the_next_boot(provider: Provider, next: &NextBoot) -> (Outlook, String) {
    match (provider, next) {
        (Provider::Tpm2, NextBoot::Differs(variables)) => {
            let why = format!(
                "it opens now, and not at the next boot: Secure Boot's {} changed since this one began, and the TPM's key is bound to them (PCR 7)",
                variables.join(", ")
            );
            (Outlook::LockedOut, why)
        }
        (Provider::Tpm2, NextBoot::Unknown(why)) => (
            Outlook::ByItself,
            format!("it was tried now; whether Secure Boot is the same at the next boot is not known: {why}"),
        ),
        _ => (Outlook::ByItself, "it was tried now".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;
    use crate::keys::Record;

    #[test]
    fn the_best_way_counts_and_each_says_why() {
        let id = |number: u32| KeyslotId::try_from(number).unwrap();
        let recorded = |number, provider| Slot {
            id: id(number),
            origin: Origin::Recorded(Record { provider, created: Timestamp(0), place: None }),
        };
        let (demo, typed) = (recorded(0, Provider::DemoKey), recorded(1, Provider::RecoveryKey));
        let typed_at_the_console = |mut tried: Tried| {
            tried.insert(id(1), Err(Closed::NeedsSomebody("somebody types it".to_owned())));
            tried
        };
        let forecast =
            |slots: &[Slot], tried: &Tried| forecast(slots, &typed_at_the_console(tried.clone()), &NextBoot::Same);
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
    fn a_tpm_that_opens_now_does_not_once_secure_boot_was_changed() {
        let recorded = |number: u32, provider| Slot {
            id: number.try_into().unwrap(),
            origin: Origin::Recorded(Record { provider, created: Timestamp(0), place: None }),
        };
        let slots = [recorded(0, Provider::Tpm2), recorded(1, Provider::RecoveryKey), recorded(2, Provider::DemoKey)];
        let opens = |slot: &Slot| match slot.provider()? {
            Provider::RecoveryKey => Some((slot.id, Err(Closed::NeedsSomebody("somebody types it".to_owned())))),
            provider => Some((slot.id, Ok(provider))),
        };
        let told = |slots: &[Slot], next| forecast(slots, &slots.iter().filter_map(opens).collect(), &next);
        let differs = || NextBoot::Differs(vec!["db".into(), "dbx".into()]);
        let changed = told(&slots[..2], differs());
        assert_eq!(changed.outlook, Outlook::NeedsSomebody);
        assert!(changed.ways[0].why.contains("Secure Boot's db, dbx changed"), "{changed:?}");
        assert_eq!(changed.finding().unwrap().health, Health::Warning);
        assert_eq!(told(&slots[..1], differs()).finding().unwrap().health, Health::Critical);
        let unknown = told(&slots[..2], NextBoot::Unknown("there is no log".into()));
        assert_eq!(unknown.outlook, Outlook::ByItself);
        assert!(unknown.ways[0].why.ends_with("is not known: there is no log"), "{unknown:?}");
        let demo_key = told(&slots[2..], differs());
        assert_eq!(demo_key.outlook, Outlook::ByItself, "it is bound to nothing");
    }
}
