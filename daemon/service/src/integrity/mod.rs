//! Watches over the device's integrity, for as long as nemosd runs.
//!
//! Threads of its own listen to the kernel, read volumes through and look files up. What they find is published as one
//! [`View`], so that nobody on the bus waits for a disk.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nemos_api::{Error, ErrorKind};
use nemos_host::integrity::ledger::{Ledger, LedgerError, Told};
use nemos_model::Timestamp;
use nemos_model::boot::BootReport;
use nemos_model::health::{Finding, Health};
use nemos_model::integrity::event::Place;
use nemos_model::integrity::scrub::NotScrubbed;
use nemos_model::integrity::status::Known;
use nemos_model::integrity::{Event, Scrub, Sighting, Volume};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tracing::warn;

pub mod listen;
pub mod scrub;
pub mod storage;

use storage::Storage;

/// What is known, at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct View {
    /// All events, oldest first.
    pub events: Vec<Event>,
    /// The newest scrub of each volume.
    pub scrubs: Vec<Scrub>,
    /// When this device began to keep a ledger.
    pub begun: Timestamp,
    /// Why something may go unseen, or be forgotten: what is not as it should be, by what is affected.
    pub troubles: BTreeMap<&'static str, String>,
}

impl View {
    /// The same, of the device that left this report.
    pub fn known<'a>(&'a self, report: Option<&'a BootReport>) -> Known<'a> {
        Known { events: &self.events, scrubs: &self.scrubs, report }
    }

    /// What somebody should look at.
    pub fn findings(&self, report: Option<&BootReport>, now: Timestamp) -> Vec<Finding> {
        let mut findings = self.known(report).findings(now, self.begun);
        let trouble = |message: &String| Finding { health: Health::Warning, message: message.clone() };
        findings.extend(self.troubles.values().map(trouble));
        findings
    }
}

/// See the module.
pub struct Integrity {
    storage: Arc<dyn Storage>,
    ledger: Mutex<Ledger>,
    view: watch::Sender<Arc<View>>,
    /// Events that whoever listens on the bus should hear of.
    told: UnboundedSender<Event>,
    /// Scrubs that run, each with its flag to stop it.
    running: Mutex<BTreeMap<Volume, Arc<AtomicBool>>>,
}

impl Integrity {
    /// With that ledger; gives the events that are to be signalled.
    pub fn new(storage: Arc<dyn Storage>, ledger: Ledger) -> (Arc<Self>, UnboundedReceiver<Event>) {
        let (told, heard) = unbounded_channel();
        let view = watch::Sender::new(Arc::default());
        let integrity = Integrity { storage, ledger: Mutex::new(ledger), view, told, running: Mutex::default() };
        integrity.publish(&integrity.ledger());
        (Arc::new(integrity), heard)
    }

    /// With the ledger of this device, or, if it cannot be used, with one in memory. Blocks.
    pub fn of_this_device(storage: Arc<dyn Storage>) -> (Arc<Self>, UnboundedReceiver<Event>) {
        let (ledger, trouble) = storage.ledger();
        let (integrity, told) = Integrity::new(storage, ledger);
        integrity.trouble("ledger", trouble.map(|error| format!("{error}; events are forgotten when nemosd ends")));
        (integrity, told)
    }

    /// What is known now.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// To wait for what is not known yet.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// Takes sightings in, makes them durable and tells of them. `sequence` is how far the kernel's log was read. Blocks.
    pub fn see(&self, sightings: &[Sighting], sequence: Option<u64>) {
        let mut ledger = self.ledger();
        ledger.heard_up_to(sequence);
        let told = ledger.see(sightings);
        let written = ledger.write();
        self.publish(&ledger);
        drop(ledger);
        self.note_written(written);
        for told in told {
            if let Told::New(event) | Told::Reopened(event) = told {
                // The main loop is gone only if the process is about to be.
                let _ = self.told.send(event);
            }
        }
    }

    /// Looks up whose blocks those are that nobody knows yet, and was not `tried` since they were seen last. Blocks, and may take
    /// a while.
    pub fn find_owners(&self, tried: &mut BTreeMap<u64, Timestamp>) {
        let view = self.view();
        let unknown = |event: &&Event| event.owner.is_none() && tried.get(&event.id) != Some(&event.last_seen);
        let unknown: Vec<&Event> = view.events.iter().filter(unknown).collect();
        if unknown.is_empty() {
            return;
        }
        let places: Vec<&Place> = unknown.iter().map(|event| &event.place).collect();
        let owners = self.storage.owners(&places);
        tried.extend(unknown.iter().map(|event| (event.id, event.last_seen)));
        let mut ledger = self.ledger();
        for (event, owner) in unknown.into_iter().zip(owners) {
            if let Some(owner) = owner {
                ledger.set_owner(event.id, owner);
            }
        }
        let written = ledger.write();
        self.publish(&ledger);
        drop(ledger);
        self.note_written(written);
    }

    /// Notes that somebody knows of an event. Blocks.
    pub fn acknowledge(&self, id: u64, now: Timestamp) -> Result<(), Error> {
        let mut ledger = self.ledger();
        ledger.acknowledge(id, now).map_err(|error| not_noted(&error))?;
        self.publish(&ledger);
        Ok(())
    }

    /// Notes that a scrub begins, durably. Whoever calls has to run it. Blocks.
    fn begin_scrub(
        &self,
        volume: Volume,
        incarnation: String,
        rate: Option<NonZeroU64>,
        now: Timestamp,
    ) -> Result<Scrub, Error> {
        let mut ledger = self.ledger();
        let last = ledger.scrubs().iter().find(|scrub| scrub.volume == volume);
        let scrub = Scrub::begin(last, volume, incarnation, rate, now)?;
        ledger.set_scrub(scrub.clone()).map_err(|error| not_noted(&error))?;
        self.publish(&ledger);
        Ok(scrub)
    }

    /// Notes how a scrub stands. Blocks.
    fn note_scrub(&self, scrub: &Scrub) {
        let mut ledger = self.ledger();
        let written = ledger.set_scrub(scrub.clone());
        self.publish(&ledger);
        drop(ledger);
        self.note_written(written);
    }

    /// Stops a scrub.
    pub fn cancel_scrub(&self, volume: Volume) -> Result<(), Error> {
        match self.running().get(&volume) {
            Some(stop) => {
                stop.store(true, Ordering::Relaxed);
                Ok(())
            }
            None => Err(NotScrubbed::NotRunning(volume).into()),
        }
    }

    /// Notes why something may go unseen or be forgotten, or that it is not so any more.
    pub fn trouble(&self, with: &'static str, message: Option<String>) {
        self.view.send_if_modified(|view| {
            if view.troubles.get(with) == message.as_ref() {
                return false;
            }
            let troubles = &mut Arc::make_mut(view).troubles;
            match message {
                Some(message) => drop(troubles.insert(with, message)),
                None => drop(troubles.remove(with)),
            }
            true
        });
    }

    fn note_written(&self, written: Result<(), LedgerError>) {
        if let Err(error) = &written {
            warn!("{error}");
        }
        self.trouble("writing", written.err().map(|error| format!("{error}; it is tried again with the next event")));
    }

    fn publish(&self, ledger: &Ledger) {
        self.view.send_if_modified(|view| {
            let (events, scrubs, begun) = (ledger.events().to_vec(), ledger.scrubs().to_vec(), ledger.heard().begun);
            let new = View { events, scrubs, begun, troubles: view.troubles.clone() };
            let is_new = **view != new;
            *view = Arc::new(new);
            is_new
        });
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<Volume, Arc<AtomicBool>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks up whose blocks are damaged, whenever something new is known.
pub async fn name_owners(integrity: Arc<Integrity>) {
    let mut view = integrity.watch();
    let mut tried = BTreeMap::new();
    loop {
        let (working, mut known) = (Arc::clone(&integrity), std::mem::take(&mut tried));
        let looked = spawn_blocking(move || {
            working.find_owners(&mut known);
            known
        });
        tried = looked.await.unwrap_or_default();
        if view.changed().await.is_err() {
            return;
        }
    }
}

fn not_noted(error: &LedgerError) -> Error {
    let kind = match error {
        LedgerError::NoSuchEvent(_) => ErrorKind::NotFound,
        LedgerError::Sqlite { .. } | LedgerError::Version { .. } | LedgerError::NotSetAside { .. } => ErrorKind::Failed,
    };
    Error::new(kind, error.to_string())
}
