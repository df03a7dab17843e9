//! Integrity: what is damaged, and how it was found.

use std::num::NonZeroU64;

use nemos_model::integrity::event::Owner;
use nemos_model::integrity::status::VolumeStatus;
use nemos_model::integrity::{Event, Scrub};
use zbus::{DeserializeDict, SerializeDict, Type, proxy};

use crate::options::{Dictionary, Options};
use crate::{CallError, Error, ErrorKind};

/// The Integrity interface.
#[proxy(
    interface = "org.nemos.Device1.Integrity",
    default_service = "org.nemos.Device1",
    default_path = "/org/nemos/Device1"
)]
pub trait Integrity {
    /// `ok`, `corrected`, `corrupted` or `unknown`: the worst of all volumes.
    #[zbus(property)]
    fn state(&self) -> Result<String, CallError>;

    /// Each volume, as it is now.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn volumes(&self) -> Result<Vec<VolumeRecord>, CallError>;

    /// Events that were seen at `since` or later, in seconds since the epoch, in the order in which they were seen last;
    /// at most `limit`, 0 for all.
    fn events(&self, since: u64, limit: u32) -> Result<Vec<EventRecord>, CallError>;

    /// Says that an event is known of: it is not a finding any more, until it is seen again.
    #[zbus(allow_interactive_auth)]
    fn acknowledge(&self, id: u64) -> Result<(), CallError>;

    /// Begins to read a volume through.
    #[zbus(allow_interactive_auth)]
    fn scrub(&self, volume: &str, options: ScrubOptions) -> Result<(), CallError>;

    /// Stops that.
    #[zbus(allow_interactive_auth)]
    fn cancel_scrub(&self, volume: &str) -> Result<(), CallError>;

    /// Something is damaged that was not, or that was acknowledged.
    #[zbus(signal)]
    fn corruption_detected(&self, volume: String, event: EventRecord) -> Result<(), CallError>;
}

/// Options of `Scrub`.
#[derive(Debug, Clone, PartialEq, Eq, Default, SerializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct ScrubOptions {
    /// Bytes a second that it may read; as many as come if not given.
    pub rate: Option<u64>,
}

impl ScrubOptions {
    /// Reads what a caller sent.
    pub fn parse(dictionary: Dictionary) -> Result<Option<NonZeroU64>, Error> {
        let mut options = Options::new(dictionary);
        let rate: Option<u64> = options.take("rate")?;
        options.finish()?;
        let positive = |rate| {
            let message = "option `rate` must be at least 1 byte a second; leave it away for no limit";
            NonZeroU64::new(rate).ok_or_else(|| Error::new(ErrorKind::InvalidArgument, message))
        };
        rate.map(positive).transpose()
    }
}

/// A volume on the wire. What is not known, or is not to be known of such a volume, is not there.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct VolumeRecord {
    /// `verityRoot`, `luks`, `luks_dif`, or the label of a partition.
    pub name: String,
    /// `dm-verity`, `dm-crypt`, `dm-integrity`, or a file system.
    pub kind: String,
    /// `ok`, `corrected`, `corrupted`, `unknown`.
    pub state: String,
    /// What the kernel shows of it now.
    pub status: String,
    /// How damage is noticed.
    pub algorithm: Option<String>,
    /// The root hash.
    pub root_hash: Option<String>,
    /// Whether the kernel has checked a signature of the root hash.
    pub signed: Option<bool>,
    /// Places that are damaged.
    pub errors: u64,
    /// Places that are put right at each read.
    pub corrected: u64,
    /// When the last complete scrub began.
    pub last_scrub: Option<u64>,
    /// How the newest scrub stands: `running`, `done`, `cancelled`, `failed`.
    pub scrub: Option<String>,
    /// How much it has read, 0 to 1.
    pub coverage: Option<f64>,
    /// Bytes that it has read.
    pub scrubbed: Option<u64>,
    /// Bytes that it reads in all.
    pub scrub_size: Option<u64>,
    /// Blocks that it has found damaged.
    pub scrub_damaged: Option<u64>,
}

impl From<VolumeStatus> for VolumeRecord {
    fn from(status: VolumeStatus) -> Self {
        let scrub = status.scrub.as_ref();
        VolumeRecord {
            name: status.volume.name().to_owned(),
            kind: status.volume.kind().to_owned(),
            state: status.state.name().to_owned(),
            status: status.status,
            algorithm: Some(status.algorithm).filter(|algorithm| !algorithm.is_empty()),
            root_hash: status.root_hash,
            signed: status.signed,
            errors: status.errors,
            corrected: status.corrected,
            last_scrub: scrub.and_then(|scrub| scrub.last_complete).map(|time| time.0),
            scrub: scrub.map(|scrub| scrub.state.name().to_owned()),
            coverage: scrub.map(Scrub::coverage),
            scrubbed: scrub.map(|scrub| scrub.checked),
            scrub_size: scrub.map(|scrub| scrub.total),
            scrub_damaged: scrub.map(|scrub| scrub.damaged),
        }
    }
}

/// An event on the wire. What is not known is not there.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct EventRecord {
    /// Its number.
    pub id: u64,
    /// The volume.
    pub volume: String,
    /// Which one of those that this device had under that name: its root hash, or its UUID.
    pub incarnation: String,
    /// `corrupted`, `corrected`.
    pub kind: String,
    /// `data`, `hash-tree`, `code-word`, `file-system`, `header`, `ledger`, `unknown`.
    pub area: String,
    /// Block of 4096 bytes.
    pub block: Option<u64>,
    /// Where it begins, in bytes.
    pub start: Option<u64>,
    /// Bytes that cannot be trusted.
    pub length: Option<u64>,
    /// When it was first come across.
    pub first_seen: u64,
    /// When last.
    pub last_seen: u64,
    /// How often.
    pub count: u32,
    /// Who came across it first: `boot`, `read`, `scrub`.
    pub found_by: String,
    /// How nemosd heard of it: `log`, `uevent`, `audit`, `status`, `scrub`.
    pub told_by: Vec<String>,
    /// When somebody said that they know of it.
    pub acknowledged: Option<u64>,
    /// The file that it is of; of the overlay only for those who may know.
    pub file: Option<String>,
    /// The Debian package that the file is of.
    pub package: Option<String>,
}

impl From<&Event> for EventRecord {
    fn from(event: &Event) -> Self {
        let place = &event.place;
        let owner = event.owner.clone();
        let length = place.length().filter(|_| place.start.is_some());
        let (file, package) = owner.map_or((None, None), |Owner { file, package }| (Some(file), package));
        EventRecord {
            id: event.id,
            volume: place.volume.name().to_owned(),
            incarnation: place.incarnation.clone(),
            kind: place.kind.name().to_owned(),
            area: place.area.name().to_owned(),
            block: length.and(place.start).map(|start| start / 4096),
            start: place.start,
            length,
            first_seen: event.first_seen.0,
            last_seen: event.last_seen.0,
            count: event.counts.total(),
            found_by: event.finder.name().to_owned(),
            told_by: event.counts.sources().map(|source| source.name().to_owned()).collect(),
            acknowledged: event.acknowledged.map(|time| time.0),
            file,
            package,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nemos_model::Timestamp;
    use nemos_model::integrity::event::{Area, Finder, Kind, Place, Sighting, Source};
    use nemos_model::integrity::{Event, Volume};
    use zbus::wire::{LE, serialized::Context, to_bytes};

    #[test]
    fn an_event_travels_whole_and_without_what_it_has_not() {
        let (volume, kind, area) = (Volume::Root, Kind::Corrupted, Area::Tree);
        let place = Place { volume, incarnation: "ab".into(), kind, area, start: Some(8192) };
        let event = Event::new(&Sighting { place, source: Source::Log, finder: Finder::Boot, at: Timestamp(5) });
        let record = EventRecord::from(&event);
        assert_eq!((record.block, record.start, record.length), (Some(2), Some(8192), Some(4096)));
        let sent = to_bytes(Context::new(LE, 0), &record).unwrap();
        let dictionary: Dictionary = sent.deserialize().unwrap().0;
        assert!(dictionary.contains_key("first-seen") && !dictionary.contains_key("acknowledged"));
        let received: EventRecord = sent.deserialize().unwrap().0;
        assert_eq!(received, record);
    }

    #[test]
    fn a_rate_of_nothing_is_refused() {
        let options = |rate: u64| ScrubOptions::parse(Dictionary::from([("rate".to_owned(), rate.into())]));
        assert_eq!(options(7).unwrap(), NonZeroU64::new(7));
        assert_eq!(options(0).unwrap_err().kind, ErrorKind::InvalidArgument);
        assert_eq!(ScrubOptions::parse(Dictionary::new()), Ok(None));
    }
}
