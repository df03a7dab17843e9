//! Back to the factory state.

use nemos_tests::{Case, Device};

use crate::factory::{RESET, is_as_shipped, last_reset, use_it};

pub fn a_factory_reset_takes_away_what_was_made_on_the_device() -> Case {
    let mut device = Device::running()?;
    let before = use_it(&mut device)?;
    let asked_after: u64 = device.says("date +%s")?.parse()?;

    device.reboots_by(RESET)?;

    is_as_shipped(&mut device, &before)?;
    let job = last_reset(&mut device)?;
    assert_eq!(job["RequestedBy"]["uid"], 0, "{job}");
    assert_eq!(job["RequestedBy"]["user"], "root", "{job}");
    let requested_at = job["RequestedAt"].as_u64().ok_or("the job does not say when it was asked for")?;
    let finished_at = job["FinishedAt"].as_u64().ok_or("the job does not say when it ended")?;
    assert!(asked_after <= requested_at && requested_at < finished_at, "asked after {asked_after}: {job}");
    Ok(())
}
