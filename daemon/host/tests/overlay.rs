//! The overlay's volume on real device-mapper.

#![allow(clippy::unwrap_used, reason = "panicking is how a test fails")]

use std::fs;
use std::io::Write;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use nemos_host::keys::{Secret, read_key_file};
use nemos_host::overlay;
use nemos_rig::{Disk, KernelLog, run};

const SIZE: u64 = 96 << 20;

fn main() -> ExitCode {
    nemos_rig::main(nemos_rig::tests![
        every_sector_of_a_new_volume_can_be_read,
        a_volume_opens_with_its_secret_only,
        two_volumes_never_share_a_volume_key,
        nothing_opens_a_volume_whose_keys_were_destroyed,
        a_volume_that_was_left_open_is_made_anew_all_the_same,
        a_volume_that_somebody_looks_into_is_closed_when_they_are_done,
    ])
}

fn secret(text: &str) -> Secret {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    read_key_file(file.path()).unwrap()
}

fn volume(disk: &Disk, text: &str) {
    overlay::create_volume(disk.path(), &secret(text), &mut |_, _| {}).unwrap();
}

fn every_sector_of_a_new_volume_can_be_read() {
    let (disk, mut log) = (Disk::new(SIZE), KernelLog::from_now());
    volume(&disk, "right");
    overlay::open(disk.path(), &secret("right")).unwrap();
    run("dd", ["if=/dev/mapper/luks", "of=/dev/null", "bs=1M", "iflag=direct", "status=none"]);
    overlay::close(disk.path()).unwrap();
    let messages = log.messages();
    assert!(!messages.contains("AEAD"), "{messages}");
}

fn a_volume_opens_with_its_secret_only() {
    let disk = Disk::new(SIZE);
    volume(&disk, "right");
    let error = overlay::open(disk.path(), &secret("wrong")).unwrap_err().to_string();
    assert!(error.contains(&disk.path().display().to_string()), "the error names the device: {error}");
    overlay::open(disk.path(), &secret("right")).unwrap();
    overlay::close(disk.path()).unwrap();
}

fn two_volumes_never_share_a_volume_key() {
    let digests = [(); 2].map(|()| {
        let disk = Disk::new(SIZE);
        volume(&disk, "right");
        let header = run("cryptsetup", ["luksDump", "--dump-json-metadata", disk.path().to_str().unwrap()]);
        let header: serde_json::Value = serde_json::from_str(&header).unwrap();
        header["digests"]["0"]["digest"].as_str().unwrap().to_owned()
    });
    assert_ne!(digests[0], digests[1]);
}

fn nothing_opens_a_volume_whose_keys_were_destroyed() {
    let disk = Disk::new(SIZE);
    volume(&disk, "right");
    let key_slots = |disk: &Disk| fs::read(disk.path()).unwrap()[..16 << 20].to_vec();
    assert!(key_slots(&disk).iter().any(|byte| *byte != 0));
    overlay::destroy_keys(disk.path()).unwrap();
    assert!(key_slots(&disk).iter().all(|byte| *byte == 0));
    overlay::open(disk.path(), &secret("right")).unwrap_err();
}

fn a_volume_that_was_left_open_is_made_anew_all_the_same() {
    let disk = Disk::new(SIZE);
    volume(&disk, "old");
    overlay::open(disk.path(), &secret("old")).unwrap();
    overlay::destroy_keys(disk.path()).unwrap();
    volume(&disk, "new");
    overlay::open(disk.path(), &secret("old")).unwrap_err();
    overlay::open(disk.path(), &secret("new")).unwrap();
    overlay::close(disk.path()).unwrap();
}

/// As udev does with every new mapping.
fn a_volume_that_somebody_looks_into_is_closed_when_they_are_done() {
    let disk = Disk::new(SIZE);
    volume(&disk, "right");
    overlay::open(disk.path(), &secret("right")).unwrap();
    let looking = fs::File::open(overlay::mapping()).unwrap();
    let done = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        drop(looking);
    });
    overlay::close(disk.path()).unwrap();
    done.join().unwrap();
    assert!(!overlay::mapping().exists());
}
