//! Boots of a device, without its firmware, kernel and systemd: what nemos-initrd makes of a disk, on real
//! device-mapper.

#![allow(clippy::unwrap_used, reason = "panicking is how a test fails")]
#![allow(clippy::unused_self, reason = "there is one device at a time, and it is the subject of every sentence")]

mod configuration;
mod device;
mod everything;
mod keys;
mod modes;
mod reset;
mod revert;
mod room;
mod shadow;
mod take_over;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use device::Device;
use nemos_host::keys::read_key_file;
use nemos_host::overlay;
use nemos_model::boot::{DamagedHeader, Reason};
use nemos_model::job::{JobState, MAX_ATTEMPTS};
use nemos_model::keys::DEMO_KEY_FILE;
use nemos_model::partitions::Partition;
use nemos_model::reset::{Keeping, Scope, Step};
use nemos_model::state::{FILE_NAME, Volume};
use nemos_rig::{corrupt, run};

fn main() -> ExitCode {
    nemos_rig::main(nemos_rig::tests![
        the_first_boot_provisions_the_device,
        the_names_are_those_that_scripts_rely_on,
        changes_survive_a_reboot,
        a_healthy_device_is_silent_through_ten_boots,
        a_factory_reset_takes_every_change_back,
        a_first_boot_that_is_killed_at_every_step_ends_the_same,
        a_reset_that_is_killed_at_every_step_ends_the_same,
        a_reset_that_is_killed_at_any_moment_ends_the_same,
        a_destroyed_header_degrades_the_boot_and_erases_nothing,
        a_damaged_copy_of_the_header_is_repaired_and_told,
        a_foreign_volume_is_not_opened,
        a_volume_in_the_place_of_the_devices_own_is_not_opened,
        a_state_that_cannot_be_read_is_left_alone,
        a_device_that_keeps_failing_comes_up_and_a_reset_repairs_it,
        errors_that_the_kernel_noted_are_repaired_at_the_next_boot,
        a_damaged_partition_is_left_out,
        containers_that_are_not_those_that_were_shipped_are_left_out,
        a_torn_superblock_is_repaired,
        a_changed_root_is_refused,
        reset::an_overlay_reset_leaves_home_and_containers,
        reset::what_is_kept_survives_as_it_was,
        reset::what_is_kept_is_never_on_the_disk_in_plain_text,
        reset::what_does_not_fit_is_refused_before_anything_is_erased,
        reset::kept_data_outlives_a_reset_that_is_given_up,
        reset::a_partition_that_takes_no_writes_fails_the_reset_and_the_device_comes_up,
        reset::the_command_line_asks_for_a_factory_reset,
        everything::everything_is_as_it_was_under_another_volume_key,
        everything::a_device_in_another_mode_stays_in_it,
        everything::what_has_no_room_to_wait_is_refused_and_nothing_is_erased,
        everything::everything_outlives_a_reset_that_is_given_up,
        everything::what_nobody_waits_for_any_more_is_destroyed_wherever_it_is,
        take_over::a_volume_that_kiwi_made_is_taken_over_as_it_is,
        take_over::a_reset_makes_a_volume_of_the_devices_own,
        take_over::a_first_boot_that_is_killed_takes_it_over_all_the_same,
        take_over::a_volume_that_does_not_open_is_left_alone,
        modes::a_volatile_boot_begins_as_shipped_and_forgets,
        modes::a_read_only_boot_takes_changes_only_in_memory_and_where_it_must,
        modes::a_mode_for_one_boot_does_not_outlast_a_power_cut,
        modes::a_device_whose_volume_is_gone_is_degraded_in_every_mode,
        modes::a_reset_ends_in_the_persistent_mode,
        configuration::what_was_saved_is_there_again_once_it_is_applied_and_stays_saved,
        configuration::what_was_saved_on_another_image_tells_what_it_would_hide,
        configuration::with_what_was_imported_the_device_stays_who_it_is,
        configuration::what_is_saved_shares_its_room,
        configuration::a_name_that_is_taken_or_not_there_fails_and_changes_nothing,
        configuration::what_nobody_confirms_is_gone_at_the_next_boot,
        configuration::a_way_back_that_cannot_be_gone_is_given_up_and_the_device_stays_up,
        configuration::a_boot_that_never_reaches_the_daemon_is_not_tried_twice,
        configuration::what_is_confirmed_stays,
        configuration::a_mode_that_nobody_confirms_ends_with_its_boot,
        configuration::a_reset_takes_what_is_saved_and_what_is_on_trial,
        revert::what_is_taken_back_is_as_the_image_has_it_and_all_else_stays,
        revert::a_path_inside_of_what_hides_the_image_fails_and_changes_nothing,
        room::a_full_overlay_boots_and_takes_changes_once_there_is_room,
        room::changes_to_a_full_overlay_are_taken_back,
        room::a_full_overlay_is_reset,
        shadow::an_image_in_place_of_another_is_noticed_before_anything_runs,
        shadow::a_power_cut_while_it_is_noticed_changes_nothing_of_it,
        keys::a_recovery_key_opens_a_device_that_has_no_other_way,
        keys::a_passphrase_that_somebody_added_without_us_is_asked_for,
        keys::a_reset_keeps_what_a_recovery_key_opens_and_brings_the_demo_key_back,
        keys::a_key_file_on_another_disk_opens_the_device,
        keys::without_the_disk_of_its_key_file_a_device_is_opened_by_what_comes_next,
        keys::a_key_file_that_no_boot_would_find_is_refused,
        keys::a_token_opens_the_device_when_it_is_given_its_pin,
    ])
}

fn the_first_boot_provisions_the_device() {
    let device = Device::shipped();
    assert_eq!(device.state().volume, Volume::NeverProvisioned);
    let mut first = device.boots();
    first.is_healthy();
    let job = first.report.job.expect("the first boot has a job");
    first.shuts_down();
    assert_eq!(device.state().job(job).unwrap().state, JobState::Done);

    let mut second = device.boots();
    second.is_healthy();
    assert_eq!(second.report.job, None);
}

fn the_names_are_those_that_scripts_rely_on() {
    let device = Device::provisioned();
    let _running = device.boots();
    assert!(run("dmsetup", ["status", "verityRoot"]).trim().ends_with('V'));
    assert!(run("cryptsetup", ["status", "luks"]).contains("aegis128-random"));
    assert!(run("integritysetup", ["status", "luks_dif"]).contains("active"));
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    for mount in [
        "OverlayOS_rootfs /sysroot overlay rw",
        "/sysroot/var/lib/containers/storage xfs rw",
        "/sysroot/var/lib/containers/loaded squashfs ro",
        "/sysroot/home ext4 rw",
    ] {
        assert!(mounts.contains(mount), "{mount} is not among\n{mounts}");
    }
}

fn changes_survive_a_reboot() {
    let device = Device::provisioned();
    let running = device.boots();
    assert_eq!(running.reads("/etc/hostname"), "device\n");
    for file in ["/etc/hostname", "/home/note", "/var/lib/containers/storage/layer"] {
        running.writes(file, "changed");
    }
    running.shuts_down();

    let mut running = device.boots();
    running.is_healthy();
    for file in ["/etc/hostname", "/home/note", "/var/lib/containers/storage/layer"] {
        assert_eq!(running.reads(file), "changed");
    }
}

fn a_healthy_device_is_silent_through_ten_boots() {
    let device = Device::provisioned();
    for boot in 0..10 {
        let mut running = device.boots();
        running.writes("/etc/boots", &boot.to_string());
        running.is_healthy();
        assert_eq!((&running.report.headers[..], &running.report.repaired[..]), (&[][..], &[][..]));
        running.shuts_down();
    }
}

fn a_factory_reset_takes_every_change_back() {
    let device = Device::provisioned();
    let old_header = device.volume_header();
    let running = device.boots();
    let old_volume = running.volume().uuid;
    for file in ["/etc/hostname", "/home/note", "/var/lib/containers/storage/layer"] {
        running.writes(file, "changed");
    }
    running.shuts_down();
    let job = device.is_asked_for_a_factory_reset();

    let mut running = device.boots();
    running.is_healthy();
    assert_eq!(running.report.job, Some(job));
    assert_ne!(running.volume().uuid, old_volume);
    assert_eq!(running.reads("/etc/hostname"), "device\n");
    assert!(!running.has("/home/note"));
    assert!(!running.has("/var/lib/containers/storage/layer"));
    assert!(running.has("/var/lib/containers/loaded/image"), "what was shipped stays");
    running.shuts_down();

    let state = device.state();
    let job = state.job(job).unwrap();
    assert_eq!(job.state, JobState::Done);
    assert_eq!(job.requested_by.user.as_deref(), Some("admin"));
    let kept = old_header
        .chunks(4096)
        .zip(device.volume_header().chunks(4096))
        .any(|(old, new)| old == new && old.iter().any(|byte| *byte != 0));
    assert!(!kept, "something of the old key slots is left");
}

fn a_first_boot_that_is_killed_at_every_step_ends_the_same() {
    let device = Device::shipped();
    for step in Step::PROVISION {
        device.is_killed_when_it_says(&format!(": {step}"));
    }
    device.boots().is_healthy();
}

fn a_reset_that_is_killed_at_every_step_ends_the_same() {
    let device = Device::provisioned();
    let running = device.boots();
    let old_volume = running.volume().uuid;
    running.writes("/etc/hostname", "changed");
    running.writes("/home/note", "changed");
    running.shuts_down();
    let job = device.is_asked_for_a_factory_reset();

    for step in Scope::Factory.steps(Keeping::Nothing) {
        device.is_killed_when_it_says(&format!("job {job}: {step}"));
        if step == Step::CreateVolume {
            device.is_killed_when_it_says(&format!("{step}: "));
        }
    }
    let mut running = device.boots();
    running.is_healthy();
    assert_ne!(running.volume().uuid, old_volume);
    assert_eq!(running.reads("/etc/hostname"), "device\n");
    assert!(!running.has("/home/note"));
    running.shuts_down();
    assert_eq!(device.state().job(job).unwrap().state, JobState::Done);
    assert_eq!(device.state().job(job).unwrap().attempts, [], "a power cut is not a failure");
}

fn a_reset_that_is_killed_at_any_moment_ends_the_same() {
    let device = Device::provisioned();
    let running = device.boots();
    running.writes("/etc/hostname", "changed");
    running.writes("/home/note", "changed");
    running.shuts_down();
    let job = device.is_asked_for_a_factory_reset();

    let mut time = Duration::from_millis(200);
    while device.is_killed_after(time) {
        time = time * 5 / 4;
    }
    let mut running = device.boots();
    running.is_healthy();
    assert_eq!(running.reads("/etc/hostname"), "device\n");
    assert!(!running.has("/home/note"));
    running.shuts_down();
    assert_eq!(device.state().job(job).unwrap().state, JobState::Done);
}

fn a_destroyed_header_degrades_the_boot_and_erases_nothing() {
    let device = Device::provisioned();
    let running = device.boots();
    running.writes("/etc/hostname", "mine");
    running.shuts_down();

    let header = device.volume_header();
    device.overwrite_volume_header(&vec![0; header.len()]);
    let degraded = device.boots();
    assert!(matches!(degraded.is_degraded(), Reason::OverlayDamaged { .. }));
    let destroyed = [0, 16 << 10].map(|start| DamagedHeader { start, repaired: false });
    assert_eq!(degraded.report.headers, destroyed);
    assert_eq!(degraded.reads("/etc/hostname"), "device\n");
    degraded.shuts_down();

    device.overwrite_volume_header(&header);
    let mut repaired = device.boots();
    repaired.is_healthy();
    assert_eq!(repaired.reads("/etc/hostname"), "mine");
}

fn a_damaged_copy_of_the_header_is_repaired_and_told() {
    let device = Device::provisioned();
    for start in [0, 16 << 10] {
        corrupt(&device.partition(Partition::Root), start + 100, 1);
        let mut running = device.boots();
        running.is_healthy();
        assert_eq!(running.report.headers, [DamagedHeader { start, repaired: true }]);
        running.shuts_down();
    }
    assert_eq!(device.boots().report.headers, []);
}

fn a_foreign_volume_is_not_opened() {
    let device = Device::provisioned();
    let uuid = "--uuid=00000000-0000-4000-8000-000000000001";
    let partition = device.partition(Partition::Root);
    run("cryptsetup", ["luksUUID", "-q", uuid, partition.to_str().unwrap()]);
    assert!(matches!(device.boots().is_degraded(), Reason::OverlayForeign { .. }));
}

/// The demo key opens it, and whoever made it has given it the UUID of the device's own.
fn a_volume_in_the_place_of_the_devices_own_is_not_opened() {
    let device = Device::provisioned();
    let partition = device.partition(Partition::Root);
    let uuid = run("cryptsetup", ["luksUUID", partition.to_str().unwrap()]);
    overlay::create_volume(&partition, &read_key_file(Path::new(DEMO_KEY_FILE)).unwrap(), &mut |_, _| {}).unwrap();
    let before = device.volume_header();
    run("cryptsetup", ["luksUUID", "-q", &format!("--uuid={}", uuid.trim()), partition.to_str().unwrap()]);
    let renamed = device.volume_header();
    assert!(renamed != before);
    let degraded = device.boots();
    assert!(
        matches!(degraded.is_degraded(), Reason::OverlayForeign { uuid: found } if found.to_string() == uuid.trim())
    );
    degraded.shuts_down();
    assert!(device.volume_header() == renamed, "something was written to it");
}

fn a_state_that_cannot_be_read_is_left_alone() {
    let device = Device::provisioned();
    let garbage = "{\"version\": 1, \"vol";
    device.with_state(|folder| fs::write(folder.join(FILE_NAME), garbage).unwrap());
    let running = device.boots();
    assert!(matches!(running.report.degraded[..], [Reason::StateUnreadable { .. }]));
    assert!(running.report.volume.is_some(), "the overlay has nothing to do with it");
    running.shuts_down();
    assert_eq!(device.with_state(|folder| fs::read_to_string(folder.join(FILE_NAME)).unwrap()), garbage);
}

fn a_device_that_keeps_failing_comes_up_and_a_reset_repairs_it() {
    let device = Device::shipped();
    fs::remove_file(DEMO_KEY_FILE).unwrap();
    for _ in 0..MAX_ATTEMPTS {
        let running = device.boots();
        assert!(matches!(running.is_degraded(), Reason::JobFailed { step: Step::CreateVolume, .. }));
        running.shuts_down();
    }
    fs::write(DEMO_KEY_FILE, "insecure").unwrap();
    let running = device.boots();
    assert_eq!(running.report.job, None, "it has stopped trying");
    assert_eq!(running.is_degraded(), &Reason::OverlayMissing);
    running.shuts_down();
    assert_eq!(device.state().jobs().last().unwrap().state, JobState::Failed);

    device.is_asked_for_a_factory_reset();
    device.boots().is_healthy();
}

fn errors_that_the_kernel_noted_are_repaired_at_the_next_boot() {
    let device = Device::provisioned();
    let home = device.partition(Partition::Home);
    run("debugfs", ["-w", "-R", "set_super_value state 3", home.to_str().unwrap()]);
    let running = device.boots();
    assert_eq!(running.report.repaired, [Partition::Home]);
    running.shuts_down();
    assert_eq!(device.boots().report.repaired, []);
}

fn a_damaged_partition_is_left_out() {
    let device = Device::provisioned();
    corrupt(&device.partition(Partition::Home), 1024, 1024);
    let running = device.boots();
    assert!(matches!(running.report.degraded[..], [Reason::NotMounted { partition: Partition::Home, .. }]));
    assert_eq!(running.reads("/etc/hostname"), "device\n");
}

fn containers_that_are_not_those_that_were_shipped_are_left_out() {
    let device = Device::provisioned();
    corrupt(&device.partition(Partition::OciPreloaded), 2000, 1);
    let running = device.boots();
    let [Reason::NotMounted { partition: Partition::OciPreloaded, error }] = &running.report.degraded[..] else {
        panic!("{:?}", running.report.degraded);
    };
    assert!(error.contains("is not what the root hash"), "{error}");
    assert!(!running.has("/var/lib/containers/loaded/image"));
}

fn a_torn_superblock_is_repaired() {
    for partition in [Partition::State, Partition::Home] {
        let device = Device::provisioned();
        let superblock = || {
            let mut bytes = vec![0; 1024];
            File::open(device.partition(partition)).unwrap().read_exact_at(&mut bytes, 1024).unwrap();
            bytes
        };
        let before = superblock();
        let running = device.boots();
        running.writes("/home/note", "mine");
        running.shuts_down();
        device.with_state(|_| ());
        assert_ne!(superblock()[..512], before[..512], "mounting writes to it");
        let disk = File::options().write(true).open(device.partition(partition)).unwrap();
        disk.write_all_at(&before[..512], 1024).unwrap();
        disk.sync_all().unwrap();

        let mut running = device.boots();
        running.is_healthy();
        assert_eq!(running.report.repaired, [partition], "it is not passed over in silence");
        assert_eq!(running.reads("/home/note"), "mine");
        running.shuts_down();
        let mut running = device.boots();
        running.is_healthy();
        assert_eq!(running.report.repaired, []);
    }
}

fn a_changed_root_is_refused() {
    let superblock_of_the_root = 0;
    let middle_of_init = 128 << 10;
    for place in [superblock_of_the_root, middle_of_init] {
        let device = Device::provisioned();
        corrupt(&device.partition(Partition::Readonly), place + 50, 1);
        let said = device.refuses_to_boot();
        assert!(said.contains("boot refused"), "{said}");
    }
}
