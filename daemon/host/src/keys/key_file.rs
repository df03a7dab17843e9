//! Key files on another device, as a USB stick: read where they are, and never written here.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nemos_model::boot::REPORT_FILE;
use nemos_model::keys::{Closed, FilePlace, Place, Provider, Slot};

use crate::boot::read_report;
use crate::keys::way::{Given, Moment, Way};
use crate::keys::{ChangeError, Key, NewKey, Secret};
use crate::mounts::{open_below, root_of};
use crate::partitions::disk_of;
use crate::time::wait_for;

/// How long a boot waits for devices that should be there, all of them together: a USB stick takes seconds to be found.
const APPEARS: Duration = Duration::from_secs(10);
/// When it began to wait.
static WAITING: OnceLock<Instant> = OnceLock::new();
/// What such a device may have on it.
const FILE_SYSTEMS: [&str; 2] = ["ext4", "vfat"];

pub(super) struct KeyFile;

impl Way for KeyFile {
    fn provider(&self) -> Provider {
        Provider::KeyFile
    }

    fn key(&self, slot: &Slot, moment: Moment) -> Result<Key, Closed> {
        let limit = match moment {
            Moment::Boot => APPEARS.saturating_sub(WAITING.get_or_init(Instant::now).elapsed()),
            Moment::Running => Duration::ZERO,
        };
        match slot.place() {
            Some(Place::File(place)) => read(place, limit).map(Key::Secret).map_err(Closed::Locked),
            _ => Err(Closed::Locked("it is not recorded where its key is".to_owned())),
        }
    }

    fn takes_secret(&self) -> bool {
        true
    }

    fn new_key(&self, given: Given) -> Result<NewKey, ChangeError> {
        let unfit = |what: String| ChangeError::unfit(Provider::KeyFile, what);
        let Given { secret: Some(secret), place: Some(Place::File(place)), .. } = given else {
            return Err(unfit("is in a file on another device: say on which (place), and what is in it".to_owned()));
        };
        check(&place, &secret).map_err(unfit)?;
        Ok(NewKey { provider: Provider::KeyFile, key: Key::Secret(secret), place: Some(Place::File(place)) })
    }
}

/// If the device is there, it must be another one, and the file must have that key.
fn check(place: &FilePlace, secret: &Secret) -> Result<(), String> {
    let Ok(device) = fs::canonicalize(place.link()) else { return Ok(()) };
    let booted = read_report(Path::new(REPORT_FILE)).ok().flatten().map(|report| PathBuf::from(report.disk));
    if booted.is_some() && disk_of(&device) == booted {
        return Err(format!("is kept on another disk, and {} is on this device's own", place.device()));
    }
    let found = read(place, Duration::ZERO).map_err(|error| format!("is read from its file at boot: {error}"))?;
    if found.expose() != secret.expose() {
        return Err(format!("is what its file has, and {place} has another one"));
    }
    Ok(())
}

fn read(place: &FilePlace, limit: Duration) -> Result<Secret, String> {
    let device = wait_for(limit, || fs::canonicalize(place.link()).ok());
    let device = device.ok_or_else(|| format!("the device with {} is not there", place.device()))?;
    let root = root_of(&device, &FILE_SYSTEMS)?;
    let unreadable = |error: &dyn std::error::Error| format!("cannot read {place}: {error}");
    let file = open_below(&root, place.path()).map_err(|error| unreadable(&error))?;
    Secret::read(file).map_err(|error| unreadable(&error))
}
