//! The ways into the overlay's volume at boot.

use std::fs;
use std::path::Path;

use nemos_host::keys::{ChangeError, Key, Keys, Memory, NewKey, Secret, slots};
use nemos_host::state::Store;
use nemos_model::Timestamp;
use nemos_model::job::{JobState, Requester};
use nemos_model::keys::change::Known;
use nemos_model::keys::{KeyslotId, Provider, Refused};
use nemos_model::partitions::Partition;
use nemos_model::reset::Scope;
use nemos_model::state::DeviceState;

use crate::device::{CREDENTIALS, Device};

struct Notes(Store);

impl Memory for Notes {
    fn change(&self, work: &mut dyn FnMut(&mut DeviceState) -> Result<(), Refused>) -> Result<(), ChangeError> {
        let mut state = self.0.read()?;
        work(&mut state)?;
        Ok(self.0.write(&state)?)
    }
}

/// Puts a recovery key in the demo key's place, and gives it back.
fn with_a_recovery_key_only(device: &Device) -> Secret {
    let (partition, recovery) = (device.partition(Partition::Root), Secret::new_recovery_key().unwrap());
    device.with_state(|state| {
        let (notes, keys) = (Notes(Store::open(state).unwrap()), Keys { partition: &partition, state });
        let known = slots(&partition).unwrap();
        let known = Known { slots: &known, opened_by: None };
        let change = known.enroll(Provider::RecoveryKey, Requester::image(), Timestamp(7)).unwrap();
        let typed = Secret::typed(std::str::from_utf8(recovery.expose()).unwrap());
        let new = NewKey { provider: Provider::RecoveryKey, key: Key::Secret(typed) };
        keys.add(&notes, &change, &Key::Secret(Secret::typed("insecure")), &new).unwrap();
        let known = slots(&partition).unwrap();
        let demo = KeyslotId::try_from(0).unwrap();
        let known = Known { slots: &known, opened_by: None };
        keys.remove(&notes, &known.remove(demo, Requester::image(), Timestamp(8)).unwrap()).unwrap();
    });
    recovery
}

/// Whoever starts the device gives it this.
fn is_given(answer: &[u8]) {
    fs::create_dir_all(CREDENTIALS).unwrap();
    fs::write(Path::new(CREDENTIALS).join("cryptsetup.passphrase"), answer).unwrap();
}

pub fn a_recovery_key_opens_a_device_that_has_no_other_way() {
    let device = Device::provisioned();
    let running = device.boots();
    assert_eq!(running.report.provider, Some(Provider::DemoKey));
    running.writes("/etc/hostname", "mine");
    running.shuts_down();

    let recovery = with_a_recovery_key_only(&device);
    // As somebody types it.
    is_given(String::from_utf8_lossy(recovery.expose()).replace('-', "").to_uppercase().as_bytes());
    let mut running = device.boots();
    running.is_healthy();
    assert_eq!(running.report.provider, Some(Provider::RecoveryKey));
    assert_eq!(running.report.keyslot, Some(KeyslotId::try_from(1).unwrap()));
    assert_eq!(running.reads("/etc/hostname"), "mine");
}

pub fn a_reset_keeps_what_a_recovery_key_opens_and_brings_the_demo_key_back() {
    let device = Device::provisioned();
    let running = device.boots();
    running.writes("/etc/hostname", "mine");
    running.shuts_down();
    is_given(with_a_recovery_key_only(&device).expose());
    let job = device.is_asked_for_a_reset(Scope::Overlay, &["/etc/hostname"]);
    let mut running = device.boots();
    running.is_healthy();
    assert_eq!(running.report.provider, Some(Provider::DemoKey));
    assert_eq!(running.reads("/etc/hostname"), "mine");
    running.shuts_down();
    assert_eq!(device.state().job(job).unwrap().state, JobState::Done);
    assert_eq!(slots(&device.partition(Partition::Root)).unwrap().len(), 1);
}
