//! Looks at the storage of the running system.

use std::path::Path;
use std::time::Duration;

use devicemapper::{DM, DevId, DmName, DmOptions};
use nemos_model::boot::REPORT_FILE;
use nemos_model::integrity::{PRELOADED_MAPPING, VERITY_MAPPING};
use nemos_model::keys::Slot;
use nemos_model::overlay::{INTEGRITY_MAPPING, LUKS_MAPPING};
use nemos_model::partitions::Partition;
use nemos_model::stack::{Observed, SeenMapping};
use tracing::debug;

use crate::boot::read_report;
use crate::integrity::verity;
use crate::keys::slots;
use crate::mounts::mounted;
use crate::partitions::Disk;

/// What can be seen now. What cannot be seen is missing from it: who draws the stack finds it missing.
pub fn observe() -> Observed {
    let report = read_report(Path::new(REPORT_FILE)).unwrap_or_else(|error| {
        debug!(%error, "no boot report");
        None
    });
    let disk = report.as_ref().map(|report| Disk::named(&report.disk));
    let partitions = disk.as_ref().map(Disk::partitions).unwrap_or_default();
    let keyslots = disk.as_ref().map(keyslots).unwrap_or_default();
    let mounts = mounted().unwrap_or_else(|error| {
        debug!(%error, "the mounts cannot be read");
        Vec::new()
    });
    Observed { partitions, mappings: mappings(), mounts, report, keyslots }
}

fn keyslots(disk: &Disk) -> Vec<Slot> {
    let Ok(partition) = disk.partition(Partition::Root, Duration::ZERO) else { return Vec::new() };
    slots(&partition).unwrap_or_else(|error| {
        debug!(%error, "no key slots");
        Vec::new()
    })
}

fn mappings() -> Vec<SeenMapping> {
    match DM::new() {
        Ok(dm) => [VERITY_MAPPING, PRELOADED_MAPPING, LUKS_MAPPING, INTEGRITY_MAPPING]
            .into_iter()
            .filter_map(|name| mapping(&dm, name))
            .collect(),
        Err(error) => {
            debug!(%error, "device-mapper cannot be asked");
            Vec::new()
        }
    }
}

/// The status of a mapping; never the table of dm-crypt, which holds the key.
fn mapping(dm: &DM, name: &str) -> Option<SeenMapping> {
    let id = DevId::Name(DmName::new(name).ok()?);
    let (_, targets) = dm.table_status(&id, DmOptions::default()).ok()?;
    let [(_, sectors, target, status)] = targets.as_slice() else { return None };
    let table = if target == "verity" { verity::table(dm, name) } else { None };
    Some(SeenMapping {
        name: name.to_owned(),
        target: target.clone(),
        status: status.clone(),
        table,
        device: format!("/dev/mapper/{name}"),
        size: sectors * 512,
    })
}
