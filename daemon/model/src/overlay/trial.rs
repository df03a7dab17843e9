//! The dead man's switch: what was changed of the overlay has to be confirmed by somebody who can still reach the device, or
//! the device goes back by itself.
//!
//! ```text
//!    SetMode                       Apply
//!       |                            | its step is done
//!       v       a boot begins        v
//!    waiting ---------------------> running --- confirm ---> (kept)
//!       |                            |
//!       | another SetMode            | a boot begins, for whatever reason
//!       v                            v
//!    (replaced)                    (gone back)
//! ```
//!
//! The boot that runs is the only chance: it is the initrd of the next one that goes back, so that a boot which never reaches
//! the daemon ends like one that nobody confirmed. What makes that next boot happen is a timer of systemd that the initrd sets,
//! nemosd when health turns critical, a watchdog, or somebody who pulls the plug.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::job::JobId;
use crate::overlay::{ConfigurationName, Mode, Modes};

/// There while a trial runs, on the running system: what systemd's timer reboots for. nemosd removes it.
pub const RUNNING_FILE: &str = "/run/nemos/trial/running";

/// The unit that reboots when the time is over; the timer of the same name is made by the initrd.
pub const UNIT: &str = "nemos-trial";

/// How much time there can be, in seconds: the boot itself is part of it.
pub const WITHIN: RangeInclusive<u32> = 30..=7 * 24 * 3600;

/// The time from the beginning of a boot within which it has to be confirmed, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Within(u32);

/// Too little time, or too much.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a trial takes from {least} s to {most} s, not {0} s", least = WITHIN.start(), most = WITHIN.end())]
pub struct BadWithin(pub u32);

impl TryFrom<u32> for Within {
    type Error = BadWithin;

    fn try_from(seconds: u32) -> Result<Self, BadWithin> {
        if WITHIN.contains(&seconds) { Ok(Within(seconds)) } else { Err(BadWithin(seconds)) }
    }
}

impl From<Within> for u32 {
    fn from(within: Within) -> u32 {
        within.0
    }
}

/// What is tried, and what is there instead if nobody confirms it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "kebab-case")]
pub enum Tried {
    /// A mode.
    Mode {
        /// It.
        mode: Mode,
        /// Those before it.
        before: Modes,
    },
    /// A configuration.
    Configuration {
        /// Its name.
        name: ConfigurationName,
        /// The one before it.
        before: ConfigurationName,
        /// The job that applied it.
        applied: JobId,
    },
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tried::Mode { mode, .. } => write!(f, "mode {mode}"),
            Tried::Configuration { name, .. } => write!(f, "configuration {name}"),
        }
    }
}

/// A trial that nobody has confirmed yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// What is tried.
    #[serde(flatten)]
    pub tried: Tried,
    /// The time for it.
    pub within: Within,
    /// Whether the boot has begun that is to show it.
    pub running: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_leaves_time_to_boot_and_does_not_last_for_ever() {
        assert_eq!(Within::try_from(600).map(u32::from), Ok(600));
        for seconds in [0, 29, 604_801, u32::MAX] {
            assert_eq!(Within::try_from(seconds), Err(BadWithin(seconds)));
        }
    }
}
