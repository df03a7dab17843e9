//! Whether the next boot opens the overlay's volume by itself.

use std::collections::BTreeMap;

use crate::keys::Provider;
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

/// What came of trying what needs nobody, for each key slot that it may fit: the provider that opens it, or why none does.
pub type Tried = BTreeMap<KeyslotId, Result<Provider, String>>;

/// Forecasts the next boot.
pub fn forecast(slots: &[Slot], tried: &Tried) -> Forecast {
    let ways: Vec<Way> = slots.iter().map(|slot| way(slot, tried)).collect();
    let has = |outlook: &Outlook| ways.iter().any(|way: &Way| way.outlook == *outlook);
    let outlook = Outlook::ALL.iter().copied().find(has);
    Forecast { outlook: outlook.unwrap_or(Outlook::LockedOut), ways }
}

fn way(slot: &Slot, tried: &Tried) -> Way {
    let named = match &slot.origin {
        Origin::Recorded(record) => record.provider.name().to_owned(),
        Origin::Foreign(kind) => kind.clone(),
        Origin::Unrecorded => "unknown".to_owned(),
    };
    let (provider, outlook, why) = match (tried.get(&slot.id), slot.provider()) {
        (Some(Ok(provider)), _) => (provider.name().to_owned(), Outlook::ByItself, "it was tried now".to_owned()),
        (_, Some(provider)) if provider.needs_somebody() => {
            (named, Outlook::NeedsSomebody, "somebody types it at the console".to_owned())
        }
        (Some(Err(why)), _) => (named, Outlook::LockedOut, why.clone()),
        (None, _) => (named, Outlook::LockedOut, "nothing that nemos-initrd knows opens it".to_owned()),
    };
    Way { slot: slot.id, provider, outlook, why }
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
            origin: Origin::Recorded(Record { provider, created: Timestamp(0) }),
        };
        let (demo, typed) = (recorded(0, Provider::DemoKey), recorded(1, Provider::RecoveryKey));
        let outlook = |slots: &[Slot], tried: Tried| forecast(slots, &tried).outlook;
        let opens = |number, provider| Tried::from([(id(number), Ok(provider))]);
        let fails = |number| Tried::from([(id(number), Err("the TPM says no".to_owned()))]);
        assert_eq!(outlook(&[demo.clone(), typed.clone()], opens(0, Provider::DemoKey)), Outlook::ByItself);
        assert_eq!(outlook(&[demo.clone(), typed], fails(0)), Outlook::NeedsSomebody);
        assert_eq!(outlook(&[demo], fails(0)), Outlook::LockedOut);
        assert_eq!(outlook(&[recorded(2, Provider::Tpm2)], opens(2, Provider::Tpm2)), Outlook::ByItself);
        let told = forecast(&[recorded(2, Provider::Tpm2)], &fails(2));
        assert_eq!((told.outlook, told.ways[0].why.as_str()), (Outlook::LockedOut, "the TPM says no"));
        let unrecorded = Slot { id: id(5), origin: Origin::Unrecorded };
        assert_eq!(outlook(std::slice::from_ref(&unrecorded), opens(5, Provider::DemoKey)), Outlook::ByItself);
        assert_eq!(outlook(&[unrecorded], Tried::new()), Outlook::LockedOut);
    }
}
