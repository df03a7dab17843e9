//! Resets: what goes, what is kept, and what happens when a step cannot be done.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nemos_model::boot::Reason;
use nemos_model::job::{JobState, MAX_ATTEMPTS};
use nemos_model::keys::DEMO_KEY_FILE;
use nemos_model::partitions::Partition;
use nemos_model::reset::audit::Audit;
use nemos_model::reset::keep::STAGE_FILE;
use nemos_model::reset::{Erasure, Grade, Scope, Step};
use nemos_rig::run;
use rustix::fs::{XattrFlags, getxattr, setxattr};

use crate::device::{Device, Running, on_the_device};

/// Text that is nowhere else on a disk.
const MARK: &str = "8d1f6c0e-what-nobody-may-read";

pub fn an_overlay_reset_leaves_home_and_containers() {
    let device = Device::provisioned();
    let running = device.boots();
    for file in ["/etc/hostname", "/home/note", "/var/lib/containers/storage/layer"] {
        running.writes(file, "changed");
    }
    running.shuts_down();
    let job = device.is_asked_for_a_reset(Scope::Overlay, &[]);

    let mut running = device.boots();
    running.is_healthy();
    assert_eq!(running.reads("/etc/hostname"), "device\n");
    assert_eq!(running.reads("/home/note"), "changed");
    assert_eq!(running.reads("/var/lib/containers/storage/layer"), "changed");
    running.shuts_down();
    let state = device.state();
    let grades = state.job(job).unwrap().grades();
    let erased: Vec<_> = grades.into_iter().filter(|(_, grade)| *grade != Grade::Untouched).collect();
    assert_eq!(erased, [(Partition::Root, Grade::Erased(Erasure::KeyDestroyed))]);
}

pub fn what_is_kept_survives_as_it_was() {
    let device = Device::provisioned();
    let running = device.boots();
    make_settings(&running);
    for file in ["/etc/other", "/home/admin/kept", "/home/admin/other", "/var/lib/containers/storage/kept/layer"] {
        running.writes(file, "changed");
    }
    let before = described("/etc/app");
    running.shuts_down();
    let job = device.is_asked_for_a_reset(
        Scope::Factory,
        &["/etc/app", "/etc/never-there", "/home/admin/kept", "/var/lib/containers/storage/kept"],
    );

    let mut running = device.boots();
    running.is_healthy();
    assert_eq!(described("/etc/app"), before);
    assert_eq!(running.reads("/home/admin/kept"), "changed");
    assert_eq!(running.reads("/var/lib/containers/storage/kept/layer"), "changed");
    for file in ["/etc/other", "/home/admin/other"] {
        assert!(!running.has(file), "{file} was not to be kept");
    }
    assert_eq!(fs::metadata(on_the_device("/home/admin")).unwrap().mode() & 0o7777, 0o751, "where it is, is as it was");
    running.shuts_down();
    let state = device.state();
    let job = state.job(job).unwrap();
    assert_eq!(job.state, JobState::Done);
    assert!(job.audit.as_ref().is_some_and(Audit::passed), "{:?}", job.audit);
    assert!(!device.with_state(|folder| folder.join(STAGE_FILE).exists()), "what waited is still there");
}

/// Settings with everything that a copy could lose.
fn make_settings(running: &Running<'_>) {
    running.writes("/etc/app/config", MARK);
    let folder = on_the_device("/etc/app");
    fs::hard_link(folder.join("config"), folder.join("same")).unwrap();
    symlink("/etc/hostname", folder.join("link")).unwrap();
    fs::create_dir(folder.join("empty")).unwrap();
    // The image has it, and somebody deleted it.
    fs::remove_file(folder.join("shipped")).unwrap();
    setxattr(folder.join("config"), "user.note", b"mine", XattrFlags::empty()).unwrap();
    chown(folder.join("config"), Some(1000), Some(1001)).unwrap();
    fs::set_permissions(folder.join("config"), PermissionsExt::from_mode(0o4750)).unwrap();
    fs::set_permissions(folder.join("empty"), PermissionsExt::from_mode(0o1777)).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    fs::File::open(folder.join("config")).unwrap().set_modified(then).unwrap();
    fs::File::open(&folder).unwrap().set_modified(then).unwrap();
    running.writes("/home/admin/kept", "");
    fs::set_permissions(on_the_device("/home/admin"), PermissionsExt::from_mode(0o751)).unwrap();
}

/// All that there is to know of a folder's entries.
fn described(folder: &str) -> Vec<String> {
    let folder = on_the_device(folder);
    let mut paths: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.push(folder.clone());
    paths.sort();
    paths.iter().map(|path| description(path, &folder)).collect()
}

fn description(path: &Path, folder: &Path) -> String {
    let found = fs::symlink_metadata(path).unwrap();
    let mut note = [0; 64];
    let note = getxattr(path, "user.note", &mut note[..]).map(|length| note[..length].to_vec()).unwrap_or_default();
    let content = if found.is_file() { fs::read(path).unwrap() } else { Vec::new() };
    format!(
        "{} mode {:o} owner {}:{} links {} modified {}.{:09} leads to {:?} note {:?} content {:?}",
        path.strip_prefix(folder).unwrap().display(),
        found.mode(),
        found.uid(),
        found.gid(),
        if found.is_file() { found.nlink() } else { 0 },
        found.mtime(),
        found.mtime_nsec(),
        fs::read_link(path).ok(),
        String::from_utf8_lossy(&note),
        String::from_utf8_lossy(&content),
    )
}

pub fn what_is_kept_is_never_on_the_disk_in_plain_text() {
    let device = Device::provisioned();
    let running = device.boots();
    running.writes("/etc/app/config", MARK);
    running.shuts_down();
    let job = device.is_asked_for_a_reset(Scope::Factory, &["/etc/app"]);
    for step in [Step::DestroyKeys, Step::RestoreKept, Step::DestroyStage, Step::Audit] {
        device.is_killed_when_it_says(&format!("job {job}: {step}"));
        for partition in [Partition::Root, Partition::State] {
            assert!(!holds_the_mark(&device.partition(partition)), "{partition} has it in plain text, at {step}");
        }
    }
    assert_eq!(device.boots().reads("/etc/app/config"), MARK);
}

fn holds_the_mark(partition: &Path) -> bool {
    let bytes = fs::read(partition).unwrap();
    bytes.windows(MARK.len()).any(|window| window == MARK.as_bytes())
}

pub fn what_does_not_fit_is_refused_before_anything_is_erased() {
    let device = Device::provisioned();
    let running = device.boots();
    running.writes("/etc/app/config", &"x".repeat(24 << 20));
    running.shuts_down();
    let job = device.is_asked_for_a_reset(Scope::Factory, &["/etc/app"]);

    let running = device.boots();
    let reason = running.report.degraded.first().expect("a reason");
    assert!(matches!(reason, Reason::JobFailed { step: Step::StageKept, retry: false, .. }), "{reason}");
    assert_eq!(running.reads("/etc/app/config").len(), 24 << 20);
    running.shuts_down();
    assert_eq!(device.state().job(job).unwrap().state, JobState::Failed);
    device.boots().is_healthy();
}

pub fn kept_data_outlives_a_reset_that_is_given_up() {
    let device = Device::provisioned();
    let running = device.boots();
    running.writes("/etc/app/config", MARK);
    running.shuts_down();
    let job = device.is_asked_for_a_reset(Scope::Overlay, &["/etc/app"]);
    device.is_killed_when_it_says(&format!("job {job}: {}", Step::CreateVolume));
    fs::remove_file(DEMO_KEY_FILE).unwrap();
    for _ in 0..MAX_ATTEMPTS {
        device.boots().shuts_down();
    }
    fs::write(DEMO_KEY_FILE, "insecure").unwrap();
    assert_eq!(device.state().job(job).unwrap().state, JobState::Failed);
    device.boots().shuts_down();

    device.changes_state(|state| state.retry(job).unwrap());
    let mut running = device.boots();
    running.is_healthy();
    assert_eq!(running.reads("/etc/app/config"), MARK);
    running.shuts_down();
    assert_eq!(device.state().job(job).unwrap().state, JobState::Done);
}

pub fn a_partition_that_takes_no_writes_fails_the_reset_and_the_device_comes_up() {
    let device = Device::provisioned();
    let home = device.partition(Partition::Home);
    let job = device.is_asked_for_a_factory_reset();
    for attempt in 1..=MAX_ATTEMPTS {
        run("blockdev", ["--setro".as_ref(), home.as_os_str()]);
        let running = device.boots();
        let reason = running.report.degraded.first().expect("a reason");
        let retries = attempt < MAX_ATTEMPTS;
        assert!(
            matches!(reason, Reason::JobFailed { step: Step::FormatHome, retry, .. } if *retry == retries),
            "{reason}"
        );
        assert!(reason.to_string().contains(home.to_str().unwrap()), "{reason}");
        assert_eq!(running.reads("/etc/hostname"), "device\n");
        running.shuts_down();
    }
    let state = device.state();
    let failed = state.job(job).unwrap();
    assert_eq!((failed.state, failed.attempts.len()), (JobState::Failed, MAX_ATTEMPTS));
    let untouched = failed.grades().contains(&(Partition::Home, Grade::Untouched));
    assert!(untouched, "what was not erased is not said to be erased");

    run("blockdev", ["--setrw".as_ref(), home.as_os_str()]);
    device.changes_state(|state| state.retry(job).unwrap());
    device.boots().is_healthy();
    assert_eq!(device.state().job(job).unwrap().state, JobState::Done);
}

pub fn the_command_line_asks_for_a_factory_reset() {
    let device = Device::provisioned();
    let running = device.boots();
    running.writes("/etc/hostname", "changed");
    running.shuts_down();
    let mut running = device.boots_with("systemd.factory_reset=1");
    running.is_healthy();
    assert_eq!(running.reads("/etc/hostname"), "device\n");
    let job = running.report.job.expect("a job");
    running.shuts_down();
    assert_eq!(device.state().job(job).unwrap().state, JobState::Done);
    assert_eq!(device.boots().report.job, None);
}
