//! Saved configurations, and the way back from one that nobody confirms.

use std::fs;
use std::path::Path;

use nemos_host::overlay::configuration::{about, list, shadowed, tree};
use nemos_model::job::{JobState, Kind};
use nemos_model::overlay::index::{Fingerprint, Writer};
use nemos_model::overlay::trial::{RUNNING_FILE, UNIT};
use nemos_model::overlay::{ConfigurationName, LOWER_MOUNT, Mode, Tried, UPPER_MOUNT};
use nemos_model::reset::Scope;
use nemos_model::state::Wanted;
use rustix::fs::statvfs;
use serde_json::{Value, json};

use crate::device::{Device, RUNTIME_UNITS, Running, on_the_device};

const HOSTNAME: &str = "/etc/hostname";
const SHIPPED: &str = "/etc/app/shipped";

fn named(name: &str) -> ConfigurationName {
    name.parse().unwrap()
}

/// It was used, what it was then is saved as `site`, and it was used again since.
fn with_a_saved_configuration() -> Device {
    let device = Device::provisioned();
    let running = device.boots();
    running.writes(HOSTNAME, "saved");
    running.writes("/etc/app/config", "saved");
    fs::remove_file(on_the_device(SHIPPED)).unwrap();
    running.shuts_down();
    let job = device.is_asked_to_save("site");
    let mut running = device.boots();
    running.is_healthy();
    assert_eq!((running.report.job, running.reads(HOSTNAME).as_str()), (Some(job), "saved"), "saving changes nothing");
    running.writes(HOSTNAME, "later");
    running.writes("/opt/later", "later");
    running.writes(SHIPPED, "later");
    running.writes("/home/note", "later");
    fs::remove_file(on_the_device("/etc/app/config")).unwrap();
    running.shuts_down();
    device
}

#[track_caller]
fn is_as_saved(running: &Running<'_>) {
    assert_eq!((running.reads(HOSTNAME).as_str(), running.reads("/etc/app/config").as_str()), ("saved", "saved"));
    assert!(!running.has(SHIPPED), "what was deleted then is deleted again");
    assert!(!running.has("/opt/later"), "what came later is not there");
    assert_eq!(running.reads("/home/note"), "later", "that is not of the root");
}

#[track_caller]
fn is_as_later(running: &Running<'_>) {
    assert_eq!((running.reads(HOSTNAME).as_str(), running.reads("/opt/later").as_str()), ("later", "later"));
    assert_eq!((running.reads(SHIPPED).as_str(), running.has("/etc/app/config")), ("later", false));
}

pub fn what_was_saved_is_there_again_once_it_is_applied_and_stays_saved() {
    let device = with_a_saved_configuration();
    let job = device.is_asked_to_apply("site", None);
    let mut running = device.boots();
    running.is_healthy();
    is_as_saved(&running);
    running.writes(HOSTNAME, "after");
    let volume = Path::new(UPPER_MOUNT);
    let saved = tree(volume, &named("site")).join("etc/hostname");
    assert_eq!(fs::read_to_string(saved).unwrap(), "saved", "what is changed now does not change it");
    assert_eq!(about(volume, &named("site")).unwrap().root_hash, running.report.root_hash);
    assert!(!volume.join("switch/previous").exists(), "nobody can go back");
    running.shuts_down();
    assert_eq!(device.state().job(job).unwrap().state, JobState::Done);
    assert_eq!(device.state().configuration(), &named("site"));

    device.is_asked_to_apply("factory", None);
    let mut running = device.boots();
    running.is_healthy();
    assert_eq!((running.reads(HOSTNAME).as_str(), running.reads(SHIPPED).as_str()), ("device\n", "shipped"));
    let names: Vec<_> = list(volume).unwrap().into_iter().map(|(name, about)| (name, about.is_ok())).collect();
    assert_eq!(names, [(named("site"), true)]);
}

pub fn what_was_saved_on_another_image_tells_what_it_would_hide() {
    let device = with_a_saved_configuration();
    let running = device.boots();
    let (volume, lower) = (Path::new(UPPER_MOUNT), Path::new(LOWER_MOUNT));
    let told = || shadowed(volume, lower, &named("site")).unwrap();
    assert_eq!(told(), Some(vec![]), "this is the image that it was saved on");
    // As if it had been saved on an image with another host name.
    let base = volume.join("configurations/site/base");
    let mut older = Writer::new(Vec::new()).unwrap();
    older.add(Path::new("etc/hostname"), [Fingerprint::of(b"another")]).unwrap();
    fs::write(&base, older.finish().unwrap()).unwrap();
    assert_eq!(told(), Some(vec!["etc/hostname".into()]));
    fs::remove_file(base).unwrap();
    assert_eq!(told(), None, "of what came without, it is not known");
    running.shuts_down();
}

pub fn with_what_was_imported_the_device_stays_who_it_is() {
    let device = with_a_saved_configuration();
    let running = device.boots();
    running.writes("/etc/machine-id", "this device");
    running.writes("/etc/ssh/ssh_host_rsa_key", "this device");
    let folder = Path::new(UPPER_MOUNT).join("configurations/site");
    fs::write(folder.join("tree/etc/machine-id"), "came with it").unwrap();
    let mut known: Value = serde_json::from_slice(&fs::read(folder.join("about.json")).unwrap()).unwrap();
    known["imported"] = json!({ "digest": "0".repeat(64), "voucher": "nobody" });
    fs::write(folder.join("about.json"), known.to_string()).unwrap();
    running.shuts_down();
    device.is_asked_to_apply("site", None);
    let mut running = device.boots();
    running.is_healthy();
    is_as_saved(&running);
    assert_eq!(running.reads("/etc/ssh/ssh_host_rsa_key"), "this device");
    assert_eq!(running.reads("/etc/machine-id"), "came with it", "somebody has put that there");
}

pub fn what_is_saved_shares_its_room() {
    let device = Device::provisioned();
    let running = device.boots();
    running.writes("/opt/large", &"large ".repeat(1 << 20));
    running.shuts_down();
    let used = || {
        let file_system = statvfs(UPPER_MOUNT).unwrap();
        (file_system.f_blocks - file_system.f_bfree) * file_system.f_frsize
    };
    device.is_asked_to_save("one");
    let running = device.boots();
    let before = used();
    running.shuts_down();
    device.is_asked_to_save("two");
    let running = device.boots();
    assert_eq!(list(Path::new(UPPER_MOUNT)).unwrap().len(), 2);
    let more = used().saturating_sub(before);
    assert!(more < 1 << 20, "6 MiB were saved once more, and took {more} bytes");
    running.shuts_down();
}

pub fn a_name_that_is_taken_or_not_there_fails_and_changes_nothing() {
    let device = with_a_saved_configuration();
    let taken = device.is_asked_to_save("site");
    let running = device.boots();
    is_as_later(&running);
    let saved = tree(Path::new(UPPER_MOUNT), &named("site")).join("etc/hostname");
    assert_eq!(fs::read_to_string(saved).unwrap(), "saved");
    running.shuts_down();
    let missing = device.is_asked_to_apply("elsewhere", Some(60));
    let running = device.boots();
    is_as_later(&running);
    assert!(!Path::new(RUNNING_FILE).exists(), "nothing is on trial");
    running.shuts_down();
    let state = device.state();
    for job in [taken, missing] {
        assert_eq!(state.job(job).unwrap().state, JobState::Failed);
    }
    assert_eq!((state.trial(), state.configuration()), (None, &named("factory")));

    device.is_asked_for(Wanted::Save { name: named("site"), replace: true });
    let mut running = device.boots();
    running.is_healthy();
    let saved = tree(Path::new(UPPER_MOUNT), &named("site")).join("etc/hostname");
    assert_eq!(fs::read_to_string(saved).unwrap(), "later");
}

pub fn what_nobody_confirms_is_gone_at_the_next_boot() {
    let device = with_a_saved_configuration();
    let applied = device.is_asked_to_apply("site", Some(90));
    let mut running = device.boots();
    running.is_healthy();
    is_as_saved(&running);
    let timer = fs::read_to_string(Path::new(RUNTIME_UNITS).join(format!("{UNIT}.timer"))).unwrap();
    assert!(timer.contains("OnBootSec=90s"), "{timer}");
    assert!(Path::new(RUNTIME_UNITS).join(format!("timers.target.wants/{UNIT}.timer")).exists());
    assert!(Path::new(RUNNING_FILE).exists());
    running.shuts_down();

    let mut running = device.boots();
    running.is_healthy();
    is_as_later(&running);
    let (name, before) = (named("site"), named("factory"));
    assert_eq!(running.report.went_back, Some(Tried::Configuration { name, before: before.clone(), applied }));
    assert!(!Path::new(RUNNING_FILE).exists() && !Path::new(RUNTIME_UNITS).exists());
    running.shuts_down();
    let state = device.state();
    assert_eq!(state.jobs().last().map(|job| (job.kind, job.state)), Some((Kind::GoBack, JobState::Done)));
    assert_eq!((state.configuration(), state.trial()), (&before, None));

    let mut running = device.boots();
    running.is_healthy();
    is_as_later(&running);
    assert_eq!((running.report.job, &running.report.went_back), (None, &None));
}

pub fn a_way_back_that_cannot_be_gone_is_given_up_and_the_device_stays_up() {
    let device = with_a_saved_configuration();
    device.is_asked_to_apply("site", Some(90));
    let running = device.boots();
    fs::remove_dir_all(Path::new(UPPER_MOUNT).join("switch/previous")).unwrap();
    running.shuts_down();
    for _ in 0..3 {
        let running = device.boots();
        let reason = running.report.degraded.first().expect("a reason").to_string();
        assert!(reason.contains("nothing to go back to"), "{reason}");
        running.shuts_down();
    }
    let running = device.boots();
    is_as_saved(&running);
    assert!(!Path::new(RUNNING_FILE).exists() && !Path::new(RUNTIME_UNITS).exists(), "no boot ends by itself any more");
    running.shuts_down();
    assert_eq!(device.state().jobs().last().map(|job| (job.kind, job.state)), Some((Kind::GoBack, JobState::Failed)));
    device.changes_state(|state| drop(state.confirm().unwrap()));
    is_as_saved(&device.boots());
}

pub fn a_boot_that_never_reaches_the_daemon_is_not_tried_twice() {
    let device = with_a_saved_configuration();
    device.is_asked_to_apply("site", Some(90));
    device.is_killed_when_it_says("the root is ready");
    let mut running = device.boots();
    running.is_healthy();
    is_as_later(&running);
}

pub fn what_is_confirmed_stays() {
    let device = with_a_saved_configuration();
    device.is_asked_to_apply("site", Some(90));
    device.boots().shuts_down();
    device.changes_state(|state| assert!(matches!(state.confirm(), Ok(Tried::Configuration { .. }))));
    let mut running = device.boots();
    running.is_healthy();
    is_as_saved(&running);
    assert_eq!(running.report.went_back, None);
}

pub fn a_mode_that_nobody_confirms_ends_with_its_boot() {
    let device = with_a_saved_configuration();
    let within = 60.try_into().unwrap();
    device.changes_state(|state| state.set_mode(Mode::ReadOnly, false, Some(within)).unwrap());
    let running = device.boots();
    assert_eq!((running.report.mode, Path::new(RUNNING_FILE).exists()), (Mode::ReadOnly, true));
    running.shuts_down();
    let mut running = device.boots();
    running.is_healthy();
    is_as_later(&running);
    assert!(matches!(running.report.went_back, Some(Tried::Mode { mode: Mode::ReadOnly, .. })));
    running.shuts_down();

    device.changes_state(|state| state.set_mode(Mode::ReadOnly, false, Some(within)).unwrap());
    device.boots().shuts_down();
    device.changes_state(|state| drop(state.confirm().unwrap()));
    assert_eq!(device.boots().report.mode, Mode::ReadOnly);
}

pub fn a_reset_takes_what_is_saved_and_what_is_on_trial() {
    let device = with_a_saved_configuration();
    device.is_asked_to_apply("site", Some(90));
    device.boots().shuts_down();
    device.is_asked_for_a_reset(Scope::Overlay, &[]);
    let mut running = device.boots();
    running.is_healthy();
    assert_eq!(running.reads(HOSTNAME), "device\n");
    assert!(list(Path::new(UPPER_MOUNT)).unwrap().is_empty());
    assert_eq!(running.report.went_back, None);
    running.shuts_down();
    assert_eq!((device.state().trial(), device.state().configuration()), (None, &named("factory")));
}
