//! The overlay's volume on real device-mapper.

#![allow(clippy::unwrap_used, reason = "panicking is how a test fails")]

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use nemos_host::keys::{Secret, read_key_file};
use nemos_host::mounts::unmount;
use nemos_host::overlay::{self, changes::Trees};
use nemos_rig::{Disk, KernelLog, run};
use tempfile::TempDir;

const SIZE: u64 = 96 << 20;

fn main() -> ExitCode {
    nemos_rig::main(nemos_rig::tests![
        every_sector_of_a_new_volume_can_be_read,
        a_volume_opens_with_its_secret_only,
        two_volumes_never_share_a_volume_key,
        nothing_opens_a_volume_whose_keys_were_destroyed,
        a_volume_that_was_left_open_is_made_anew_all_the_same,
        a_volume_that_somebody_looks_into_is_closed_when_they_are_done,
        what_differs_from_the_image_is_told,
        changes_are_told_page_by_page,
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

/// An overlay of two folders in memory, as the kernel makes it.
struct Joined {
    folder: TempDir,
}

impl Joined {
    fn new(image: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir_in("/run").unwrap();
        // What the overlay writes are attributes that only a file system of its own takes here.
        run("mount", ["-t".as_ref(), "tmpfs".as_ref(), "tmpfs".as_ref(), folder.path().as_os_str()]);
        let joined = Joined { folder };
        for name in ["lower", "upper", "work", "root"] {
            fs::create_dir(joined.path(name)).unwrap();
        }
        image(&joined.path("lower"));
        overlay::mount_overlay(&joined.path("lower"), joined.folder.path(), &joined.path("root")).unwrap();
        joined
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn changes(&self, after: Option<&str>, most: usize) -> Vec<(String, &'static str)> {
        let (upper, lower) = (self.path("upper"), self.path("lower"));
        let mut told = Vec::new();
        let trees = Trees { upper: &upper, lower: &lower };
        let walked = trees.changes(Path::new(""), after.map(Path::new), &mut |change| {
            told.push((change.path.to_string_lossy().into_owned(), change.what.name()));
            if told.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        walked.unwrap();
        told
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let _ = unmount(&self.path("root"));
        let _ = unmount(self.folder.path());
    }
}

fn what_differs_from_the_image_is_told() {
    let joined = Joined::new(|image| {
        for folder in ["etc/app", "etc/old", "var"] {
            fs::create_dir_all(image.join(folder)).unwrap();
        }
        for file in ["config", "copied", "deleted", "mode", "type"] {
            fs::write(image.join("etc").join(file), "shipped").unwrap();
        }
        fs::write(image.join("etc/old/shipped"), "shipped").unwrap();
        symlink("there", image.join("etc/link")).unwrap();
    });
    let root = joined.path("root/etc");
    fs::write(root.join("config"), "changed").unwrap();
    fs::write(root.join("app/new"), "new").unwrap();
    fs::remove_file(root.join("deleted")).unwrap();
    fs::set_permissions(root.join("mode"), Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(root.join("type")).unwrap();
    fs::create_dir(root.join("type")).unwrap();
    fs::remove_dir_all(root.join("old")).unwrap();
    fs::create_dir(root.join("old")).unwrap();
    fs::remove_file(root.join("link")).unwrap();
    symlink("elsewhere", root.join("link")).unwrap();
    // Opened to be written to, and not written to.
    File::options().append(true).open(root.join("copied")).unwrap();
    assert!(joined.path("upper/etc/copied").exists(), "it was copied up");
    fs::write(root.join("gone"), "for a moment").unwrap();
    fs::remove_file(root.join("gone")).unwrap();
    let expected = [
        ("etc/app/new", "added"),
        ("etc/config", "changed"),
        ("etc/deleted", "deleted"),
        ("etc/link", "changed"),
        ("etc/mode", "metadata"),
        ("etc/old", "replaced"),
        ("etc/type", "type"),
    ];
    let told = joined.changes(None, usize::MAX);
    assert_eq!(told, expected.map(|(path, what)| (path.to_owned(), what)));
}

fn changes_are_told_page_by_page() {
    let joined = Joined::new(|_| ());
    for (folder, file) in [("a", "1"), ("a", "2"), ("a.b", "3"), ("b", "4")] {
        fs::create_dir_all(joined.path("root").join(folder)).unwrap();
        fs::write(joined.path("root").join(folder).join(file), "new").unwrap();
    }
    let all = joined.changes(None, usize::MAX);
    assert_eq!(all.len(), 7);
    for page in 1..=all.len() {
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let told = joined.changes(after.as_deref(), page);
            let Some((last, _)) = told.last() else { break };
            after = Some(last.clone());
            pages.extend(told);
        }
        assert_eq!(pages, all, "in pages of {page}");
    }
}
