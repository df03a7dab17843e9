//! The overlay's volume: LUKS2 with integrity, XFS in it; and the overlay mount itself.

pub mod archive;
pub mod changes;
pub mod configuration;
mod fiemap;
mod grow;
pub mod policy;
pub mod reserve;
pub mod revert;
pub mod shadow;
pub mod trial;
pub mod usage;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::raw::{c_int, c_void};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libcryptsetup_rs::consts::flags::{CryptActivate, CryptDeactivate, CryptVolumeKey, CryptWipe};
use libcryptsetup_rs::consts::vals::{CryptStatusInfo, CryptWipePattern, EncryptionFormat};
use libcryptsetup_rs::{CryptDevice, CryptParamsLuks2, CryptParamsLuks2Ref, Either, LibcryptErr};
use nemos_model::keys::{Identity, KeyslotId, OVERLAY_CIPHER, OVERLAY_SECTOR_BYTES, Provider, Record};
use nemos_model::overlay::mode::ALWAYS_WRITABLE;
use nemos_model::overlay::policy::MemorySize;
use nemos_model::overlay::{LUKS_MAPPING, OVERLAY_SOURCE, SAVED_MOUNT, UPPER_FOLDER, UPPER_MOUNT};
use thiserror::Error;
use tracing::warn;
use uuid::Uuid;

pub use grow::fill_volume;

use crate::command::CommandError;
use crate::cryptsetup::{self, CryptError};
use crate::integrity::scrub::header;
use crate::keys::{self, Key, Secret};
use crate::mkfs;
use crate::mounts::{self, Mount, MountError};
use crate::time::{now, wait_for};
use crate::wipe::wipe;

/// The folder beside [`UPPER_FOLDER`] that the kernel keeps for itself.
const WORK_FOLDER: &str = "work";
/// Mapping that exists only while a new volume is written for the first time.
const WIPE_MAPPING: &str = "nemos-wipe";
/// Bytes written at once by the first write of a volume.
const WIPE_CHUNK: usize = 1 << 20;
/// How long a mapping may be busy with something that ends by itself.
const BUSY_LIMIT: Duration = Duration::from_secs(60);
/// Bytes that libcryptsetup puts before the data of a LUKS2 volume by default: both headers and all key slots.
pub(crate) const LUKS2_AREA: u64 = 16 << 20;

/// A problem with the overlay's volume.
#[derive(Debug, Error)]
pub enum OverlayError {
    /// libcryptsetup refused.
    #[error(transparent)]
    Crypt(#[from] CryptError),
    /// A program failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Writing or reading failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which device or file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Neither copy of the header is there.
    #[error("{} has no LUKS header: both copies are destroyed", path.display())]
    NoHeader {
        /// The partition.
        path: PathBuf,
    },
    /// A header that should be gone still opens.
    #[error("{} still has a LUKS header after it was overwritten: the device does not keep what is written", path.display())]
    StillThere {
        /// The partition.
        path: PathBuf,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OverlayError {
    move |source| OverlayError::Io { action, path: path.to_owned(), source }
}

/// Device node of the open volume.
pub fn mapping() -> PathBuf {
    PathBuf::from(format!("/dev/mapper/{LUKS_MAPPING}"))
}

/// Overwrites both LUKS2 headers and every key slot, and checks that nothing of them is left.
///
/// The bytes are overwritten before they are discarded: a discard alone may do nothing.
pub fn destroy_keys(partition: &Path) -> Result<(), OverlayError> {
    close(partition)?;
    let mut device = OpenOptions::new().write(true).open(partition).map_err(io_error("open", partition))?;
    let size = device.seek(SeekFrom::End(0)).map_err(io_error("measure", partition))?;
    device.rewind().map_err(io_error("overwrite", partition))?;
    wipe(&mut device, header_area(partition).min(size)).map_err(io_error("overwrite", partition))?;
    match uuid(partition) {
        Err(OverlayError::NoHeader { .. }) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(OverlayError::StillThere { path: partition.to_owned() }),
    }
}

/// Bytes before the data: what the header says, and never less than what a header of ours takes.
fn header_area(partition: &Path) -> u64 {
    let sectors = cryptsetup::with("read the header of", partition, |device| {
        device.context_handle().load::<()>(Some(EncryptionFormat::Luks2), None)?;
        Ok(device.status_handle().get_data_offset())
    });
    sectors.map_or(LUKS2_AREA, |sectors| (sectors * 512).max(LUKS2_AREA))
}

/// The UUID of the volume on a partition, from whichever copy of its header is whole.
pub fn uuid(partition: &Path) -> Result<Uuid, OverlayError> {
    let read = cryptsetup::with("read the header of", partition, |device| {
        device.context_handle().load::<()>(Some(EncryptionFormat::Luks2), None)?;
        device.status_handle().get_uuid()
    });
    read.map_err(|error| {
        if error.is_no_header() { OverlayError::NoHeader { path: partition.to_owned() } } else { error.into() }
    })
}

/// Which volume is on a partition.
pub fn identity(partition: &Path) -> Result<Identity, OverlayError> {
    let uuid = uuid(partition)?;
    let metadata = header::metadata(partition).map_err(io_error("read the header of", partition))?;
    let metadata = metadata.ok_or_else(|| OverlayError::NoHeader { path: partition.to_owned() })?;
    Ok(Identity::new(uuid, &metadata))
}

/// Whether a volume is laid out like one that [`create_volume`] makes in its place: then that has as much room.
pub fn is_like_a_new_one(partition: &Path) -> Result<bool, OverlayError> {
    let metadata = header::metadata(partition).map_err(io_error("read the header of", partition))?;
    let metadata = metadata.ok_or_else(|| OverlayError::NoHeader { path: partition.to_owned() })?;
    let segment = &metadata["segments"]["0"];
    let offset = segment["offset"].as_str().and_then(|bytes| bytes.parse::<u64>().ok());
    Ok(segment["encryption"] == format!("{}-{}", OVERLAY_CIPHER.name, OVERLAY_CIPHER.mode)
        && segment["integrity"]["type"] == OVERLAY_CIPHER.integrity
        && segment["sector_size"] == OVERLAY_SECTOR_BYTES
        && offset.is_some_and(|offset| offset >= LUKS2_AREA))
}

/// Makes a new volume with a volume key of its own, which `secret` opens, and writes every sector of it once: a
/// sector that was never written has no valid tag, and reads as damage.
///
/// `progress` is called with bytes written and bytes in all.
pub fn create_volume(
    partition: &Path,
    secret: &Secret,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Identity, OverlayError> {
    close(partition)?;
    let uuid = Uuid::new_v4();
    cryptsetup::with("make an encrypted volume on", partition, |device| {
        let parameters = CryptParamsLuks2 {
            pbkdf: Some(keys::pbkdf(Provider::DemoKey)),
            integrity: Some(OVERLAY_CIPHER.integrity.to_owned()),
            // Anything but None is refused with EINVAL for LUKS2.
            integrity_params: None,
            data_alignment: 0,
            data_device: None,
            sector_size: OVERLAY_SECTOR_BYTES,
            label: None,
            subsystem: None,
        };
        let mut parameters: CryptParamsLuks2Ref<'_> = (&parameters).try_into()?;
        let cipher = (OVERLAY_CIPHER.name, OVERLAY_CIPHER.mode);
        let key = Either::Right(OVERLAY_CIPHER.volume_key_bytes);
        device.context_handle().format(EncryptionFormat::Luks2, cipher, Some(uuid), key, Some(&mut parameters))?;
        let slot = device.keyslot_handle().add_by_key(None, None, secret.expose(), CryptVolumeKey::empty())?;
        let slot = KeyslotId::try_from(slot).map_err(|error| LibcryptErr::Other(error.to_string()))?;
        keys::record(device, slot, &Record::new(Provider::DemoKey, now()))
    })?;
    write_every_sector(partition, secret, progress)?;
    identity(partition)
}

/// Without dm-integrity's journal, as cryptsetup does it: an interrupted first write is begun again anyway.
fn write_every_sector(
    partition: &Path,
    secret: &Secret,
    mut progress: &mut dyn FnMut(u64, u64),
) -> Result<(), OverlayError> {
    let flags = CryptActivate::PRIVATE | CryptActivate::NO_JOURNAL;
    cryptsetup::with("write every sector of the volume on", partition, |device| {
        device.context_handle().load::<()>(Some(EncryptionFormat::Luks2), None)?;
        device.activate_handle().activate_by_passphrase(Some(WIPE_MAPPING), None, secret.expose(), flags)?;
        let mapping = PathBuf::from(format!("/dev/mapper/{WIPE_MAPPING}"));
        let written = device.wipe_handle().wipe(
            &mapping,
            CryptWipePattern::Zero,
            0,
            0,
            WIPE_CHUNK,
            CryptWipe::empty(),
            Some(report_progress),
            Some(&mut progress),
        );
        let closed = deactivate(device, WIPE_MAPPING);
        written.and(closed)
    })?;
    Ok(())
}

/// # Safety
/// libcryptsetup calls it with the pointer that was given to `wipe` along with it: a `&mut &mut dyn FnMut(u64, u64)`.
unsafe extern "C" fn report_progress(size: u64, offset: u64, progress: *mut c_void) -> c_int {
    // SAFETY: it is the reference given to `wipe`, which nobody else uses until `wipe` returns.
    let progress = unsafe { &mut *progress.cast::<&mut dyn FnMut(u64, u64)>() };
    progress(offset, size);
    0
}

/// Opens the volume as [`LUKS_MAPPING`], and returns its UUID and the key slot that the secret opened.
pub fn open(partition: &Path, secret: &Secret) -> Result<(Uuid, KeyslotId), CryptError> {
    let (uuid, slot) = cryptsetup::with("open the encrypted volume on", partition, |device| {
        device.context_handle().load::<()>(Some(EncryptionFormat::Luks2), None)?;
        let flags = CryptActivate::empty();
        let slot = device.activate_handle().activate_by_passphrase(Some(LUKS_MAPPING), None, secret.expose(), flags)?;
        Ok((device.status_handle().get_uuid()?, slot))
    })?;
    Ok((uuid, keys::keyslot(partition, slot)?))
}

/// Opens the volume as [`LUKS_MAPPING`] with the key that opens that slot.
pub fn open_slot(partition: &Path, key: &Key, slot: KeyslotId) -> Result<(), CryptError> {
    match key {
        Key::Secret(secret) => open(partition, secret).map(drop),
        Key::Token(token) => keys::open_by_token(partition, token, slot, LUKS_MAPPING),
    }
}

/// Closes the volume, and what an interrupted first write left open. Nothing open is fine.
pub fn close(partition: &Path) -> Result<(), CryptError> {
    cryptsetup::with("close the encrypted volume on", partition, |device| {
        for name in [WIPE_MAPPING, LUKS_MAPPING] {
            if is_open(name)? {
                deactivate(device, name)?;
            }
        }
        Ok(())
    })
}

/// Takes a mapping away. udev looks into every new mapping, and for that moment it is busy.
pub(crate) fn deactivate(device: &mut CryptDevice, name: &str) -> Result<(), LibcryptErr> {
    let mut deactivate = || device.activate_handle().deactivate(name, CryptDeactivate::empty());
    let is_busy = |error: &LibcryptErr| matches!(error, LibcryptErr::IOError(error) if error.kind() == io::ErrorKind::ResourceBusy);
    let ended = wait_for(BUSY_LIMIT, || match deactivate() {
        Err(error) if is_busy(&error) => None,
        ended => Some(ended),
    });
    ended.unwrap_or_else(deactivate)
}

pub(crate) fn is_open(name: &str) -> Result<bool, LibcryptErr> {
    let status = libcryptsetup_rs::status(None, name)?;
    Ok(matches!(status, CryptStatusInfo::Active | CryptStatusInfo::Busy))
}

/// Works on the file system of a volume that is not open, and leaves it closed, if it can: what was done has been done, and is on
/// the disk, whatever keeps the volume open then. Whoever opens it next is told.
pub(crate) fn with_file_system<T, E: From<OverlayError>>(
    partition: &Path,
    (key, slot): (&Key, KeyslotId),
    scratch: &Path,
    work: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    close(partition).map_err(OverlayError::from)?;
    open_slot(partition, key, slot).map_err(OverlayError::from)?;
    let worked = mount_file_system(scratch).map_err(E::from).and_then(|()| {
        let worked = reserve::with_room(scratch, || work(scratch));
        mounts::unmount(scratch).unwrap_or_else(|error| warn!("cannot unmount {}: {error}", scratch.display()));
        worked
    });
    close(partition).unwrap_or_else(|error| warn!("{error}"));
    worked
}

/// Makes the overlay's file system in a volume that [`create_volume`] made, and leaves the volume closed.
pub fn create_overlay(partition: &Path, secret: &Secret, scratch: &Path) -> Result<(), OverlayError> {
    close(partition)?;
    open(partition, secret)?;
    let made = create_file_system(scratch);
    close(partition)?;
    made
}

/// Opens the volume that the image's builder made, puts the folders that an overlay needs into its file system, closes it,
/// and says which it is. What is in it stays.
pub fn take_over(partition: &Path, secret: &Secret, scratch: &Path) -> Result<Identity, OverlayError> {
    close(partition)?;
    open(partition, secret)?;
    let prepared = prepare_file_system(scratch);
    close(partition)?;
    prepared.and_then(|()| identity(partition))
}

/// Makes the overlay's XFS in the open volume, with the folders that an overlay needs.
fn create_file_system(scratch: &Path) -> Result<(), OverlayError> {
    mkfs::xfs(&mapping(), "overlay")?;
    prepare_file_system(scratch)
}

/// Puts the folders that an overlay needs into the file system of the open volume, where they are not there yet.
fn prepare_file_system(scratch: &Path) -> Result<(), OverlayError> {
    mount_file_system(scratch)?;
    let made = [UPPER_FOLDER, WORK_FOLDER].iter().try_for_each(|name| fs::create_dir_all(scratch.join(name)));
    let made = made.and_then(|()| reserve::keep(scratch));
    let synced = made.and_then(|()| File::open(scratch)).and_then(|folder| Ok(rustix::fs::syncfs(folder)?));
    let unmounted = mounts::unmount(scratch);
    synced.and(unmounted).map_err(io_error("prepare the file system on", &mapping()))
}

/// Mounts the overlay's XFS.
pub fn mount_file_system(target: &Path) -> Result<(), OverlayError> {
    Ok(Mount::new("xfs", &mapping().to_string_lossy()).on(target)?)
}

/// Mounts the overlay's XFS where nobody writes to it, for a boot that goes without it.
pub fn mount_saved(target: &Path) -> Result<(), OverlayError> {
    Ok(Mount::new("xfs", &mapping().to_string_lossy()).read_only().on(target)?)
}

/// Where the overlay's XFS is mounted at this boot.
pub fn volume_mount() -> &'static Path {
    let saved = Path::new(SAVED_MOUNT);
    let device = |path: &Path| fs::metadata(path).ok().map(|metadata| metadata.dev());
    let is_mounted = saved.exists() && device(saved) != saved.parent().and_then(device);
    if is_mounted { saved } else { Path::new(UPPER_MOUNT) }
}

/// Mounts so much memory in its place, with the folders that an overlay needs: for this boot only.
pub fn mount_volatile(target: &Path, size: MemorySize) -> Result<(), OverlayError> {
    Mount::new("tmpfs", "tmpfs").option("mode", "0755").option("size", size.option()).on(target)?;
    [UPPER_FOLDER, WORK_FOLDER]
        .iter()
        .try_for_each(|name| fs::create_dir(target.join(name)))
        .map_err(io_error("prepare the memory on", target))
}

/// Mounts `lower` on `target` as a root that takes no changes, and memory, in folders of `memory`, over what every program
/// writes to. On top lies a layer of what systemd mounts on, for it could not make that there.
pub fn mount_read_only(lower: &Path, memory: &Path, target: &Path) -> Result<(), OverlayError> {
    let top = memory.join("mount-points");
    ["dev", "proc", "run", "sys"]
        .iter()
        .try_for_each(|name| fs::create_dir_all(top.join(name)))
        .map_err(io_error("prepare the memory on", memory))?;
    let layers = format!("{}:{}", top.display(), lower.display());
    Mount::new("overlay", OVERLAY_SOURCE).option("lowerdir", layers).read_only().on(target)?;
    ALWAYS_WRITABLE.iter().try_for_each(|folder| {
        // Below one folder, as in every mode: what was changed is looked for there.
        let [upper, work] = [UPPER_FOLDER, WORK_FOLDER].map(|name| memory.join(name).join(folder));
        fs::create_dir(&upper)
            .and_then(|()| fs::create_dir(&work))
            .map_err(io_error("prepare the memory on", memory))?;
        join(&lower.join(folder), &upper, &work, &target.join(folder))
    })
}

/// Joins the read-only `lower` and what is mounted on `upper` on `target`.
pub fn mount_overlay(lower: &Path, upper: &Path, target: &Path) -> Result<(), OverlayError> {
    join(lower, &upper.join(UPPER_FOLDER), &upper.join(WORK_FOLDER), target)
}

fn join(lower: &Path, upper: &Path, work: &Path, target: &Path) -> Result<(), OverlayError> {
    Mount::new("overlay", OVERLAY_SOURCE)
        .option("lowerdir", lower.to_string_lossy())
        .option("upperdir", upper.to_string_lossy())
        .option("workdir", work.to_string_lossy())
        .on(target)?;
    Ok(())
}
