//! The change of the key slots, and the recovery keys for the fleet.

use super::DeviceState;
use crate::keys::recovery::Sealed;
use crate::keys::{Boot, Change, KeyslotId, Refused, Slot};

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

    /// Records that the new slot, which is one of these, opens the volume. What is sealed for the fleet is there from now on.
    pub fn key_proven(&mut self, slots: &[Slot]) {
        let Some(mut change) = self.key_change.take() else { return };
        self.sealed.retain(|sealed| sealed.slot(slots).is_some());
        let created = change.at;
        self.sealed.extend(change.sealed.take().map(|text| Sealed { created, text, acknowledged: false }));
        self.key_change = change.proven();
    }

    /// Records a boot, if that lets a change go on.
    pub fn key_confirmed(&mut self, boot: Option<&Boot<'_>>) {
        let is_confirmed =
            self.key_change.as_ref().zip(boot).is_some_and(|(change, boot)| change.is_confirmed_by(boot));
        if is_confirmed {
            self.key_change = self.key_change.take().map(Change::confirmed);
        }
    }

    /// Records that the change has come to its end, or was taken back.
    pub fn key_change_ended(&mut self) {
        self.key_change = None;
    }

    /// The recovery keys that were made for the fleet and open one of these slots, oldest first.
    pub fn sealed<'a>(&'a self, slots: &'a [Slot]) -> impl DoubleEndedIterator<Item = &'a Sealed> {
        self.sealed.iter().filter(|sealed| sealed.slot(slots).is_some())
    }

    /// Records that the fleet keeps the newest of them, which is this one; gives its slot.
    pub fn acknowledge_sealed(&mut self, text: &str, slots: &[Slot]) -> Result<KeyslotId, Refused> {
        let newest = self.sealed.iter_mut().filter_map(|sealed| Some((sealed.slot(slots)?.id, sealed))).next_back();
        let (slot, sealed) =
            newest.filter(|(_, sealed)| sealed.text.trim() == text.trim()).ok_or(Refused::NotSealed)?;
        sealed.acknowledged = true;
        Ok(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;
    use crate::job::Requester;
    use crate::keys::change::Known;
    use crate::keys::{Origin, Provider, Record};

    fn recovery_keys(made: &[u64]) -> Vec<Slot> {
        let record = |made: &u64| Origin::Recorded(Record::new(Provider::RecoveryKey, Timestamp(*made)));
        (0..).zip(made).map(|(id, made): (u32, _)| Slot { id: id.try_into().unwrap(), origin: record(made) }).collect()
    }

    fn begins(state: &mut DeviceState, at: u64, slots: &[u64]) {
        let slots = recovery_keys(slots);
        let known = Known { slots: &slots, opened_by: None };
        let change = known.enroll(Provider::RecoveryKey, Requester::policy(), Timestamp(at)).unwrap();
        assert_eq!(change.at, Timestamp(at));
        state.begin_key_change(change.sealed(Some(format!("made at {at}")))).unwrap();
    }

    fn newest(state: &DeviceState, slots: &[u64]) -> Option<String> {
        state.sealed(&recovery_keys(slots)).next_back().map(|sealed| sealed.text.clone())
    }

    #[test]
    fn what_is_sealed_is_there_when_its_key_counts_and_as_long_as_its_slot_is() {
        let mut state = DeviceState::shipped();
        begins(&mut state, 1, &[]);
        assert_eq!(newest(&state, &[1]), None, "the power may go, and its slot then goes");
        state.key_change_ended();
        begins(&mut state, 2, &[]);
        state.key_proven(&recovery_keys(&[2]));
        begins(&mut state, 3, &[2]);
        assert_eq!(newest(&state, &[2, 3]), Some("made at 2".into()));
        state.key_proven(&recovery_keys(&[2, 3]));
        assert_eq!(newest(&state, &[2, 3]), Some("made at 3".into()));
        assert_eq!(newest(&state, &[2]), Some("made at 2".into()), "somebody has removed the new one");
        assert_eq!(newest(&state, &[]), None);
    }

    #[test]
    fn a_device_that_has_sealed_a_key_before_there_could_be_two_remembers_all_else() {
        let before =
            r#"{"version": 1, "volume": {"is": "erased"}, "jobs": [], "sealed": {"created": 1, "text": "age"}}"#;
        let state = DeviceState::parse(before.as_bytes()).unwrap();
        assert_eq!(newest(&state, &[1]), None);
    }

    #[test]
    fn the_fleet_acknowledges_the_one_that_there_is_and_no_other() {
        let mut state = DeviceState::shipped();
        for (at, slots) in [(2, &[2][..]), (3, &[2, 3])] {
            begins(&mut state, at, &slots[..slots.len() - 1]);
            state.key_proven(&recovery_keys(slots));
        }
        let slots = recovery_keys(&[2, 3]);
        for other in ["made at 2", "", "anything"] {
            assert_eq!(state.acknowledge_sealed(other, &slots), Err(Refused::NotSealed));
        }
        assert_eq!(state.acknowledge_sealed("made at 3\n", &slots), Ok(1.try_into().unwrap()));
        let acknowledged: Vec<bool> = state.sealed(&slots).map(|sealed| sealed.acknowledged).collect();
        assert_eq!(acknowledged, [false, true]);
        assert_eq!(state.acknowledge_sealed("made at 3", &recovery_keys(&[2])), Err(Refused::NotSealed));
    }
}
