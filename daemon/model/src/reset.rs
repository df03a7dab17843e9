//! Factory reset: what goes, what stays, and in which order.
//!
//! Provisioning at the first boot is the tail of the same list: a device that was reset is a device that boots for
//! the first time.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::partitions::Partition;

/// How much a reset takes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Everything that was made on the device: the overlay, containers pulled or built on it, home.
    Factory,
}

/// A scope that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is not a scope of a reset; there is `factory`")]
pub struct UnknownScope(pub String);

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        match text {
            "factory" => Ok(Scope::Factory),
            other => Err(UnknownScope(other.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scope::Factory => "factory",
        })
    }
}

/// One step of a reset. Each can be repeated from its start, whatever an interruption left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Overwrite both LUKS headers and all key slots of the overlay: from here on its old contents are noise.
    DestroyKeys,
    /// Format the overlay's volume with a volume key of its own, and write every sector once, so that each has a
    /// valid tag.
    CreateVolume,
    /// Make the overlay's file system in it.
    CreateOverlay,
    /// Make the containers storage anew.
    FormatOciStorage,
    /// Make `/home` anew.
    FormatHome,
}

impl Step {
    /// What the first boot of an image does.
    pub const PROVISION: &'static [Step] =
        &[Step::CreateVolume, Step::CreateOverlay, Step::FormatOciStorage, Step::FormatHome];

    const FACTORY: &'static [Step] =
        &[Step::DestroyKeys, Step::CreateVolume, Step::CreateOverlay, Step::FormatOciStorage, Step::FormatHome];

    /// The name used in files and on the bus.
    pub const fn name(self) -> &'static str {
        match self {
            Step::DestroyKeys => "destroy-keys",
            Step::CreateVolume => "create-volume",
            Step::CreateOverlay => "create-overlay",
            Step::FormatOciStorage => "format-oci-storage",
            Step::FormatHome => "format-home",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Scope {
    /// The steps of such a reset, in order. Keys go first: an interruption after that has nothing left to leak.
    pub const fn steps(self) -> &'static [Step] {
        match self {
            Scope::Factory => Step::FACTORY,
        }
    }

    /// What goes, and how.
    pub const fn erased(self) -> &'static [(Partition, Erasure)] {
        match self {
            Scope::Factory => &[
                (Partition::Root, Erasure::KeyDestroyed),
                (Partition::OciStorage, Erasure::Formatted),
                (Partition::Home, Erasure::Formatted),
            ],
        }
    }

    /// What stays as it is.
    pub fn kept(self) -> impl Iterator<Item = Partition> {
        Partition::ALL.into_iter().filter(move |partition| self.erased().iter().all(|(erased, _)| erased != partition))
    }
}

/// How a partition's contents go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Erasure {
    /// The key that the contents are encrypted with is gone: nobody can read them.
    KeyDestroyed,
    /// A new, empty file system: not reachable any more, but not overwritten either.
    Formatted,
}

impl fmt::Display for Erasure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Erasure::KeyDestroyed => "key destroyed",
            Erasure::Formatted => "formatted",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_destroyed_before_anything_else() {
        assert_eq!(Scope::Factory.steps().first(), Some(&Step::DestroyKeys));
    }

    #[test]
    fn a_reset_ends_like_a_first_boot() {
        assert!(Scope::Factory.steps().ends_with(Step::PROVISION));
    }

    #[test]
    fn the_image_and_the_state_are_never_erased() {
        let kept: Vec<_> = Scope::Factory.kept().collect();
        for partition in [Partition::Esp, Partition::OciPreloaded, Partition::Readonly, Partition::State] {
            assert!(kept.contains(&partition), "{partition} must outlive a reset");
        }
    }
}
