//! What a device went through, and so what it must be.

use std::fmt;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nemos_host::overlay::configuration;
use nemos_model::JobId;
use nemos_model::job::{Job, JobState};
use nemos_model::overlay::UPPER_MOUNT;
use nemos_model::partitions::Partition;
use nemos_model::reset::{Scope, Step};
use nemos_model::state::Volume;
use rustix::fs::{XattrFlags, getxattr, setxattr};

use crate::device::{Device, Running, on_the_device};
use crate::table::WentOn;

/// Text that is nowhere else on a disk, in the files that are kept.
pub const MARK: &str = "8d1f6c0e-what-nobody-may-read";

/// What is looked at.
const PATHS: [&str; 11] = [
    "/etc/hostname",
    "/etc/app",
    "/etc/app/config",
    "/etc/app/shipped",
    "/home/note",
    "/home/admin",
    "/home/admin/kept",
    "/home/admin/other",
    "/var/lib/containers/storage/layer",
    "/var/lib/containers/storage/kept",
    "/var/lib/containers/storage/kept/layer",
];

/// What a device went through.
pub struct Story {
    /// What was asked of it, if it was not only switched on.
    asked: Option<Asked>,
    /// What is at [`PATHS`] where it was erased, and what was there before it was asked.
    shipped: Vec<String>,
    used: Vec<String>,
    /// The volume before it was asked.
    volume: Volume,
    /// How many jobs there are without the one that was asked for.
    jobs: usize,
}

struct Asked {
    job: JobId,
    what: What,
}

/// What somebody asks of a device.
#[derive(Clone, PartialEq, Eq)]
pub enum What {
    /// A reset of that scope, which keeps these paths.
    Reset(Scope, Vec<&'static str>),
    /// A new volume key for all that there is, which waits on that partition.
    KeepAll(Partition),
    /// To take the changes at and below these paths back.
    Revert(Vec<&'static str>),
    /// To save the changes.
    Save,
    /// To have what was saved again, with so many seconds to confirm it, if it has to be confirmed.
    Apply(Option<u32>),
}

/// The name of what is saved.
const NAME: &str = "site";

impl Story {
    /// A device that was used, and then asked for this; what it wrote since then is logged.
    pub fn of(what: What) -> (Device, Self) {
        let device = Device::provisioned();
        let running = device.boots();
        let shipped = everything();
        use_it(&running);
        let used = everything();
        running.shuts_down();
        let volume = device.state().volume;
        let device = device.logged();
        let job = match &what {
            What::Reset(scope, keep) => device.is_asked_for_a_reset(*scope, keep),
            What::KeepAll(on) => device.is_asked_to_keep_everything(*on),
            What::Revert(paths) => device.is_asked_to_revert(paths),
            What::Save => device.is_asked_to_save(NAME),
            What::Apply(_) => panic!("see `of_what_was_saved`"),
        };
        device.boots().shuts_down();
        (device, Story { asked: Some(Asked { job, what }), shipped, used, volume, jobs: 1 })
    }

    /// A device that was used, saved, used again, and then asked for what was saved.
    pub fn of_what_was_saved(within: Option<u32>) -> (Device, Self) {
        let device = Device::provisioned();
        let running = device.boots();
        use_it(&running);
        running.shuts_down();
        device.is_asked_to_save(NAME);
        let running = device.boots();
        let shipped = everything();
        running.writes("/etc/hostname", "later");
        running.writes("/etc/app/shipped", "later");
        fs::remove_file(on_the_device("/etc/app/config")).unwrap();
        let used = everything();
        running.shuts_down();
        let volume = device.state().volume;
        let device = device.logged();
        let job = device.is_asked_to_apply(NAME, within);
        device.boots().shuts_down();
        (device, Story { asked: Some(Asked { job, what: What::Apply(within) }), shipped, used, volume, jobs: 2 })
    }

    /// A device that was switched on.
    pub fn of_a_first_boot() -> (Device, Self) {
        let device = Device::shipped().logged();
        let running = device.boots();
        let shipped = everything();
        running.shuts_down();
        (device, Story { asked: None, used: shipped.clone(), shipped, volume: Volume::NeverProvisioned, jobs: 1 })
    }

    pub const fn is_a_first_boot(&self) -> bool {
        self.asked.is_none()
    }

    /// Whether it is one of a reset that keeps files: that has each step of one which keeps none.
    pub fn keeps_files(&self) -> bool {
        let keeps = |asked: &Asked| matches!(&asked.what, What::Reset(_, kept) if !kept.is_empty());
        self.asked.as_ref().is_some_and(keeps)
    }

    /// Boots the device after the power came back: everything must be as if it had not gone.
    pub fn goes_on(&self, device: &Device, twice: bool) -> WentOn {
        let mut running = device.boots();
        running.is_healthy();
        let found = everything();
        let went_back = running.report.went_back.is_some();
        let is_saved = configuration::list(Path::new(UPPER_MOUNT)).unwrap();
        let went_on = running.said.lines().find_map(step).map_or(WentOn::Done, WentOn::At);
        running.shuts_down();

        let state = device.state();
        let asked = self.asked.as_ref().filter(|asked| state.job(asked.job).is_some());
        // Whatever was tried before the power went was not confirmed.
        let tries = asked.is_some_and(|asked| matches!(asked.what, What::Apply(Some(_))));
        let stays = asked.filter(|_| !(tries && went_back));
        self.is_as_it_should_be(stays, &found);
        if asked.is_some_and(|asked| asked.what == What::Save) {
            assert!(matches!(&is_saved[..], [(name, Ok(_))] if name.as_str() == NAME), "{is_saved:?}");
        }
        let makes_a_volume = self.is_a_first_boot() || asked.is_some_and(|asked| asked.what.makes_a_volume());
        assert_eq!(state.volume != self.volume, makes_a_volume, "{:?} after {:?}", state.volume, self.volume);
        assert_eq!(state.pending(), None);
        let jobs = self.jobs + usize::from(asked.is_some()) + usize::from(tries && went_back);
        assert_eq!(state.jobs().len(), jobs, "each job is there once: {:?}", state.jobs());
        for job in state.jobs() {
            assert_eq!((job.state, &job.attempts[..]), (JobState::Done, &[][..]), "a power cut is not a failure");
            assert_eq!(steps(job), job.all_steps(), "each step is done once");
        }
        if twice {
            let mut again = device.boots();
            again.is_healthy();
            if tries && !went_back {
                self.is_as_it_should_be(None, &everything());
                assert!(again.report.went_back.is_some(), "nobody has confirmed it");
                again.shuts_down();
            } else {
                assert_eq!(again.report.job, None, "nothing is left to do");
                self.is_as_it_should_be(stays, &everything());
                again.shuts_down();
                assert_eq!(device.state(), state);
            }
        }
        match &self.asked {
            Some(_) if asked.is_none() => WentOn::NotAsked,
            _ => went_on,
        }
    }

    /// What was kept, and what nobody asked to erase, is as it was; all else is as it was shipped.
    #[track_caller]
    fn is_as_it_should_be(&self, asked: Option<&Asked>, found: &[String]) {
        for (index, path) in PATHS.iter().enumerate() {
            let is_erased = asked.is_some_and(|asked| asked.erases(path));
            let should_be = if is_erased { &self.shipped[index] } else { &self.used[index] };
            assert_eq!(&found[index], should_be, "{path}");
        }
    }
}

impl What {
    const fn makes_a_volume(&self) -> bool {
        matches!(self, What::Reset(..) | What::KeepAll(_))
    }
}

impl Asked {
    fn erases(&self, path: &str) -> bool {
        let is_below = |folder: &str| Path::new(path).starts_with(folder);
        match &self.what {
            What::Reset(scope, keep) => {
                let is_in_scope = *scope == Scope::Factory || !is_below("/home") && !is_below("/var/lib/containers");
                // What a kept path is in comes back with it.
                let is_kept = keep.iter().any(|kept| is_below(kept) || Path::new(kept).starts_with(path));
                is_in_scope && !is_kept
            }
            What::Revert(paths) => paths.iter().any(|taken| is_below(taken)),
            What::Save | What::KeepAll(_) => false,
            What::Apply(_) => !is_below("/home") && !is_below("/var/lib/containers"),
        }
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.asked {
            None => f.write_str("The power goes during a first boot:"),
            Some(Asked { what: What::Reset(scope, keep), .. }) if keep.is_empty() => {
                write!(f, "The power goes during a reset of scope {scope} that keeps nothing:")
            }
            Some(Asked { what: What::Reset(scope, keep), .. }) => {
                write!(f, "The power goes during a reset of scope {scope} that keeps {}:", keep.join(", "))
            }
            Some(Asked { what: What::KeepAll(on), .. }) => {
                write!(f, "The power goes while all of the overlay waits on {on} for a new volume key:")
            }
            Some(Asked { what: What::Revert(paths), .. }) => {
                write!(f, "The power goes while {} is taken back:", paths.join(", "))
            }
            Some(Asked { what: What::Save, .. }) => f.write_str("The power goes while the changes are saved:"),
            Some(Asked { what: What::Apply(None), .. }) => {
                f.write_str("The power goes while saved changes are applied:")
            }
            Some(Asked { what: What::Apply(Some(_)), .. }) => {
                f.write_str("The power goes while saved changes are applied that have to be confirmed:")
            }
        }
    }
}

fn steps(job: &Job) -> Vec<Step> {
    job.steps.iter().map(|done| done.step).collect()
}

/// The step that a line of nemos-initrd's is the beginning of.
fn step(line: &str) -> Option<String> {
    let (_, after) = line.split_once("job ")?;
    let (_, name) = after.split_once(": ")?;
    Step::ALL
        .iter()
        .chain(&[Step::Revert, Step::Save, Step::Apply, Step::GoBack])
        .find(|step| step.name() == name)
        .map(Step::to_string)
}

/// Writes to the root, home and the containers, with all that a copy can lose.
fn use_it(running: &Running<'_>) {
    for path in PATHS.iter().filter(|path| path.rsplit('/').next() != Some("app")) {
        if !["/etc/app/shipped", "/home/admin", "/var/lib/containers/storage/kept"].contains(path) {
            running.writes(path, &format!("{MARK} in {path}"));
        }
    }
    let config = on_the_device("/etc/app/config");
    setxattr(&config, "user.note", b"mine", XattrFlags::empty()).unwrap();
    chown(&config, Some(1000), Some(1001)).unwrap();
    fs::set_permissions(&config, PermissionsExt::from_mode(0o4750)).unwrap();
    fs::set_permissions(on_the_device("/home/admin"), PermissionsExt::from_mode(0o751)).unwrap();
    // The image has it, and somebody deleted it.
    fs::remove_file(on_the_device("/etc/app/shipped")).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for path in ["/etc/app/config", "/etc/app", "/home/admin/kept", "/var/lib/containers/storage/kept"] {
        fs::File::open(on_the_device(path)).unwrap().set_modified(then).unwrap();
    }
}

/// What is at [`PATHS`] on the device that is up.
fn everything() -> Vec<String> {
    PATHS.iter().map(|path| description(&on_the_device(path)).unwrap_or_else(|| "nothing".into())).collect()
}

fn description(path: &Path) -> Option<String> {
    let found = fs::symlink_metadata(path).ok()?;
    let mut note = [0; 64];
    let note = getxattr(path, "user.note", &mut note[..]).map(|length| note[..length].to_vec()).unwrap_or_default();
    // The times of a folder that is not kept itself change with what is in it.
    let modified = found.is_file().then(|| (found.mtime(), found.mtime_nsec()));
    Some(format!(
        "mode {:o}, owner {}:{}, modified {modified:?}, note {:?}, content {:?}",
        found.mode(),
        found.uid(),
        found.gid(),
        String::from_utf8_lossy(&note),
        fs::read_to_string(path).ok(),
    ))
}
