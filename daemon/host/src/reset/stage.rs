//! Where kept data waits while its place is erased: an encrypted file on `p.lxstate`, or on another partition that the reset
//! leaves alone, that the same secret opens as the volume that is made.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use libcryptsetup_rs::consts::flags::{CryptActivate, CryptVolumeKey};
use libcryptsetup_rs::consts::vals::{EncryptionFormat, KeyslotsSize, MetadataSize};
use libcryptsetup_rs::{CryptParamsLuks2, CryptParamsLuks2Ref, Either};
use nemos_model::keys::Provider;
use nemos_model::partitions::Partition;
use nemos_model::reset::KeptPath;
use nemos_model::reset::keep::{Room, STAGE_FILE, Usage, stage_file};
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use thiserror::Error;
use tracing::{info, warn};

use super::Work;
use super::areas::{AreaError, Areas};
use super::keep::{KeepError, free, measure};
use crate::command::CommandError;
use crate::copy::{CopyError, copy};
use crate::cryptsetup::{self, CryptError};
use crate::keys::{Secret, pbkdf};
use crate::mkfs;
use crate::mounts::{Mount, MountError, unmount};
use crate::overlay::{OverlayError, deactivate, is_open};

/// Mapping of the open file.
const MAPPING: &str = "nemos-kept";
/// Bytes before the data of the file: two headers of 16 KiB and the key slots, aligned.
const HEADER_AREA: u64 = 1 << 20;
/// Bytes of key slots: one slot for a key of 64 bytes takes 252 KiB.
const KEY_SLOTS: u64 = 512 << 10;
/// aes-xts-plain64 with AES-256 takes two keys of 32 bytes.
const VOLUME_KEY_BYTES: usize = 64;

/// Kept data that cannot be brought to safety, or back.
#[derive(Debug, Error)]
pub enum StageError {
    /// It does not fit.
    #[error("what is to be kept needs {needed} bytes on {on}, and there are {available}: {}. Nothing was erased",
        if *.on == Partition::State { "keep less" } else { "make room there" })]
    NoRoom {
        /// Where it was to wait.
        on: Partition,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that there are.
        available: u64,
    },
    /// It cannot be kept.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// Where it comes from or goes to cannot be opened.
    #[error(transparent)]
    Area(#[from] AreaError),
    /// It cannot be copied.
    #[error("cannot copy {path}: {source}")]
    Copy {
        /// The path.
        path: KeptPath,
        /// Why not.
        source: CopyError,
    },
    /// The encrypted file cannot be made or opened.
    #[error(transparent)]
    Crypt(#[from] CryptError),
    /// Its file system cannot be made.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Its file system cannot be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The overlay's volume cannot be opened.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// Nothing is there to open the overlay's volume with.
    #[error("nothing opens the overlay's volume")]
    NoKey,
    /// The volume's contents cannot be read, so that not all of them can be kept.
    #[error(
        "cannot read the overlay's volume at byte {at}: {source}. Damaged contents cannot be kept as a whole: `nemosctl integrity scrub` tells what is damaged. Nothing was erased"
    )]
    Unreadable {
        /// Where.
        at: u64,
        /// Why not.
        source: io::Error,
    },
    /// What waited is not what was copied.
    #[error("what waits on {0} is not what was copied to it: the disk has lost some of it")]
    Changed(Partition),
    /// What is kept does not fit into the volume that was made.
    #[error("the new volume has {size} bytes, and the file system that is kept {needed}")]
    Smaller {
        /// Bytes of the volume.
        size: u64,
        /// Bytes of the file system.
        needed: u64,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StageError {
    move |source| StageError::Io { action, path: path.to_owned(), source }
}

/// Copies what is kept into a new stage. What is not there any more is not kept. When this returns, all of it is on the disk.
pub(super) fn fill(work: &Work<'_>, keep: &[KeptPath]) -> Result<(), StageError> {
    let file = work.state.join(STAGE_FILE);
    destroy(&file)?;
    let areas = Areas::open(work, &partitions(keep))?;
    let kept = present(&areas, keep)?;
    let usage: Usage = kept.iter().map(|(_, usage)| *usage).sum();
    info!("{} files and folders are kept, {} KiB", usage.entries, usage.bytes >> 10);
    let stage = Stage::make(&file, Partition::State, work, usage)?;
    for (path, _) in &kept {
        copy_one(path, &areas.place(path.partition()), &stage.place(path.partition()))?;
    }
    stage.close()?;
    Ok(areas.close()?)
}

/// Copies everything back to its place, in place of what is there.
pub(super) fn restore(work: &Work<'_>, keep: &[KeptPath]) -> Result<(), StageError> {
    let stage = Stage::open(&work.state.join(STAGE_FILE), work, None)?;
    let areas = Areas::open(work, &partitions(keep))?;
    for path in keep {
        let from = stage.place(path.partition());
        if fs::symlink_metadata(from.join(path.within())).is_ok() {
            copy_one(path, &from, &areas.place(path.partition()))?;
        }
    }
    areas.close()?;
    stage.close()
}

/// Destroys the stage in a folder, which is the root of that partition, if there is one: its keys first, so that an
/// interruption is already safe.
pub fn destroy_in(folder: &Path, partition: Partition) -> Result<(), StageError> {
    destroy(&folder.join(stage_file(partition)))
}

pub(super) fn destroy(path: &Path) -> Result<(), StageError> {
    let no_links = OFlags::NOFOLLOW.bits().cast_signed();
    let mut file = match OpenOptions::new().write(true).custom_flags(no_links).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file.map_err(io("open", path))?,
    };
    close_mapping(path)?;
    let size = file.metadata().map_err(io("measure", path))?.len().min(HEADER_AREA);
    let zeros = vec![0; usize::try_from(size).unwrap_or_default()];
    file.write_all(&zeros).and_then(|()| file.sync_all()).map_err(io("overwrite", path))?;
    fs::remove_file(path).map_err(io("remove", path))?;
    sync_folder_of(path)
}

/// Works on the stage of a partition, which is mounted for it if it is not `p.lxstate`.
pub(super) fn at<T>(
    partition: Partition,
    work: &Work<'_>,
    act: impl FnOnce(&Path) -> Result<T, StageError>,
) -> Result<T, StageError> {
    if partition == Partition::State {
        return act(&work.state.join(STAGE_FILE));
    }
    let areas = Areas::open(work, &[partition])?;
    let done = act(&areas.place(partition).join(stage_file(partition)))?;
    areas.close()?;
    Ok(done)
}

/// The partitions that the paths are on.
fn partitions(keep: &[KeptPath]) -> Vec<Partition> {
    let of = |partition: &Partition| keep.iter().any(|path| path.partition() == *partition);
    Partition::ALL.into_iter().filter(of).collect()
}

/// What there is to be kept, and how much.
fn present<'a>(areas: &Areas, keep: &'a [KeptPath]) -> Result<Vec<(&'a KeptPath, Usage)>, StageError> {
    let mut present = Vec::new();
    for path in keep {
        match measure(&areas.place(path.partition()), path.within()) {
            Ok(usage) => present.push((path, usage)),
            Err(KeepError::NotThere { .. }) => warn!("{path} is not there any more, and is not kept"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(present)
}

fn copy_one(path: &KeptPath, from: &Path, to: &Path) -> Result<(), StageError> {
    fs::create_dir_all(to).map_err(io("make", to))?;
    copy(from, to, path.within()).map_err(|source| StageError::Copy { path: path.clone(), source })
}

/// A file of that size, all of it there, so that nothing that is written to it later runs out of room.
fn make_file(path: &Path, size: u64) -> Result<(), StageError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io("make", path))?;
    fallocate(&file, FallocateFlags::empty(), 0, size).map_err(|error| io("make room for", path)(error.into()))?;
    file.sync_all().map_err(io("sync", path))?;
    sync_folder_of(path)
}

fn sync_folder_of(path: &Path) -> Result<(), StageError> {
    let folder = path.parent().unwrap_or(path);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("sync", folder))
}

fn format(path: &Path, secret: &Secret) -> Result<(), CryptError> {
    cryptsetup::with("make an encrypted volume in", path, |device| {
        let parameters = CryptParamsLuks2 {
            pbkdf: Some(pbkdf(Provider::DemoKey)),
            integrity: None,
            integrity_params: None,
            data_alignment: 0,
            data_device: None,
            sector_size: 4096,
            label: None,
            subsystem: None,
        };
        let mut parameters: CryptParamsLuks2Ref<'_> = (&parameters).try_into()?;
        device.settings_handle().set_metadata_size(MetadataSize::Kb16, KeyslotsSize::try_from(KEY_SLOTS)?)?;
        let key = Either::Right(VOLUME_KEY_BYTES);
        let cipher = ("aes", "xts-plain64");
        device.context_handle().format(EncryptionFormat::Luks2, cipher, None, key, Some(&mut parameters))?;
        device.keyslot_handle().add_by_key(None, None, secret.expose(), CryptVolumeKey::empty())?;
        Ok(())
    })
}

fn close_mapping(path: &Path) -> Result<(), CryptError> {
    if !is_open(MAPPING).unwrap_or(false) {
        return Ok(());
    }
    cryptsetup::with("close the encrypted volume in", path, |device| deactivate(device, MAPPING))
}

/// An open stage, with the file system of each partition in a folder of its own.
pub(super) struct Stage {
    file: PathBuf,
    mounted: Option<PathBuf>,
}

impl Stage {
    /// Makes a new one for so much, if there is room for it.
    pub(super) fn make(file: &Path, on: Partition, work: &Work<'_>, usage: Usage) -> Result<Stage, StageError> {
        let room = Room::new(usage, free(file)?);
        if !room.fits() {
            return Err(StageError::NoRoom { on, needed: room.needed, available: room.available });
        }
        make_file(file, room.needed)?;
        format(file, work.secret)?;
        Stage::open(file, work, Some(usage))
    }

    /// Opens it; with a new file system for so much, or with the one that is in it.
    pub(super) fn open(file: &Path, work: &Work<'_>, new: Option<Usage>) -> Result<Stage, StageError> {
        close_mapping(file)?;
        cryptsetup::with("open the encrypted volume in", file, |device| {
            device.context_handle().load::<()>(Some(EncryptionFormat::Luks2), None)?;
            let flags = CryptActivate::empty();
            device.activate_handle().activate_by_passphrase(Some(MAPPING), None, work.secret.expose(), flags)
        })?;
        let mut stage = Stage { file: file.to_owned(), mounted: None };
        let device = format!("/dev/mapper/{MAPPING}");
        if let Some(usage) = new {
            mkfs::ext4_for(Path::new(&device), usage.entries)?;
        }
        let place = work.scratch.join("stage");
        let mount = Mount::new("ext4", &device);
        // What waits is only read again: a power cut must not find it half written, and it has no journal.
        let mount = if new.is_some() { mount } else { mount.read_only() };
        mount.on(&place)?;
        stage.mounted = Some(place);
        Ok(stage)
    }

    /// Where what is kept of that partition waits.
    pub(super) fn place(&self, partition: Partition) -> PathBuf {
        self.mounted.clone().unwrap_or_default().join(partition.label())
    }

    /// Writes everything through to the disk, and closes it.
    pub(super) fn close(mut self) -> Result<(), StageError> {
        if let Some(place) = self.mounted.take() {
            let synced = File::open(&place).and_then(|folder| Ok(rustix::fs::syncfs(folder)?));
            let unmounted = unmount(&place);
            synced.and(unmounted).map_err(io("close", &place))?;
        }
        close_mapping(&self.file)?;
        File::open(&self.file).and_then(|file| file.sync_all()).map_err(io("sync", &self.file))
    }
}

/// Only for what went wrong before [`Stage::close`].
impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(place) = &self.mounted {
            let _ = unmount(place);
        }
        let _ = close_mapping(&self.file);
    }
}
