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

    /// Takes in a recovery key for the fleet before its slot counts: no slot is ever there that nobody can open. These slots
    /// were there before.
    pub fn seal(&mut self, sealed: Sealed, slots: &[Slot]) {
        let before = [self.sealed.replace(sealed), self.sealed_before.take()];
        self.sealed_before = before.into_iter().flatten().find(|before| before.is_of(slots));
    }

    /// The recovery key that was made for the fleet, if it opens one of these slots; the newer one while it takes the place of
    /// another.
    pub fn sealed(&self, slots: &[Slot]) -> Option<&Sealed> {
        self.sealed.iter().chain(&self.sealed_before).find(|sealed| sealed.is_of(slots))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;
    use crate::keys::{Origin, Provider, Record};

    fn recovery_keys(made: &[u64]) -> Vec<Slot> {
        let record = |made: &u64| Origin::Recorded(Record::new(Provider::RecoveryKey, Timestamp(*made)));
        (0..).zip(made).map(|(id, made): (u32, _)| Slot { id: id.try_into().unwrap(), origin: record(made) }).collect()
    }

    #[test]
    fn the_fleet_reads_the_recovery_key_that_there_is_wherever_its_replacement_ends() {
        let mut state = DeviceState::shipped();
        let seal = |state: &mut DeviceState, made: u64, slots: &[u64]| {
            state.seal(Sealed { created: Timestamp(made), text: made.to_string() }, &recovery_keys(slots));
        };
        let told = |state: &DeviceState, slots: &[u64]| state.sealed(&recovery_keys(slots)).map(|key| key.text.clone());
        seal(&mut state, 1, &[]);
        assert_eq!((told(&state, &[]), told(&state, &[1])), (None, Some("1".into())));
        // Twice the power goes before the new one counts.
        for made in [2, 3] {
            seal(&mut state, made, &[1]);
            assert_eq!(told(&state, &[1]), Some("1".into()), "the new slot is taken back");
            assert_eq!(told(&state, &[1, made]), Some(made.to_string()));
        }
        seal(&mut state, 4, &[3]);
        assert_eq!(
            (told(&state, &[1]), told(&state, &[3]), told(&state, &[4])),
            (None, Some("3".into()), Some("4".into()))
        );
    }
}
