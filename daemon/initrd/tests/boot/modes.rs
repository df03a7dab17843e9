//! Boots in another mode than the persistent one.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use nemos_host::overlay::changes::Trees;
use nemos_model::overlay::{LOWER_MOUNT, Mode, SAVED_MOUNT, UPPER_FOLDER, UPPER_MOUNT};
use nemos_model::reset::Scope;

use crate::device::{Device, on_the_device};

const HOSTNAME: &str = "/etc/hostname";

/// It was used, and its next boot is to be in that mode.
fn used(mode: Mode, once: bool) -> Device {
    let device = Device::provisioned();
    let running = device.boots();
    running.writes(HOSTNAME, "changed");
    running.shuts_down();
    device.changes_state(|state| state.set_mode(mode, once, None).unwrap());
    device
}

pub fn a_volatile_boot_begins_as_shipped_and_forgets() {
    let device = used(Mode::Volatile, true);
    let running = device.boots();
    assert_eq!((running.report.mode, &running.report.degraded[..]), (Mode::Volatile, &[][..]));
    assert_eq!(running.reads(HOSTNAME), "device\n");
    running.writes(HOSTNAME, "for now");
    let memory = rustix::fs::statvfs(UPPER_MOUNT).unwrap();
    assert_eq!(memory.f_blocks * memory.f_frsize, 48 << 20, "as much as the image says");
    // The volume is open, and takes no changes.
    assert!(running.report.volume.is_some());
    let saved = Path::new(SAVED_MOUNT).join(UPPER_FOLDER).join("etc/hostname");
    assert_eq!(fs::read_to_string(&saved).unwrap(), "changed");
    assert!(fs::write(&saved, "written").is_err());
    running.shuts_down();

    let mut running = device.boots();
    running.is_healthy();
    assert_eq!(running.reads(HOSTNAME), "changed");
}

pub fn a_read_only_boot_takes_changes_only_in_memory_and_where_it_must() {
    let device = used(Mode::ReadOnly, false);
    for _ in 0..2 {
        let running = device.boots();
        assert_eq!((running.report.mode, &running.report.degraded[..]), (Mode::ReadOnly, &[][..]));
        assert_eq!(running.reads(HOSTNAME), "device\n");
        running.writes(HOSTNAME, "for now");
        running.writes("/var/lib/program/state", "for now");
        running.writes("/home/note", "to stay");
        let upper = Path::new(UPPER_MOUNT).join(UPPER_FOLDER);
        let mut changed = Vec::new();
        let trees = Trees { upper: &upper, lower: Path::new(LOWER_MOUNT) };
        trees
            .changes(Path::new(""), None, &mut |change| {
                changed.push(change.path);
                ControlFlow::Continue(())
            })
            .unwrap();
        let expected = ["etc/hostname", "var/lib/program", "var/lib/program/state"].map(PathBuf::from);
        assert_eq!(changed, expected, "what differs from the image is told here, too");
        let refused = fs::write(on_the_device("/sbin/init"), "another").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        assert!(fs::create_dir(on_the_device("/new")).is_err());
        for mount_point in ["/dev", "/proc", "/run", "/sys"] {
            assert!(running.has(mount_point), "systemd cannot make {mount_point}");
        }
        running.shuts_down();
    }
    device.changes_state(|state| state.set_mode(Mode::Persistent, false, None).unwrap());
    let mut running = device.boots();
    running.is_healthy();
    assert_eq!((running.reads(HOSTNAME).as_str(), running.reads("/home/note").as_str()), ("changed", "to stay"));
    assert!(!running.has("/var/lib/program/state"));
}

pub fn a_mode_for_one_boot_does_not_outlast_a_power_cut() {
    let device = used(Mode::Volatile, true);
    device.is_killed_when_it_says("the root is ready");
    let mut running = device.boots();
    running.is_healthy();
    assert_eq!(running.reads(HOSTNAME), "changed");
}

pub fn a_device_whose_volume_is_gone_is_degraded_in_every_mode() {
    for mode in [Mode::Volatile, Mode::ReadOnly] {
        let device = used(mode, false);
        device.overwrite_volume_header(&vec![0; 16 << 20]);
        let running = device.boots();
        assert_eq!((running.report.mode, &running.report.volume), (mode, &None));
        assert_eq!(running.report.degraded.len(), 1);
        assert!(Path::new(UPPER_MOUNT).join(UPPER_FOLDER).exists());
    }
}

pub fn a_reset_ends_in_the_persistent_mode() {
    let device = used(Mode::Volatile, false);
    device.is_asked_for_a_reset(Scope::Overlay, &[]);
    let mut running = device.boots();
    running.is_healthy();
    assert_eq!(running.reads(HOSTNAME), "device\n");
}
