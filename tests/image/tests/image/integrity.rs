//! Damage that is found, named, kept and acted on.

use nemos_model::partitions::Partition;
use nemos_tests::{Case, Device, Disk, Failed};
use serde_json::Value;

use crate::kernel_log::has_no_errors;

/// A file of the root that no boot reads, and its package.
const FILE: &str = "/usr/sbin/xfs_db";
const PACKAGE: &str = "xfsprogs";
/// How long nemosd may take to look a file up, in tenths of a second.
const LOOKED_UP: u32 = 600;

pub fn a_healthy_device_is_scrubbed_in_silence() -> Case {
    let mut device = Device::running()?;
    let scrubbed = device.tells("nemosctl integrity scrub --json")?;
    for (volume, name) in scrubbed.as_array().into_iter().flatten().zip(["verityRoot", "luks"]) {
        assert_eq!((&volume["name"], &volume["scrub"]["state"]), (&name.into(), &"done".into()), "{scrubbed}");
        assert_eq!(volume["scrub"]["damaged"], 0, "{scrubbed}");
    }
    let integrity = device.tells("nemosctl integrity --json")?;
    assert_eq!(integrity["state"], "ok", "{integrity}");
    assert_eq!(device.says("nemosctl integrity events")?, "no events");
    Ok(())
}

/// Takes six minutes, and the rig boots ten times in seconds: only for who asks for it.
pub fn a_healthy_device_is_silent_through_ten_boots_and_a_power_cut() -> Case {
    let mut device = Device::running()?;
    for _ in 0..9 {
        device.reboots()?;
        has_no_errors(&mut device)?;
        assert_eq!(device.says("nemosctl integrity events")?, "no events");
    }
    device.says("dd if=/dev/zero of=/var/lib/half-written bs=1M count=16 status=none")?;
    let mut device = device.loses_power().boots()?;
    device.says("nemosctl integrity scrub")?;
    has_no_errors(&mut device)?;
    assert_eq!(device.says("nemosctl integrity events")?, "no events");
    Ok(())
}

pub fn a_damaged_file_of_the_root_is_signalled_named_and_remembered() -> Case {
    let mut disk = Disk::fresh()?;
    let block = disk.block_of(Partition::Readonly, FILE)?;
    disk.corrupt(Partition::Readonly, block, 1)?;
    disk.loses_parity()?;
    let mut device = disk.boots()?;
    assert_eq!(device.says("nemosctl integrity events")?, "no events");

    let listens = "busctl monitor --match \"interface='org.nemos.Device1.Integrity'\" > /run/heard 2>&1 &";
    device.says(&format!("{listens} timeout 60 sh -c 'until grep -q Monitoring /run/heard; do sleep 0.1; done'"))?;
    let read = device.run(&format!("cat {FILE} > /dev/null"))?;
    assert_ne!(read.status, 0, "damage was read as if it were none");
    device.waits_until("grep -q CorruptionDetected /run/heard")?;
    // The kernel's three ways to tell of it take a moment each.
    device.waits_until(
        "nemosctl integrity events --json | tr --delete \"[:space:]\" | grep --quiet log.*uevent.*audit",
    )?;
    let event = named_event(&mut device)?;
    assert_eq!((&event["volume"], &event["area"]), (&"verityRoot".into(), &"data".into()), "{event}");
    assert_eq!((&event["file"], &event["package"]), (&FILE.into(), &PACKAGE.into()), "{event}");
    assert_eq!(event["found_by"], "read", "{event}");
    assert_eq!(event["told_by"], serde_json::json!(["log", "uevent", "audit"]), "{event}");
    assert_eq!(device.run("nemosctl health")?.status, 2);

    device.reboots()?;
    let kept = named_event(&mut device)?;
    assert_eq!(kept["id"], event["id"], "one block is one event");
    assert_eq!(device.run("nemosctl health")?.status, 2, "nobody has acknowledged it");
    device.says("nemosctl integrity acknowledge --all")?;
    let health = device.run("nemosctl health")?;
    assert_ne!(health.status, 2, "{health:?}");

    let scrubbed = device.run("nemosctl integrity scrub verityRoot")?;
    assert_ne!(scrubbed.status, 0, "{scrubbed:?}");
    assert!(scrubbed.stdout.contains(", 1 block damaged"), "{scrubbed:?}");
    assert_eq!(device.run("nemosctl health")?.status, 2, "it was seen again");
    Ok(())
}

pub fn a_damaged_hash_tree_and_damaged_containers_are_found_by_a_scrub() -> Case {
    let mut disk = Disk::fresh()?;
    let block = disk.block_of(Partition::Readonly, FILE)?;
    let digest = disk.digest_of(block)?;
    let tree = digest / 4096 * 4096;
    disk.corrupt(Partition::Readonly, digest, 1)?;
    disk.loses_parity()?;
    let program = "bin/busybox";
    let of_a_container = disk.block_of(Partition::OciPreloaded, program)?;
    let within_it = of_a_container + (40 << 12);
    disk.corrupt(Partition::OciPreloaded, within_it, 1)?;
    let mut device = disk.boots()?;
    let scrubbed = device.run("nemosctl integrity scrub verityRoot")?;
    assert_ne!(scrubbed.status, 0, "{scrubbed:?}");
    let events = device.tells("nemosctl integrity events --json")?;
    let found = events
        .as_array()
        .is_some_and(|events| events.iter().any(|event| event["area"] == "hash-tree" && event["start"] == tree));
    assert!(found, "{events}");

    device.says("nemosctl integrity acknowledge --all")?;
    let scrubbed = device.run("nemosctl integrity scrub p.lxoci-preloaded")?;
    assert!(scrubbed.status != 0 && scrubbed.stdout.contains(", 1 block damaged"), "{scrubbed:?}");
    let told = format!("nemosctl integrity events --open | grep -q 'p.lxoci-preloaded.*{program}'");
    device.says(&format!("n=0; until {told}; do n=$((n + 1)); test $n -lt {LOOKED_UP} || exit 1; sleep 0.1; done"))?;
    let read = device.run(&format!("cat /var/lib/containers/loaded/overlay/*/diff/{program} > /dev/null"))?;
    assert_ne!(read.status, 0, "damage was read as if it were none");
    Ok(())
}

pub fn what_can_be_mended_is_mended_and_told() -> Case {
    let mut disk = Device::running()?.powers_off()?;
    let block = disk.block_of(Partition::Readonly, FILE)?;
    disk.corrupt(Partition::Readonly, block, 4096)?;
    let superblock_of_the_root = 0;
    disk.corrupt(Partition::Readonly, superblock_of_the_root, 96)?;
    let first_header = 0;
    disk.corrupt(Partition::Root, first_header + 100, 1)?;
    let expected = [("luks", "header", 0), ("verityRoot", "data", 0), ("verityRoot", "data", block)]
        .map(|(volume, area, start)| format!("{volume} {area} {start}"));

    let mut device = disk.boots()?;
    device.says(&format!("cat {FILE} > /dev/null"))?;
    let counted = "test $(nemosctl integrity events --json | grep -c first_seen) -ge 3";
    device
        .says(&format!("n=0; until {counted}; do n=$((n + 1)); test $n -lt {LOOKED_UP} || exit 1; sleep 0.1; done"))?;
    assert_eq!(corrected(&mut device)?, expected);

    let scrubbed = device.says("nemosctl integrity scrub verityRoot")?;
    assert!(scrubbed.contains(", 0 blocks damaged"), "{scrubbed}");
    assert_eq!(corrected(&mut device)?, expected, "one damaged block is one event, whoever finds it");
    assert_eq!(device.tells("nemosctl integrity --json")?["state"], "corrected");
    let health = device.run("nemosctl health")?;
    assert_eq!(health.status, 1, "{health:?}");
    device.waits_until(&format!("nemosctl integrity events | grep --quiet {FILE}"))
}

/// All events, of which each must be of damage that was mended, in order of their places.
fn corrected(device: &mut Device) -> Result<Vec<String>, Failed> {
    let events = device.tells("nemosctl integrity events --json")?;
    let events = events.as_array().cloned().unwrap_or_default();
    assert!(events.iter().all(|event| event["kind"] == "corrected"), "{events:?}");
    let word = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
    let mut places: Vec<(String, String, u64)> = events
        .iter()
        .map(|event| (word(event, "volume"), word(event, "area"), event["start"].as_u64().unwrap_or_default()))
        .collect();
    places.sort();
    Ok(places.into_iter().map(|(volume, area, start)| format!("{volume} {area} {start}")).collect())
}

pub fn damage_of_the_overlay_is_found_by_a_scrub_and_gone_after_a_reset() -> Case {
    let mut device = Device::running()?;
    let big = "/var/lib/big";
    device.says(&format!("dd if=/dev/zero of={big} bs=1M count=300 conv=fsync status=none"))?;
    let mut disk = device.powers_off()?;
    // A file that has most of the volume has some of these places, all in front of the journal in its middle.
    for mib in (30..200).step_by(24) {
        disk.corrupt(Partition::Root, mib << 20, 512)?;
    }
    let mut device = disk.boots()?;
    let scrubbed = device.run("nemosctl integrity scrub luks")?;
    assert_ne!(scrubbed.status, 0, "{scrubbed:?}");
    let has_name = format!("nemosctl integrity events --json | grep -q '\"file\": \"{big}\"'");
    device.says(&format!("timeout 60 sh -c 'until {}; do sleep 0.1; done'", has_name.replace('\'', "'\\''")))?;
    let events = device.tells("nemosctl integrity events --json")?;
    let events: Vec<&Value> = events.as_array().into_iter().flatten().collect();
    assert!(events.iter().all(|event| event["volume"] == "luks" && event["found_by"] == "scrub"), "{events:?}");
    let hidden = device.says("runuser -u nobody -- nemosctl integrity events --json")?;
    assert!(!hidden.contains(big), "everybody sees names of files: {hidden}");

    device.reboots_by(crate::factory::RESET)?;
    let integrity = device.tells("nemosctl integrity --json")?;
    assert_eq!(integrity["state"], "ok", "the volume is another: {integrity}");
    assert_ne!(device.says("nemosctl integrity events")?, "no events", "the old one's damage is history");
    Ok(())
}

/// The first event of what was not mended, once it is known of which file.
fn named_event(device: &mut Device) -> Result<Value, Failed> {
    let is_named = "nemosctl integrity events --json | grep -q \"\\\"file\\\": \\\"/\"";
    device
        .says(&format!("n=0; until {is_named}; do n=$((n + 1)); test $n -lt {LOOKED_UP} || exit 1; sleep 0.1; done"))?;
    let events = device.tells("nemosctl integrity events --json")?;
    let lost = events.as_array().into_iter().flatten().find(|event| event["kind"] == "corrupted");
    Ok(lost.ok_or_else(|| format!("nothing is lost: {events}"))?.clone())
}
