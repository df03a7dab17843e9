//! The power goes in the middle of it.

use nemos_tests::{Case, Device, Disk};

use crate::factory::{RESET, is_as_shipped, use_it};
use crate::kernel_log::has_no_errors;

pub fn a_reset_that_loses_its_power_is_finished_at_the_next_boot() -> Case {
    let mut device = Device::running()?;
    let before = use_it(&mut device)?;
    device.begins_to_reboot_by(RESET)?;
    device.prints("create-volume: ")?;
    let mut device = device.loses_power().boots()?;
    is_as_shipped(&mut device, &before)
}

pub fn a_reset_that_loses_its_power_at_any_flush_ends_the_same() -> Case {
    const CUTS: usize = 3;
    let mut device = Device::running()?;
    let before = use_it(&mut device)?;
    device.says("nemosctl reset --factory --yes --no-reboot")?;
    let (mut device, mut writes) = device.powers_off()?.starts_logged()?;
    device.comes_up()?;
    is_as_shipped(&mut device, &before)?;
    drop(device);

    let flushes = writes.flushes()?;
    assert!(flushes > CUTS, "the device flushed its disk only {flushes} times");
    for cut in 1..=CUTS {
        let flush = flushes * cut / (CUTS + 1);
        let ended = writes.disk_at_flush(flush)?.boots().and_then(|mut device| is_as_shipped(&mut device, &before));
        ended.map_err(|error| format!("at flush {flush} of {flushes}: {}", error.message().unwrap_or_default()))?;
    }
    Ok(())
}

pub fn a_first_boot_that_loses_its_power_is_finished_at_the_next_boot() -> Case {
    let mut device = Disk::fresh()?.starts()?;
    device.prints("create-volume: ")?;
    let mut device = device.loses_power().boots()?;
    let status = device.run("nemosctl status")?;
    assert_eq!(status.status, 0, "{status:?}");
    has_no_errors(&mut device)
}
