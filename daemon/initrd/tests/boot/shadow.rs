//! Changes that hide something of a newer image.

use std::fs;
use std::path::{Path, PathBuf};

use nemos_host::overlay::configuration::shadowed;
use nemos_host::overlay::shadow::{ShadowError, count};
use nemos_model::integrity::RootHash;
use nemos_model::overlay::index::{Fingerprint, Writer};
use nemos_model::overlay::shadow::IMAGES_FOLDER;
use nemos_model::overlay::{LOWER_MOUNT, UPPER_MOUNT};

use crate::device::{Device, Running};

fn images() -> PathBuf {
    Path::new(UPPER_MOUNT).join(IMAGES_FOLDER)
}

fn root_hash(running: &Running<'_>) -> RootHash {
    running.report.root_hash
}

/// Makes the volume that of a device that ran another image, whose host name was another one.
fn ran_another_image(hash: RootHash) {
    let mut older = Writer::new(Vec::new()).unwrap();
    older.add(Path::new("etc/hostname"), [Fingerprint::of(b"another")]).unwrap();
    fs::remove_file(images().join(hash.to_string())).unwrap();
    fs::write(images().join("0".repeat(64)), older.finish().unwrap()).unwrap();
}

pub fn an_image_in_place_of_another_is_noticed_before_anything_runs() {
    let device = Device::provisioned();
    let running = device.boots();
    let hash = root_hash(&running);
    let index = fs::read(Path::new(LOWER_MOUNT).join(nemos_model::overlay::index::FILE)).unwrap();
    assert_eq!(fs::read(images().join(hash.to_string())).unwrap(), index, "the first boot keeps it");
    running.writes("/etc/hostname", "changed");
    running.writes("/etc/new", "made here");
    ran_another_image(hash);
    running.shuts_down();

    let mut running = device.boots();
    let unnoted = images().join("elsewhere");
    fs::rename(images().join(hash.to_string()), &unnoted).unwrap();
    let unknown = count(Path::new(UPPER_MOUNT), Path::new(LOWER_MOUNT), hash);
    assert!(matches!(unknown, Err(ShadowError::NotNoted)), "what is not known is not none: {unknown:?}");
    fs::rename(unnoted, images().join(hash.to_string())).unwrap();
    running.is_healthy();
    running.shuts_down();

    for _ in 0..2 {
        let mut running = device.boots();
        running.is_healthy();
        assert_eq!(count(Path::new(UPPER_MOUNT), Path::new(LOWER_MOUNT), hash).unwrap(), 1);
        assert!(!images().join("0".repeat(64)).exists());
        running.shuts_down();
    }
    // A copy of it hides the same.
    device.is_asked_to_save("copy");
    let running = device.boots();
    let hidden = shadowed(Path::new(UPPER_MOUNT), Path::new(LOWER_MOUNT), &"copy".parse().unwrap());
    assert_eq!(hidden.unwrap(), Some(vec!["etc/hostname".into()]));
    running.shuts_down();

    device.is_asked_to_revert(&["/etc/hostname"]);
    let running = device.boots();
    assert_eq!(count(Path::new(UPPER_MOUNT), Path::new(LOWER_MOUNT), hash).unwrap(), 0);
    running.shuts_down();
}

pub fn a_power_cut_while_it_is_noticed_changes_nothing_of_it() {
    let device = Device::provisioned();
    let running = device.boots();
    let hash = root_hash(&running);
    running.writes("/etc/hostname", "changed");
    ran_another_image(hash);
    running.shuts_down();
    device.is_killed_when_it_says("hide what this image has changed");
    let mut running = device.boots();
    running.is_healthy();
    assert_eq!(count(Path::new(UPPER_MOUNT), Path::new(LOWER_MOUNT), hash).unwrap(), 1);
    running.shuts_down();
}
