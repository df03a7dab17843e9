//! Carries out a change of the key slots: each step is written down before it is taken.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nemos_model::Timestamp;
use nemos_model::keys::{Boot, Change, KeyslotId, Next, Place, Provider, Refused, Slot};
use nemos_model::state::DeviceState;
use thiserror::Error;
use tracing::{info, warn};

use crate::command::CommandError;
use crate::cryptsetup::CryptError;
use crate::keys::{Key, NotFetched, Secret, header, way};
use crate::policy::PolicyError;
use crate::state::StateError;
use crate::wipe::wipe;

/// Name of the copy of the header that there is while a slot is added, in the state folder. It opens with the keys of its time,
/// so it must not outlive them.
pub const BACKUP: &str = "luks-header.backup";

/// A change that came to nothing. The ways in that there were are still there.
#[derive(Debug, Error)]
pub enum ChangeError {
    /// libcryptsetup refused.
    #[error(transparent)]
    Crypt(#[from] CryptError),
    /// The header cannot be read.
    #[error("{0}")]
    Slots(io::Error),
    /// It must not be.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It cannot be written down.
    #[error(transparent)]
    State(#[from] StateError),
    /// What should open the volume to add a key does not.
    #[error("the key that should unlock {} opens none of its key slots", partition.display())]
    WrongKey {
        /// The partition.
        partition: PathBuf,
    },
    /// A secret that would open another slot as well.
    #[error("that key opens key slot {slot} already")]
    NotNew {
        /// The slot.
        slot: KeyslotId,
    },
    /// What is given makes no key of that provider.
    #[error("a key of provider {provider} {what}")]
    Unfit {
        /// Which.
        provider: Provider,
        /// What it would be.
        what: String,
    },
    /// A program failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The token does not take it.
    #[error("that is not the PIN of the token, which may take only a few wrong ones before it is locked")]
    WrongPin,
    /// The token wants one.
    #[error("the token wants a PIN; give it (--pin-file)")]
    NoPin,
    /// systemd takes no key of that kind.
    #[error(
        "a key that a PKCS#11 token keeps is not enough to have systemd add another; give one that can be typed (--unlock-file)"
    )]
    UnlockedByToken,
    /// There are two keys of the TPM already.
    #[error("the TPM keeps two keys of the volume, and tells them apart by their policy: remove one first")]
    Tpm2Full,
    /// What the key would be bound to.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The copy of the header.
    #[error("cannot {action} the copy of the header {}: {source}", path.display())]
    Backup {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Nobody has it, so that it is no way in.
    #[error("the new key is taken back: {0}")]
    NotFetched(#[from] NotFetched),
    /// What the memory says for itself.
    #[error("{0}")]
    Memory(String),
}

impl ChangeError {
    pub(super) const fn unfit(provider: Provider, what: String) -> Self {
        ChangeError::Unfit { provider, what }
    }
}

/// What the device remembers, whoever has it in hands: a change is on the disk when this returns.
pub trait Memory {
    /// Changes it.
    fn change(&self, work: &mut dyn FnMut(&mut DeviceState) -> Result<(), Refused>) -> Result<(), ChangeError>;
}

/// A key that is to be added.
#[derive(Debug)]
pub struct NewKey {
    /// What it is.
    pub provider: Provider,
    /// What will open its slot.
    pub key: Key,
    /// Where it is, if it is kept elsewhere.
    pub place: Option<Place>,
}

/// The volume whose keys are changed.
#[derive(Debug, Clone, Copy)]
pub struct Keys<'a> {
    /// Its partition.
    pub partition: &'a Path,
    /// The state folder.
    pub state: &'a Path,
}

impl Keys<'_> {
    /// Adds the slot of a change that enrols or rotates. When this returns, the slot was seen to open the volume, and `hand_over`
    /// has given the key to whoever keeps it; if that fails, the slot goes again.
    pub fn add(
        &self,
        memory: &impl Memory,
        change: &Change,
        unlock: Key,
        new: &NewKey,
        hand_over: impl FnOnce() -> Result<(), NotFetched>,
    ) -> Result<(), ChangeError> {
        let (unlock, unlocks) = self.as_meant(unlock)?;
        self.brought(unlocks, change.at)?;
        if let Key::Secret(secret) = &new.key
            && let Some(slot) = self.opens_secret(secret)?
        {
            return Err(ChangeError::NotNew { slot });
        }
        memory.change(&mut |state| state.begin_key_change(change.clone()))?;
        let proven = self.add_and_prove(change, &unlock, unlocks, new).and_then(|()| self.destroy_backup());
        let added =
            proven.and_then(|()| self.slots()).and_then(|slots| hand_over().map(|()| slots).map_err(Into::into));
        match added {
            Ok(slots) => memory.change(&mut |state| {
                state.key_proven(&slots);
                Ok(())
            }),
            Err(error) => {
                self.settle(memory, None).unwrap_or_else(|error| warn!("the next start clears up: {error}"));
                Err(error)
            }
        }
    }

    fn slots(&self) -> Result<Vec<Slot>, ChangeError> {
        header::slots(self.partition).map_err(ChangeError::Slots)
    }

    /// The key, as it opens a slot, and that slot. An editor, or whoever types it, ends it with a newline, and may leave the dashes of
    /// a recovery key out.
    fn as_meant(&self, key: Key) -> Result<(Key, KeyslotId), ChangeError> {
        let wrong = || ChangeError::WrongKey { partition: self.partition.to_owned() };
        let secret = match key {
            Key::Secret(secret) => secret,
            key @ Key::Token(_) => {
                let slot = self.opens(&key)?.ok_or_else(wrong)?;
                return Ok((key, slot));
            }
        };
        let otherwise = [secret.without_newline(), secret.as_recovery_key()];
        for secret in [Some(secret)].into_iter().chain(otherwise).flatten() {
            if let Some(slot) = self.opens_secret(&secret)? {
                return Ok((Key::Secret(secret), slot));
            }
        }
        Err(wrong())
    }

    fn add_and_prove(
        &self,
        change: &Change,
        unlock: &Key,
        unlocks: KeyslotId,
        new: &NewKey,
    ) -> Result<(), ChangeError> {
        let (Some(slot), Some(record)) = (change.new_slot(), change.record()) else { return Ok(()) };
        self.back_up()?;
        way(new.provider).enroll(self.partition, slot, unlock, new)?;
        if let Err(error) = header::try_key(self.partition, unlock, Some(unlocks)) {
            warn!("the header is put back, for the key that was there does not open it any more: {error}");
            header::restore(self.partition, &self.backup())?;
            return Err(error.into());
        }
        header::try_key(self.partition, &new.key, Some(slot))?;
        Ok(header::record_on(self.partition, slot, &record)?)
    }

    /// Destroys the slot of a change that removes.
    pub fn remove(&self, memory: &impl Memory, change: &Change) -> Result<(), ChangeError> {
        memory.change(&mut |state| state.begin_key_change(change.clone()))?;
        self.settle(memory, None)
    }

    /// Goes on with a change that was interrupted, or that this boot confirms: nothing of it is left but what waits for a boot.
    pub fn settle(&self, memory: &impl Memory, boot: Option<&Boot<'_>>) -> Result<(), ChangeError> {
        let mut found = None;
        memory.change(&mut |state| {
            state.key_confirmed(boot);
            found = state.key_change().cloned();
            Ok(())
        })?;
        self.destroy_backup()?;
        let Some(Next::Destroy(slot)) = found.as_ref().map(Change::next) else { return Ok(()) };
        header::destroy(self.partition, slot)?;
        info!("key slot {slot} of {} is destroyed", self.partition.display());
        memory.change(&mut |state| {
            state.key_change_ended();
            Ok(())
        })
    }

    /// Records in the header that somebody brought the key of a slot, if that is to be recorded.
    pub fn brought(&self, id: KeyslotId, at: Timestamp) -> Result<(), ChangeError> {
        let slots = self.slots()?;
        let record = slots.iter().find(|slot| slot.id == id).and_then(|slot| slot.brought(at));
        record.map_or(Ok(()), |record| Ok(header::record_again(self.partition, id, &record)?))
    }

    /// The slot that a key opens, if it opens one.
    pub fn opens(&self, key: &Key) -> Result<Option<KeyslotId>, ChangeError> {
        match key {
            Key::Secret(secret) => self.opens_secret(secret),
            Key::Token(_) => Ok(Some(header::try_key(self.partition, key, None)?)),
        }
    }

    /// The slot that a secret opens, if it opens one.
    pub fn opens_secret(&self, secret: &Secret) -> Result<Option<KeyslotId>, ChangeError> {
        match header::try_secret(self.partition, secret, None) {
            Ok(slot) => Ok(Some(slot)),
            Err(error) if error.is_wrong_key() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn backup(&self) -> PathBuf {
        self.state.join(BACKUP)
    }

    fn back_up(&self) -> Result<(), ChangeError> {
        let path = self.backup();
        self.destroy_backup()?;
        header::back_up(self.partition, &path)?;
        let synced = File::open(&path).and_then(|file| file.sync_all());
        synced.map_err(|source| ChangeError::Backup { action: "keep", path, source })
    }

    fn destroy_backup(&self) -> Result<(), ChangeError> {
        let path = self.backup();
        destroy_backup(self.state).map_err(|source| ChangeError::Backup { action: "destroy", path, source })
    }
}

/// Overwrites and deletes the copy of the header in a state folder, if there is one.
pub fn destroy_backup(state: &Path) -> io::Result<()> {
    let path = state.join(BACKUP);
    // libcryptsetup makes it so that not even its owner may write to it.
    match fs::set_permissions(&path, Permissions::from_mode(0o600)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        changed => changed?,
    }
    let mut file = File::options().write(true).open(&path)?;
    let length = file.metadata()?.len();
    wipe(&mut file, length)?;
    fs::remove_file(&path)?;
    File::open(state)?.sync_all()
}
