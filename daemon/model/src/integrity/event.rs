//! Events: what is damaged, and how it was found. One damaged block is one event, whoever reports it and how often.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::integrity::Volume;
use crate::integrity::kernel_log::BLOCK;
use crate::words::words;

pub use crate::words::UnknownWord;

words! {
    /// How bad, worst last.
    Kind {
        /// It was put right; the data are as they should be.
        Corrected = "corrected",
        /// It is not what it was, and whoever reads it gets an error.
        Corrupted = "corrupted",
    }
}

words! {
    /// What was damaged.
    Area {
        /// Content.
        Data = "data",
        /// The hash tree.
        Tree = "hash-tree",
        /// Blocks that one code of error correction spans.
        CodeWord = "code-word",
        /// What a file system keeps of itself.
        FileSystem = "file-system",
        /// The header of an encrypted volume.
        Header = "header",
        /// The ledger of these events.
        Ledger = "ledger",
        /// Somewhere: the kernel has seen it, and its reports are lost.
        Unknown = "unknown",
    }
}

words! {
    /// Who came across it first.
    Finder {
        /// The boot, before nemosd ran.
        Boot = "boot",
        /// Somebody who read it.
        Read = "read",
        /// A scrub.
        Scrub = "scrub",
    }
}

words! {
    /// How nemosd heard of it.
    Source {
        /// The kernel's log, which is rate-limited.
        Log = "log",
        /// A uevent.
        Uevent = "uevent",
        /// An audit record.
        Audit = "audit",
        /// The status of a mapping, which tells that something is damaged and not what.
        Status = "status",
        /// A read of its own.
        Scrub = "scrub",
    }
}

/// What is damaged: the same for every report of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// On which volume.
    pub volume: Volume,
    /// Which one of those that this device had under that name: its root hash, or its UUID. A new image or a reset begins anew.
    pub incarnation: String,
    /// How bad.
    pub kind: Kind,
    /// What.
    pub area: Area,
    /// Where in it, in bytes from the beginning of the volume; `None` if that is not known.
    pub start: Option<u64>,
}

impl Place {
    /// Bytes from `start` on that cannot be trusted, where that is known.
    pub const fn length(&self) -> Option<u64> {
        match (self.area, self.volume) {
            (Area::Data | Area::Tree, Volume::Root | Volume::Overlay | Volume::OverlayTags)
            | (Area::Tree, Volume::Preloaded) => Some(BLOCK),
            _ => None,
        }
    }
}

/// One report of damage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// What is damaged.
    pub place: Place,
    /// How nemosd heard of it.
    pub source: Source,
    /// Who came across it.
    pub finder: Finder,
    /// When.
    pub at: Timestamp,
}

/// How often each source has told of one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts([u32; 5]);

impl Counts {
    /// As it was stored: log, uevents, audit records, status, scrub.
    pub const fn new(counts: [u32; 5]) -> Self {
        Counts(counts)
    }

    /// To be stored.
    pub const fn all(&self) -> [u32; 5] {
        self.0
    }

    /// The sources that have told of it.
    pub fn sources(&self) -> impl Iterator<Item = Source> {
        Source::ALL.iter().copied().filter(|source| self.0[*source as usize] > 0)
    }

    fn add(&mut self, source: Source) {
        let count = &mut self.0[source as usize];
        *count = count.saturating_add(1);
    }

    /// How often it was come across. Sources tell of the same thing: the one that tells most has missed least.
    pub fn total(&self) -> u32 {
        self.0.into_iter().max().unwrap_or_default()
    }
}

/// Whose block it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Owner {
    /// The file, as the running system names it, or what it is of the file system (`metadata of the file system`).
    pub file: String,
    /// The Debian package that the file is of.
    pub package: Option<String>,
}

/// One thing that is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its number, never used again; 0 before it is stored.
    pub id: u64,
    /// What is damaged.
    pub place: Place,
    /// When it was first come across.
    pub first_seen: Timestamp,
    /// When last.
    pub last_seen: Timestamp,
    /// How often.
    pub counts: Counts,
    /// Who came across it first.
    pub finder: Finder,
    /// When somebody said that they know of it; `None` if nobody has.
    pub acknowledged: Option<Timestamp>,
    /// Whose block it is, if that is known.
    pub owner: Option<Owner>,
}

/// What a sighting means for an event that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Nobody has acknowledged it anyway.
    Again,
    /// It was acknowledged, and is there again.
    Reopened,
}

impl Event {
    /// The event of a place that was not damaged before.
    pub fn new(sighting: &Sighting) -> Self {
        let mut counts = Counts::default();
        counts.add(sighting.source);
        Event {
            id: 0,
            place: sighting.place.clone(),
            first_seen: sighting.at,
            last_seen: sighting.at,
            counts,
            finder: sighting.finder,
            acknowledged: None,
            owner: None,
        }
    }

    /// Adds another sighting of the same place. What is seen after it was acknowledged has to be acknowledged again; a report
    /// that is only late says nothing new. What a scrub has found is never late, and may have the same second.
    pub fn seen(&mut self, sighting: &Sighting) -> News {
        self.counts.add(sighting.source);
        self.first_seen = self.first_seen.min(sighting.at);
        self.last_seen = self.last_seen.max(sighting.at);
        let is_news = |acknowledged| {
            sighting.at > acknowledged || sighting.source == Source::Scrub && sighting.at == acknowledged
        };
        if self.acknowledged.is_some_and(is_news) {
            self.acknowledged = None;
            News::Reopened
        } else {
            News::Again
        }
    }

    /// Whether somebody should look at it.
    pub fn is_open(&self) -> bool {
        self.acknowledged.is_none()
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { volume, kind, area, start, .. } = &self.place;
        write!(f, "{volume}: {area}")?;
        match (start, self.place.length()) {
            (Some(start), Some(_)) => write!(f, " block {}", start / BLOCK)?,
            (Some(start), None) => write!(f, " at byte {start}")?,
            (None, _) => {}
        }
        write!(f, " {kind}")?;
        match &self.owner {
            Some(Owner { file, package: Some(package) }) => write!(f, " ({file}, package {package})"),
            Some(Owner { file, package: None }) => write!(f, " ({file})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place() -> Place {
        let (volume, incarnation) = (Volume::Root, "ab".to_owned());
        Place { volume, incarnation, kind: Kind::Corrupted, area: Area::Data, start: Some(17 * BLOCK) }
    }

    fn sighting(source: Source, at: u64) -> Sighting {
        Sighting { place: place(), source, finder: Finder::Read, at: Timestamp(at) }
    }

    #[test]
    fn one_read_that_two_sources_tell_of_is_one() {
        let mut event = Event::new(&sighting(Source::Log, 5));
        event.seen(&sighting(Source::Uevent, 5));
        assert_eq!(event.counts.total(), 1);
        event.seen(&sighting(Source::Uevent, 9));
        assert_eq!(event.counts.total(), 2, "the log is rate-limited");
        assert_eq!((event.first_seen, event.last_seen), (Timestamp(5), Timestamp(9)));
    }

    #[test]
    fn what_was_acknowledged_is_open_again_when_it_is_seen_again() {
        let mut event = Event::new(&sighting(Source::Log, 5));
        event.acknowledged = Some(Timestamp(7));
        assert_eq!(event.seen(&sighting(Source::Uevent, 6)), News::Again, "a report that came late");
        assert!(!event.is_open());
        assert_eq!(event.seen(&sighting(Source::Log, 7)), News::Again);
        assert_eq!(event.seen(&sighting(Source::Log, 8)), News::Reopened);
        event.acknowledged = Some(Timestamp(8));
        assert_eq!(event.seen(&sighting(Source::Scrub, 8)), News::Reopened, "it was read after that");
        assert!(event.is_open());
    }

    #[test]
    fn an_event_says_what_where_and_whose() {
        let mut event = Event::new(&sighting(Source::Log, 5));
        assert_eq!(event.to_string(), "verityRoot: data block 17 corrupted");
        event.owner = Some(Owner { file: "/usr/bin/foo".into(), package: Some("bar".into()) });
        assert_eq!(event.to_string(), "verityRoot: data block 17 corrupted (/usr/bin/foo, package bar)");
    }

    #[test]
    fn words_lead_back() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(*kind));
        }
        for area in Area::ALL {
            assert_eq!(area.name().parse(), Ok(*area));
        }
        assert!("lost".parse::<Finder>().is_err());
    }

    proptest! {
        #[test]
        fn the_order_of_reports_changes_nothing_but_the_finder(
            reports in prop::collection::vec((0_usize..4, 1_u64..50), 1..20),
        ) {
            let told = |reports: &mut dyn Iterator<Item = &(usize, u64)>| {
                let mut sightings = reports.map(|(source, at)| sighting(Source::ALL[*source], *at));
                let mut event = Event::new(&sightings.next().unwrap());
                sightings.for_each(|sighting| { event.seen(&sighting); });
                (event.first_seen, event.last_seen, event.counts)
            };
            prop_assert_eq!(told(&mut reports.iter()), told(&mut reports.iter().rev()));
        }
    }
}
