//! Where changes to the root go: at this boot, and at the next.
//!
//! | mode | `/` | changes of other boots | changes of this boot |
//! | --- | --- | --- | --- |
//! | persistent | the encrypted volume over the image | are there | stay |
//! | volatile | memory over the image | wait on the volume | are gone at the next boot |
//! | readonly | the image; memory over `/etc` and `/var` | wait on the volume | only to `/etc` and `/var`, and gone at the next boot |

use serde::{Deserialize, Serialize};

use crate::words::words;

/// Folders that take changes even where the root takes none: hardly any program does without.
pub const ALWAYS_WRITABLE: [&str; 2] = ["etc", "var"];

words! {
    /// Where changes to the root go.
    Mode {
        /// The encrypted volume: changes stay.
        Persistent = "persistent",
        /// Memory: changes are gone at the next boot.
        Volatile = "volatile",
        /// Nowhere, but for [`ALWAYS_WRITABLE`].
        ReadOnly = "readonly",
    }
}

/// Which mode was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modes {
    /// Until another one is asked for.
    mode: Mode,
    /// At the next boot, and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    once: Option<Mode>,
}

impl Default for Modes {
    fn default() -> Self {
        Modes { mode: Mode::Persistent, once: None }
    }
}

impl Modes {
    /// Whether nothing was asked for.
    pub fn is_default(&self) -> bool {
        *self == Modes::default()
    }

    /// Mode of the next boot.
    pub const fn next(&self) -> Mode {
        match self.once {
            Some(mode) => mode,
            None => self.mode,
        }
    }

    /// Mode of the boots after it.
    pub const fn then(&self) -> Mode {
        self.mode
    }

    /// Asks for a mode: from the next boot on, or for that boot alone.
    pub fn set(&mut self, mode: Mode, once: bool) {
        if once {
            self.once = (mode != self.mode).then_some(mode);
        } else {
            *self = Modes { mode, once: None };
        }
    }

    /// A boot begins: what was asked for it alone is not there for another.
    pub fn begin(&mut self) -> Mode {
        let mode = self.next();
        self.once = None;
        mode
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_asked_for_one_boot_ends_with_it() {
        let mut modes = Modes::default();
        modes.set(Mode::Volatile, true);
        assert_eq!((modes.next(), modes.then()), (Mode::Volatile, Mode::Persistent));
        assert_eq!(modes.begin(), Mode::Volatile);
        assert!(modes.is_default());
        modes.set(Mode::ReadOnly, false);
        assert_eq!([modes.begin(), modes.begin()], [Mode::ReadOnly; 2]);
        modes.set(Mode::Volatile, true);
        modes.set(Mode::ReadOnly, true);
        assert_eq!((modes.next(), modes.then()), (Mode::ReadOnly, Mode::ReadOnly));
    }

    proptest! {
        /// Whatever was asked before, the last word counts.
        #[test]
        fn the_last_word_counts(asked in prop::collection::vec((0..3usize, any::<bool>(), any::<bool>()), 1..12)) {
            let mut modes = Modes::default();
            let mut standing = Mode::Persistent;
            for (mode, once, boots) in asked {
                let mode = Mode::ALL[mode];
                modes.set(mode, once);
                if !once {
                    standing = mode;
                }
                prop_assert_eq!((modes.next(), modes.then()), (mode, standing));
                if boots {
                    prop_assert_eq!(modes.begin(), mode);
                    prop_assert_eq!(modes.next(), standing);
                }
            }
        }
    }
}
