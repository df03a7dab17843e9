//! What a reboot does to a test's devices.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use devicemapper::{DM, DevId, DmOptions};
use rustix::mount::{UnmountFlags, unmount};

use crate::power::OURS;

/// How long the kernel may take to let go of what was just unmounted.
const LIMIT: Duration = Duration::from_secs(10);

/// Unmounts everything on and below these folders, and closes every mapping: nothing is left of what was up.
#[track_caller]
pub fn leave_nothing_open(folders: &[&str]) {
    if let Err(error) = close_everything(folders) {
        // A test that has failed already says more, and a second panic would end all the others.
        assert!(thread::panicking(), "{error:#}");
    }
}

/// By the kernel's calls, not by programs: it is done a hundred times, and a process is slow to start here.
fn close_everything(folders: &[&str]) -> Result<()> {
    let dm = DM::new()?;
    let begin = Instant::now();
    // A host that stands still for a while is no reason: it is tried often, however late it is.
    for tries in 0.. {
        let mut in_use = unmount_below(folders)?;
        if in_use.is_empty() {
            in_use = close_mappings(&dm)?;
        }
        if in_use.is_empty() {
            return Ok(());
        }
        ensure!(begin.elapsed() < LIMIT || tries < 20, "still in use: {}", in_use.join(", "));
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Returns what is in use.
fn unmount_below(folders: &[&str]) -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let targets = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1));
    let targets = targets.filter(|target| folders.iter().any(|folder| Path::new(target).starts_with(folder)));
    Ok(targets.filter(|target| unmount(*target, UnmountFlags::empty()).is_err()).map(str::to_owned).collect())
}

/// Returns what is in use, be it by another mapping.
fn close_mappings(dm: &DM) -> Result<Vec<String>> {
    let mut in_use = Vec::new();
    let mappings = dm.list_devices()?.into_iter().map(|(name, ..)| name);
    for name in mappings.filter(|name| !name.to_string().starts_with(OURS)) {
        match dm.device_remove(&DevId::Name(&name), DmOptions::default()) {
            Ok(_) => drop(fs::remove_file(Path::new("/dev/mapper").join(name.to_string()))),
            Err(_) => in_use.push(name.to_string()),
        }
    }
    Ok(in_use)
}
