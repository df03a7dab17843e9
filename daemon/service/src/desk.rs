//! The desk: the one owner of what the device remembers. Requests are taken here one at a time, and none is taken
//! before it is durable.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nemos_api::usage::UsageRecord;
use nemos_api::{Error, ErrorKind};
use nemos_host::certificate::{SigningKey, SigningKeyError};
use nemos_host::overlay::shadow::count;
use nemos_host::reset::keep::KeepError;
use nemos_host::state::StateError;
use nemos_model::certificate::{Claims, Keeping, PublicKey, certifiable, issue};
use nemos_model::health::{Finding, findings};
use nemos_model::image::Image;
use nemos_model::job::{Job, Kind, Requester};
use nemos_model::overlay::{Mode, SAVED_MOUNT, UPPER_MOUNT, shadow};
use nemos_model::partitions::Partition;
use nemos_model::reset::keep::{self, BadKeep, Everything, Kept, Room, Usage, WAITING_PLACES};
use nemos_model::reset::{Keep, KeptPath, Plan, Scope, Wish};
use nemos_model::stack::Observed;
use nemos_model::state::{DeviceState, NotTaken, Request, Taken, Wanted};
use nemos_model::{JobId, Timestamp};
use tokio::sync::{Mutex, Notify};
use tokio::task::spawn_blocking;

use crate::changes::Layers;
use crate::device::Device;

/// How long an observation answers: the properties that are read by one call agree with each other.
const FRESH: Duration = Duration::from_millis(500);

/// How long a count of changes that are shadowed answers: a boot makes them more, and hands make them less.
const RARELY: Duration = Duration::from_secs(60);

/// Who asks, and when it is to be.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Who asks.
    pub by: Requester,
    /// Idempotency key.
    pub key: Option<String>,
    /// Not to begin before this.
    pub not_before: Option<Timestamp>,
    /// Reboot by itself when it is due.
    pub reboot: bool,
}

/// See the module.
pub struct Desk {
    device: Arc<dyn Device>,
    /// What is on the disk, as far as it is known; `None` means that it has to be read.
    state: Mutex<Option<DeviceState>>,
    seen: Mutex<Option<(Instant, Arc<Observed>)>>,
    shadowed: Mutex<Option<(Instant, Option<Finding>)>>,
    changed: Notify,
    /// Held by who signs: a TPM does one thing at a time, and the key is made only once.
    signing: Mutex<()>,
}

impl Desk {
    /// A desk for that device.
    pub fn new(device: Arc<dyn Device>) -> Self {
        Desk {
            device,
            state: Mutex::default(),
            seen: Mutex::default(),
            shadowed: Mutex::default(),
            changed: Notify::new(),
            signing: Mutex::default(),
        }
    }

    /// Waits until something was taken, taken back, or became due.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The device that it is of.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// The device's clock.
    pub fn now(&self) -> Timestamp {
        self.device.now()
    }

    /// The image that the device runs.
    pub async fn image(&self) -> Result<Image, Error> {
        self.blocking(Device::image).await
    }

    /// The kernel's name for this boot.
    pub async fn boot_id(&self) -> Result<String, Error> {
        self.blocking(Device::boot_id).await
    }

    /// The storage as it is now, or was a moment ago.
    pub async fn seen(&self) -> Result<Arc<Observed>, Error> {
        let mut seen = self.seen.lock().await;
        match &*seen {
            Some((at, observed)) if at.elapsed() < FRESH => Ok(Arc::clone(observed)),
            _ => self.look(&mut seen).await,
        }
    }

    async fn look(&self, seen: &mut Option<(Instant, Arc<Observed>)>) -> Result<Arc<Observed>, Error> {
        let observed = Arc::new(self.blocking(Device::observe).await?);
        *seen = Some((Instant::now(), Arc::clone(&observed)));
        Ok(observed)
    }

    /// What the device remembers.
    pub async fn state(&self) -> Result<DeviceState, Error> {
        let mut held = self.state.lock().await;
        match &*held {
            Some(state) => Ok(state.clone()),
            None => Ok(held.insert(self.read().await?).clone()),
        }
    }

    /// The job of that name.
    pub async fn job(&self, id: JobId) -> Result<Job, Error> {
        self.state().await?.job(id).cloned().ok_or_else(|| NotTaken::NoSuchJob(id).into())
    }

    /// The job that this boot carried out, if it did.
    pub async fn carried_out(&self) -> Result<Option<Job>, Error> {
        match self.seen().await?.report.as_ref().and_then(|report| report.job) {
            Some(id) => self.job(id).await.map(Some),
            None => Ok(None),
        }
    }

    /// Everything that is not as it should be.
    pub async fn findings(&self) -> Result<Vec<Finding>, Error> {
        let seen = self.seen().await?;
        let state = self.state().await;
        let last = state.as_ref().map(|state| state.jobs().last()).map_err(|error| error.message.as_str());
        let sealed = state.as_ref().ok().and_then(|state| state.sealed(&seen.keyslots).next_back()?.finding());
        Ok(findings(&seen, last).into_iter().chain(sealed).collect())
    }

    /// What a reset would do.
    pub async fn plan(&self, wish: Wish) -> Result<Plan, Error> {
        let (seen, state) = (self.seen().await?, self.state().await?);
        Ok(self.measure(wish, Arc::clone(&seen)).await?.plan(&seen, &state))
    }

    /// Takes a request, and gives back its job. `plan` is the name of the plan that the caller has seen.
    pub async fn request(&self, wish: Wish, asked: Asked, plan: Option<String>) -> Result<Job, Error> {
        let (id, now, scope) = (self.device.new_job(), self.device.now(), wish.scope);
        if let Some(job) = self.known(asked.key.as_deref(), Kind::Reset { scope }).await? {
            // It was made for the plan of its time, and what it kept may be gone.
            return Ok(job);
        }
        let seen = self.look(&mut *self.seen.lock().await).await?;
        let measured = self.measure(wish, seen).await?;
        self.change(|state, seen| {
            let planned = measured.plan(seen, state);
            if let Some((on, room)) = planned.room.filter(|(_, room)| !room.fits()) {
                return Err(no_room(on, room, planned.everything.is_some()));
            }
            let there = planned.keep.iter().filter(|kept| kept.usage != Usage::default());
            let keep = match planned.everything {
                Some(everything) => Keep::Everything(everything.on),
                None => Keep::Paths(there.map(|kept| kept.path.clone()).collect()),
            };
            let Asked { by, key, not_before, reboot } = asked;
            let wanted = Wanted::Reset { scope, keep, plan: Some(planned.id()) };
            let request = Request { wanted, by, key, not_before, reboot };
            let taken = match state.request(request, id, now)? {
                Taken::Known(id) => id,
                Taken::New(id) if plan.is_none_or(|plan| plan == planned.id().to_string()) => id,
                Taken::New(_) => {
                    let message = "the device is not what the plan was made for; ask for the plan again";
                    return Err(Error::new(ErrorKind::PlanChanged, message));
                }
            };
            state.job(taken).cloned().ok_or_else(|| NotTaken::NoSuchJob(taken).into())
        })
        .await
    }

    /// The job that was made for an idempotency key, if one was.
    pub async fn known(&self, key: Option<&str>, kind: Kind) -> Result<Option<Job>, Error> {
        Ok(self.state().await?.known(key, kind)?.cloned())
    }

    /// Takes a request that needs no plan, and gives back its job.
    pub async fn ask(&self, wanted: Wanted, asked: Asked) -> Result<Job, Error> {
        let (id, now) = (self.device.new_job(), self.device.now());
        self.change(|state, _| {
            let Asked { by, key, not_before, reboot } = asked;
            let taken = state.request(Request { wanted, by, key, not_before, reboot }, id, now)?;
            let (Taken::Known(id) | Taken::New(id)) = taken;
            state.job(id).cloned().ok_or_else(|| NotTaken::NoSuchJob(id).into())
        })
        .await
    }

    /// Where the changes of this boot are.
    pub async fn layers(&self) -> Result<Layers, Error> {
        let seen = self.seen().await?;
        let report = seen.report.as_ref().filter(|report| report.mode == Mode::Persistent);
        let root_hash = report.map(|report| report.root_hash);
        self.blocking(move |device| Layers { root_hash, ..device.layers() }).await
    }

    /// What is to be said of changes that hide something newer; it was so a moment ago.
    pub async fn shadowed(&self) -> Result<Option<Finding>, Error> {
        let mut shadowed = self.shadowed.lock().await;
        if let Some((at, known)) = &*shadowed
            && at.elapsed() < RARELY
        {
            return Ok(known.clone());
        }
        let Layers { volume, lower, root_hash } = self.layers().await?;
        let count = self.blocking(move |_| root_hash.map_or(Ok(0), |hash| count(&volume, &lower, hash))).await?;
        let finding = shadow::finding(count.map_err(|error| error.to_string()));
        *shadowed = Some((Instant::now(), finding.clone()));
        Ok(finding)
    }

    /// What takes room on the overlay's volume, and of memory.
    pub async fn usage(&self) -> Result<UsageRecord, Error> {
        let seen = self.seen().await?;
        self.blocking(move |device| {
            let mounted = |place: &str| seen.mounts.iter().find(|mount| mount.target == place);
            let (memory, volume) = match mounted(UPPER_MOUNT) {
                Some(mount) if mount.fs_type == "tmpfs" => (Some(mount), mounted(SAVED_MOUNT)),
                volume => (None, volume),
            };
            let usage = volume.map(|_| device.usage()).transpose();
            let usage = usage.map_err(|error| Error::new(ErrorKind::Failed, error.to_string()))?;
            let known = UsageRecord {
                unused: seen.unused(),
                memory_limit: memory.map_or_else(|| device.memory_limit(), |mount| mount.size),
                memory_used: memory.map(|mount| mount.used),
                ..UsageRecord::default()
            };
            Ok(match &usage {
                Some(usage) => known.with_volume(usage),
                None => known,
            })
        })
        .await?
    }

    /// What is kept, how much that is, and the room for it where it waits.
    async fn measure(&self, wish: Wish, seen: Arc<Observed>) -> Result<Measured, Error> {
        keep::check_everything(&wish)?;
        if !wish.keeps() {
            return Ok(Measured::Paths { scope: wish.scope, keep: Vec::new(), free: 0 });
        }
        self.blocking(move |device| {
            if wish.everything {
                return measure_everything(device, &seen).map(Measured::Everything);
            }
            let sets = wish.sets.iter().map(|name| device.keep_set(name)).collect::<Result<Vec<_>, _>>();
            let named = wish.keep.iter().cloned().chain(sets.map_err(|error| not_kept(&error))?.into_iter().flatten());
            let paths = keep::decide(wish.scope, named.collect())?;
            keep::check_open(&paths, &seen)?;
            let measure = |path: KeptPath| match device.measure(&path) {
                Ok(usage) => Ok(Kept { path, usage }),
                // Only what somebody named by itself has to be there.
                Err(KeepError::NotThere { .. }) if !wish.keep.contains(&path) => {
                    Ok(Kept { path, usage: Usage::default() })
                }
                Err(error) => Err(not_kept(&error)),
            };
            let keep = paths.into_iter().map(measure).collect::<Result<_, _>>()?;
            let free = device.free(Partition::State).map_err(|error| not_kept(&error))?;
            Ok(Measured::Paths { scope: wish.scope, keep, free })
        })
        .await?
    }

    /// Takes a job back.
    pub async fn cancel(&self, id: JobId) -> Result<(), Error> {
        let now = self.device.now();
        self.change(|state, _| Ok(state.cancel(id, now)?)).await
    }

    /// Tries a job again that was given up, and gives it back.
    pub async fn retry(&self, id: JobId) -> Result<Job, Error> {
        self.change(|state, _| {
            state.retry(id)?;
            state.job(id).cloned().ok_or_else(|| NotTaken::NoSuchJob(id).into())
        })
        .await
    }

    /// A certificate of the reset that this job was.
    pub async fn certificate(&self, id: JobId) -> Result<String, Error> {
        let state = self.state().await?;
        let job = state.job(id).cloned().ok_or(NotTaken::NoSuchJob(id))?;
        certifiable(&job)?;
        let (image, now) = (self.image().await?, self.device.now());
        self.with_key(move |key| {
            let claims = Claims::new(&job, &state, image, key.keeping(), now)?;
            issue(&claims, &key.public(), |bytes| key.sign(bytes)).map_err(|error| not_signed(&error))
        })
        .await
    }

    /// The key that certificates are verified with, and where its secret half is.
    pub async fn certificate_key(&self) -> Result<(PublicKey, Keeping), Error> {
        self.with_key(|key| Ok((key.public(), key.keeping()))).await
    }

    /// Works with the device's key, which is made if there is none.
    async fn with_key<T: Send + 'static>(
        &self,
        work: impl FnOnce(&SigningKey) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let seen = self.look(&mut *self.seen.lock().await).await?;
        seen.memory().map_err(|reason| forgetful(&reason))?;
        let _alone = self.signing.lock().await;
        self.blocking(move |device| work(&device.signing_key().map_err(|error| not_signed(&error))?)).await?
    }

    /// Makes the queued job due if its time has come, and gives it back. A device without a memory has none; its findings
    /// say so.
    pub async fn become_due(&self) -> Result<Option<Job>, Error> {
        let now = self.device.now();
        let due = |state: &mut DeviceState| state.become_due(now).cloned();
        if self.state().await.is_ok_and(|mut state| due(&mut state).is_some()) {
            self.change(|state, _| Ok(due(state))).await
        } else {
            Ok(None)
        }
    }

    /// Changes what the device remembers: in memory, then durably, and only then for anybody to see.
    async fn change<T>(&self, work: impl FnOnce(&mut DeviceState, &Observed) -> Result<T, Error>) -> Result<T, Error> {
        let mut held = self.state.lock().await;
        let seen = self.look(&mut *self.seen.lock().await).await?;
        seen.memory().map_err(|reason| forgetful(&reason))?;
        let old = match held.take() {
            Some(state) => state,
            None => self.read().await?,
        };
        let mut new = old.clone();
        let outcome = match work(&mut new, &seen) {
            Ok(outcome) if new != old => outcome,
            unchanged => {
                *held = Some(old);
                return unchanged;
            }
        };
        // While nothing is held the disk is the truth: a write that failed may still have replaced the document.
        let written = new.clone();
        self.blocking(move |device| device.write(&written)).await?.map_err(|error| not_stored(&error))?;
        *held = Some(new);
        self.changed.notify_one();
        Ok(outcome)
    }

    /// Notes something that whoever asks has decided.
    pub async fn note(&self, work: impl FnOnce(&mut DeviceState) -> Result<(), Error>) -> Result<(), Error> {
        self.change(|state, _| work(state)).await
    }

    async fn read(&self) -> Result<DeviceState, Error> {
        self.seen().await?.memory().map_err(|reason| forgetful(&reason))?;
        self.blocking(Device::read).await?.map_err(|error| not_stored(&error))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Device) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let device = Arc::clone(&self.device);
        spawn_blocking(move || work(&*device)).await.map_err(|error| Error::new(ErrorKind::Failed, error.to_string()))
    }
}

/// What a wish comes to on the device as it is.
enum Measured {
    /// Paths are kept, or nothing; with the bytes that are free on `p.lxstate`.
    Paths { scope: Scope, keep: Vec<Kept>, free: u64 },
    /// All of the overlay is kept.
    Everything(Everything),
}

impl Measured {
    fn plan(self, seen: &Observed, state: &DeviceState) -> Plan {
        match self {
            Measured::Paths { scope, keep, free } => Plan::new(scope, keep, free, seen, state),
            Measured::Everything(everything) => Plan::of_everything(everything, seen, state),
        }
    }
}

/// How much there is on the overlay's volume, and where it can wait, of the partitions that are in use.
fn measure_everything(device: &dyn Device, seen: &Observed) -> Result<Everything, Error> {
    let partition = seen.partitions.iter().find(|seen| seen.partition == Partition::Root);
    let (partition, mount) = partition.zip(seen.volume_mount()).ok_or(BadKeep::NoOverlay)?;
    let usage = device.everything(Path::new(&partition.device), Path::new(&mount.target));
    let usage = usage.map_err(|error| not_kept(&error))?;
    let is_in_use = |place: &Partition| {
        seen.mounts.iter().any(|mount| Some(mount.target.as_str()) == place.mount_point() && !mount.read_only)
    };
    let free = |place: Partition| Ok((place, device.free(place).map_err(|error| not_kept(&error))?));
    let free = WAITING_PLACES.into_iter().filter(is_in_use).map(free).collect::<Result<Vec<_>, Error>>()?;
    let nowhere =
        || Error::new(ErrorKind::Failed, "no partition is in use at this boot that the contents could wait on");
    Everything::on_one_of(&free, usage).ok_or_else(nowhere)
}

fn forgetful(reason: &str) -> Error {
    Error::new(ErrorKind::Failed, format!("{reason}; nothing can be asked of the device until it remembers again"))
}

fn not_kept(error: &KeepError) -> Error {
    let kind = match error {
        KeepError::NotThere { .. } | KeepError::NoSuchSet(_) => ErrorKind::NotFound,
        KeepError::NotPlain { .. } | KeepError::ThroughLink { .. } | KeepError::Elsewhere { .. } => {
            ErrorKind::InvalidArgument
        }
        KeepError::OtherVolume => ErrorKind::NotSupported,
        KeepError::Io { .. } | KeepError::BadSet { .. } => ErrorKind::Failed,
    };
    Error::new(kind, error.to_string())
}

fn no_room(on: Partition, room: Room, is_everything: bool) -> Error {
    let Room { needed, available } = room;
    let (where_most_is, what_helps) = if is_everything {
        (", where most room is", "take away what nobody needs, there or on the overlay")
    } else {
        ("", "keep less")
    };
    let message = format!(
        "what is to be kept needs {needed} bytes on {on}{where_most_is} while it waits, and there are {available}; {what_helps}"
    );
    Error::new(ErrorKind::NoSpace, message)
}

fn not_signed(error: &SigningKeyError) -> Error {
    match error {
        SigningKeyError::Store(error) => not_stored(error),
        SigningKeyError::Damaged { .. } => Error::new(ErrorKind::Corrupt, error.to_string()),
        _ => Error::new(ErrorKind::Failed, error.to_string()),
    }
}

fn not_stored(error: &StateError) -> Error {
    let kind = match error {
        StateError::Unreadable { .. } => ErrorKind::Corrupt,
        error if error.is_no_space() => ErrorKind::NoSpace,
        _ => ErrorKind::Failed,
    };
    Error::new(kind, error.to_string())
}
