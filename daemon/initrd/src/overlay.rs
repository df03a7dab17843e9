//! Opens the overlay, or puts memory in its place.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nemos_host::integrity::scrub::header;
use nemos_host::mounts::unmount;
use nemos_host::overlay::policy::policy;
use nemos_host::overlay::reserve::with_room;
use nemos_host::overlay::{self as host, OverlayError, shadow};
use nemos_host::partitions::Disk;
use nemos_model::boot::{DamagedHeader, OpenVolume, Reason};
use nemos_model::integrity::RootHash;
use nemos_model::overlay::mode::ALWAYS_WRITABLE;
use nemos_model::overlay::policy::{MemorySize, Policy};
use nemos_model::overlay::{Mode, SAVED_MOUNT, UPPER_MOUNT};
use nemos_model::partitions::Partition;
use nemos_model::state::Volume;
use tracing::{info, warn};

use crate::bound;
use crate::unlock::unlock;

/// How long the partition may take to appear.
const APPEAR: Duration = Duration::from_secs(10);

/// How the overlay was opened.
pub struct Opened {
    /// Where changes to the root go.
    pub mode: Mode,
    /// The volume, if it is open.
    pub volume: Option<OpenVolume>,
    /// Copies of its header that were damaged.
    pub headers: Vec<DamagedHeader>,
    /// Why it is not as it should be.
    pub degraded: Option<Reason>,
}

/// Mounts the overlay on `sysroot`, in the mode that was asked for. The volume is opened in every mode; if it cannot be, memory
/// takes its place. Erases nothing.
///
/// `expected` is what the state says of the volume; `None` if the state cannot be read, and then any volume that
/// the key opens will do. `lower` is where the root with that hash is mounted.
pub fn open(
    disk: &Disk,
    expected: Option<Volume>,
    asked: Mode,
    (lower, root_hash): (&Path, RootHash),
    sysroot: &Path,
) -> Result<Opened, OverlayError> {
    let upper = Path::new(UPPER_MOUNT);
    let damaged = damaged_headers(disk);
    let headers = || {
        let left = damaged_headers(disk);
        damaged.iter().map(|&start| DamagedHeader { start, repaired: !left.contains(&start) }).collect()
    };
    let opened = match expected {
        Some(Volume::NeverProvisioned | Volume::Erased) => Err(Reason::OverlayMissing),
        Some(Volume::Built) => Err(Reason::OverlayNotTakenOver),
        _ => open_volume(disk, expected, asked, lower),
    };
    let opened = opened.and_then(|opened| match asked {
        Mode::Persistent => {
            let mounted = with_room(upper, || {
                note_image(lower, root_hash);
                host::mount_overlay(lower, upper, sysroot)
            });
            mounted.map(|()| opened).map_err(|error| {
                leave(disk, upper);
                Reason::OverlayDamaged { error: error.to_string() }
            })
        }
        Mode::Volatile | Mode::ReadOnly => Ok(opened),
    });
    let mut mode = if opened.is_ok() { asked } else { without_volume(asked) };
    if mode == Mode::ReadOnly
        && let Err(error) = mount_read_only(lower, upper, sysroot)
    {
        // Somebody asked for less than what this boot can do: it is no reason not to come up.
        warn!("the root is in memory, and not read-only: {error}");
        mode = Mode::Volatile;
    }
    if mode == Mode::Volatile {
        host::mount_volatile(upper, memory_size(lower))?;
        host::mount_overlay(lower, upper, sysroot)?;
    }
    Ok(match opened {
        Ok(volume) => Opened { mode, volume: Some(volume), headers: headers(), degraded: None },
        // If there is a volume, and it does not open, its headers may say why.
        Err(reason) => {
            let headers = if matches!(reason, Reason::OverlayDamaged { .. }) { headers() } else { Vec::new() };
            Opened { mode, volume: None, headers, degraded: Some(reason) }
        }
    })
}

/// Leaves nothing mounted if it fails.
fn mount_read_only(lower: &Path, upper: &Path, sysroot: &Path) -> Result<(), OverlayError> {
    host::mount_volatile(upper, memory_size(lower))?;
    host::mount_read_only(lower, upper, sysroot).inspect_err(|_| {
        for place in
            ALWAYS_WRITABLE.map(|folder| sysroot.join(folder)).iter().map(PathBuf::as_path).chain([sysroot, upper])
        {
            // Not all of them are.
            let _ = unmount(place);
        }
    })
}

/// Notes which changes hide something of this image, before anybody can change anything on it.
fn note_image(lower: &Path, root_hash: RootHash) {
    match shadow::note_image(Path::new(UPPER_MOUNT), lower, root_hash) {
        Ok(Some(count @ 1..)) => info!("{count} changes to the root hide what this image has changed"),
        Ok(_) => {}
        Err(error) => warn!("which changes hide something of this image is not known: {error}"),
    }
}

/// How much memory changes may take. A policy that cannot be read is no reason not to come up.
fn memory_size(lower: &Path) -> MemorySize {
    let policy = policy(lower).unwrap_or_else(|error| {
        warn!("the image's policy of the overlay is not followed: {error}");
        Policy::default()
    });
    policy.volatile_size.unwrap_or(MemorySize::DEFAULT)
}

/// The mode of a boot whose volume cannot be used.
const fn without_volume(asked: Mode) -> Mode {
    match asked {
        Mode::Persistent | Mode::Volatile => Mode::Volatile,
        Mode::ReadOnly => Mode::ReadOnly,
    }
}

/// Where the copies of the header begin that are damaged now.
fn damaged_headers(disk: &Disk) -> Vec<u64> {
    let Ok(partition) = disk.partition(Partition::Root, APPEAR) else { return Vec::new() };
    header::damaged(&partition).unwrap_or_else(|error| {
        warn!("the headers on {} cannot be read: {error}", partition.display());
        Vec::new()
    })
}

/// Opens the volume, and mounts it where that mode has it.
fn open_volume(disk: &Disk, expected: Option<Volume>, mode: Mode, lower: &Path) -> Result<OpenVolume, Reason> {
    let damaged = |error| Reason::OverlayDamaged { error };
    let partition = disk.partition(Partition::Root, APPEAR).map_err(|error| damaged(error.to_string()))?;
    let found = host::identity(&partition).map_err(|error| error.to_string()).map_err(damaged)?;
    let bound = bound::check(&found, expected)?;
    let (unlocked, created) = unlock(&partition, lower).map_err(damaged)?;
    host::open_slot(&partition, &unlocked.key, unlocked.slot).map_err(|error| damaged(error.to_string()))?;
    let (place, mounted) = match mode {
        Mode::Persistent => (UPPER_MOUNT, mount_to_change(Path::new(UPPER_MOUNT))),
        Mode::Volatile | Mode::ReadOnly => (SAVED_MOUNT, host::mount_saved(Path::new(SAVED_MOUNT))),
    };
    mounted.map_err(|error| {
        leave(disk, Path::new(place));
        damaged(error.to_string())
    })?;
    let unbound = bound::bind_opened(&bound, &found, unlocked.provider);
    Ok(OpenVolume {
        uuid: found.uuid,
        built: matches!(expected, Some(Volume::TakenOver { .. })),
        provider: unlocked.provider,
        keyslot: unlocked.slot,
        keyslot_created: created,
        somebody_was_asked: unlocked.was_asked_for,
        unbound,
    })
}

/// nemosd works on what is saved in it, and finds the place for that there.
fn mount_to_change(target: &Path) -> Result<(), OverlayError> {
    host::mount_file_system(target)?;
    if let Err(error) = host::configuration::prepare(target) {
        warn!("no configuration can be brought to this device: {error}");
    }
    Ok(())
}

/// Undoes what was opened, so that memory can take its place.
fn leave(disk: &Disk, place: &Path) {
    // Nothing is mounted if mounting is what failed.
    let _ = unmount(place);
    let _ = fs::remove_dir(place);
    let closed = disk.partition(Partition::Root, APPEAR).map(|partition| host::close(&partition));
    if let Ok(Err(error)) = closed {
        warn!("{error}");
    }
}
