//! The overlay's volume on real device-mapper.

#![allow(clippy::unwrap_used, reason = "panicking is how a test fails")]

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use nemos_host::keys::{Secret, read_key_file};
use nemos_host::mounts::unmount;
use nemos_host::overlay::shadow::{self, Base, Index, Shadows, note_image};
use nemos_host::overlay::usage::usage_of;
use nemos_host::overlay::{self, changes::Trees};
use nemos_model::integrity::RootHash;
use nemos_model::overlay::index::{Entry, FILE, Writer};
use nemos_rig::{Disk, KernelLog, run};
use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::time::{ClockId, clock_gettime};
use sha2::{Digest as _, Sha256};
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
        what_no_path_leads_to_ends_no_walk,
        changes_that_hide_something_newer_are_noted,
        a_saved_tree_knows_what_it_was_made_on,
        a_volume_stays_as_it_is_when_its_partition_grows,
        a_file_system_from_a_smaller_volume_fills_the_larger_one,
        what_is_shared_takes_room_once,
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

fn what_no_path_leads_to_ends_no_walk() {
    let joined = Joined::new(|image| fs::create_dir(image.join("var")).unwrap());
    let mut folder = OwnedFd::from(File::open(joined.path("root/var")).unwrap());
    let name = "d".repeat(250);
    for _ in 0..20 {
        mkdirat(&folder, &name, Mode::RWXU).unwrap();
        folder = openat(&folder, &name, OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    fs::write(joined.path("root/zzz"), "mine").unwrap();
    let told = joined.changes(None, usize::MAX);
    assert!(told.iter().any(|(path, _)| path.len() > 3500), "as far as paths lead, it is told");
    assert_eq!(told.last().unwrap().0, "zzz", "and what comes behind it");
    assert!(usage_of(joined.folder.path()).unwrap().changes.entries > 10);
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

/// libcryptsetup refuses to resize a LUKS2 volume with integrity: its blocks would have no tags yet. It opens as it is.
fn a_volume_stays_as_it_is_when_its_partition_grows() {
    let file = tempfile::NamedTempFile::new_in("/run").unwrap();
    file.as_file().set_len(SIZE).unwrap();
    let device = run("losetup", ["--find".as_ref(), "--show".as_ref(), file.path().as_os_str()]).trim().to_owned();
    let (device, key) = (Path::new(&device), Path::new("/run/key"));
    let size = || -> u64 { run("blockdev", ["--getsize64", "/dev/mapper/luks"]).trim().parse().unwrap() };
    overlay::create_volume(device, &secret("right"), &mut |_, _| {}).unwrap();
    overlay::open(device, &secret("right")).unwrap();
    let was = size();
    overlay::close(device).unwrap();

    file.as_file().set_len(2 * SIZE).unwrap();
    run("losetup", ["--set-capacity".as_ref(), device.as_os_str()]);
    overlay::open(device, &secret("right")).unwrap();
    fs::write(key, "right").unwrap();
    let resized = Command::new("cryptsetup").args(["resize", "luks", "--key-file"]).arg(key).output().unwrap();
    assert!(!resized.status.success(), "it can be done now: {resized:?}");
    assert_eq!(size(), was);
    overlay::close(device).unwrap();

    // One that is made anew makes use of all of it.
    overlay::create_volume(device, &secret("right"), &mut |_, _| {}).unwrap();
    overlay::open(device, &secret("right")).unwrap();
    assert!(size() > was + SIZE / 10 * 9);
    overlay::close(device).unwrap();
    run("losetup", ["--detach".as_ref(), device.as_os_str()]);
}

fn a_file_system_from_a_smaller_volume_fills_the_larger_one() {
    let (disk, place) = (Disk::new(SIZE), tempfile::tempdir().unwrap());
    volume(&disk, "right");
    overlay::open(disk.path(), &secret("right")).unwrap();
    let small = ["TEST_DIR=/", "TEST_DEV=/", "QA_CHECK_FS=1", "mkfs.xfs", "-q", "-m", "rmapbt=1", "-d", "size=48m"];
    run("env", small.into_iter().chain(["/dev/mapper/luks"]));
    let size = || {
        overlay::mount_file_system(place.path()).unwrap();
        let stat = rustix::fs::statvfs(place.path()).unwrap();
        unmount(place.path()).unwrap();
        stat.f_blocks * stat.f_frsize
    };
    assert!(size() < 48 << 20);
    for _ in 0..2 {
        overlay::fill_volume(place.path()).unwrap();
        assert!(size() > 60 << 20, "{}", size());
    }
    overlay::close(disk.path()).unwrap();
}

fn what_is_shared_takes_room_once() {
    let folder = tempfile::tempdir_in("/run").unwrap();
    let (image, volume) = (folder.path().join("image"), folder.path().join("volume"));
    File::create(&image).unwrap().set_len(320 << 20).unwrap();
    run("mkfs.xfs", ["-q".as_ref(), "-m".as_ref(), "rmapbt=1".as_ref(), image.as_os_str()]);
    fs::create_dir(&volume).unwrap();
    run("mount", ["-o".as_ref(), "loop".as_ref(), image.as_os_str(), volume.as_os_str()]);
    let empty = usage_of(&volume).unwrap();
    assert!(empty.rest() > 1 << 20, "{empty:?}");
    let [upper, saved] = ["upper", "configurations/lab/tree"].map(|name| volume.join(name));
    for tree in [&upper, &saved] {
        fs::create_dir_all(tree).unwrap();
    }
    fs::write(upper.join("kept"), vec![1; 8 << 20]).unwrap();
    fs::write(upper.join("own"), vec![2; 2 << 20]).unwrap();
    run("cp", ["--reflink=always".as_ref(), upper.join("kept").as_os_str(), saved.as_os_str()]);
    run("sync", [""; 0]);
    let usage = usage_of(&volume).unwrap();
    let (_, lab) = &usage.configurations[0];
    assert_eq!((usage.changes.bytes, usage.changes.shared), (10 << 20, 8 << 20));
    assert_eq!((lab.bytes, lab.shared, usage.shared), (8 << 20, 8 << 20, 8 << 20));
    assert!(usage.rest() < empty.rest() + (1 << 20), "{usage:?}");
    unmount(&volume).unwrap();
}

/// The index that a builder makes of a folder.
fn index_of(folder: &Path) -> Vec<u8> {
    let mut known = BTreeMap::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(path) = waiting.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let mut entry = Entry { mode: found.mode(), owner: (found.uid(), found.gid()), ..Entry::default() };
        if found.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if found.is_symlink() {
            entry.target = fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes();
        } else {
            entry.content = Sha256::digest(fs::read(&path).unwrap()).into();
        }
        known.insert(path.strip_prefix(folder).unwrap().to_owned(), entry.fingerprint());
    }
    let mut writer = Writer::new(Vec::new()).unwrap();
    for (path, fingerprint) in known {
        writer.add(&path, [fingerprint]).unwrap();
    }
    writer.finish().unwrap()
}

/// What is changed from now on has another time than what was changed before. The kernel tells files the time of its last tick,
/// of which there are a hundred a second, and a boot here takes less.
fn wait_for_another_time() {
    let now = || clock_gettime(ClockId::RealtimeCoarse);
    let before = now();
    while now() == before {
        thread::sleep(Duration::from_millis(1));
    }
}

impl Joined {
    /// A boot of the image that `change` makes of the one before; it has that root hash.
    fn boots(&self, hash: char, change: impl FnOnce(&Path)) -> RootHash {
        let _ = unmount(&self.path("root"));
        wait_for_another_time();
        let lower = self.path("lower");
        let index = lower.join(FILE);
        let _ = fs::remove_file(&index);
        change(&lower);
        let bytes = index_of(&lower);
        fs::create_dir_all(index.parent().unwrap()).unwrap();
        fs::write(index, bytes).unwrap();
        let root_hash = hash.to_string().repeat(64).parse().unwrap();
        note_image(self.folder.path(), &lower, root_hash).unwrap();
        overlay::mount_overlay(&lower, self.folder.path(), &self.path("root")).unwrap();
        root_hash
    }

    fn shadowed(&self, root_hash: RootHash) -> Vec<String> {
        let (upper, lower) = (self.path("upper"), self.path("lower"));
        let trees = Trees { upper: &upper, lower: &lower };
        let Some(mut shadows) = Shadows::read(self.folder.path(), root_hash).unwrap() else { return Vec::new() };
        let mut told = Vec::new();
        trees
            .changes(Path::new(""), None, &mut |change| {
                if shadows.hides(&change.path, &trees).unwrap() {
                    told.push(change.path.to_string_lossy().into_owned());
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(told.len(), shadow::count(self.folder.path(), &lower, root_hash).unwrap());
        told
    }

    /// What is known of images, with a change to it by what a power cut left.
    fn images(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("images")).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names.into_iter().map(|name| format!("{}{}", &name[..1], &name[64.min(name.len())..])).collect()
    }
}

/// An image with files to change.
fn shipped(image: &Path) {
    for folder in ["etc/mode", "etc/gone", "etc/replaced", "opt/whole"] {
        fs::create_dir_all(image.join(folder)).unwrap();
        fs::write(image.join(folder).join("shipped"), "1").unwrap();
    }
    for file in ["both", "mine", "theirs", "deleted", "touched"] {
        fs::write(image.join("etc").join(file), "1").unwrap();
    }
}

fn changes_that_hide_something_newer_are_noted() {
    let joined = Joined::new(shipped);
    let first = joined.boots('a', |_| ());
    let root = joined.path("root");
    for file in ["etc/both", "etc/mine", "etc/added"] {
        fs::write(root.join(file), "mine").unwrap();
    }
    fs::remove_file(root.join("etc/deleted")).unwrap();
    fs::set_permissions(root.join("etc/mode"), Permissions::from_mode(0o700)).unwrap();
    for folder in ["etc/gone", "etc/replaced", "opt/whole"] {
        fs::remove_dir_all(root.join(folder)).unwrap();
    }
    fs::create_dir(root.join("etc/replaced")).unwrap();
    File::options().append(true).open(root.join("etc/touched")).unwrap();
    assert_eq!((joined.shadowed(first), joined.images()), (vec![], vec!["a".to_owned()]));

    let update = |image: &Path| {
        for file in ["etc/both", "etc/theirs", "etc/deleted", "etc/added", "etc/replaced/shipped", "etc/gone/shipped"] {
            fs::write(image.join(file), "2").unwrap();
        }
        fs::set_permissions(image.join("etc/mode"), Permissions::from_mode(0o750)).unwrap();
    };
    let second = joined.boots('b', update);
    let hidden = ["etc/added", "etc/both", "etc/deleted", "etc/gone", "etc/mode", "etc/replaced"];
    assert_eq!(joined.shadowed(second), hidden);
    assert_eq!(joined.images(), ["b", "b.shadowed"]);

    // What was changed anew is made on this image, and another boot of it knows that.
    fs::write(root.join("etc/both"), "mine, anew").unwrap();
    fs::write(root.join("etc/mode/new"), "in a folder that was changed").unwrap();
    let hidden = ["etc/added", "etc/deleted", "etc/gone", "etc/mode", "etc/replaced"];
    assert_eq!(joined.shadowed(joined.boots('b', |_| ())), hidden);

    // An image that changes nothing more leaves it at that, and what is as it once was is not hidden any more.
    let third = joined.boots('c', |image| fs::write(image.join("etc/added"), "3").unwrap());
    assert_eq!(joined.shadowed(third), hidden);
    let fourth = joined.boots('d', |image| {
        fs::remove_file(image.join("etc/added")).unwrap();
        for file in ["etc/deleted", "etc/both", "etc/gone/shipped"] {
            fs::write(image.join(file), "1").unwrap();
        }
    });
    assert_eq!(joined.shadowed(fourth), ["etc/both", "etc/mode", "etc/replaced"]);

    // The power went when the list was there, and the index not yet; or when the old ones were still there.
    let [index, list] = ["", ".shadowed"].map(|end| joined.path("images").join(format!("{}{end}", "d".repeat(64))));
    let noted = fs::read(&list).unwrap();
    fs::rename(&index, joined.path("images").join("c".repeat(64))).unwrap();
    fs::write(joined.path("images").join(format!("{}.new", "d".repeat(64))), "half").unwrap();
    joined.boots('d', |_| ());
    assert_eq!((fs::read(&list).unwrap(), joined.images()), (noted, vec!["d".to_owned(), "d.shadowed".to_owned()]));
}

fn a_saved_tree_knows_what_it_was_made_on() {
    let joined = Joined::new(shipped);
    joined.boots('a', |_| ());
    let root = joined.path("root");
    for file in ["etc/both", "etc/mine", "opt/new"] {
        fs::write(root.join(file), "mine").unwrap();
    }
    fs::remove_file(root.join("etc/deleted")).unwrap();
    let read = || Index::of_image(&joined.path("lower")).unwrap().unwrap();
    let file = joined.path("base");
    let base = Base::note(&joined.path("upper"), &read(), None, &file).unwrap();
    let shadowed = |base: &Base| -> Vec<PathBuf> { base.shadowed(&read()).unwrap().map(Result::unwrap).collect() };
    assert!(shadowed(&base).is_empty());
    joined.boots('b', |image| {
        for file in ["etc/both", "etc/theirs", "etc/deleted"] {
            fs::write(image.join(file), "2").unwrap();
        }
    });
    assert_eq!(shadowed(&Base::read(&file).unwrap()), ["etc/both", "etc/deleted"].map(PathBuf::from));
}
