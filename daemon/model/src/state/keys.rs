//! The change of the key slots, and the recovery key for the fleet.

use super::DeviceState;
use crate::keys::recovery::Sealed;
use crate::keys::{Boot, Change, Refused, Slot};

impl DeviceState {
    /// The change of the key slots that has not come to its end.
    pub const fn key_change(&self) -> Option<&Change> {
        self.key_change.as_ref()
    }

    /// Begins a change of the key slots.
    pub fn begin_key_change(&mut self, change: Change) -> Result<(), Refused> {
        self.key_change.as_ref().map_or(Ok(()), |old| old.gives_way_to(&change))?;
        self.key_change = Some(change);
        Ok(())
    }

    /// Records that the new slot opens the volume.
    pub fn key_proven(&mut self) {
        self.key_change = self.key_change.take().and_then(Change::proven);
    }

    /// Records a boot, if that lets a change go on. True if it does.
    pub fn key_confirmed(&mut self, boot: Option<&Boot<'_>>) -> bool {
        let is_confirmed =
            self.key_change.as_ref().zip(boot).is_some_and(|(change, boot)| change.is_confirmed_by(boot));
        if is_confirmed {
            self.key_change = self.key_change.take().map(Change::confirmed);
        }
        is_confirmed
    }

    /// Records that the change has come to its end, or was taken back.
    pub fn key_change_ended(&mut self) {
        self.key_change = None;
    }

    /// A recovery key for the fleet, sealed before its slot is made: a slot is never there that nobody can open.
    pub fn seal(&mut self, sealed: Sealed) {
        self.sealed = Some(sealed);
    }

    /// The recovery key that was made for the fleet, if it opens one of these slots.
    pub fn sealed(&self, slots: &[Slot]) -> Option<&str> {
        self.sealed.as_ref().filter(|sealed| sealed.is_of(slots)).map(|sealed| sealed.text.as_str())
    }
}
