//! An image whose builder has made the file systems, as Kiwi does.

use std::fs;

use nemos_model::boot::Reason;
use nemos_model::job::{JobState, Kind};
use nemos_model::keys::DEMO_KEY_FILE;
use nemos_model::partitions::Partition;
use nemos_model::reset::{Scope, Step};
use nemos_model::state::{DeviceState, Volume};
use nemos_rig::run;

use crate::device::Device;

/// As image-builder/kiwi has it, but for the memory that a guess at the passphrase costs, which is slow to touch here.
const LUKS_FORMAT: [&str; 10] = [
    "--type=luks2",
    "--cipher=aegis128-random",
    "--key-size=128",
    "--integrity=aead",
    "--sector-size=4096",
    "--pbkdf=argon2id",
    "--pbkdf-force-iterations=4",
    "--pbkdf-memory=1024",
    "--pbkdf-parallel=2",
    "luksFormat",
];

/// A device with what Kiwi makes: everything is there, but for the folders of an overlay.
fn built_by_kiwi() -> Device {
    let device = Device::shipped();
    let node = |partition| device.partition(partition).to_string_lossy().into_owned();
    let key = ["-q", "--key-file", DEMO_KEY_FILE];
    run("cryptsetup", key.iter().chain(&LUKS_FORMAT).copied().chain([node(Partition::Root).as_str()]));
    run("cryptsetup", key.iter().copied().chain(["open", &node(Partition::Root), "luks"]));
    for (volume, label) in [("/dev/mapper/luks", "ROOT"), (&node(Partition::OciStorage), "oci-storage")] {
        // By these variables mkfs.xfs makes file systems of less than 300 MB, too.
        let small = ["TEST_DIR=/", "TEST_DEV=/", "QA_CHECK_FS=1"];
        run("env", small.into_iter().chain(["mkfs.xfs", "-q", "-f", "-L", label, volume]));
    }
    run("cryptsetup", ["close", "luks"]);
    run("mkfs.ext4", ["-q", "-F", "-L", "home", &node(Partition::Home)]);
    device.changes_state(|state| *state = DeviceState::shipped_with_volume());
    device
}

fn uuid(device: &Device) -> String {
    run("cryptsetup", ["luksUUID".as_ref(), device.partition(Partition::Root).as_os_str()]).trim().to_owned()
}

pub fn a_volume_that_kiwi_made_is_taken_over_as_it_is() {
    let device = built_by_kiwi();
    let (volume, header) = (uuid(&device), device.volume_header());
    let mut first = device.boots();
    first.is_healthy();
    assert!(first.volume().built);
    assert_eq!(first.volume().uuid.to_string(), volume);
    first.writes("/etc/hostname", "mine");
    let job = first.report.job.expect("the first boot has a job");
    first.shuts_down();
    let state = device.state();
    assert_eq!((state.job(job).unwrap().kind, state.job(job).unwrap().state), (Kind::TakeOver, JobState::Done));
    assert!(device.volume_header() == header, "its header was changed");

    let mut second = device.boots();
    second.is_healthy();
    assert_eq!(second.report.job, None);
    assert!(second.volume().built, "its key will never be another one");
    assert_eq!(second.reads("/etc/hostname"), "mine");
}

pub fn a_reset_makes_a_volume_of_the_devices_own() {
    let device = built_by_kiwi();
    let volume = uuid(&device);
    device.boots().shuts_down();
    device.is_asked_for_a_reset(Scope::Overlay, &[]);
    let mut running = device.boots();
    running.is_healthy();
    assert!(!running.volume().built);
    assert_ne!(running.volume().uuid.to_string(), volume);
}

pub fn a_first_boot_that_is_killed_takes_it_over_all_the_same() {
    let device = built_by_kiwi();
    device.is_killed_when_it_says(": take-over");
    let mut running = device.boots();
    running.is_healthy();
    assert!(running.volume().built);
}

pub fn a_volume_that_does_not_open_is_left_alone() {
    let device = built_by_kiwi();
    let header = device.volume_header();
    fs::write(DEMO_KEY_FILE, "another").unwrap();
    let running = device.boots();
    assert!(matches!(running.is_degraded(), Reason::JobFailed { step: Step::TakeOver, retry: false, .. }));
    let job = running.report.job.unwrap();
    running.shuts_down();
    let running = device.boots();
    assert_eq!((running.is_degraded(), running.report.job), (&Reason::OverlayNotTakenOver, None));
    running.shuts_down();
    assert!(device.volume_header() == header, "something was erased");
    assert_eq!(device.state().volume, Volume::Built);

    fs::write(DEMO_KEY_FILE, "insecure").unwrap();
    device.changes_state(|state| state.retry(job).unwrap());
    device.boots().is_healthy();
}
