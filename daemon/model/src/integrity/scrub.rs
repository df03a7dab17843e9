//! Scrubs: a volume is read from its beginning to its end, to find damage before somebody needs what is damaged.
//!
//! ```text
//!     (none) --begin--> running --end--> done
//!                        |  ^  `--cancel--> cancelled
//!                        |  `--resume--- (nemosd was restarted, or the device)
//!                        `--error--> failed
//! ```

use std::num::NonZeroU64;

use thiserror::Error;

use crate::Timestamp;
use crate::integrity::Volume;
use crate::integrity::words::words;

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
    /// Bytes that were read: it goes on there.
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

/// The volumes that can be scrubbed.
pub const SCRUBBED: [Volume; 2] = [Volume::Root, Volume::Overlay];

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
            checked: 0,
            total: 0,
            damaged: 0,
            rate,
            last_complete,
            error: None,
        })
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
    #[allow(clippy::cast_precision_loss, reason = "a share of a disk is not exact to the byte")]
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

    proptest! {
        #[test]
        fn coverage_is_a_share(checked: u64, total: u64) {
            let scrub = Scrub { checked, total, ..begun(None, 1).unwrap() };
            prop_assert!((0.0..=1.0).contains(&scrub.coverage()));
        }
    }
}
