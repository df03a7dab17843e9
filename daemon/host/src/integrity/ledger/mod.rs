//! The ledger: every event that this device has had, in a SQLite database on `p.lxstate`.
//!
//! It is read once, and answers from memory. What cannot be written stays in memory and is written with the next event:
//! a full or read-only partition costs durability, not the warning.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nemos_model::Timestamp;
use nemos_model::integrity::event::{Area, Event, Finder, Kind, News, Owner, Place, Sighting, Source};
use nemos_model::integrity::{Scrub, Volume};
use rusqlite::Connection;
use thiserror::Error;
use tracing::warn;

use self::database::VERSION;

mod database;

/// Its name in the root of `p.lxstate`.
pub const FILE_NAME: &str = "integrity.db";
/// What a damaged one is renamed to; a former one is replaced.
pub const DAMAGED: &str = "integrity.db.damaged";

/// Events that are kept: those that are acknowledged and were not seen for longest go first.
pub const MAX_EVENTS: usize = 1000;
/// A ledger that cannot be used, or an event that is not in it.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// SQLite failed.
    #[error("cannot {action} the ledger {}: {source}", path.display())]
    Sqlite {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// It was written by a later nemos, and is left as it is.
    #[error("the ledger {} has version {version}, and this nemos knows {VERSION}: it is of a later one", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: i32,
    },
    /// A damaged one could not be set aside.
    #[error("the ledger {} is damaged, and cannot be set aside: {source}", path.display())]
    NotSetAside {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no such event.
    #[error("there is no event {0}; `nemosctl integrity events` lists them")]
    NoSuchEvent(u64),
}

/// What an event is to those who listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It is new.
    New(Event),
    /// It was acknowledged, and is there again.
    Reopened(Event),
    /// It is known.
    Again(Event),
}

/// How far the kernel's log of one boot was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// When this device began to keep a ledger.
    pub begun: Timestamp,
    /// The boot.
    pub boot_id: String,
    /// When nemosd began to listen in that boot, in microseconds since the boot.
    pub since: u64,
    /// The last record that was read.
    pub sequence: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    /// `None` if there is nothing to write to.
    database: Option<Connection>,
    /// In the order of their numbers.
    events: Vec<Event>,
    /// One a volume.
    scrubs: Vec<Scrub>,
    /// What has to be written.
    changed: BTreeSet<u64>,
    next_id: u64,
    heard: Heard,
}

impl Ledger {
    /// Opens the ledger in `folder`, the root of `p.lxstate`, or begins one. A damaged one is set aside, and that is an event.
    ///
    /// `boot_id` is this boot, `uptime` the microseconds since it began.
    pub fn open(folder: &Path, boot_id: &str, uptime: u64, now: Timestamp) -> Result<Self, LedgerError> {
        let path = folder.join(FILE_NAME);
        let mut ledger = match Ledger::read(&path, now) {
            Err(LedgerError::Sqlite { source, .. }) if database::is_damage(&source) => {
                warn!("the ledger {} is damaged ({source}): it is set aside, and a new one begun", path.display());
                set_aside(folder).map_err(|source| LedgerError::NotSetAside { path: path.clone(), source })?;
                let mut ledger = Ledger::read(&path, now)?;
                ledger.see(&[ledger_was_damaged(now)]);
                ledger
            }
            read => read?,
        };
        ledger.listen(boot_id, uptime);
        ledger.write_all()?;
        Ok(ledger)
    }

    /// A ledger that is gone with this process, for a device that cannot remember.
    pub fn in_memory(boot_id: &str, uptime: u64, now: Timestamp) -> Self {
        let heard = Heard { begun: now, boot_id: boot_id.to_owned(), since: uptime, sequence: None };
        Ledger {
            path: PathBuf::new(),
            database: None,
            events: Vec::new(),
            scrubs: Vec::new(),
            changed: BTreeSet::new(),
            next_id: 1,
            heard,
        }
    }

    /// All events, in the order of their numbers.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// How far the kernel's log of this boot was read.
    pub fn heard(&self) -> &Heard {
        &self.heard
    }

    /// The newest scrub of each volume.
    pub fn scrubs(&self) -> &[Scrub] {
        &self.scrubs
    }

    /// Notes how a scrub stands, and makes that durable, with all the damage that was seen up to here.
    pub fn set_scrub(&mut self, scrub: Scrub) -> Result<(), LedgerError> {
        self.scrubs.retain(|old| old.volume != scrub.volume);
        self.scrubs.push(scrub);
        self.write_all()
    }

    /// Notes how far the kernel's log of this boot was read; it is written with the next event. Only events matter: what is
    /// read again after a restart told of none.
    pub fn heard_up_to(&mut self, sequence: Option<u64>) {
        self.heard.sequence = sequence.or(self.heard.sequence);
    }

    /// Takes sightings in, one after the other. [`Ledger::write`] makes them durable.
    pub fn see(&mut self, sightings: &[Sighting]) -> Vec<Told> {
        let told = sightings.iter().map(|sighting| self.see_one(sighting)).collect();
        while self.events.len() > MAX_EVENTS {
            let oldest = self.events.iter().enumerate().min_by_key(|(_, event)| (event.is_open(), event.last_seen));
            if let Some((index, _)) = oldest {
                self.changed.insert(self.events.remove(index).id);
            }
        }
        told
    }

    fn see_one(&mut self, sighting: &Sighting) -> Told {
        if let Some(event) = self.events.iter_mut().find(|event| event.place == sighting.place) {
            self.changed.insert(event.id);
            return match event.seen(sighting) {
                News::Again => Told::Again(event.clone()),
                News::Reopened => Told::Reopened(event.clone()),
            };
        }
        let event = Event { id: self.next_id, ..Event::new(sighting) };
        self.next_id += 1;
        self.changed.insert(event.id);
        self.events.push(event.clone());
        Told::New(event)
    }

    /// Notes that somebody knows of an event, and makes that durable.
    pub fn acknowledge(&mut self, id: u64, now: Timestamp) -> Result<(), LedgerError> {
        let event = self.events.iter_mut().find(|event| event.id == id).ok_or(LedgerError::NoSuchEvent(id))?;
        let before = event.acknowledged;
        event.acknowledged.get_or_insert(now);
        self.changed.insert(id);
        self.write().inspect_err(|_| {
            if let Some(event) = self.events.iter_mut().find(|event| event.id == id) {
                event.acknowledged = before;
            }
        })
    }

    /// Notes whose block it is. An event that is gone by now had an owner that nobody wants to know.
    pub fn set_owner(&mut self, id: u64, owner: Owner) {
        if let Some(event) = self.events.iter_mut().find(|event| event.id == id) {
            event.owner = Some(owner);
            self.changed.insert(id);
        }
    }

    /// Makes durable what is new. When it fails, it is tried again with the next event.
    pub fn write(&mut self) -> Result<(), LedgerError> {
        if self.changed.is_empty() { Ok(()) } else { self.write_all() }
    }

    fn write_all(&mut self) -> Result<(), LedgerError> {
        let Some(database) = &mut self.database else { return Ok(()) };
        let changed = self.changed.iter().map(|id| (*id, self.events.iter().find(|event| event.id == *id)));
        database::write(database, changed, &self.scrubs, &self.heard).map_err(at("write", &self.path))?;
        self.changed.clear();
        Ok(())
    }

    /// What was heard in another boot says nothing of this one.
    fn listen(&mut self, boot_id: &str, uptime: u64) {
        if self.heard.boot_id != boot_id {
            let begun = self.heard.begun;
            self.heard = Heard { begun, boot_id: boot_id.to_owned(), since: uptime, sequence: None };
        }
    }

    fn read(path: &Path, now: Timestamp) -> Result<Self, LedgerError> {
        let database = Connection::open(path).map_err(at("open", path))?;
        let version = database::prepare(&database).map_err(at("read", path))?;
        if version != VERSION {
            return Err(LedgerError::Version { path: path.to_owned(), version });
        }
        let loaded = database::load(&database).map_err(at("read", path))?;
        let heard = loaded.heard.unwrap_or(Heard { begun: now, boot_id: String::new(), since: 0, sequence: None });
        Ok(Ledger {
            path: path.to_owned(),
            database: Some(database),
            events: loaded.events,
            scrubs: loaded.scrubs,
            changed: BTreeSet::new(),
            next_id: loaded.next_id,
            heard,
        })
    }
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(rusqlite::Error) -> LedgerError {
    move |source| LedgerError::Sqlite { action, path: path.to_owned(), source }
}

/// Renames the ledger. Its journal goes: it would be taken for that of the new one.
fn set_aside(folder: &Path) -> io::Result<()> {
    fs::rename(folder.join(FILE_NAME), folder.join(DAMAGED))?;
    match fs::remove_file(folder.join(format!("{FILE_NAME}-journal"))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::open(folder)?.sync_all()
}

fn ledger_was_damaged(now: Timestamp) -> Sighting {
    let place = Place {
        volume: Volume::State,
        incarnation: String::new(),
        kind: Kind::Corrupted,
        area: Area::Ledger,
        start: None,
    };
    Sighting { place, source: Source::Scrub, finder: Finder::Read, at: now }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    fn sighting(block: u64, at: u64) -> Sighting {
        let (volume, incarnation) = (Volume::Root, "ab".to_owned());
        let place = Place { volume, incarnation, kind: Kind::Corrupted, area: Area::Data, start: Some(block * 4096) };
        Sighting { place, source: Source::Log, finder: Finder::Read, at: Timestamp(at) }
    }

    fn open(folder: &Path) -> Ledger {
        Ledger::open(folder, "boot", 7, Timestamp(1)).unwrap()
    }

    #[test]
    fn events_outlive_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path());
        let told = ledger.see(&[sighting(1, 5), sighting(2, 6), sighting(1, 7)]);
        assert!(matches!(told[..], [Told::New(_), Told::New(_), Told::Again(_)]));
        ledger.set_owner(1, Owner { file: "/usr/bin/foo".into(), package: Some("bar".into()) });
        ledger.heard_up_to(Some(99));
        ledger.acknowledge(2, Timestamp(8)).unwrap();
        let before = ledger.events().to_vec();
        drop(ledger);

        let ledger = open(folder.path());
        assert_eq!(ledger.events(), before);
        assert_eq!(ledger.events()[0].counts.total(), 2);
        assert_eq!(ledger.heard().sequence, Some(99));
    }

    #[test]
    fn another_boot_has_another_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path());
        ledger.heard_up_to(Some(99));
        ledger.see(&[sighting(1, 5)]);
        ledger.write().unwrap();
        drop(ledger);
        let ledger = Ledger::open(folder.path(), "another boot", 5, Timestamp(9)).unwrap();
        assert_eq!((ledger.heard().since, ledger.heard().sequence), (5, None));
    }

    #[test]
    fn an_event_that_is_not_there_cannot_be_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let error = open(folder.path()).acknowledge(7, Timestamp(1)).unwrap_err();
        assert!(matches!(error, LedgerError::NoSuchEvent(7)));
    }

    #[test]
    fn it_is_bounded_and_forgets_first_what_is_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path());
        let many = u64::try_from(MAX_EVENTS).unwrap();
        ledger.see(&(1..=many).map(|block| sighting(block, block)).collect::<Vec<_>>());
        ledger.acknowledge(3, Timestamp(2000)).unwrap();
        ledger.see(&[sighting(many + 1, many + 1), sighting(many + 2, many + 2)]);
        ledger.write().unwrap();
        drop(ledger);
        let ledger = open(folder.path());
        assert_eq!(ledger.events().len(), MAX_EVENTS);
        assert_eq!(ledger.events()[0].id, 2, "1 was seen before all others, 3 was acknowledged");
        assert_eq!(ledger.events()[1].id, 4);
    }

    #[test]
    fn numbers_are_never_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path());
        ledger.see(&[sighting(1, 1), sighting(2, 2)]);
        ledger.write().unwrap();
        drop(ledger);
        Connection::open(folder.path().join(FILE_NAME)).unwrap().execute("DELETE FROM event", []).unwrap();
        let told = open(folder.path()).see(&[sighting(3, 3)]);
        assert!(matches!(&told[..], [Told::New(event)] if event.id == 3));
    }

    #[test]
    fn a_damaged_one_is_set_aside_and_reported() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        for damage in ["no database at all", "SQLite format 3\0 and nothing more"] {
            fs::write(&path, damage).unwrap();
            let ledger = open(folder.path());
            let [event] = ledger.events() else { panic!("{:?}", ledger.events()) };
            assert_eq!(event.to_string(), "p.lxstate: ledger corrupted");
            assert_eq!(fs::read_to_string(folder.path().join(DAMAGED)).unwrap(), damage);
        }
        assert_eq!(open(folder.path()).events().len(), 1, "the new one is kept");
    }

    #[test]
    fn a_flipped_byte_never_makes_it_panic_nor_is_lost_silently() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path());
        ledger.see(&(1..60).map(|block| sighting(block, block)).collect::<Vec<_>>());
        ledger.write().unwrap();
        drop(ledger);
        let path = folder.path().join(FILE_NAME);
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(97) {
            let mut bytes = whole.clone();
            bytes[at] = !bytes[at];
            fs::write(&path, &bytes).unwrap();
            match Ledger::open(folder.path(), "boot", 7, Timestamp(1)) {
                // A byte of a text, or of free space: SQLite has no checksums.
                Ok(ledger) if ledger.events().len() == 59 => {}
                Ok(ledger) => assert_eq!(ledger.events()[0].place.area, Area::Ledger, "byte {at}"),
                Err(LedgerError::Version { .. }) => {}
                Err(error) => panic!("byte {at}: {error}"),
            }
        }
    }

    #[test]
    fn one_of_a_later_nemos_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        drop(open(folder.path()));
        let path = folder.path().join(FILE_NAME);
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 2).unwrap();
        let before = fs::read(&path).unwrap();
        let error = Ledger::open(folder.path(), "boot", 7, Timestamp(1)).unwrap_err();
        assert!(matches!(error, LedgerError::Version { version: 2, .. }));
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_scrub_goes_on_where_it_was_and_the_first_day_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path());
        let scrub = Scrub::begin(None, Volume::Overlay, "ab".into(), None, Timestamp(5)).unwrap();
        ledger
            .set_scrub(Scrub { checked: 7 << 20, total: 9 << 20, damaged: 1, rate: NonZeroU64::new(3), ..scrub })
            .unwrap();
        let before = ledger.scrubs().to_vec();
        drop(ledger);
        let ledger = Ledger::open(folder.path(), "another boot", 7, Timestamp(99)).unwrap();
        assert_eq!(ledger.scrubs(), before);
        assert_eq!(ledger.heard().begun, Timestamp(1));
    }

    #[test]
    fn what_cannot_be_written_is_still_told() {
        let mut ledger = Ledger::in_memory("boot", 7, Timestamp(1));
        assert!(matches!(ledger.see(&[sighting(1, 5)])[..], [Told::New(_)]));
        ledger.write().unwrap();
        assert_eq!(ledger.events().len(), 1);
    }
}
