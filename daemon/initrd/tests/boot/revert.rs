//! Changes that are taken back.

use std::fs;

use nemos_model::job::JobState;

use crate::device::{Device, on_the_device};

/// It was used: a file was changed, another deleted, and there is a folder that the image has not.
fn used() -> Device {
    let device = Device::provisioned();
    let running = device.boots();
    running.writes("/etc/hostname", "changed");
    fs::remove_file(on_the_device("/etc/app/shipped")).unwrap();
    running.writes("/etc/app/config", "made here");
    running.writes("/opt/many/deep/down", "made here");
    running.writes("/home/note", "made here");
    running.shuts_down();
    device
}

pub fn what_is_taken_back_is_as_the_image_has_it_and_all_else_stays() {
    let device = used();
    let job = device.is_asked_to_revert(&["/etc/app/shipped", "/opt"]);
    let mut running = device.boots();
    running.is_healthy();
    assert_eq!(running.report.job, Some(job));
    assert_eq!(running.reads("/etc/app/shipped"), "shipped");
    assert!(!running.has("/opt"));
    for path in ["/etc/app/config", "/home/note"] {
        assert_eq!(running.reads(path), "made here", "{path}");
    }
    assert_eq!(running.reads("/etc/hostname"), "changed");
    running.shuts_down();
    assert_eq!(device.state().job(job).unwrap().state, JobState::Done);

    device.is_asked_to_revert(&["/etc"]);
    let running = device.boots();
    assert_eq!(running.reads("/etc/hostname"), "device\n");
    assert!(!running.has("/etc/app/config"));
}

pub fn a_path_inside_of_what_hides_the_image_fails_and_changes_nothing() {
    let device = used();
    let running = device.boots();
    // A folder that is made where the image's was deleted hides all that the image has in it.
    fs::remove_dir_all(on_the_device("/etc/app")).unwrap();
    running.writes("/etc/app/config", "anew");
    running.shuts_down();
    let job = device.is_asked_to_revert(&["/etc/hostname", "/etc/app/shipped"]);
    let running = device.boots();
    assert_eq!((running.reads("/etc/hostname"), running.reads("/etc/app/config")), ("changed".into(), "anew".into()));
    assert!(running.said.contains("revert /etc/app"), "{}", running.said);
    running.shuts_down();
    let state = device.state();
    let failed = state.job(job).unwrap();
    assert_eq!(failed.state, JobState::Failed);
    assert!(!failed.attempts[0].error.contains("/etc"), "everybody may read it");
}
