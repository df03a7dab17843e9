//! The rig itself: what the other tests on it take for granted, checked with command line tools.

#![allow(clippy::unwrap_used, reason = "panicking is how a test fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nemos_rig::{CommandLine, Disk, KernelLog, Rng, WriteLog, corrupt, refused, run};

const MIB: u64 = 1 << 20;

fn main() -> ExitCode {
    nemos_rig::main(nemos_rig::tests![
        partitions_are_found_by_their_labels,
        several_disks_are_told_apart,
        verity_refuses_a_changed_block,
        a_volume_with_integrity_keeps_what_is_written,
        a_power_cut_takes_nothing_that_is_safe,
        the_command_line_is_what_the_test_says,
        what_a_test_writes_is_gone_with_the_machine,
    ])
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths here are text")
}

fn partitions_are_found_by_their_labels() {
    let disk = Disk::partitioned(&[("p.one", MIB), ("p.two", 3 * MIB)]);
    let two = disk.partition("p.two");
    assert_eq!(run("blockdev", ["--getsize64", text(&two)]).trim(), (3 * MIB).to_string());
    assert_ne!(disk.partition("p.one"), two);
}

fn several_disks_are_told_apart() {
    let [one, two] = [Disk::new(MIB), Disk::new(MIB)];
    fs::write(one.path(), "one").unwrap();
    fs::write(two.path(), "two").unwrap();
    assert!(fs::read(one.path()).unwrap().starts_with(b"one"));
    assert!(fs::read(two.path()).unwrap().starts_with(b"two"));
}

fn verity_refuses_a_changed_block() {
    let [data, hashes] = [Disk::new(MIB), Disk::new(MIB)];
    let printed = run("veritysetup", ["format", text(data.path()), text(hashes.path())]);
    let root_hash = printed.lines().find_map(|line| line.strip_prefix("Root hash:")).expect("a root hash").trim();
    run("veritysetup", ["open", text(data.path()), "rig-verity", text(hashes.path()), root_hash]);
    let status = || run("dmsetup", ["status", "rig-verity"]);
    assert!(status().trim().ends_with('V'), "{}", status());

    let mut log = KernelLog::from_now();
    corrupt(data.path(), 5 * 4096, 1);
    refused("dd", ["if=/dev/mapper/rig-verity", "of=/dev/null", "bs=4096", "iflag=direct"]);
    assert!(status().trim().ends_with('C'), "{}", status());
    assert!(log.messages().contains("data block 5 is corrupted"));
    run("veritysetup", ["close", "rig-verity"]);
}

fn a_volume_with_integrity_keeps_what_is_written() {
    let disk = Disk::new(340 * MIB);
    let device = text(disk.path());
    let key = PathBuf::from("/run/rig-key");
    fs::write(&key, "insecure").unwrap();
    let key_file = ["--key-file", text(&key)];
    let format = ["luksFormat", "-q", "--type=luks2", "--cipher=aegis128-random", "--key-size=128", "--integrity=aead"];
    let cheap = ["--sector-size=4096", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", device];
    run("cryptsetup", [&format[..], &cheap, &key_file].concat());
    run("cryptsetup", [&["open", device, "rig-luks"], &key_file[..]].concat());

    let mut log = KernelLog::from_now();
    run("mkfs.xfs", ["-q", "/dev/mapper/rig-luks"]);
    let folder = tempfile::tempdir_in("/run").unwrap();
    run("mount", ["/dev/mapper/rig-luks", text(folder.path())]);
    fs::write(folder.path().join("file"), "kept").unwrap();
    run("umount", [text(folder.path())]);
    run("cryptsetup", ["close", "rig-luks"]);
    assert_eq!(log.messages().matches("INTEGRITY AEAD ERROR").count(), 0);

    run("cryptsetup", [&["open", device, "rig-luks"], &key_file[..]].concat());
    run("mount", ["/dev/mapper/rig-luks", text(folder.path())]);
    assert_eq!(fs::read_to_string(folder.path().join("file")).unwrap(), "kept");
    run("umount", [text(folder.path())]);
    run("cryptsetup", ["close", "rig-luks"]);
}

/// Also when another cut tore it: in the page cache, the two are neighbours.
fn a_power_cut_takes_nothing_that_is_safe() {
    let disk = Disk::partitioned(&[("p.one", MIB)]).image().logged_disk();
    let writes = |word: &str, sectors: usize, at: usize| {
        fs::write("/run/rig-words", word.repeat(sectors * 512)).unwrap();
        let to = format!("of={}", text(&disk.partition("p.one")));
        run("dd", ["if=/run/rig-words", &to, "bs=512", &format!("seek={at}"), "oflag=direct", "conv=fsync"]);
    };
    writes("1", 4, 0);
    writes("2", 1, 4);
    let mut log = disk.into_log();
    let mut random = Rng::new();
    // One letter a sector.
    let mut torn = |log: &WriteLog| {
        let from = format!("if={}", text(&log.torn(&mut random).partition("p.one")));
        let read = run("dd", [&from, "bs=512", "count=5", "iflag=direct"]);
        read.chars().step_by(512).collect::<String>()
    };
    while log.unsafe_writes() != 4 {
        assert!(log.goes_on());
    }
    while torn(&log) == "1111\0" {}
    assert!(log.goes_on());
    for _ in 0..10 {
        let read = torn(&log);
        assert!(read == "1111\0" || read == "11112", "{read}");
    }
}

fn the_command_line_is_what_the_test_says() {
    {
        let _line = CommandLine::says("roothash=beef quiet");
        assert_eq!(fs::read_to_string("/proc/cmdline").unwrap(), "roothash=beef quiet\n");
    }
    assert!(!fs::read_to_string("/proc/cmdline").unwrap().contains("beef"));
}

/// Writes next to this very binary, and leaves it there: the next run would find it.
fn what_a_test_writes_is_gone_with_the_machine() {
    let beside = std::env::current_exe().unwrap().with_file_name("rig-was-here");
    assert!(!beside.exists(), "an earlier run wrote to {}", beside.display());
    fs::write(&beside, "").unwrap();
}
