//! Changes of the keys on a real LUKS2 header, interrupted wherever they can be.

#![allow(clippy::unwrap_used, reason = "panicking is how a test fails")]

use std::cell::Cell;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nemos_host::fsck;
use nemos_host::keys::{BACKUP, ChangeError, Handover, Key, Keys, Memory, NewKey, NotFetched, Secret, slots};
use nemos_host::mounts::{Mount, unmount};
use nemos_host::overlay;
use nemos_host::state::Store;
use nemos_model::Timestamp;
use nemos_model::job::Requester;
use nemos_model::keys::change::Known;
use nemos_model::keys::{Boot, Change, KeyslotId, Origin, Provider, Refused};
use nemos_model::partitions::Partition;
use nemos_model::state::DeviceState;
use nemos_rig::{Disk, Image, Rng, run};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// How many rotations in a row CI makes; `NEMOS_ROTATIONS=20000 NEMOS_RIG_LIMIT=20000` makes more.
const ROTATIONS: u32 = 30;

fn main() -> ExitCode {
    nemos_rig::main(nemos_rig::tests![
        a_key_that_was_added_opens_the_volume_and_one_that_was_removed_does_not,
        a_rotation_ends_when_a_boot_did_not_need_the_old_key,
        a_recovery_key_that_was_used_is_known_as_such_until_its_slot_goes,
        a_key_that_unlocks_may_be_as_somebody_types_it,
        a_key_that_nobody_fetched_is_taken_back,
        what_cannot_be_is_refused_and_changes_nothing,
        tokens_of_others_stay_as_they_are,
        an_interruption_between_any_two_steps_leaves_a_way_in,
        a_power_cut_at_any_flush_leaves_a_way_in,
        the_header_stays_sound_over_many_rotations,
    ])
}

/// A disk with a volume that the demo key opens, and a place for what the device remembers.
fn provisioned() -> Image {
    let disk = Disk::partitioned(&[("p.lxroot", 24 * MIB), ("p.lxstate", 32 * MIB)]);
    overlay::create_volume(&disk.partition("p.lxroot"), &demo(), &mut |_, _| {}).unwrap();
    run("mkfs.ext4", ["-q".as_ref(), disk.partition("p.lxstate").as_os_str()]);
    let device = Device::on(&disk);
    device.store().write(&DeviceState::shipped()).unwrap();
    drop(device);
    disk.image()
}

/// A disk whose state is mounted.
struct Device {
    volume: PathBuf,
    state: TempDir,
}

impl Device {
    fn on(disk: &Disk) -> Self {
        let state = TempDir::new().unwrap();
        let partition = disk.partition(Partition::State.label());
        fsck::mount(&Mount::new("ext4", &partition.to_string_lossy()), state.path()).unwrap();
        Device { volume: disk.partition(Partition::Root.label()), state }
    }

    fn store(&self) -> Store {
        Store::open(self.state.path()).unwrap()
    }

    fn keys(&self) -> Keys<'_> {
        Keys { partition: &self.volume, state: self.state.path() }
    }

    fn is_opened_by(&self, secret: &Secret) -> bool {
        self.keys().opens_secret(secret).unwrap().is_some()
    }

    /// Decides on what is known, and adds.
    fn adds(
        &self,
        rotates: bool,
        unlock: &Secret,
        new: &Secret,
        memory: &impl Memory,
    ) -> Result<KeyslotId, ChangeError> {
        self.adds_and_hands_over(rotates, unlock, new, memory, || Ok(()))
    }

    fn adds_and_hands_over(
        &self,
        rotates: bool,
        unlock: &Secret,
        new: &Secret,
        memory: &impl Memory,
        hand_over: impl FnOnce() -> Result<(), NotFetched>,
    ) -> Result<KeyslotId, ChangeError> {
        let (slots, provider) = (slots(&self.volume).unwrap(), Provider::RecoveryKey);
        let known = Known { slots: &slots, opened_by: None };
        let begin = if rotates { Known::rotate } else { Known::enroll };
        let change = begin(&known, provider, Requester::image(), Timestamp(7))?;
        let (unlock, new) =
            (Key::Secret(again(unlock)), NewKey { provider, key: Key::Secret(again(new)), place: None });
        self.keys().add(memory, &change, unlock, &new, hand_over)?;
        Ok(change.new_slot().unwrap())
    }

    fn removes(&self, slot: KeyslotId, memory: &impl Memory) -> Result<(), ChangeError> {
        let slots = slots(&self.volume).unwrap();
        let change = Known { slots: &slots, opened_by: None }.remove(slot, Requester::image(), Timestamp(7))?;
        self.keys().remove(memory, &change)
    }

    /// What nemosd does when it starts, in a boot that was opened by that slot. Nothing is left half done.
    fn starts(&self, opened_by: Option<KeyslotId>) -> Option<Change> {
        let notes = Notes::of(self);
        let boot = opened_by.map(|opened_by| Boot { id: "later", opened_by, untried: &[] });
        self.keys().settle(&notes, boot.as_ref()).unwrap();
        assert!(!self.state.path().join(BACKUP).exists(), "a copy of the header outlives the change");
        for slot in slots(&self.volume).unwrap() {
            assert!(matches!(slot.origin, Origin::Recorded(_)), "{slot:?} is an orphan");
        }
        notes.store.read().unwrap().key_change().cloned()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = unmount(self.state.path());
    }
}

/// The store; it may stop before a change is written, as a process that is killed.
struct Notes {
    store: Store,
    stops_after: Cell<usize>,
}

impl Notes {
    fn of(device: &Device) -> Self {
        Notes { store: device.store(), stops_after: Cell::new(usize::MAX) }
    }
}

impl Memory for Notes {
    fn change(&self, work: &mut dyn FnMut(&mut DeviceState) -> Result<(), Refused>) -> Result<(), ChangeError> {
        let left = self.stops_after.get().checked_sub(1).ok_or_else(|| ChangeError::Memory("stopped".into()))?;
        self.stops_after.set(left);
        let mut state = self.store.read()?;
        work(&mut state)?;
        Ok(self.store.write(&state)?)
    }
}

fn demo() -> Secret {
    Secret::typed("insecure")
}

/// The same secret: outside a test there is one of each.
fn again(secret: &Secret) -> Secret {
    Secret::typed(std::str::from_utf8(secret.expose()).unwrap())
}

fn key() -> Secret {
    Secret::new_recovery_key().unwrap()
}

fn id(number: u32) -> KeyslotId {
    number.try_into().unwrap()
}

fn a_key_that_was_added_opens_the_volume_and_one_that_was_removed_does_not() {
    let disk = provisioned().disk();
    let (device, recovery) = (Device::on(&disk), key());
    let notes = Notes::of(&device);
    let slot = device.adds(false, &demo(), &recovery, &notes).unwrap();
    assert!(device.is_opened_by(&recovery) && device.is_opened_by(&demo()));
    device.removes(id(0), &notes).unwrap();
    assert!(device.is_opened_by(&recovery) && !device.is_opened_by(&demo()));
    assert!(matches!(device.removes(slot, &notes), Err(ChangeError::Refused(Refused::LastKey(_)))));
    drop(notes);
    assert_eq!(device.starts(None), None);
    let metadata = run("cryptsetup", ["luksDump", "--dump-json-metadata", device.volume.to_str().unwrap()]);
    assert_eq!(metadata.matches("recovery-key").count(), 1, "{metadata}");
    assert!(!metadata.contains("demo-key"), "{metadata}");
}

fn a_rotation_ends_when_a_boot_did_not_need_the_old_key() {
    let disk = provisioned().disk();
    let (device, old, new) = (Device::on(&disk), key(), key());
    let needed = device.adds(false, &demo(), &old, &Notes::of(&device)).unwrap();
    device.adds(true, &old, &new, &Notes::of(&device)).unwrap();
    assert!(device.starts(Some(needed)).is_some(), "this boot was opened by the old one");
    assert!(device.is_opened_by(&old) && device.is_opened_by(&new));
    assert_eq!(device.starts(Some(id(0))), None);
    assert!(!device.is_opened_by(&old) && device.is_opened_by(&new) && device.is_opened_by(&demo()));
}

fn a_recovery_key_that_was_used_is_known_as_such_until_its_slot_goes() {
    let disk = provisioned().disk();
    let (device, old, new) = (Device::on(&disk), key(), key());
    let used = device.adds(false, &demo(), &old, &Notes::of(&device)).unwrap();
    for (opened_by, at) in [(id(0), 8), (used, 9), (used, 10)] {
        device.keys().brought(opened_by, Timestamp(at)).unwrap();
    }
    let recorded = || slots(&device.volume).unwrap().iter().map(|slot| slot.record().unwrap().used).collect::<Vec<_>>();
    assert_eq!(recorded(), [None, Some(Timestamp(9))]);
    assert!(device.is_opened_by(&old));

    device.adds(true, &old, &new, &Notes::of(&device)).unwrap();
    assert_eq!(device.starts(Some(id(0))), None);
    assert_eq!(recorded(), [None, None], "the new one was seen by nobody");
    let tokens = run("cryptsetup", ["luksDump", "--dump-json-metadata", device.volume.to_str().unwrap()]);
    assert_eq!(tokens.matches("\"nemos\"").count(), 2, "{tokens}");
}

fn a_key_that_unlocks_may_be_as_somebody_types_it() {
    let disk = provisioned().disk();
    let (device, recovery) = (Device::on(&disk), key());
    let notes = Notes::of(&device);
    device.adds(false, &Secret::typed("insecure\n"), &recovery, &notes).unwrap();
    let typed = String::from_utf8_lossy(recovery.expose()).replace('-', "").to_uppercase() + "\n";
    let added = device.adds(false, &Secret::typed(&typed), &Secret::typed("new\n"), &notes).unwrap();
    assert!(device.is_opened_by(&Secret::typed("new\n")), "what is new is as it is given");
    assert_eq!(slots(&device.volume).unwrap().len(), 3);
    device.removes(added, &notes).unwrap();
}

fn a_key_that_nobody_fetched_is_taken_back() {
    let disk = provisioned().disk();
    let (device, old) = (Device::on(&disk), key());
    device.adds(false, &demo(), &old, &Notes::of(&device)).unwrap();
    let before = slots(&device.volume).unwrap();
    for rotates in [false, true] {
        let new = key();
        let hand_over = || {
            assert!(device.is_opened_by(&new), "it is no way in yet, but would be one");
            let (handover, reader) = Handover::of(&new).unwrap();
            drop(reader);
            handover.wait(Duration::from_secs(10))
        };
        let refused = device.adds_and_hands_over(rotates, &demo(), &new, &Notes::of(&device), hand_over).unwrap_err();
        assert!(matches!(refused, ChangeError::NotFetched(NotFetched::Gone)), "{refused}");
        assert!(!device.is_opened_by(&new) && device.is_opened_by(&old));
        assert_eq!(slots(&device.volume).unwrap(), before);
        assert_eq!(device.starts(Some(id(0))), None, "nothing waits for a boot");
    }
}

fn what_cannot_be_is_refused_and_changes_nothing() {
    let disk = provisioned().disk();
    let (device, recovery) = (Device::on(&disk), key());
    let before = fs::read(&device.volume).unwrap();
    let wrong = device.adds(false, &key(), &recovery, &Notes::of(&device)).unwrap_err();
    assert!(matches!(wrong, ChangeError::WrongKey { .. }), "{wrong}");
    let known = device.adds(false, &demo(), &demo(), &Notes::of(&device)).unwrap_err();
    assert!(matches!(known, ChangeError::NotNew { .. }), "{known}");
    assert!(matches!(device.adds(true, &demo(), &recovery, &Notes::of(&device)), Err(ChangeError::Refused(_))));
    assert!(matches!(device.removes(id(7), &Notes::of(&device)), Err(ChangeError::Refused(Refused::NotInUse(_)))));
    assert!(fs::read(&device.volume).unwrap() == before, "something was written");
}

fn tokens_of_others_stay_as_they_are() {
    let disk = provisioned().disk();
    let device = Device::on(&disk);
    let token = r#"{"type":"somebody-else","keyslots":["0"],"what":"they know"}"#;
    fs::write("/run/token", token).unwrap();
    run("cryptsetup", ["token", "import", "--json-file", "/run/token", device.volume.to_str().unwrap()]);
    let slot = device.adds(false, &demo(), &key(), &Notes::of(&device)).unwrap();
    device.removes(slot, &Notes::of(&device)).unwrap();
    let metadata = run("cryptsetup", ["luksDump", "--dump-json-metadata", device.volume.to_str().unwrap()]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    let tokens: Vec<_> = metadata["tokens"].as_object().unwrap().values().collect();
    assert!(tokens.contains(&&serde_json::from_str(token).unwrap()), "{tokens:?}");
}

fn an_interruption_between_any_two_steps_leaves_a_way_in() {
    let image = provisioned();
    for steps in 0..4 {
        let disk = image.disk();
        let (device, old, new) = (Device::on(&disk), key(), key());
        device.adds(false, &demo(), &old, &Notes::of(&device)).unwrap();
        let notes = Notes { stops_after: Cell::new(steps), ..Notes::of(&device) };
        let rotated = device.adds(true, &old, &new, &notes);
        drop(notes);
        let waits = device.starts(None);
        assert!(device.is_opened_by(&old) && device.is_opened_by(&demo()));
        assert_eq!(device.is_opened_by(&new), rotated.is_ok(), "what was told is so, after {steps} steps");
        assert_eq!(waits.is_some(), rotated.is_ok());

        let notes = Notes { stops_after: Cell::new(steps), ..Notes::of(&device) };
        let removed = device.removes(id(0), &notes);
        drop(notes);
        device.starts(None);
        assert!(device.is_opened_by(&old));
        assert!(removed.is_err() || !device.is_opened_by(&demo()));
    }
}

/// Enrols, rotates and removes, each as a boot that is confirmed would go on.
fn a_power_cut_at_any_flush_leaves_a_way_in() {
    let [old, new] = [key(), key()];
    let disk = provisioned().logged_disk();
    {
        let device = Device::on(&disk);
        device.adds(false, &demo(), &old, &Notes::of(&device)).unwrap();
        let slot = device.adds(true, &old, &new, &Notes::of(&device)).unwrap();
        assert_eq!(device.starts(Some(slot)), None);
        device.removes(id(0), &Notes::of(&device)).unwrap();
    }
    let mut log = disk.into_log();
    let seed = env::var("NEMOS_KEYS_SEED").map_or_else(|_| Rng::new().u64(..), |seed| seed.parse().unwrap());
    println!("NEMOS_KEYS_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let (mut flushes, mut torn) = (0, 0);
    loop {
        let cut = log.cut();
        is_tidied_up(&cut, [&old, &new]);
        drop(cut);
        if log.unsafe_writes() > 0 {
            let cut = log.torn(&mut random);
            is_tidied_up(&cut, [&old, &new]);
            torn += 1;
        }
        if !log.goes_on() {
            break;
        }
        flushes += 1;
    }
    println!("\n    keys: the power went at {flushes} flushes, and {torn} times in what was written between two\n");
}

/// At least one recorded way opens the volume, and the next start leaves nothing half done.
fn is_tidied_up(disk: &Disk, keys: [&Secret; 2]) {
    let device = Device::on(disk);
    device.starts(None);
    let demo = demo();
    let ways = [&demo, keys[0], keys[1]].into_iter().filter(|secret| device.is_opened_by(secret)).count();
    assert!(ways > 0, "nothing opens the volume: {:?}", slots(&device.volume));
    assert!(ways >= slots(&device.volume).unwrap().len(), "a key slot that nothing opens: {:?}", slots(&device.volume));
}

fn the_header_stays_sound_over_many_rotations() {
    let rotations = env::var("NEMOS_ROTATIONS").map_or(ROTATIONS, |number| number.parse().unwrap());
    let disk = provisioned().disk();
    let device = Device::on(&disk);
    let mut old = key();
    device.adds(false, &demo(), &old, &Notes::of(&device)).unwrap();
    for _ in 0..rotations {
        let new = key();
        let slot = device.adds(true, &old, &new, &Notes::of(&device)).unwrap();
        assert_eq!(device.starts(Some(slot)), None);
        old = new;
    }
    assert!(device.is_opened_by(&old) && device.is_opened_by(&demo()));
    assert_eq!(slots(&device.volume).unwrap().len(), 2);
    is_sound(&device.volume);
}

fn is_sound(volume: &Path) {
    let damaged = nemos_host::integrity::scrub::header::damaged(volume).unwrap();
    assert!(damaged.is_empty(), "{damaged:?}");
    run("cryptsetup", ["luksDump", volume.to_str().unwrap()]);
}
