//! Changes of the keys: one at a time, and each written down at the desk before the header is touched.

mod forecast;
mod policy;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nemos_api::{Error, ErrorKind};
use nemos_host::integrity::scrub::header;
use nemos_host::keys::{
    ChangeError, Given, Handover, Key, Keys, Memory, Moment, NotFetched, Secret, order, unlock, way,
};
use nemos_host::partitions::Disk;
use nemos_model::boot::DamagedHeader;
use nemos_model::health::Finding;
use nemos_model::integrity::status::damaged_headers;
use nemos_model::job::Requester;
use nemos_model::keys::change::Known;
use nemos_model::keys::{Boot, KeyslotId, Provider, Refused, Slot};
use nemos_model::overlay::LOWER_MOUNT;
use nemos_model::partitions::Partition;
use nemos_model::stack::Observed;
use nemos_model::state::DeviceState;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, oneshot};
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::bus::Service;
pub use forecast::{Foresight, forecast_boot, watch};
use forecast::{foresee, foreseen};
use policy::Decided;

/// What is known of the keys beyond what their header says.
#[derive(Debug, Default)]
pub struct Keyring {
    /// Held by who changes them.
    alone: Mutex<()>,
    /// What the last forecast was.
    foresight: Foresight,
}

impl Keyring {
    /// What health says of the next boot, as far as it was tried.
    pub fn finding(&self) -> Option<Finding> {
        self.foresight.finding()
    }
}

/// A key that is to be added.
pub struct Wanted {
    /// What it is.
    pub provider: Provider,
    /// Whether it takes the place of the one of its provider.
    pub rotates: bool,
    /// A key that opens the volume now; one that needs nobody if it is not given.
    pub unlock: Option<Secret>,
    /// What is given for it.
    pub given: Given,
    /// To whom it goes, if this device made it.
    pub delivery: Option<Delivery>,
}

/// To whom a key goes that this device made.
pub enum Delivery {
    /// To whoever asked for it.
    Fetched {
        /// Where they fetch it.
        handover: Handover,
        /// Told of its slot when it can be fetched.
        ready: oneshot::Sender<KeyslotId>,
    },
    /// To the fleet, which finds it here, sealed.
    Sealed(String),
}

impl Delivery {
    /// How long somebody may take to fetch a key. Other changes of the keys wait as long.
    const LIMIT: Duration = Duration::from_secs(30);

    /// Waits until it was fetched, if it is to be. Its reader finds no end before what this returns is dropped.
    fn deliver(self, slot: KeyslotId) -> Result<Option<Handover>, NotFetched> {
        let Delivery::Fetched { handover, ready } = self else { return Ok(None) };
        ready.send(slot).map_err(|_| NotFetched::Gone)?;
        handover.wait(Delivery::LIMIT)?;
        Ok(Some(handover))
    }

    fn sealed(&self) -> Option<String> {
        match self {
            Delivery::Sealed(text) => Some(text.clone()),
            Delivery::Fetched { .. } => None,
        }
    }
}

/// Adds a key, and gives its slot.
pub async fn add(service: &Arc<Service>, wanted: Wanted, by: Requester) -> Result<KeyslotId, Error> {
    let added = add_now(service, wanted, by, None).await;
    foresee(service).await;
    added
}

/// Adds a key that this device made, and gives its slot as soon as the key can be fetched; the rest goes on behind.
pub async fn add_and_deliver(
    service: &Arc<Service>,
    wanted: Wanted,
    is_ready: oneshot::Receiver<KeyslotId>,
    by: Requester,
) -> Result<KeyslotId, Error> {
    let behind = Arc::clone(service);
    let added = tokio::spawn(async move { add(&behind, wanted, by).await });
    match is_ready.await {
        Ok(slot) => {
            tokio::spawn(async move {
                if let Ok(Err(error)) = added.await {
                    warn!("key slot {slot}: {}", error.message);
                }
            });
            Ok(slot)
        }
        Err(_) => added.await.unwrap_or_else(|error| Err(Error::new(ErrorKind::Failed, error.to_string()))),
    }
}

async fn add_now(
    service: &Arc<Service>,
    wanted: Wanted,
    by: Requester,
    decided: Option<Decided>,
) -> Result<KeyslotId, Error> {
    let Wanted { provider, rotates, unlock, given, delivery } = wanted;
    let (boot, at) = (service.desk.boot_id().await?, service.desk.now());
    work(service, move |place, known, memory| {
        still_holds(decided, &known)?;
        let change = if rotates { known.rotate(provider, by, at) } else { known.enroll(provider, by, at) }?;
        let new = way(provider).new_key(given).map_err(|error| not_changed(&error))?;
        let change = change.made_in(boot).at_place(new.place.clone());
        let change = change.sealed(delivery.as_ref().and_then(Delivery::sealed));
        let unlock = unlock.map_or_else(|| at_hand(place, known.slots), |secret| Ok(Key::Secret(secret)))?;
        let slot = change.new_slot().ok_or_else(|| Error::new(ErrorKind::Failed, "no key slot is to be added"))?;
        let mut delivered = None;
        let deliver = || {
            delivered = delivery.map(|delivery| delivery.deliver(slot)).transpose()?;
            Ok(())
        };
        place.add(memory, &change, unlock, &new, deliver).map_err(|error| not_changed(&error))?;
        Ok(slot)
    })
    .await
}

/// Refuses what the policy decided if it would not any more.
fn still_holds(decided: Option<Decided>, known: &Known<'_>) -> Result<(), Error> {
    match decided {
        Some(decided) if !decided.still_holds(known) => {
            Err(Error::new(ErrorKind::Busy, "the keys were changed by somebody else"))
        }
        _ => Ok(()),
    }
}

/// Removes the key in a slot.
pub async fn remove(service: &Arc<Service>, slot: KeyslotId, by: Requester) -> Result<(), Error> {
    let removed = remove_now(service, slot, by, None).await;
    foresee(service).await;
    removed
}

async fn remove_now(
    service: &Arc<Service>,
    slot: KeyslotId,
    by: Requester,
    decided: Option<Decided>,
) -> Result<(), Error> {
    let at = service.desk.now();
    work(service, move |place, known, memory| {
        still_holds(decided, &known)?;
        let change = known.remove(slot, by, at)?;
        // What was recorded once may not open it any more.
        let (forecast, tried) = foreseen(place, known.slots);
        if !forecast.spares(slot, &tried) {
            return Err(Refused::LastKey(slot).into());
        }
        place.remove(memory, &change).map_err(|error| not_changed(&error))
    })
    .await
}

/// Records that the fleet keeps the recovery key that was sealed for it, and gives its slot.
pub async fn acknowledge_sealed(service: &Arc<Service>, text: String) -> Result<KeyslotId, Error> {
    work(service, move |_, known, memory| {
        let mut acknowledged = Err(Refused::NotSealed);
        let acknowledge = &mut |state: &mut DeviceState| {
            acknowledged = state.acknowledge_sealed(&text, known.slots);
            acknowledged.clone().map(drop)
        };
        memory.change(acknowledge).map_err(|error| not_changed(&error))?;
        Ok(acknowledged?)
    })
    .await
}

/// Clears up what was interrupted, and ends what this boot confirms.
pub async fn settle(service: &Arc<Service>) {
    let boot = service.desk.boot_id().await.ok();
    let now = service.desk.now();
    let seen = service.desk.seen().await.ok();
    let asked =
        seen.and_then(|seen| Some(seen.report.as_ref()?.volume.as_ref()?.somebody_was_asked)).unwrap_or_default();
    let settled = work(service, move |place, known, memory| {
        let opened = known.slots.iter().find(|slot| Some(slot.id) == known.opened_by);
        let provider = opened.and_then(Slot::provider);
        let untried = provider.map(|provider| provider.leaves_untried(&order(Path::new(LOWER_MOUNT)), asked));
        let untried = untried.unwrap_or_default();
        // It says so in the header, whatever becomes of the rest.
        if let Some(Err(error)) = known.opened_by.map(|slot| place.brought(slot, now)) {
            warn!("that a recovery key was used is not recorded: {error}");
        }
        let boot = boot.as_deref().zip(known.opened_by);
        let boot = boot.map(|(id, opened_by)| Boot { id, opened_by, untried: &untried });
        place.settle(memory, boot.as_ref()).map_err(|error| not_changed(&error))
    });
    match settled.await {
        Ok(()) => {
            policy::pursue(service).await;
            foresee(service).await;
        }
        Err(error) if error.kind == ErrorKind::NotSupported => {}
        Err(error) => warn!("a change of the keys cannot be brought to its end: {error}"),
    }
}

/// Works on the volume's keys, on a thread that may block.
async fn work<T: Send + 'static>(
    service: &Arc<Service>,
    work: impl FnOnce(Keys<'_>, Known<'_>, &Desk) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let _alone = service.keys.alone.lock().await;
    let seen = service.desk.seen().await?;
    let memory = Desk { service: Arc::clone(service), runtime: Handle::current() };
    let (integrity, at) = (Arc::clone(&service.integrity), service.desk.now());
    let done = spawn_blocking(move || {
        let (partition, slots) = volume(&seen)?;
        let damaged = damaged_copies(&partition);
        let opened_by = seen.report.as_ref().and_then(|report| report.opened_by(&slots));
        let state = Path::new(Partition::State.mount_point().unwrap_or_default());
        let done = work(Keys { partition: &partition, state }, Known { slots: &slots, opened_by }, &memory);
        if !damaged.is_empty() {
            // libcryptsetup repairs a copy that is damaged, and says nothing.
            let left = damaged_copies(&partition);
            let headers = damaged.into_iter().map(|start| DamagedHeader { start, repaired: !left.contains(&start) });
            integrity.see(&damaged_headers(&headers.collect::<Vec<_>>(), seen.report.as_ref(), at), None);
        }
        done
    });
    done.await.unwrap_or_else(|error| Err(Error::new(ErrorKind::Failed, error.to_string())))
}

/// Where the copies of the header begin that are damaged, and not just being written by somebody.
fn damaged_copies(partition: &Path) -> Vec<u64> {
    let look = || {
        header::damaged(partition).unwrap_or_else(|error| {
            warn!("the headers on {} cannot be read: {error}", partition.display());
            Vec::new()
        })
    };
    let mut damaged = look();
    if !damaged.is_empty() {
        thread::sleep(Duration::from_millis(200));
        let still = look();
        damaged.retain(|start| still.contains(start));
    }
    damaged
}

/// The volume that this boot was opened from, and its key slots.
fn volume(seen: &Observed) -> Result<(PathBuf, Vec<Slot>), Error> {
    let open = seen.report.as_ref().filter(|report| report.volume.is_some());
    let disk = open.map(|report| Disk::named(&report.disk)).ok_or_else(|| {
        let message =
            "the overlay's volume is not open at this boot, so its keys cannot be changed; `nemosctl status` says why";
        Error::new(ErrorKind::NotSupported, message)
    })?;
    let failed = |error: &dyn std::error::Error| Error::new(ErrorKind::Failed, error.to_string());
    let partition = disk.partition(Partition::Root, Duration::ZERO).map_err(|error| failed(&error))?;
    let slots = nemos_host::keys::slots(&partition).map_err(|error: io::Error| failed(&error))?;
    Ok((partition, slots))
}

/// A key that opens the volume without anybody; rather a secret than what a token keeps, for every program takes that.
fn at_hand(place: Keys<'_>, slots: &[Slot]) -> Result<Key, Error> {
    let mut order = order(Path::new(LOWER_MOUNT));
    order.sort_by_key(|provider| provider.is_token());
    let unlocked = unlock(place.partition, slots, &order, Moment::Running).map_err(|error| {
        let message =
            format!("a key that opens the volume is needed to add another; give one (--unlock-file): {error}");
        Error::new(ErrorKind::InvalidArgument, message)
    })?;
    Ok(unlocked.key)
}

/// The desk, for a thread that blocks.
struct Desk {
    service: Arc<Service>,
    runtime: Handle,
}

impl Memory for Desk {
    fn change(&self, work: &mut dyn FnMut(&mut DeviceState) -> Result<(), Refused>) -> Result<(), ChangeError> {
        let mut refused = None;
        let noted = self.runtime.block_on(self.service.desk.note(|state| {
            work(state).map_err(|refusal| {
                refused = Some(refusal.clone());
                refusal.into()
            })
        }));
        match (noted, refused) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(refusal)) => Err(refusal.into()),
            (Err(error), None) => Err(ChangeError::Memory(error.message)),
        }
    }
}

fn not_changed(error: &ChangeError) -> Error {
    match error {
        ChangeError::Refused(refusal) => refusal.clone().into(),
        ChangeError::WrongKey { .. }
        | ChangeError::NotNew { .. }
        | ChangeError::Unfit { .. }
        | ChangeError::WrongPin
        | ChangeError::NoPin
        | ChangeError::UnlockedByToken
        | ChangeError::Tpm2Full => Error::new(ErrorKind::InvalidArgument, error.to_string()),
        ChangeError::Backup { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            Error::new(ErrorKind::NoSpace, error.to_string())
        }
        _ => Error::new(ErrorKind::Failed, error.to_string()),
    }
}
