//! Overlays without room, and volumes without all of their partition.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};

use nemos_model::job::JobState;
use nemos_model::reset::Scope;

use crate::device::{Device, Running, on_the_device};

/// It is used until nothing fits any more.
fn full() -> Device {
    let device = Device::provisioned();
    let running = device.boots();
    fills(&running);
    running.shuts_down();
    device
}

/// Writes until nothing fits any more, neither content nor names.
fn fills(running: &Running<'_>) {
    running.writes("/etc/hostname", "changed");
    running.writes("/opt/large", "");
    let mut large = File::options().append(true).open(on_the_device("/opt/large")).unwrap();
    for size in [1 << 20, 1 << 16, 1 << 12] {
        while large.write_all(&vec![1; size]).is_ok() {}
    }
    let small = (0..100_000).map(|number| fs::write(on_the_device(&format!("/opt/small-{number:060}")), "x"));
    let refused = { small }.find_map(Result::err).expect("it ends");
    assert_eq!(refused.kind(), ErrorKind::StorageFull);
    nemos_rig::run("sync", [""; 0]);
}

pub fn a_full_overlay_boots_and_takes_changes_once_there_is_room() {
    let device = full();
    for _ in 0..2 {
        let mut running = device.boots();
        running.is_healthy();
        assert_eq!(running.reads("/etc/hostname"), "changed");
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        assert!(mounts.contains("OverlayOS_rootfs /sysroot overlay rw"), "{mounts}");
        running.shuts_down();
    }
    // Deleting needs no room, and makes some.
    let running = device.boots();
    fs::remove_file(on_the_device("/opt/large")).unwrap();
    running.writes("/etc/again", "there is room");
    running.shuts_down();
}

pub fn changes_to_a_full_overlay_are_taken_back() {
    let device = full();
    let job = device.is_asked_to_revert(&["/opt"]);
    let mut running = device.boots();
    running.is_healthy();
    assert!(!running.has("/opt"));
    assert_eq!(running.reads("/etc/hostname"), "changed");
    running.writes("/etc/again", "there is room");
    running.shuts_down();
    assert_eq!(device.state().job(job).unwrap().state, JobState::Done);
}

pub fn a_full_overlay_is_reset() {
    let device = full();
    device.is_asked_for_a_reset(Scope::Overlay, &["/etc/hostname"]);
    let mut running = device.boots();
    running.is_healthy();
    assert!(!running.has("/opt"));
    assert_eq!(running.reads("/etc/hostname"), "changed");
}
