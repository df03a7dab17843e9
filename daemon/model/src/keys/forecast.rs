//! Whether the next boot opens the overlay's volume by itself.

use crate::keys::slot::{KeyslotId, Origin, Slot};
use crate::keys::{Provider, Record};
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

/// What was tried: the slot that the demo key opens now, if there is a demo key; `None` inside if it opens none.
pub type Tried = Option<Option<KeyslotId>>;

/// Forecasts the next boot.
pub fn forecast(slots: &[Slot], tried: Tried) -> Forecast {
    let ways: Vec<Way> = slots.iter().map(|slot| way(slot, tried)).collect();
    let best = |outlook| ways.iter().any(|way: &Way| way.outlook == outlook);
    let outlook = [Outlook::ByItself, Outlook::NeedsSomebody].into_iter().find(|outlook| best(*outlook));
    Forecast { outlook: outlook.unwrap_or(Outlook::LockedOut), ways }
}

fn way(slot: &Slot, tried: Tried) -> Way {
    let (provider, outlook, why) = match &slot.origin {
        _ if tried.flatten() == Some(slot.id) => (
            Provider::DemoKey.name().to_owned(),
            Outlook::ByItself,
            "the demo key in the initrd opens it, as was tried now",
        ),
        Origin::Recorded(Record { provider: Provider::DemoKey, .. }) => {
            let why = if tried.is_some() { "the initrd's key does not open it" } else { "the initrd has no demo key" };
            (Provider::DemoKey.name().to_owned(), Outlook::LockedOut, why)
        }
        Origin::Recorded(Record { provider, .. }) => {
            (provider.name().to_owned(), Outlook::NeedsSomebody, "somebody types it at the console")
        }
        Origin::Foreign(kind) => (kind.clone(), Outlook::LockedOut, "nemos-initrd does not know such a token"),
        Origin::Unrecorded => ("unknown".to_owned(), Outlook::LockedOut, "nothing says what opens it"),
    };
    Way { slot: slot.id, provider, outlook, why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;

    #[test]
    fn the_best_way_counts_and_each_says_why() {
        let id = |number: u32| KeyslotId::try_from(number).unwrap();
        let recorded = |number, provider| Slot {
            id: id(number),
            origin: Origin::Recorded(Record { provider, created: Timestamp(0) }),
        };
        let demo = recorded(0, Provider::DemoKey);
        let typed = recorded(1, Provider::RecoveryKey);
        let outlook = |slots: &[Slot], tried| forecast(slots, tried).outlook;
        assert_eq!(outlook(&[demo.clone(), typed.clone()], Some(Some(id(0)))), Outlook::ByItself);
        assert_eq!(outlook(&[demo.clone(), typed.clone()], None), Outlook::NeedsSomebody);
        assert_eq!(outlook(&[demo], Some(None)), Outlook::LockedOut);
        let unrecorded = Slot { id: id(5), origin: Origin::Unrecorded };
        assert_eq!(outlook(std::slice::from_ref(&unrecorded), Some(Some(id(5)))), Outlook::ByItself);
        assert_eq!(outlook(&[unrecorded], Some(None)), Outlook::LockedOut);
    }
}
