//! How each volume is, and what somebody should do about it.

use crate::Timestamp;
use crate::boot::{BootReport, DamagedHeader};
use crate::health::{Finding, Health};
use crate::integrity::event::{Area, Event, Finder, Kind, Place, Sighting, Source};
use crate::integrity::scrub::{SCRUBBED, Scrub, ScrubState};
use crate::integrity::{VerityStatus, Volume};
use crate::keys::OVERLAY_CIPHER;
use crate::stack::{LayerState, Observed, layers};
use crate::words::words;

/// How old the last complete scrub may be, in seconds: the timer's week, four times.
pub const SCRUB_AGE: u64 = 4 * 7 * 24 * 3600;
/// How far the clock may be behind what the device remembers, in seconds.
pub const CLOCK_BEHIND: u64 = 3600;

words! {
    /// How a volume is, or the device.
    State {
        /// No damage is known.
        Ok = "ok",
        /// There was damage, and it was put right each time.
        Corrected = "corrected",
        /// Something is damaged.
        Corrupted = "corrupted",
        /// The kernel cannot be listened to.
        Unknown = "unknown",
    }
}

/// One volume.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeStatus {
    /// Which.
    pub volume: Volume,
    /// How it is.
    pub state: State,
    /// What the kernel shows of it now, in words: `verified`, `active`, `not mounted`.
    pub status: String,
    /// How damage is noticed: `sha256`, `aegis128-random (aead)`; empty where only the file system's own structures are checked.
    pub algorithm: String,
    /// The root hash, for what is under dm-verity.
    pub root_hash: Option<String>,
    /// Whether the kernel has checked a signature of it, for what is under dm-verity.
    pub signed: Option<bool>,
    /// Places that are damaged.
    pub errors: u64,
    /// Places that were damaged and are put right at each read.
    pub corrected: u64,
    /// The newest scrub, for those that can be scrubbed.
    pub scrub: Option<Scrub>,
}

/// Everything that is known of the device's integrity.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// All events.
    pub events: &'a [Event],
    /// The newest scrub of each volume.
    pub scrubs: &'a [Scrub],
    /// What the initrd reported.
    pub report: Option<&'a BootReport>,
}

impl Known<'_> {
    /// Events of a volume as it is now: not of one that had its name before, and not what a later scrub has found sound.
    pub fn current(&self, volume: Volume) -> impl Iterator<Item = &Event> {
        let incarnation = volume.incarnation(self.report);
        let sound_since = self.scrub(volume).and_then(|scrub| scrub.last_complete);
        self.events.iter().filter(move |event| {
            event.place.volume == volume
                && event.place.incarnation == incarnation
                && sound_since.is_none_or(|since| event.last_seen >= since)
        })
    }

    /// The newest scrub of a volume as it is now.
    pub fn scrub(&self, volume: Volume) -> Option<&Scrub> {
        let incarnation = volume.incarnation(self.report);
        self.scrubs.iter().find(|scrub| scrub.volume == volume && scrub.incarnation == incarnation)
    }

    fn count(&self, volume: Volume, kind: Kind) -> u64 {
        self.current(volume).filter(|event| event.place.kind == kind).count() as u64
    }

    /// How a volume is.
    pub fn state(&self, volume: Volume) -> State {
        match self.current(volume).map(|event| event.place.kind).max() {
            Some(Kind::Corrupted) => State::Corrupted,
            Some(Kind::Corrected) => State::Corrected,
            None => State::Ok,
        }
    }

    /// How the device is: as its worst volume.
    pub fn worst(&self) -> State {
        Volume::ALL.into_iter().map(|volume| self.state(volume)).max().unwrap_or(State::Ok)
    }

    /// All volumes.
    pub fn volumes(&self, seen: &Observed) -> Vec<VolumeStatus> {
        Volume::ALL.into_iter().map(|volume| self.volume(volume, seen)).collect()
    }

    fn volume(&self, volume: Volume, seen: &Observed) -> VolumeStatus {
        let mapping = volume.verity_mapping().and_then(|name| seen.mapping_named(name));
        let table = mapping.and_then(|mapping| mapping.table.as_ref());
        let mounted = || volume.partition().mount_point().unwrap_or(volume.name());
        let name = mapping.map_or_else(mounted, |mapping| &mapping.name);
        let layer = layers(seen).into_iter().find(|layer| layer.name == name);
        let failed = layer.as_ref().is_none_or(|layer| layer.state == LayerState::Failed);
        let state = self.state(volume);
        VolumeStatus {
            volume,
            state: if failed && volume == Volume::Root && state == State::Ok { State::Unknown } else { state },
            status: layer.map_or_else(|| "not there".to_owned(), |layer| layer.detail),
            algorithm: match volume {
                Volume::Root => "sha256".to_owned(),
                Volume::Preloaded if table.is_some() => "sha256".to_owned(),
                Volume::Overlay => {
                    format!("{}-{} ({})", OVERLAY_CIPHER.name, OVERLAY_CIPHER.mode, OVERLAY_CIPHER.integrity)
                }
                _ => String::new(),
            },
            root_hash: table.map(|table| table.root_hash.to_string()),
            signed: table.map(|table| table.signed),
            errors: self.count(volume, Kind::Corrupted),
            corrected: self.count(volume, Kind::Corrected),
            scrub: self.scrub(volume).cloned(),
        }
    }

    /// What somebody should look at. `begun` is when this device began to keep a ledger.
    pub fn findings(&self, now: Timestamp, begun: Timestamp) -> Vec<Finding> {
        let damage = Volume::ALL.into_iter().flat_map(|volume| Kind::ALL.iter().rev().map(move |kind| (volume, *kind)));
        let mut findings: Vec<Finding> = damage.filter_map(|(volume, kind)| self.damage(volume, kind)).collect();
        findings.extend(SCRUBBED.into_iter().filter_map(|volume| self.scrub_finding(volume, now, begun)));
        findings.extend(self.clock(now, begun));
        findings
    }

    /// A clock that shows a time which the device remembers as past: without a battery it begins anew at each boot, and what
    /// is told by age is told wrong.
    fn clock(&self, now: Timestamp, begun: Timestamp) -> Option<Finding> {
        let seen = self.events.iter().map(|event| event.last_seen);
        let scrubbed = self.scrubs.iter().map(|scrub| scrub.ended.unwrap_or(scrub.started));
        let remembered = seen.chain(scrubbed).chain([begun]).max()?;
        let behind = remembered.0.saturating_sub(now.0);
        let message = || format!("the clock is behind by {} hours or more: ages cannot be trusted", behind / 3600);
        (behind >= CLOCK_BEHIND).then(|| Finding { health: Health::Warning, message: message() })
    }

    fn damage(&self, volume: Volume, kind: Kind) -> Option<Finding> {
        let open: Vec<&Event> =
            self.current(volume).filter(|event| event.is_open() && event.place.kind == kind).collect();
        let newest = open.iter().max_by_key(|event| event.last_seen)?;
        let others = match open.len() - 1 {
            0 => String::new(),
            others => format!(" and {others} more"),
        };
        let health = match kind {
            Kind::Corrected => Health::Warning,
            Kind::Corrupted => Health::Critical,
        };
        // Findings are for everybody to read; the names of files on the overlay are not.
        let newest =
            if volume == Volume::Overlay { Event { owner: None, ..(*newest).clone() } } else { (*newest).clone() };
        let message = format!("{newest}{others}; see `nemosctl integrity events`");
        Some(Finding { health, message })
    }

    fn scrub_finding(&self, volume: Volume, now: Timestamp, begun: Timestamp) -> Option<Finding> {
        let warning = |message| Some(Finding { health: Health::Warning, message });
        let scrub = self.scrub(volume);
        if let Some(Scrub { state: ScrubState::Failed, error, .. }) = scrub {
            return warning(format!(
                "the scrub of {volume} failed: {}",
                error.as_deref().unwrap_or("no reason is known")
            ));
        }
        let last = scrub.and_then(|scrub| scrub.last_complete);
        let age = now.0.saturating_sub(last.unwrap_or(begun).0);
        if age <= SCRUB_AGE || volume.incarnation(self.report).is_empty() {
            return None;
        }
        warning(format!(
            "{volume} was not scrubbed for {} days; `nemosctl integrity scrub {volume}` does it",
            age / 86400
        ))
    }
}

/// What nemos-initrd saw of the overlay's headers in this boot, as long as nobody was told.
pub fn headers_at_boot(known: Known<'_>, booted: Timestamp, now: Timestamp) -> Vec<Sighting> {
    let Some(report) = known.report else { return Vec::new() };
    let sighting = |header: &DamagedHeader| damaged_header(header, known.report, Finder::Boot, now);
    let is_known = |sighting: &Sighting| {
        known.events.iter().any(|event| event.place == sighting.place && event.last_seen >= booted)
    };
    report.headers.iter().map(sighting).filter(|sighting| !is_known(sighting)).collect()
}

/// Copies of the overlay's header that somebody came across while the system runs.
pub fn damaged_headers(headers: &[DamagedHeader], report: Option<&BootReport>, now: Timestamp) -> Vec<Sighting> {
    headers.iter().map(|header| damaged_header(header, report, Finder::Read, now)).collect()
}

fn damaged_header(header: &DamagedHeader, report: Option<&BootReport>, finder: Finder, now: Timestamp) -> Sighting {
    let volume = Volume::Overlay;
    let kind = if header.repaired { Kind::Corrected } else { Kind::Corrupted };
    let (incarnation, start) = (volume.incarnation(report), Some(header.start));
    let place = Place { volume, incarnation, kind, area: Area::Header, start };
    Sighting { place, source: Source::Status, finder, at: now }
}

/// What the status of what is under dm-verity tells beyond the events: that there was damage in this boot whose reports are
/// lost.
pub fn unreported_damage(seen: &Observed, known: Known<'_>, booted: Timestamp, now: Timestamp) -> Vec<Sighting> {
    let is_damaged = |volume: &Volume| {
        let mapping = volume.verity_mapping().and_then(|name| seen.mapping_named(name));
        mapping.and_then(|mapping| VerityStatus::parse(&mapping.status)) == Some(VerityStatus::Corrupted)
    };
    let sighting = |volume: Volume| {
        let incarnation = volume.incarnation(known.report);
        let place = Place { volume, incarnation, kind: Kind::Corrupted, area: Area::Unknown, start: None };
        Sighting { place, source: Source::Status, finder: Finder::Read, at: now }
    };
    let is_known = |sighting: &Sighting| {
        let Place { volume, incarnation, .. } = &sighting.place;
        let of_it = |event: &&Event| event.place.volume == *volume && event.place.incarnation == *incarnation;
        known.events.iter().filter(of_it).any(|event| event.last_seen >= booted)
    };
    Volume::ALL.into_iter().filter(is_damaged).map(sighting).filter(|sighting| !is_known(sighting)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::SeenMapping;

    fn event(volume: Volume, kind: Kind, at: u64) -> Event {
        let place = Place { volume, incarnation: String::new(), kind, area: Area::Data, start: Some(4096) };
        Event::new(&Sighting { place, source: Source::Log, finder: Finder::Read, at: Timestamp(at) })
    }

    fn known<'a>(events: &'a [Event], scrubs: &'a [Scrub]) -> Known<'a> {
        Known { events, scrubs, report: None }
    }

    #[test]
    fn a_device_is_as_its_worst_volume() {
        let events = [event(Volume::Root, Kind::Corrected, 1), event(Volume::Overlay, Kind::Corrupted, 1)];
        assert_eq!(known(&events, &[]).state(Volume::Root), State::Corrected);
        assert_eq!(known(&events, &[]).worst(), State::Corrupted);
        assert_eq!(known(&events[..0], &[]).worst(), State::Ok);
    }

    #[test]
    fn damage_of_a_volume_that_is_gone_is_history() {
        let mut old = event(Volume::Overlay, Kind::Corrupted, 1);
        old.place.incarnation = "before the reset".into();
        let events = [old];
        assert_eq!(known(&events, &[]).worst(), State::Ok);
        assert_eq!(known(&events, &[]).findings(Timestamp(2), Timestamp(1)), []);
    }

    #[test]
    fn what_a_later_scrub_has_found_sound_is_sound() {
        let events = [event(Volume::Root, Kind::Corrupted, 5)];
        let mut scrub = Scrub::begin(None, Volume::Root, String::new(), None, Timestamp(6)).unwrap();
        assert_eq!(known(&events, &[scrub.clone()]).worst(), State::Corrupted, "it has not read everything");
        scrub.end(Ok(()), Timestamp(9));
        assert_eq!(known(&events, &[scrub]).worst(), State::Ok);
    }

    #[test]
    fn what_is_acknowledged_is_no_finding_any_more_but_still_damage() {
        let mut events = [event(Volume::Root, Kind::Corrupted, 5)];
        let findings = known(&events, &[]).findings(Timestamp(6), Timestamp(1));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].health, Health::Critical);
        events[0].acknowledged = Some(Timestamp(6));
        assert_eq!(known(&events, &[]).findings(Timestamp(6), Timestamp(1)), []);
        assert_eq!(known(&events, &[]).worst(), State::Corrupted);
    }

    #[test]
    fn a_file_on_the_overlay_stays_out_of_the_findings() {
        let mut events = [event(Volume::Overlay, Kind::Corrupted, 5)];
        events[0].owner = Some(super::super::event::Owner { file: "/root/secret-plan".into(), package: None });
        let findings = known(&events, &[]).findings(Timestamp(6), Timestamp(1));
        assert!(!findings[0].message.contains("secret-plan"), "{findings:?}");
    }

    #[test]
    fn a_clock_that_goes_back_is_told() {
        let told = |now| known(&[], &[]).findings(Timestamp(now), Timestamp(10_000)).len();
        assert_eq!((told(10_000), told(6_401), told(6_400)), (0, 0, 1));
        let events = [event(Volume::Root, Kind::Corrected, 20_000)];
        let findings = known(&events, &[]).findings(Timestamp(10_000), Timestamp(0));
        assert!(findings.iter().any(|finding| finding.message.contains("behind by 2 hours")), "{findings:?}");
    }

    #[test]
    fn damage_without_a_report_is_told_once_a_boot() {
        let status = |status: &str| Observed {
            mappings: vec![SeenMapping {
                name: crate::integrity::VERITY_MAPPING.into(),
                target: "verity".into(),
                status: status.into(),
                device: String::new(),
                size: 0,
                table: None,
            }],
            ..Observed::default()
        };
        let unreported = |events: &[Event], letter| {
            unreported_damage(&status(letter), known(events, &[]), Timestamp(10), Timestamp(20))
        };
        assert_eq!(unreported(&[], "V"), []);
        let sighting = unreported(&[], "C").pop().expect("nothing else tells of it");
        assert_eq!(sighting.place.area, Area::Unknown);
        assert_eq!(unreported(&[Event::new(&sighting)], "C"), []);
        assert_eq!(unreported(&[event(Volume::Root, Kind::Corrupted, 15)], "C"), []);
        assert_eq!(unreported(&[event(Volume::Root, Kind::Corrupted, 5)], "C").len(), 1, "that was another boot");
    }
}
