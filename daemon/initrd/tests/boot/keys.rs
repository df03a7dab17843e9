//! The ways into the overlay's volume at boot.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nemos_host::keys::{ChangeError, Given, Key, Keys, Memory, Moment, NewKey, Secret, slots, try_slot, unlock, way};
use nemos_host::state::Store;
use nemos_model::Timestamp;
use nemos_model::job::{JobState, Requester};
use nemos_model::keys::change::Known;
use nemos_model::keys::{Closed, FilePlace, KeyslotId, Place, Provider, Refused};
use nemos_model::partitions::Partition;
use nemos_model::reset::Scope;
use nemos_model::state::DeviceState;
use nemos_rig::{Disk, run};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use crate::device::{CREDENTIALS, Device};

struct Notes(Store);

impl Memory for Notes {
    fn change(&self, work: &mut dyn FnMut(&mut DeviceState) -> Result<(), Refused>) -> Result<(), ChangeError> {
        let mut state = self.0.read()?;
        work(&mut state)?;
        Ok(self.0.write(&state)?)
    }
}

/// Adds a key, as the daemon does, by one that opens the volume.
fn add_by(device: &Device, unlock: Key, new: &NewKey, at: u64) -> Result<KeyslotId, ChangeError> {
    let partition = device.partition(Partition::Root);
    device.with_state(|state| {
        let (notes, keys) = (Notes(Store::open(state).unwrap()), Keys { partition: &partition, state });
        let known = slots(&partition).unwrap();
        let known = Known { slots: &known, opened_by: None };
        let change = known.enroll(new.provider, Requester::image(), Timestamp(at)).unwrap();
        let change = change.at_place(new.place.clone());
        keys.add(&notes, &change, unlock, new, || Ok(()))?;
        Ok(change.new_slot().unwrap())
    })
}

fn add(device: &Device, new: &NewKey, at: u64) -> KeyslotId {
    add_by(device, Key::Secret(Secret::typed("insecure")), new, at).unwrap()
}

fn remove_the_demo_key(device: &Device) {
    let partition = device.partition(Partition::Root);
    device.with_state(|state| {
        let (notes, keys) = (Notes(Store::open(state).unwrap()), Keys { partition: &partition, state });
        let known = slots(&partition).unwrap();
        let demo = KeyslotId::try_from(0).unwrap();
        let known = Known { slots: &known, opened_by: None };
        keys.remove(&notes, &known.remove(demo, Requester::image(), Timestamp(8)).unwrap()).unwrap();
    });
}

fn recovery_key(secret: &Secret) -> NewKey {
    let typed = Secret::typed(std::str::from_utf8(secret.expose()).unwrap());
    NewKey { provider: Provider::RecoveryKey, key: Key::Secret(typed), place: None }
}

/// Puts a recovery key in the demo key's place, and gives it back.
fn with_a_recovery_key_only(device: &Device) -> Secret {
    let recovery = Secret::new_recovery_key().unwrap();
    add(device, &recovery_key(&recovery), 7);
    remove_the_demo_key(device);
    recovery
}

/// Whoever starts the device gives it this.
fn is_given(answer: &[u8]) {
    is_given_as("cryptsetup.passphrase", answer);
}

fn is_given_as(name: &str, answer: &[u8]) {
    fs::create_dir_all(CREDENTIALS).unwrap();
    fs::write(Path::new(CREDENTIALS).join(name), answer).unwrap();
}

pub fn a_recovery_key_opens_a_device_that_has_no_other_way() {
    let device = Device::provisioned();
    let running = device.boots();
    assert_eq!(running.volume().provider, Provider::DemoKey);
    running.writes("/etc/hostname", "mine");
    running.shuts_down();

    let recovery = with_a_recovery_key_only(&device);
    // As somebody types it.
    is_given(String::from_utf8_lossy(recovery.expose()).replace('-', "").to_uppercase().as_bytes());
    let mut running = device.boots();
    running.is_healthy();
    assert_eq!(running.volume().provider, Provider::RecoveryKey);
    assert_eq!(running.volume().keyslot, KeyslotId::try_from(1).unwrap());
    assert_eq!(running.reads("/etc/hostname"), "mine");
}

pub fn a_passphrase_that_somebody_added_without_us_is_asked_for() {
    let device = Device::provisioned();
    let volume = device.partition(Partition::Root);
    fs::write("/run/demo", "insecure").unwrap();
    fs::write("/run/theirs", "added by hand").unwrap();
    let pbkdf = ["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--key-file=/run/demo"];
    let add = ["luksAddKey", volume.to_str().unwrap(), "/run/theirs"];
    run("cryptsetup", pbkdf.into_iter().chain(add));
    run("cryptsetup", ["luksKillSlot", "--batch-mode", volume.to_str().unwrap(), "0"]);
    is_given(b"added by hand");
    let mut running = device.boots();
    running.is_healthy();
    assert_eq!(running.volume().provider, Provider::Passphrase);
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
    assert_eq!(running.volume().provider, Provider::DemoKey);
    assert_eq!(running.reads("/etc/hostname"), "mine");
    running.shuts_down();
    assert_eq!(device.state().job(job).unwrap().state, JobState::Done);
    assert_eq!(slots(&device.partition(Partition::Root)).unwrap().len(), 1);
}

/// A disk with files on it, which udev knows by its label.
struct Stick(Disk);

const LINK: &str = "/dev/disk/by-label/KEYS";

impl Stick {
    fn with(fs_type: &str) -> Self {
        let disk = Disk::new(16 << 20);
        run(&format!("mkfs.{fs_type}"), [disk.path()]);
        let stick = Stick(disk);
        stick.is_plugged_in();
        stick
    }

    fn is_plugged_in(&self) {
        fs::create_dir_all(Path::new(LINK).parent().unwrap()).unwrap();
        symlink(self.0.path(), LINK).unwrap();
    }

    fn is_pulled_out(&self) {
        fs::remove_file(LINK).unwrap();
    }

    fn holds<T>(&self, fs_type: &str, work: impl FnOnce(&Path) -> T) -> T {
        let folder = TempDir::new().unwrap();
        mount(self.0.path(), folder.path(), fs_type, MountFlags::empty(), None).unwrap();
        let done = work(folder.path());
        unmount(folder.path(), UnmountFlags::empty()).unwrap();
        done
    }
}

impl Drop for Stick {
    fn drop(&mut self) {
        let _ = fs::remove_file(LINK);
    }
}

fn new_key_file(path: &str, secret: &str) -> Result<NewKey, ChangeError> {
    let place = Place::File(FilePlace::new("LABEL=KEYS", path).unwrap());
    let given = Given { secret: Some(Secret::typed(secret)), place: Some(place), pin: None };
    way(Provider::KeyFile).new_key(given)
}

pub fn a_key_file_on_another_disk_opens_the_device() {
    for fs_type in ["ext4", "vfat"] {
        let (device, stick) = (Device::provisioned(), Stick::with(fs_type));
        stick.holds(fs_type, |root| fs::write(root.join("nemos.key"), "in a file").unwrap());
        let slot = add(&device, &new_key_file("/nemos.key", "in a file").unwrap(), 7);
        let mut running = device.boots();
        running.is_healthy();
        assert_eq!((running.volume().provider, running.volume().keyslot), (Provider::KeyFile, slot));
        running.shuts_down();

        // Whose place another one takes is tried last.
        stick.holds(fs_type, |root| fs::write(root.join("nemos.key.new"), "another").unwrap());
        let newer = add(&device, &new_key_file("/nemos.key.new", "another").unwrap(), 8);
        let running = device.boots();
        assert_eq!(running.volume().keyslot, newer);
        running.shuts_down();
        stick.holds(fs_type, |root| fs::remove_file(root.join("nemos.key.new")).unwrap());
        assert_eq!(device.boots().volume().keyslot, slot);
    }
}

pub fn without_the_disk_of_its_key_file_a_device_is_opened_by_what_comes_next() {
    let (device, stick) = (Device::provisioned(), Stick::with("ext4"));
    stick.holds("ext4", |root| fs::write(root.join("nemos.key"), "in a file").unwrap());
    add(&device, &new_key_file("/nemos.key", "in a file").unwrap(), 7);
    stick.is_pulled_out();
    let mut running = device.boots();
    running.is_healthy();
    assert_eq!(running.volume().provider, Provider::DemoKey);
    assert!(running.said.contains("the device with LABEL=KEYS is not there"), "{}", running.said);

    let partition = device.partition(Partition::Root);
    let slots = slots(&partition).unwrap();
    let slot = slots.iter().find(|slot| slot.provider() == Some(Provider::KeyFile)).unwrap();
    let locked = Closed::Locked("the device with LABEL=KEYS is not there".to_owned());
    assert_eq!(try_slot(&partition, slot, Provider::ALL), Some(Err(locked)));
    stick.is_plugged_in();
    assert_eq!(try_slot(&partition, slot, Provider::ALL), Some(Ok(Provider::KeyFile)));
    let opens = |order: &[Provider]| unlock(&partition, &slots, order, Moment::Running).unwrap().provider;
    assert_eq!(opens(Provider::ALL), Provider::KeyFile);
    assert_eq!(opens(&[Provider::DemoKey, Provider::KeyFile]), Provider::DemoKey, "the image may have another order");
    running.shuts_down();

    // A disk of that label that somebody else has made.
    stick.holds("ext4", |root| {
        fs::remove_file(root.join("nemos.key")).unwrap();
        symlink("/etc/hostname", root.join("nemos.key")).unwrap();
    });
    let running = device.boots();
    assert_eq!(running.volume().provider, Provider::DemoKey);
    assert!(running.said.contains("cannot read LABEL=KEYS:/nemos.key"), "{}", running.said);
}

pub fn a_key_file_that_no_boot_would_find_is_refused() {
    let (device, stick) = (Device::provisioned(), Stick::with("ext4"));
    stick.holds("ext4", |root| fs::write(root.join("nemos.key"), "in a file").unwrap());
    let refusal = |path, secret| new_key_file(path, secret).unwrap_err().to_string();
    assert!(refusal("/nemos.key", "not in it").contains("has another one"));
    assert!(refusal("/other.key", "in a file").contains("No such file"));
    stick.is_pulled_out();
    let _running = device.boots();
    symlink(device.partition(Partition::Home), LINK).unwrap();
    assert!(refusal("/nemos.key", "in a file").contains("is on this device's own"));
}

const PIN: &str = "4321";

/// A PKCS#11 token with a key and its certificate: the one that keeps them in files.
fn token() -> Place {
    let (key, certificate, der) = ("/run/token.key", "/run/token.crt", "/run/token.der");
    run("softhsm2-util", ["--init-token", "--free", "--label", "device", "--so-pin", "87654321", "--pin", PIN]);
    let new =
        ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=device", "-keyout", key, "-out", certificate];
    run("openssl", new);
    run("openssl", ["x509", "-in", certificate, "-outform", "der", "-out", der]);
    let (token, object) = (["--token", "device", "--pin", PIN], ["--id", "01", "--label", "disk"]);
    run("softhsm2-util", ["--import", key].into_iter().chain(token).chain(object));
    let module = ["--module", "/usr/lib/softhsm/libsofthsm2.so", "--token-label", "device", "--login", "--pin", PIN];
    run("pkcs11-tool", module.into_iter().chain(["--write-object", der, "--type", "cert"]).chain(object));
    "pkcs11:token=device;object=disk".parse().unwrap()
}

pub fn a_token_opens_the_device_when_it_is_given_its_pin() {
    let (device, place) = (Device::provisioned(), token());
    let new = |pin: &str| {
        let given = Given { pin: Some(Secret::typed(pin)), place: Some(place.clone()), ..Given::default() };
        way(Provider::Pkcs11).new_key(given).unwrap()
    };
    let demo = Key::Secret(Secret::typed("insecure"));
    let wrong = add_by(&device, demo, &new("1234"), 7).unwrap_err();
    assert!(matches!(wrong, ChangeError::WrongPin), "{wrong}");
    let partition = device.partition(Partition::Root);
    assert_eq!(slots(&partition).unwrap().len(), 1, "nothing is left of what came to nothing");
    add(&device, &new(PIN), 7);
    let newer = add(&device, &new(PIN), 8);

    let known = slots(&partition).unwrap();
    let slot = known.iter().find(|slot| slot.id == newer).unwrap();
    assert_eq!(slot.place(), Some(&place));
    let tried = try_slot(&partition, slot, Provider::ALL);
    assert!(matches!(tried, Some(Err(Closed::NeedsSomebody(_)))), "{tried:?}");
    let running = device.boots();
    assert_eq!(running.volume().provider, Provider::DemoKey, "nobody is asked if somebody need not be");
    running.shuts_down();

    remove_the_demo_key(&device);
    is_given_as("cryptsetup.pkcs11-pin", PIN.as_bytes());
    let mut running = device.boots();
    running.is_healthy();
    assert_eq!((running.volume().provider, running.volume().keyslot), (Provider::Pkcs11, newer));
    running.shuts_down();

    // It adds another key, of those that systemd does not make.
    let recovery = Secret::new_recovery_key().unwrap();
    add_by(&device, new(PIN).key, &recovery_key(&recovery), 9).unwrap();
    let refused = add_by(&device, new(PIN).key, &new(PIN), 10).unwrap_err();
    assert!(matches!(refused, ChangeError::UnlockedByToken), "{refused}");
}
