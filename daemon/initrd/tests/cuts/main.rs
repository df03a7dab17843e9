//! The power goes: at every flush of what a device writes while it does a job, and in the middle of what it writes
//! between two of them. Whenever that was, the device comes up at the next boot, and the job ends as if nothing had been.
//!
//! What all stories have in common, the overlay's file system being made and a boot with nothing left to do, is cut at every
//! flush in one of them, and at one in eight in the others; and so are those that erase nothing, or have no step that a reset
//! which keeps files has not, each time at others. With `NEMOS_CUTS_ALL=1`, everything is cut everywhere.
//!
//! `NEMOS_CUTS_SEED` chooses what is torn, and how; it chooses from what a device writes, which is never quite the same.
//! With `NEMOS_CUTS_TORN=N`, every interval between two flushes is torn N times, and not only a sample of them.

#![allow(clippy::unwrap_used, reason = "panicking is how a test fails")]
#![allow(clippy::unused_self, reason = "there is one device at a time, and it is the subject of every sentence")]

#[path = "../boot/device.rs"]
mod device;
mod story;
mod table;

use std::env;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use device::Device;
use nemos_model::partitions::Partition;
use nemos_model::reset::{Scope, Step};
use nemos_rig::{Disk, KernelLog, Rng, WriteLog};
use story::{MARK, Story, What};
use table::{Cut, Table, WentOn};

/// One cut in so many is booted twice.
const SECOND_BOOT: usize = 10;
/// One interval in so many is torn, of those that write the state or a header, and of the others.
const SAMPLES: [usize; 2] = [6, 24];
/// One flush in so many is cut, of what another story is cut at every flush of.
const IN_COMMON: usize = 8;
/// After so many failures, more do not help.
const MOST_FAILURES: usize = 5;

fn main() -> ExitCode {
    nemos_rig::main_apart(nemos_rig::tests![
        a_factory_reset_that_keeps_files,
        an_overlay_reset_that_keeps_files,
        a_new_volume_key,
        a_factory_reset,
        an_overlay_reset,
        a_first_boot,
        a_revert,
        saving,
        applying,
        applying_on_trial,
    ])
}

fn a_factory_reset_that_keeps_files() {
    let kept = ["/etc/app", "/home/admin/kept", "/var/lib/containers/storage/kept"];
    is_cut_everywhere(Story::of(What::Reset(Scope::Factory, kept.to_vec())));
}

fn an_overlay_reset_that_keeps_files() {
    is_cut_everywhere(Story::of(What::Reset(Scope::Overlay, vec!["/etc/app"])));
}

fn a_new_volume_key() {
    is_cut_everywhere(Story::of(What::KeepAll(Partition::OciStorage)));
}

fn a_factory_reset() {
    is_cut_everywhere(Story::of(What::Reset(Scope::Factory, vec![])));
}

fn an_overlay_reset() {
    is_cut_everywhere(Story::of(What::Reset(Scope::Overlay, vec![])));
}

fn a_first_boot() {
    is_cut_everywhere(Story::of_a_first_boot());
}

fn a_revert() {
    is_cut_everywhere(Story::of(What::Revert(vec!["/etc/app"])));
}

fn saving() {
    is_cut_everywhere(Story::of(What::Save));
}

fn applying() {
    is_cut_everywhere(Story::of_what_was_saved(None));
}

/// The boot after a cut goes back, if it was tried before it; so that the way back is cut at every flush, too.
fn applying_on_trial() {
    is_cut_everywhere(Story::of_what_was_saved(Some(60)));
}

fn is_cut_everywhere((device, story): (Device, Story)) {
    let places = Places::on(&device);
    let mut log = device.into_log();
    assert!(!log.wrote(MARK, &places.state), "what is kept waits in plain text");
    let seed = seed();
    let mut random = Rng::with_seed(seed);
    let mut cuts = Cuts { story, table: Table::new(), is_asked: false, went_on: None, failures: Vec::new() };
    let (mut flush, mut is_new) = (0, true);
    loop {
        let is_left_out = cuts.is_sampled() && random.usize(..IN_COMMON) > 0;
        if is_new && !is_left_out {
            cuts.boot(Cut::Flush(flush), log.cut(), random.usize(..SECOND_BOOT) == 0);
        }
        cuts.table.leave_out(is_new && is_left_out);
        for _ in 0..places.tears(&log, &mut random) {
            cuts.boot(Cut::Torn(flush), log.torn(&mut random), random.usize(..SECOND_BOOT) == 0);
        }
        is_new = log.unsafe_writes() > 0;
        if cuts.failures.len() >= MOST_FAILURES || !log.goes_on() {
            break;
        }
        flush += 1;
        cuts.table.flush(is_new);
    }
    let Cuts { story, table, failures, .. } = cuts;
    println!("\n{story}\n{table}    NEMOS_CUTS_SEED={seed}\n");
    assert!(failures.is_empty(), "not as it should be when the power goes: {}", failures.join(", "));
}

/// The cuts of one story so far.
struct Cuts {
    story: Story,
    table: Table,
    /// Whether a flush has made the request last.
    is_asked: bool,
    /// Where the device went on after the last cut at a flush.
    went_on: Option<WentOn>,
    failures: Vec<String>,
}

impl Cuts {
    /// Whether what is written now is a sample's: as in every other story, one of which is cut at each flush of it (as far as the
    /// last cut tells, so that the first flushes of what comes after it may be left out with it), or of a story whose steps others have.
    fn is_sampled(&self) -> bool {
        let is_asked_for_all = env::var_os("NEMOS_CUTS_ALL").is_some();
        let in_common = [WentOn::At(Step::CreateOverlay.to_string()), WentOn::Done];
        !is_asked_for_all
            && !self.story.is_a_first_boot()
            && (!self.story.keeps_files() || self.went_on.as_ref().is_some_and(|at| in_common.contains(at)))
    }

    /// Boots what a cut left.
    fn boot(&mut self, cut: Cut, disk: Disk, twice: bool) {
        let device = Device::with(disk);
        let mut kernel = KernelLog::from_now();
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let went_on = self.story.goes_on(&device, twice);
            assert!(!self.is_asked || went_on != WentOn::NotAsked, "the request was safe, and is lost");
            went_on
        }));
        if let Ok(went_on) = ended {
            if matches!(cut, Cut::Flush(_)) {
                self.went_on = Some(went_on.clone());
            }
            self.is_asked |= went_on != WentOn::NotAsked && matches!(cut, Cut::Flush(_));
            self.table.add(cut, went_on, twice);
        } else {
            // The panic has said why.
            println!("The power went {cut}. The kernel said:\n{}", kernel.messages());
            self.failures.push(cut.to_string());
        }
    }
}

/// Where on the disk what a boot depends on most is.
struct Places {
    state: Range<u64>,
    header: Range<u64>,
}

impl Places {
    fn on(device: &Device) -> Self {
        let root = device.extent(Partition::Root);
        Places { state: device.extent(Partition::State), header: root.start..root.start + (16 << 20) }
    }

    /// How often the interval that comes now is torn.
    fn tears(&self, log: &WriteLog, random: &mut Rng) -> usize {
        if log.unsafe_writes() == 0 {
            return 0;
        }
        let matters = log.writes_to(&self.state) || log.writes_to(&self.header);
        let asked = env::var("NEMOS_CUTS_TORN").ok();
        let sample = SAMPLES[usize::from(!matters)];
        asked.map_or_else(|| usize::from(random.usize(..sample) == 0), |times| times.parse().unwrap())
    }
}

fn seed() -> u64 {
    env::var("NEMOS_CUTS_SEED").map_or_else(|_| Rng::new().u64(..), |seed| seed.parse().unwrap())
}
