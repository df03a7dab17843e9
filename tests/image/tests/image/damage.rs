//! A disk that is damaged: the device says so, and erases nothing.

use nemos_model::partitions::Partition;
use nemos_tests::{Case, Device, Disk};

use crate::factory::{RESET, is_as_shipped, use_it};

/// Both headers of a LUKS2 volume; its key slots are behind them.
const LUKS_HEADERS: usize = 32 << 10;
/// Size of a block of dm-verity.
const BLOCK: u64 = 4096;

pub fn a_device_without_its_overlay_header_is_degraded_and_erases_nothing() -> Case {
    let mut device = Device::running()?;
    let before = use_it(&mut device)?;
    let mut disk = device.powers_off()?;
    disk.corrupt(Partition::Root, 0, LUKS_HEADERS)?;
    let damaged = disk.read_all(Partition::Root)?;

    let mut device = disk.boots()?;
    let mounts = device.says("mount")?;
    assert!(mounts.contains("OverlayOS_rootfs on / type overlay (rw"), "{mounts}");
    assert!(mounts.contains(" on /run/nemos/overlay type tmpfs"), "{mounts}");
    let status = device.run("nemosctl status")?;
    assert_ne!(status.status, 0, "{status:?}");
    assert!(status.stdout.contains("p.lxroot cannot be used"), "{status:?}");
    assert_eq!(damaged_headers(&mut device)?, [0, 16 << 10]);
    let mut disk = device.powers_off()?;
    assert!(disk.read_all(Partition::Root)? == damaged, "something was written to the damaged overlay");

    let mut device = disk.boots()?;
    assert_eq!(device.says("cat /home/made-here")?, "made here");
    device.reboots_by(RESET)?;
    is_as_shipped(&mut device, &before)?;
    assert_eq!(damaged_headers(&mut device)?, [0, 16 << 10], "what was is not forgotten");
    let health = device.run("nemosctl health")?;
    assert!(health.status < 2, "it is no fault of the new volume: {health:?}");
    Ok(())
}

/// libcryptsetup would have mended it in silence.
pub fn a_damaged_header_is_remembered_before_a_key_is_tried() -> Case {
    let mut device = Device::running()?;
    let second: u64 = 16 << 10;
    let place = second + 5000;
    device.says(&format!(
        "printf damaged | dd of=/dev/disk/by-partlabel/p.lxroot bs=1 seek={place} conv=notrunc,fsync status=none"
    ))?;
    let mended = |device: &mut Device| -> Result<bool, nemos_tests::Failed> {
        let events = device.tells("nemosctl integrity events --json")?;
        let is_it = |event: &serde_json::Value| {
            event["area"] == "header" && event["kind"] == "corrected" && event["start"] == second
        };
        Ok(events.as_array().is_some_and(|events| events.iter().any(is_it)))
    };
    assert!(!mended(&mut device)?);
    device.says("nemosctl keys forecast")?;
    assert!(mended(&mut device)?, "{}", device.says("nemosctl integrity events")?);
    Ok(())
}

/// Where the copies of the overlay's header begin whose damage the ledger has.
fn damaged_headers(device: &mut Device) -> Result<Vec<u64>, nemos_tests::Failed> {
    let events = device.tells("nemosctl integrity events --json")?;
    let of_a_header = |event: &&serde_json::Value| event["area"] == "header" && event["kind"] == "corrupted";
    let events = events.as_array().into_iter().flatten().filter(of_a_header);
    let mut starts: Vec<_> = events.filter_map(|event| event["start"].as_u64()).collect();
    starts.sort_unstable();
    Ok(starts)
}

pub fn a_root_with_a_damaged_superblock_is_refused() -> Case {
    let mut disk = Disk::fresh()?;
    disk.loses_parity()?;
    disk.corrupt(Partition::Readonly, 0, 96)?;
    is_refused(disk)
}

pub fn a_root_with_a_damaged_hash_tree_is_refused() -> Case {
    let mut disk = Disk::fresh()?;
    let size = superblock_field(&mut disk, 40)?;
    // Behind the file system there is a superblock of dm-verity, and then the top of the tree.
    let top = size.next_multiple_of(BLOCK) + BLOCK;
    disk.corrupt(Partition::Readonly, top, 64)?;
    disk.loses_parity()?;
    is_refused(disk)
}

pub fn a_root_with_damaged_files_is_refused() -> Case {
    let mut disk = Disk::fresh()?;
    let inode_table = superblock_field(&mut disk, 64)?;
    // All contents, and nothing of what says where they are.
    let contents = BLOCK..inode_table / BLOCK * BLOCK;
    disk.corrupt(Partition::Readonly, contents.start, usize::try_from(contents.end - contents.start)?)?;
    is_refused(disk)
}

fn is_refused(disk: Disk) -> Case {
    let reason = disk.starts()?.refuses_to_boot()?;
    assert!(reason.contains("write the image anew"), "{reason}");
    Ok(())
}

/// A number in the superblock of the root's squashfs.
fn superblock_field(disk: &mut Disk, offset: u64) -> Result<u64, nemos_tests::Failed> {
    let bytes = disk.read(Partition::Readonly, offset, 8)?;
    Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

/// By what the README says.
pub fn a_device_that_has_lost_its_memory_gets_it_back() -> Case {
    let mut device = Device::running()?;
    device.says("echo mine > /etc/made-here && echo lost > /var/lib/nemos/state.json && sync")?;
    device.reboots()?;
    let health = device.run("nemosctl health")?;
    assert!(health.status == 2 && health.stdout.contains("p.lxstate cannot be used"), "{health:?}");
    let refused = device.run("nemosctl reset --factory --yes")?;
    assert!(refused.status == 1 && refused.stderr.contains("until it remembers again"), "{refused:?}");

    device.says("systemctl stop nemosd && umount /var/lib/nemos")?;
    device.says("e2fsck -f /dev/disk/by-partlabel/p.lxstate")?;
    device.says("mount /dev/disk/by-partlabel/p.lxstate /var/lib/nemos")?;
    device.says(
        "printf '{\"version\": 1, \"volume\": {\"is\": \"provisioned\", \"uuid\": \"%s\"}, \"jobs\": []}' \
         \"$(cryptsetup luksUUID /dev/disk/by-partlabel/p.lxroot)\" > /var/lib/nemos/state.json && sync",
    )?;
    device.reboots()?;
    assert_eq!(device.says("cat /etc/made-here")?, "mine");
    assert!(device.run("nemosctl health")?.status < 2);
    device.says("nemosctl reset --factory --keep /etc/made-here --dry-run")?;
    Ok(())
}
