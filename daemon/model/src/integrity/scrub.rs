//! Scrubs: a volume is read from its beginning to its end, to find damage before somebody needs what is damaged.
//!
//! ```text
//!     (none) --begin--> running --end--> done
//!                        |  ^  `--cancel--> cancelled
//!                        |  `--resume--- (nemosd was restarted, or the device)
//!                        `--error--> failed
//! ```

#![allow(clippy::cast_precision_loss, reason = "shares and rates are not exact to the byte")]

use std::num::NonZeroU64;
use std::time::Duration;

use thiserror::Error;

use crate::Timestamp;
use crate::integrity::Volume;
use crate::integrity::event::Area;
use crate::words::words;

words! {
    /// How a scrub stands.
    ScrubState {
        /// It reads, or goes on to when nemosd runs again.
        Running = "running",
        /// It has read everything.
        Done = "done",
        /// Somebody has stopped it.
        Cancelled = "cancelled",
        /// It could not read on, for another reason than damage.
        Failed = "failed",
    }
}

/// The newest scrub of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scrub {
    /// Of which.
    pub volume: Volume,
    /// Of which one under that name.
    pub incarnation: String,
    /// How it stands.
    pub state: ScrubState,
    /// When it was begun.
    pub started: Timestamp,
    /// When it came to its end, whichever.
    pub ended: Option<Timestamp>,
    /// Where it goes on, in bytes from the beginning of the volume.
    pub position: u64,
    /// Bytes that were read.
    pub checked: u64,
    /// Bytes that are to be read.
    pub total: u64,
    /// Blocks that are damaged.
    pub damaged: u64,
    /// Bytes a second that it may read; `None` for as many as come.
    pub rate: Option<NonZeroU64>,
    /// When the last one that read everything began; damage that was last seen before that is gone.
    pub last_complete: Option<Timestamp>,
    /// Why it failed.
    pub error: Option<String>,
}

/// A stretch of a volume that was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// Where the next one begins.
    pub position: u64,
    /// Bytes that were read.
    pub read: u64,
    /// Bytes that the whole scrub reads.
    pub total: u64,
    /// What is damaged, and where it begins.
    pub damaged: Vec<(Area, u64)>,
    /// What is damaged, too, and is mended whenever it is read.
    pub corrected: Vec<(Area, u64)>,
}

/// A scrub that waits still hears that it is cancelled.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A scrub that is not begun, or not ended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotScrubbed {
    /// One runs.
    #[error(
        "{0} is being scrubbed; `nemosctl integrity` shows how far it is, `nemosctl integrity scrub --cancel` stops it"
    )]
    Running(Volume),
    /// None runs.
    #[error("{0} is not being scrubbed")]
    NotRunning(Volume),
    /// Its file system tells nothing that could be compared.
    #[error("{0} cannot be scrubbed: only {list} have a checksum of every block", list = SCRUBBED.map(Volume::name).join(", "))]
    NotSupported(Volume),
}

/// The volumes that can be scrubbed; the containers that are shipped, if they are under dm-verity.
pub const SCRUBBED: [Volume; 3] = [Volume::Root, Volume::Overlay, Volume::Preloaded];

impl Scrub {
    /// A scrub that begins now, after `last`.
    pub fn begin(
        last: Option<&Scrub>,
        volume: Volume,
        incarnation: String,
        rate: Option<NonZeroU64>,
        now: Timestamp,
    ) -> Result<Self, NotScrubbed> {
        if !SCRUBBED.contains(&volume) {
            return Err(NotScrubbed::NotSupported(volume));
        }
        if last.is_some_and(|last| last.state == ScrubState::Running && last.incarnation == incarnation) {
            return Err(NotScrubbed::Running(volume));
        }
        let last_complete = last.filter(|last| last.incarnation == incarnation).and_then(|last| last.last_complete);
        Ok(Scrub {
            volume,
            incarnation,
            state: ScrubState::Running,
            started: now,
            ended: None,
            position: 0,
            checked: 0,
            total: 0,
            damaged: 0,
            rate,
            last_complete,
            error: None,
        })
    }

    /// It went on to `position`.
    pub fn step(&mut self, step: &Step) {
        self.position = step.position;
        self.checked += step.read;
        self.total = step.total.max(self.checked);
        self.damaged += step.damaged.len() as u64;
    }

    /// How long to wait now, `elapsed` after it began to read or to read on and `read` bytes later, so that it keeps to its rate.
    pub fn pause(&self, read: u64, elapsed: Duration) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let due = Duration::from_secs_f64(read as f64 / rate.get() as f64);
        due.saturating_sub(elapsed).min(LONGEST_PAUSE)
    }

    /// It came to an end.
    pub fn end(&mut self, outcome: Result<(), String>, now: Timestamp) {
        self.ended = Some(now);
        match outcome {
            Ok(()) => {
                self.state = ScrubState::Done;
                self.last_complete = Some(self.started);
            }
            Err(error) => {
                self.state = ScrubState::Failed;
                self.error = Some(error);
            }
        }
    }

    /// Somebody stops it.
    pub fn cancel(&mut self, now: Timestamp) -> Result<(), NotScrubbed> {
        if self.state != ScrubState::Running {
            return Err(NotScrubbed::NotRunning(self.volume));
        }
        self.state = ScrubState::Cancelled;
        self.ended = Some(now);
        Ok(())
    }

    /// How much of the volume was read, 0 to 1.
    pub fn coverage(&self) -> f64 {
        match self.state {
            ScrubState::Done => 1.0,
            _ if self.total == 0 => 0.0,
            _ => (self.checked as f64 / self.total as f64).min(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn begun(last: Option<&Scrub>, at: u64) -> Result<Scrub, NotScrubbed> {
        Scrub::begin(last, Volume::Root, "ab".into(), None, Timestamp(at))
    }

    #[test]
    fn one_at_a_time() {
        let first = begun(None, 1).unwrap();
        assert_eq!(begun(Some(&first), 2), Err(NotScrubbed::Running(Volume::Root)));
        let other_root = Scrub::begin(Some(&first), Volume::Root, "cd".into(), None, Timestamp(2));
        assert!(other_root.is_ok(), "the one that runs is of a root that is gone");
    }

    #[test]
    fn only_a_complete_one_vouches_for_the_volume() {
        let mut first = begun(None, 1).unwrap();
        first.end(Ok(()), Timestamp(5));
        assert_eq!(first.last_complete, Some(Timestamp(1)));
        let mut second = begun(Some(&first), 10).unwrap();
        assert_eq!(second.cancel(Timestamp(11)), Ok(()));
        assert_eq!(second.cancel(Timestamp(12)), Err(NotScrubbed::NotRunning(Volume::Root)));
        let mut third = begun(Some(&second), 20).unwrap();
        third.end(Err("cannot read".into()), Timestamp(21));
        assert_eq!(third.last_complete, Some(Timestamp(1)));
    }

    #[test]
    fn what_has_no_checksums_is_refused() {
        let refused = Scrub::begin(None, Volume::Home, String::new(), None, Timestamp(1));
        assert_eq!(refused, Err(NotScrubbed::NotSupported(Volume::Home)));
    }

    #[test]
    fn a_rate_is_kept() {
        let scrub = Scrub { rate: NonZeroU64::new(1 << 20), ..begun(None, 1).unwrap() };
        assert_eq!(scrub.pause(1 << 19, Duration::ZERO), Duration::from_millis(500));
        assert_eq!(scrub.pause(1 << 20, Duration::from_secs(2)), Duration::ZERO);
        assert_eq!(scrub.pause(1 << 30, Duration::ZERO), LONGEST_PAUSE);
        assert_eq!(begun(None, 1).unwrap().pause(1 << 30, Duration::ZERO), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn it_counts_what_it_reads(steps in prop::collection::vec((0_u64..1 << 40, 0_usize..3), 0..20)) {
            let mut scrub = begun(None, 1).unwrap();
            for (read, damaged) in &steps {
                let damaged = vec![(Area::Data, 0); *damaged];
                scrub.step(&Step { position: scrub.position + read, read: *read, total: 1 << 41, damaged, ..Step::default() });
            }
            prop_assert_eq!(scrub.checked, steps.iter().map(|(read, _)| read).sum::<u64>());
            prop_assert!((0.0..=1.0).contains(&scrub.coverage()));
        }

        #[test]
        fn coverage_is_a_share(checked: u64, total: u64) {
            let scrub = Scrub { checked, total, ..begun(None, 1).unwrap() };
            prop_assert!((0.0..=1.0).contains(&scrub.coverage()));
        }
    }
}
