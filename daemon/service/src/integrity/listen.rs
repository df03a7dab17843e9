//! A thread that listens to the kernel, and looks now and then at what it does not say.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nemos_host::integrity::names::names;
use nemos_host::integrity::watch::{Heard, Watch, WatchError, audit_records, uptime};
use nemos_host::time::now;
use nemos_model::Timestamp;
use nemos_model::boot::BootReport;
use nemos_model::integrity::event::{Area, Finder, Kind, Place};
use nemos_model::integrity::status::{headers_at_boot, unreported_damage};
use nemos_model::integrity::volume::Names;
use nemos_model::integrity::{Sighting, Volume};
use tracing::warn;

use crate::integrity::Integrity;

/// How often to look at what the kernel does not say by itself.
const LOOK: Duration = Duration::from_secs(10);
/// How long to wait before listening again, after it failed.
const AGAIN: Duration = Duration::from_secs(30);

/// Listens for as long as the process runs.
pub fn begin(integrity: Arc<Integrity>) {
    let audit = audit_records();
    thread::spawn(move || {
        loop {
            let audit = audit.as_ref().and_then(|audit| audit.try_clone().ok());
            if let Err(error) = listen(&integrity, audit) {
                warn!("{error}");
                integrity.trouble("kernel", Some(format!("{error}: damage may go unseen")));
            }
            thread::sleep(AGAIN);
        }
    });
}

fn listen(integrity: &Integrity, audit: Option<OwnedFd>) -> Result<(), WatchError> {
    let mut watch = Watch::begin(audit)?;
    integrity.trouble("kernel", None);
    let mut looked = None::<Instant>;
    loop {
        let heard = watch.next(LOOK)?;
        if heard.is_empty() && looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            continue;
        }
        looked = Some(Instant::now());
        let seen = integrity.storage.observe();
        let report = seen.report.as_ref();
        let mut sightings = Vec::new();
        if !heard.is_empty() {
            let read = integrity.ledger().heard().clone();
            // What was read before this nemosd was started.
            let is_new =
                |heard: &&Heard| heard.sequence.is_none_or(|sequence| read.sequence.is_none_or(|last| sequence > last));
            let names = names(&seen.partitions);
            let new = heard.iter().filter(is_new).filter_map(|heard| sighting(heard, &names, report, read.since));
            sightings.extend(
                new.filter(|sighting| !integrity.storage.is_free(&sighting.place))
                    .flat_map(|sighting| precise(sighting, integrity)),
            );
            // A scrub of the overlay has the kernel check each sector, and the kernel tells what it finds.
            if integrity.running().contains_key(&Volume::Overlay) {
                let of_the_overlay = |sighting: &&mut Sighting| sighting.place.volume == Volume::Overlay;
                sightings.iter_mut().filter(of_the_overlay).for_each(|sighting| sighting.finder = Finder::Scrub);
            }
        }
        forget_failed_corrections(&mut sightings);
        let booted = Timestamp(now().0.saturating_sub(uptime() / 1_000_000));
        if sightings.is_empty() {
            let view = integrity.view();
            sightings.extend(unreported_damage(&seen, view.known(report), booted, now()));
            sightings.extend(headers_at_boot(view.known(report), booted, now()));
        }
        if !sightings.is_empty() {
            integrity.see(&sightings, watch.sequence());
        }
    }
}

/// With too little parity the kernel says that it has corrected a block, compares, and says then that it is corrupted. Only the
/// second is true.
fn forget_failed_corrections(sightings: &mut Vec<Sighting>) {
    let lost: Vec<Place> = sightings.iter().map(|sighting| sighting.place.clone()).collect();
    sightings.retain(|sighting| {
        let corrupted = Place { kind: Kind::Corrupted, ..sighting.place.clone() };
        sighting.place.kind == Kind::Corrupted || !lost.contains(&corrupted)
    });
}

/// The same, of each block instead of the code word that they are in, where that can be told.
fn precise(sighting: Sighting, integrity: &Integrity) -> Vec<Sighting> {
    if sighting.place.area != Area::CodeWord {
        return vec![sighting];
    }
    let blocks = integrity.storage.blocks_of(&sighting.place);
    if blocks.is_empty() {
        return vec![sighting];
    }
    blocks.into_iter().map(|place| Sighting { place, ..sighting.clone() }).collect()
}

/// A report, as one of a volume; `None` if it is about none of ours. `since` is when nemosd began to listen in this boot.
fn sighting(heard: &Heard, names: &Names, report: Option<&BootReport>, since: u64) -> Option<Sighting> {
    let volume = names.volume(&heard.report)?;
    let incarnation = volume.incarnation(report);
    let (kind, area, start) = (heard.report.kind, heard.report.area, heard.report.start);
    let finder = if heard.uptime < since { Finder::Boot } else { Finder::Read };
    Some(Sighting {
        place: Place { volume, incarnation, kind, area, start },
        source: heard.source,
        finder,
        at: heard.at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nemos_model::integrity::event::Source;
    use nemos_model::integrity::kernel_log::{Driver, Report};

    fn heard(device: &str, uptime: u64) -> Heard {
        let report = Report {
            driver: Driver::Verity,
            device: Some(device.into()),
            kind: Kind::Corrupted,
            area: Area::Data,
            start: Some(4096),
        };
        Heard { report, source: Source::Log, at: Timestamp(1), uptime, sequence: Some(7) }
    }

    #[test]
    fn what_was_said_before_nemosd_ran_was_found_by_the_boot() {
        let mut names = Names::default();
        names.add("254:6", Volume::Root);
        let found = |uptime| sighting(&heard("254:6", uptime), &names, None, 100).map(|sighting| sighting.finder);
        assert_eq!(found(99), Some(Finder::Boot));
        assert_eq!(found(100), Some(Finder::Read));
        assert_eq!(sighting(&heard("8:1", 99), &names, None, 100), None, "that is somebody else's disk");
    }

    #[test]
    fn a_correction_that_failed_is_none() {
        let sighting = |kind, start| Sighting {
            place: Place {
                volume: Volume::Root,
                incarnation: String::new(),
                kind,
                area: Area::Data,
                start: Some(start),
            },
            source: Source::Log,
            finder: Finder::Read,
            at: Timestamp(1),
        };
        let mut sightings =
            vec![sighting(Kind::Corrected, 0), sighting(Kind::Corrected, 4096), sighting(Kind::Corrupted, 0)];
        forget_failed_corrections(&mut sightings);
        assert_eq!(sightings, [sighting(Kind::Corrected, 4096), sighting(Kind::Corrupted, 0)]);
    }
}
