//! What the watch needs of the storage.

use std::path::Path;

use nemos_host::integrity::ledger::{Ledger, LedgerError};
use nemos_host::integrity::watch::uptime;
use nemos_host::integrity::{owner, scrub};
use nemos_host::time::now;
use nemos_model::integrity::Scrub;
use nemos_model::integrity::event::{Owner, Place};
use nemos_model::integrity::scrub::Step;
use nemos_model::partitions::Partition;
use nemos_model::stack::Observed;
use tracing::debug;

/// What the watch needs of the storage. All of it may block.
pub trait Storage: Send + Sync + 'static {
    /// The ledger; one in memory, and why, if the device's own cannot be used.
    fn ledger(&self) -> (Ledger, Option<String>);
    /// The storage as it is now.
    fn observe(&self) -> Observed;
    /// Whose each block is; `None` where that cannot be told.
    fn owners(&self, places: &[&Place]) -> Vec<Option<Owner>>;
    /// The damaged blocks of a code word that the kernel has mended.
    fn blocks_of(&self, code_word: &Place) -> Vec<Place>;
    /// Whether nobody has written that block: reading it fails, and nothing is lost.
    fn is_free(&self, place: &Place) -> bool;
    /// Reads a volume on from where the scrub is, step by step, until a step is answered with false.
    fn scrub(&self, scrub: &Scrub, step: &mut dyn FnMut(Step) -> bool) -> Result<(), String>;
}

/// The storage of the device that this process runs on.
#[derive(Debug, Default)]
pub struct ThisStorage;

impl Storage for ThisStorage {
    fn ledger(&self) -> (Ledger, Option<String>) {
        let (boot_id, uptime, now) = (nemos_host::boot::boot_id(), uptime(), now());
        let folder = Path::new(Partition::State.mount_point().unwrap_or_default());
        let remembers = nemos_host::stack::observe().memory();
        let opened = remembers
            .and_then(|()| Ledger::open(folder, &boot_id, uptime, now).map_err(|error: LedgerError| error.to_string()));
        match opened {
            Ok(ledger) => (ledger, None),
            Err(error) => (Ledger::in_memory(&boot_id, uptime, now), Some(error)),
        }
    }

    fn observe(&self) -> Observed {
        nemos_host::stack::observe()
    }

    fn owners(&self, places: &[&Place]) -> Vec<Option<Owner>> {
        owner::find_all(places)
    }

    fn blocks_of(&self, code_word: &Place) -> Vec<Place> {
        scrub::blocks_of(code_word, &self.observe()).unwrap_or_else(|error| {
            debug!(%error, "it cannot be told which block was mended");
            Vec::new()
        })
    }

    fn is_free(&self, place: &Place) -> bool {
        owner::is_free(place)
    }

    fn scrub(&self, scrub: &Scrub, step: &mut dyn FnMut(Step) -> bool) -> Result<(), String> {
        scrub::run(scrub, &self.observe(), step).map_err(|error| error.to_string())
    }
}
