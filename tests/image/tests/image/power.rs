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

pub fn a_first_boot_that_loses_its_power_is_finished_at_the_next_boot() -> Case {
    let mut device = Disk::fresh()?.starts()?;
    device.prints("create-volume: ")?;
    let mut device = device.loses_power().boots()?;
    let status = device.run("nemosctl status")?;
    assert_eq!(status.status, 0, "{status:?}");
    has_no_errors(&mut device)
}
