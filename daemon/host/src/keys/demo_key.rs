//! The demo key, a file that every copy of the image has.

use std::path::Path;

use nemos_model::keys::{Closed, DEMO_KEY_COPY, DEMO_KEY_FILE, Origin, Provider, Refused, Slot};

use crate::keys::way::{Given, Moment, Way};
use crate::keys::{ChangeError, Key, NewKey, read_key_file};

pub(super) struct DemoKey;

impl Way for DemoKey {
    fn provider(&self) -> Provider {
        Provider::DemoKey
    }

    /// Who made a volume before us recorded nothing.
    fn fits(&self, slot: &Slot) -> bool {
        slot.provider() == Some(Provider::DemoKey) || slot.origin == Origin::Unrecorded
    }

    fn key(&self, _: &Slot, moment: Moment) -> Result<Key, Closed> {
        match moment {
            Moment::Boot => read_key_file(Path::new(DEMO_KEY_FILE)).map_err(|error| Closed::Locked(error.to_string())),
            Moment::Running => read_key_file(Path::new(DEMO_KEY_COPY))
                .map_err(|_| Closed::Locked("the initrd has no demo key".to_owned())),
        }
        .map(Key::Secret)
    }

    fn takes_secret(&self) -> bool {
        false
    }

    fn new_key(&self, _: Given) -> Result<NewKey, ChangeError> {
        Err(Refused::OfTheImage.into())
    }
}
