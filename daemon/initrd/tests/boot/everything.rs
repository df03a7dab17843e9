//! A new volume key for what there is: all of it comes back as it was.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use nemos_model::boot::Reason;
use nemos_model::job::{JobState, MAX_ATTEMPTS};
use nemos_model::keys::{DEMO_KEY_FILE, Identity};
use nemos_model::overlay::{Mode, SAVED_MOUNT, UPPER_MOUNT};
use nemos_model::partitions::Partition;
use nemos_model::reset::audit::Audit;
use nemos_model::reset::keep::stage_file;
use nemos_model::reset::{Erasure, Grade, Step};
use nemos_model::state::Volume;
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};

use crate::device::{Device, Running, on_the_device};

/// A partition that all of the overlay has room to wait on.
const ROOMY: Partition = Partition::OciStorage;

/// What the initrd and the daemon know of the volume.
const FOLDERS: [&str; 4] = ["upper", "configurations", "images", "switch"];

/// It has two saved configurations, one of which is in use and was changed since; and all that a copy of files could lose.
fn used() -> Device {
    let device = Device::provisioned();
    let running = device.boots();
    running.writes("/etc/hostname", "lab");
    running.writes("/opt/large", &"large ".repeat(1 << 18));
    running.shuts_down();
    device.is_asked_to_save("lab");
    let running = device.boots();
    running.writes("/etc/hostname", "site");
    running.shuts_down();
    device.is_asked_to_save("site");
    device.boots().shuts_down();
    device.is_asked_to_apply("lab", None);
    let running = device.boots();
    change(&running);
    running.shuts_down();
    device
}

fn change(running: &Running<'_>) {
    for path in ["/etc/machine-id", "/home/note", "/var/lib/containers/storage/layer"] {
        running.writes(path, "this device's");
    }
    // A whiteout, and a folder that hides the image's.
    fs::remove_file(on_the_device("/etc/hostname")).unwrap();
    fs::remove_dir_all(on_the_device("/etc/app")).unwrap();
    running.writes("/etc/app/config", "mine");
    let folder = on_the_device("/etc/app");
    fs::hard_link(folder.join("config"), folder.join("same")).unwrap();
    symlink("/nowhere", folder.join("link")).unwrap();
    fs::create_dir(folder.join("empty")).unwrap();
    fs::set_permissions(folder.join("empty"), PermissionsExt::from_mode(0o1777)).unwrap();
    chown(folder.join("config"), Some(1000), Some(1001)).unwrap();
    let set = |name: &str, value: &[u8]| lsetxattr(folder.join("config"), name, value, XattrFlags::empty()).unwrap();
    // CAP_NET_RAW, permitted and effective: `struct vfs_cap_data`, revision 2.
    set("security.capability", &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    set("user.note", &[7; 8 << 10]);
    let mut sparse = File::create(folder.join("sparse")).unwrap();
    sparse.seek(SeekFrom::Start(8 << 20)).unwrap();
    sparse.write_all(b"the end").unwrap();
}

/// All that there is to know of what is on the volume, which is mounted there; a line for each file and folder.
fn on(volume: &str) -> Vec<String> {
    let volume = Path::new(volume);
    let mut described = Vec::new();
    for name in FOLDERS {
        describe(&volume.join(name), volume, &mut described);
    }
    described
}

fn describe(path: &Path, volume: &Path, described: &mut Vec<String>) {
    let found = fs::symlink_metadata(path).unwrap();
    let mut content = DefaultHasher::new();
    if found.is_file() {
        fs::read(path).unwrap().hash(&mut content);
    }
    described.push(format!(
        "{} inode {} mode {:o} owner {}:{} links {} size {} blocks {} device {} born {:?} modified {:?} leads to {:?} attributes {:?} content {:x}",
        path.strip_prefix(volume).unwrap().display(),
        found.ino(),
        found.mode(),
        found.uid(),
        found.gid(),
        found.nlink(),
        found.size(),
        found.blocks(),
        if found.file_type().is_char_device() { found.rdev() } else { 0 },
        found.created().unwrap(),
        found.modified().unwrap(),
        fs::read_link(path).ok(),
        attributes(path),
        content.finish(),
    ));
    if found.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for entry in &entries {
            describe(entry, volume, described);
        }
    }
}

fn attributes(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let length = llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &str| {
        let mut value = vec![0; 64 << 10];
        let length = lgetxattr(path, name, &mut value[..]).unwrap();
        value[..length].to_vec()
    };
    let mut all: Vec<_> = names.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect();
    all.sort();
    all.into_iter().map(|name| (name.clone(), value(&name))).collect()
}

#[track_caller]
fn is_the_same(found: &[String], before: &[String]) {
    for (found, before) in found.iter().zip(before) {
        assert_eq!(found, before);
    }
    assert_eq!(found.len(), before.len());
}

fn identity(device: &Device) -> Identity {
    match device.state().volume {
        Volume::Provisioned(identity) => identity,
        other => panic!("{other:?}"),
    }
}

pub fn everything_is_as_it_was_under_another_volume_key() {
    let device = used();
    let running = device.boots();
    let before = on(UPPER_MOUNT);
    let told = before.join("\n");
    for needed in ["trusted.overlay.opaque", "security.capability", "links 2", "configurations/site/tree"] {
        assert!(told.contains(needed), "{needed} is not among\n{told}");
    }
    running.shuts_down();
    let (old, header) = (device.state(), device.volume_header());
    let old_identity = identity(&device);
    let job = device.is_asked_to_keep_everything(ROOMY);

    let mut running = device.boots();
    running.is_healthy();
    is_the_same(&on(UPPER_MOUNT), &before);
    assert!(!running.has("/etc/hostname") && !running.has("/etc/app/shipped"));
    for path in ["/etc/machine-id", "/home/note", "/var/lib/containers/storage/layer"] {
        assert_eq!(running.reads(path), "this device's");
    }
    assert!(!running.has(&format!("/var/lib/containers/storage/{}", stage_file(ROOMY))), "what waited is still there");
    running.writes("/etc/hostname", "and it takes changes");
    running.shuts_down();

    let (new, new_identity) = (device.state(), identity(&device));
    assert_ne!(new_identity.uuid, old_identity.uuid);
    assert_ne!(new_identity.key, old_identity.key, "the volume key is the old one");
    let new_header = device.volume_header();
    let kept = header.chunks(4096).zip(new_header.chunks(4096));
    assert!(
        !kept.into_iter().any(|(old, new)| old == new && old.iter().any(|byte| *byte != 0)),
        "an old key slot is left"
    );
    assert_eq!((new.configuration(), new.modes()), (old.configuration(), old.modes()));
    assert_eq!(new.configuration().as_str(), "lab");
    let job = new.job(job).unwrap();
    assert_eq!(job.state, JobState::Done);
    assert!(job.audit.as_ref().is_some_and(Audit::passed), "{:?}", job.audit);
    let grades: Vec<_> = job.grades().into_iter().filter(|(_, grade)| *grade != Grade::Untouched).collect();
    assert_eq!(grades, [(Partition::Root, Grade::Erased(Erasure::KeyReplaced))]);
    device.boots().is_healthy();
}

pub fn a_device_in_another_mode_stays_in_it() {
    let device = used();
    let running = device.boots();
    let before = on(UPPER_MOUNT);
    running.shuts_down();
    device.changes_state(|state| state.set_mode(Mode::ReadOnly, false, None).unwrap());
    device.boots().shuts_down();
    let old = identity(&device);
    device.is_asked_to_keep_everything(ROOMY);
    let running = device.boots();
    assert_eq!((running.report.mode, &running.report.degraded[..]), (Mode::ReadOnly, &[][..]));
    is_the_same(&on(SAVED_MOUNT), &before);
    running.shuts_down();
    assert_ne!(identity(&device), old);
}

pub fn what_has_no_room_to_wait_is_refused_and_nothing_is_erased() {
    let device = used();
    let running = device.boots();
    let before = on(UPPER_MOUNT);
    running.writes("/home/large", &"x".repeat(8 << 20));
    running.shuts_down();
    let header = device.volume_header();
    let job = device.is_asked_to_keep_everything(Partition::Home);

    let running = device.boots();
    let reason = running.report.degraded.first().expect("a reason");
    assert!(matches!(reason, Reason::JobFailed { step: Step::StageKept, retry: false, .. }), "{reason}");
    assert!(reason.to_string().contains("p.lxhome"), "{reason}");
    is_the_same(&on(UPPER_MOUNT), &before);
    assert!(!running.has(&format!("/home/{}", stage_file(Partition::Home))));
    running.shuts_down();
    assert!(device.volume_header() == header, "the volume is not the one that it was");
    assert_eq!(device.state().job(job).unwrap().state, JobState::Failed);
    device.boots().is_healthy();
}

/// In the middle of it, with no key to make a volume with.
fn given_up(device: &Device) -> nemos_model::JobId {
    let job = device.is_asked_to_keep_everything(ROOMY);
    device.is_killed_when_it_says(&format!("job {job}: {}", Step::CreateVolume));
    fs::remove_file(DEMO_KEY_FILE).unwrap();
    for _ in 0..MAX_ATTEMPTS {
        device.boots().shuts_down();
    }
    fs::write(DEMO_KEY_FILE, "insecure").unwrap();
    assert_eq!(device.state().job(job).unwrap().state, JobState::Failed);
    let running = device.boots();
    running.is_degraded();
    assert!(running.has(&format!("/var/lib/containers/storage/{}", stage_file(ROOMY))), "it does not wait any more");
    running.shuts_down();
    job
}

pub fn everything_outlives_a_reset_that_is_given_up() {
    let device = used();
    let running = device.boots();
    let before = on(UPPER_MOUNT);
    running.shuts_down();
    let job = given_up(&device);
    device.changes_state(|state| state.retry(job).unwrap());
    let mut running = device.boots();
    running.is_healthy();
    is_the_same(&on(UPPER_MOUNT), &before);
    running.shuts_down();
    assert_eq!(device.state().job(job).unwrap().state, JobState::Done);
}

pub fn what_nobody_waits_for_any_more_is_destroyed_wherever_it_is() {
    let device = used();
    let job = given_up(&device);
    device.changes_state(|state| state.cancel(job, nemos_host::time::now()).unwrap());
    let running = device.boots();
    assert!(!running.has(&format!("/var/lib/containers/storage/{}", stage_file(ROOMY))), "it is still there");
    assert_eq!(running.reads("/var/lib/containers/storage/layer"), "this device's");
}
