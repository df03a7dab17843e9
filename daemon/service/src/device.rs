//! The daemon's edge: the device it runs on.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nemos_host::certificate::{SigningKey, SigningKeyError, device_tpm};
use nemos_host::overlay::policy::{memory, policy};
use nemos_host::overlay::usage::{UsageError, usage};
use nemos_host::overlay::volume_mount;
use nemos_host::reset::everything;
use nemos_host::reset::keep::{self, KeepError};
use nemos_host::state::{StateError, Store};
use nemos_model::image::Image;
use nemos_model::overlay::policy::MemorySize;
use nemos_model::overlay::{LOWER_MOUNT, UPPER_MOUNT, usage as overlay};
use nemos_model::partitions::Partition;
use nemos_model::reset::keep::{KeptPath, SetName, Usage, stage_file};
use nemos_model::stack::Observed;
use nemos_model::state::DeviceState;
use nemos_model::{JobId, Timestamp};

use crate::changes::Layers;

/// What the daemon needs of a device. All of it may block.
pub trait Device: Send + Sync + 'static {
    /// The image it runs.
    fn image(&self) -> Image;
    /// The kernel's name for this boot.
    fn boot_id(&self) -> String;
    /// Its storage as it is now.
    fn observe(&self) -> Observed;
    /// What it remembers.
    fn read(&self) -> Result<DeviceState, StateError>;
    /// Makes it remember. When this returns, the power may go.
    fn write(&self, state: &DeviceState) -> Result<(), StateError>;
    /// How much there is at and below a path of the running system.
    fn measure(&self, path: &KeptPath) -> Result<Usage, KeepError>;
    /// The paths of a keep set that came with the image.
    fn keep_set(&self, name: &SetName) -> Result<Vec<KeptPath>, KeepError>;
    /// How much is in use on the overlay's volume on that partition, whose file system is mounted there.
    fn everything(&self, partition: &Path, mount: &Path) -> Result<Usage, KeepError>;
    /// Bytes that are free on that partition for what is kept.
    fn free(&self, partition: Partition) -> Result<u64, KeepError>;
    /// Where the changes of this boot are; which image that is, its report says.
    fn layers(&self) -> Layers;
    /// What takes room on the overlay's volume, which is mounted.
    fn usage(&self) -> Result<overlay::Usage, UsageError>;
    /// Bytes of memory that changes may take in the modes that have them there.
    fn memory_limit(&self) -> u64;
    /// Where the overlay's volume is mounted.
    fn volume(&self) -> PathBuf;
    /// Where the image's root is.
    fn lower(&self) -> PathBuf;
    /// The key that it signs certificates with.
    fn signing_key(&self) -> Result<SigningKey, SigningKeyError>;
    /// Its clock.
    fn now(&self) -> Timestamp;
    /// A name that no job had before.
    fn new_job(&self) -> JobId;
}

/// The device that this process runs on.
#[derive(Debug, Default)]
pub struct ThisDevice {
    /// Opened when it is first needed: on a degraded boot there may be no store to open.
    store: Mutex<Option<Store>>,
}

impl ThisDevice {
    fn with_store<T, E: From<StateError>>(&self, work: impl FnOnce(&Store) -> Result<T, E>) -> Result<T, E> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *store {
            Some(store) => work(store),
            none => work(none.insert(Store::open(state_folder())?)),
        }
    }
}

fn state_folder() -> &'static Path {
    Path::new(Partition::State.mount_point().unwrap_or_default())
}

impl Device for ThisDevice {
    fn image(&self) -> Image {
        nemos_host::boot::image(Path::new(LOWER_MOUNT))
    }

    fn boot_id(&self) -> String {
        nemos_host::boot::boot_id()
    }

    fn observe(&self) -> Observed {
        nemos_host::stack::observe()
    }

    fn read(&self) -> Result<DeviceState, StateError> {
        self.with_store(Store::read)
    }

    fn write(&self, state: &DeviceState) -> Result<(), StateError> {
        self.with_store(|store| store.write(state))
    }

    fn measure(&self, path: &KeptPath) -> Result<Usage, KeepError> {
        keep::measure(Path::new(path.partition().mount_point().unwrap_or("/")), path.within())
    }

    fn keep_set(&self, name: &SetName) -> Result<Vec<KeptPath>, KeepError> {
        keep::read_set(Path::new(LOWER_MOUNT), name)
    }

    fn everything(&self, partition: &Path, mount: &Path) -> Result<Usage, KeepError> {
        everything::measure(partition, mount)
    }

    fn free(&self, partition: Partition) -> Result<u64, KeepError> {
        keep::free(&Path::new(partition.mount_point().unwrap_or_default()).join(stage_file(partition)))
    }

    fn layers(&self) -> Layers {
        Layers { volume: UPPER_MOUNT.into(), lower: LOWER_MOUNT.into(), root_hash: None }
    }

    fn usage(&self) -> Result<overlay::Usage, UsageError> {
        usage()
    }

    fn memory_limit(&self) -> u64 {
        // A policy that cannot be read is not followed by the initrd, either.
        let policy = policy(Path::new(LOWER_MOUNT)).unwrap_or_default();
        policy.volatile_size.unwrap_or(MemorySize::DEFAULT).of(memory())
    }

    fn volume(&self) -> PathBuf {
        volume_mount().to_owned()
    }

    fn lower(&self) -> PathBuf {
        PathBuf::from(LOWER_MOUNT)
    }

    fn signing_key(&self) -> Result<SigningKey, SigningKeyError> {
        match device_tpm() {
            Some(tcti) => SigningKey::in_tpm(&tcti),
            None => self.with_store(SigningKey::in_file),
        }
    }

    fn now(&self) -> Timestamp {
        nemos_host::time::now()
    }

    fn new_job(&self) -> JobId {
        nemos_host::job::new_id()
    }
}
