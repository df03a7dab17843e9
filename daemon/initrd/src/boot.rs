//! The boot, from the disk to a root that can be switched to.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nemos_host::boot::{ReportError, write_report};
use nemos_host::fsck;
use nemos_host::integrity::verity::{Verity, VerityError, read_through, signature};
use nemos_host::keys::{read_key_file, wait_for_tpm2};
use nemos_host::mounts::{Mount, MountError, unmount};
use nemos_host::overlay::trial as overlay_trial;
use nemos_host::partitions::{Disk, DiskError};
use nemos_host::state::Store;
use nemos_model::boot::{BadCommandLine, BootReport, CommandLine, REPORT_FILE, REPORT_VERSION, Reason};
use nemos_model::integrity::{
    PRELOADED_MAPPING, PRELOADED_SIGNATURE, Protection, ROOT_SIGNATURE, RootHash, VERITY_MAPPING,
};
use nemos_model::keys::{DEMO_KEY_COPY, DEMO_KEY_FILE};
use nemos_model::overlay::{LOWER_MOUNT, Trial};
use nemos_model::partitions::Partition;
use nemos_model::uki::pcr::{LEFT_BY_STUB, PUBLIC_KEY_FILE, RUNTIME, SIGNATURES_FILE};
use thiserror::Error;
use tracing::{error, info, warn};

use crate::overlay::{self, Opened};
use crate::reset::{self, Done, Place};

/// Where systemd's initrd expects the root.
const SYSROOT: &str = "/sysroot";
/// Where `p.lxstate` is while the initrd works on it.
const STATE: &str = "/run/nemos/state";
/// How long a disk may take to appear: USB and network disks are slow.
const APPEAR: Duration = Duration::from_secs(30);
/// How long a partition may take to appear on a disk of which another one is there: the kernel finds all of them at once.
const SIBLING: Duration = Duration::from_secs(2);

/// Why a boot must not go on.
#[derive(Debug, Error)]
pub enum Refused {
    /// `/proc/cmdline` cannot be read.
    #[error("cannot read /proc/cmdline: {0}")]
    NoCommandLine(io::Error),
    /// It does not say what to boot.
    #[error(transparent)]
    CommandLine(#[from] BadCommandLine),
    /// There is no disk to boot.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The root is not the one that was shipped.
    #[error("{0}. The root file system is damaged or was changed: write the image anew")]
    Root(#[from] VerityError),
    /// The root, or what takes the overlay's place, cannot be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Not even memory can take the overlay's place.
    #[error(transparent)]
    Overlay(#[from] nemos_host::overlay::OverlayError),
    /// The report cannot be left.
    #[error(transparent)]
    Report(#[from] ReportError),
}

/// Opens, carries out, mounts and reports.
pub fn boot() -> Result<(), Refused> {
    let command_line = fs::read_to_string("/proc/cmdline").map_err(Refused::NoCommandLine)?;
    let CommandLine { root_hash, protection, preloaded_hash, factory_reset } = CommandLine::parse(&command_line)?;
    leave_pcr_signatures();
    let disk = Disk::booted(APPEAR)?;
    info!("booting from {}", disk.device.display());

    let readonly = disk.partition(Partition::Readonly, APPEAR)?;
    let signature = signature(ROOT_SIGNATURE)?;
    let root = Verity { mapping: VERITY_MAPPING, partition: &readonly, root_hash, signature, protection }.open()?;
    let lower = Path::new(LOWER_MOUNT);
    Mount::new("squashfs", &root.to_string_lossy()).read_only().on(lower)?;
    // What takes over next is read now, while this program can still say what is wrong with it.
    read_through(&lower.join("sbin/init"))?;

    wait_for_tpm2();
    let sysroot = Path::new(SYSROOT);
    let mut mounts = Mounts { disk: &disk, preloaded_hash, repaired: BTreeSet::new() };
    let done = with_state(&mut mounts, |store, state| {
        let place = Place { disk: &disk, lower, root_hash, state };
        reset::carry_out(store, &place, factory_reset)
    });
    let opened = overlay::open(&disk, done.volume, done.mode, (lower, root_hash), sysroot)?;

    let mut degraded = done.degraded;
    degraded.extend(opened.degraded.clone());
    degraded.extend(mounts.mount_others(sysroot));
    if !done.needs_stage {
        reset::drop_unneeded_stages(sysroot);
    }
    for reason in &degraded {
        error!("degraded: {reason}");
    }
    let Opened { mode, volume, headers, .. } = opened;
    let disk = disk.device.to_string_lossy().into_owned();
    let repaired = mounts.repaired.into_iter().collect();
    let report = BootReport {
        version: REPORT_VERSION,
        disk,
        root_hash,
        preloaded_hash,
        mode,
        volume,
        job: done.job,
        went_back: done.went_back,
        headers,
        repaired,
        degraded,
    };
    write_report(Path::new(REPORT_FILE), &report)?;
    leave_demo_key();
    if let Some(trial) = done.trial {
        begin_trial(&trial);
    }
    info!("the root is ready, its overlay is {mode}");
    Ok(())
}

/// If the timer cannot be set, the next boot goes back all the same, whatever brings it.
fn begin_trial(trial: &Trial) {
    let Trial { tried, within, .. } = trial;
    info!(
        "{tried} is on trial: without `nemosctl overlay confirm`, this boot ends {} s after it began",
        u32::from(*within)
    );
    if let Err(error) = overlay_trial::begin(*within) {
        error!("nothing ends this boot by itself: {error}");
    }
}

/// Where systemd finds them, to have the TPM open the volume now, and another key proven later. An image that is not signed brings
/// none.
fn leave_pcr_signatures() {
    for name in [SIGNATURES_FILE, PUBLIC_KEY_FILE] {
        let (from, to) = (Path::new(LEFT_BY_STUB).join(name), Path::new(RUNTIME).join(name));
        if from.exists()
            && let Err(error) = fs::create_dir_all(RUNTIME).and_then(|()| fs::copy(&from, &to))
        {
            warn!("{} is not left at {}: {error}", from.display(), to.display());
        }
    }
}

/// The daemon can add a key only with one that is there, and everybody who has the image has this one.
fn leave_demo_key() {
    let left = read_key_file(Path::new(DEMO_KEY_FILE)).map(|key| {
        let mut options = fs::File::options();
        let created = options.write(true).create(true).truncate(true).mode(0o400).open(DEMO_KEY_COPY);
        created.and_then(|mut file| file.write_all(key.expose()))
    });
    if let Ok(Err(error)) = left {
        warn!("the demo key is not left for nemosd at {DEMO_KEY_COPY}: {error}");
    }
}

/// Works on the state store while `p.lxstate` is mounted for it. A state that cannot be used means that nothing is
/// carried out: a request that cannot be read is not a request.
fn with_state(mounts: &mut Mounts<'_>, work: impl FnOnce(&Store, &Path) -> Done) -> Done {
    let folder = Path::new(STATE);
    let unusable = |error: &dyn std::error::Error| Done::nothing(Reason::StateUnreadable { error: error.to_string() });
    if let Err(error) = mounts.mount(Partition::State, folder) {
        return Done::nothing(Reason::StateUnreadable { error });
    }
    let done = match Store::open(folder) {
        Ok(store) => work(&store, folder),
        Err(error) => unusable(&error),
    };
    if let Err(error) = unmount(folder) {
        error!("{error}");
    }
    done
}

/// The partitions that are mounted as they are.
struct Mounts<'a> {
    disk: &'a Disk,
    /// Under dm-verity, if the image says so.
    preloaded_hash: Option<RootHash>,
    /// Those whose file system had to be repaired for it.
    repaired: BTreeSet<Partition>,
}

impl Mounts<'_> {
    /// Mounts what has a place of its own below the root. The device comes up without what cannot be mounted.
    fn mount_others(&mut self, sysroot: &Path) -> Vec<Reason> {
        let places = Partition::ALL.into_iter().filter_map(|partition| Some((partition, partition.mount_point()?)));
        let mounted = places.map(|(partition, place)| {
            let target = sysroot.join(place.trim_start_matches('/'));
            self.mount(partition, &target).map_err(|error| Reason::NotMounted { partition, error })
        });
        mounted.filter_map(Result::err).collect()
    }

    fn mount(&mut self, partition: Partition, target: &Path) -> Result<(), String> {
        let device = self.disk.partition(partition, SIBLING).map_err(|error| error.to_string())?;
        let (source, file_system) = (device.to_string_lossy(), partition.file_system());
        let mounted = match partition {
            Partition::OciStorage => Mount::new(file_system, &source).on(target),
            Partition::OciPreloaded => {
                let verified = self.preloaded_hash.map(|hash| open_preloaded(&device, hash)).transpose()?;
                let source = verified.as_deref().unwrap_or(&device).to_string_lossy();
                Mount::new(file_system, &source).read_only().on(target)
            }
            _ => {
                let mount = Mount::new(file_system, &source).option("errors", "remount-ro").data_only();
                fsck::mount(&mount, target).map(|repaired| self.repaired.extend(repaired.then_some(partition)))
            }
        };
        mounted.map_err(|error| error.to_string())
    }
}

/// Opens the containers that are shipped. Damage to them is no reason to stop, whatever the root's policy is.
fn open_preloaded(partition: &Path, root_hash: RootHash) -> Result<PathBuf, String> {
    let open = |signature| {
        let protection = Protection::default();
        Verity { mapping: PRELOADED_MAPPING, partition, root_hash, signature, protection }.open()
    };
    signature(PRELOADED_SIGNATURE).and_then(open).map_err(|error| error.to_string())
}
