//! Reset: what goes, what stays, and in which order.
//!
//! Provisioning at the first boot is the middle of the same list: a device that was reset is a device that boots for
//! the first time.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::partitions::Partition;

pub mod audit;
pub mod header;
pub mod keep;
pub mod plan;

pub use keep::{Keep, KeptPath, SetName};
pub use plan::Plan;

/// How much a reset takes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// All changes to the root: the overlay. Containers and home stay.
    Overlay,
    /// Everything that was made on the device: the overlay, containers pulled or built on it, home.
    Factory,
}

/// What somebody wishes of a reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// How much is taken back.
    pub scope: Scope,
    /// What is kept of it; each must be there.
    pub keep: Vec<KeptPath>,
    /// Keep sets of the image; what they name need not be there.
    pub sets: Vec<SetName>,
    /// Whether everything on the overlay's volume is kept, and only its key is another then.
    pub everything: bool,
}

impl Wish {
    /// A reset that keeps nothing.
    pub const fn all(scope: Scope) -> Self {
        Wish { scope, keep: Vec::new(), sets: Vec::new(), everything: false }
    }

    /// Whether anything is to be kept.
    pub const fn keeps(&self) -> bool {
        self.everything || !self.keep.is_empty() || !self.sets.is_empty()
    }
}

/// A scope that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is not a scope of a reset; there are `overlay` and `factory`")]
pub struct UnknownScope(pub String);

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        match text {
            "overlay" => Ok(Scope::Overlay),
            "factory" => Ok(Scope::Factory),
            other => Err(UnknownScope(other.chars().take(80).collect())),
        }
    }
}

impl Scope {
    /// All scopes, smallest first.
    pub const ALL: [Scope; 2] = [Scope::Overlay, Scope::Factory];

    /// The name used in files, on the bus and by people.
    pub const fn name(self) -> &'static str {
        match self {
            Scope::Overlay => "overlay",
            Scope::Factory => "factory",
        }
    }

    /// What goes, and how.
    pub const fn erased(self) -> &'static [(Partition, Erasure)] {
        const FACTORY: &[(Partition, Erasure)] = &[
            (Partition::Root, Erasure::KeyDestroyed),
            (Partition::OciStorage, Erasure::Formatted),
            (Partition::Home, Erasure::Formatted),
        ];
        match self {
            Scope::Overlay => FACTORY.split_at(1).0,
            Scope::Factory => FACTORY,
        }
    }

    /// What goes, and how, of a reset that keeps so much.
    pub fn erased_by(self, keeping: Keeping) -> impl Iterator<Item = (Partition, Erasure)> {
        self.erased().iter().map(move |&(partition, how)| match (keeping, how) {
            (Keeping::Everything, Erasure::KeyDestroyed) => (partition, Erasure::KeyReplaced),
            _ => (partition, how),
        })
    }

    /// Whether the contents of the partition go.
    pub fn erases(self, partition: Partition) -> bool {
        self.erased().iter().any(|(erased, _)| *erased == partition)
    }

    /// What stays as it is.
    pub fn untouched(self) -> impl Iterator<Item = Partition> {
        Partition::ALL.into_iter().filter(move |partition| !self.erases(*partition))
    }

    /// The steps of such a reset, in order. Once everything that is kept is safe, keys go first: an interruption after
    /// that has nothing left to leak.
    pub fn steps(self, keeping: Keeping) -> Vec<Step> {
        let belongs = |step: &Step| match step {
            Step::StageKept | Step::RestoreKept | Step::DestroyStage => keeping != Keeping::Nothing,
            // The file system that was there comes back.
            Step::CreateOverlay => keeping != Keeping::Everything,
            step => step.erases().is_none_or(|partition| self.erases(partition)),
        };
        Step::ALL.into_iter().filter(belongs).collect()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How much a reset keeps of what it takes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// Nothing.
    Nothing,
    /// Some paths.
    Paths,
    /// The overlay's file system as it is: what goes is the volume key.
    Everything,
}

/// One step of a reset. Each can be repeated from its start, whatever an interruption left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Note what is there, so that the audit can tell whether any of it is left.
    Survey,
    /// Copy what is kept to where it waits, encrypted.
    StageKept,
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
    /// Copy what was kept back to its places.
    RestoreKept,
    /// Destroy the copy that waited.
    DestroyStage,
    /// Look for anything of the old that is left.
    Audit,
    /// No step of a reset: open the volume that the image's builder has made, and put what an overlay needs into its file
    /// system.
    TakeOver,
    /// No step of a reset: take away what the overlay has at some paths.
    Revert,
    /// No step of a reset: save the overlay's changes under a name.
    Save,
    /// No step of a reset: put saved changes in the place of the overlay's.
    Apply,
    /// No step of a reset: put the changes back that were there before that.
    GoBack,
}

impl Step {
    /// All steps of a reset, in the order in which it takes them.
    pub const ALL: [Step; 10] = [
        Step::Survey,
        Step::StageKept,
        Step::DestroyKeys,
        Step::CreateVolume,
        Step::CreateOverlay,
        Step::FormatOciStorage,
        Step::FormatHome,
        Step::RestoreKept,
        Step::DestroyStage,
        Step::Audit,
    ];

    /// What the first boot of an image does.
    pub const PROVISION: &'static [Step] =
        &[Step::CreateVolume, Step::CreateOverlay, Step::FormatOciStorage, Step::FormatHome];

    /// The partition whose contents the step takes away; it takes away no other's.
    pub const fn erases(self) -> Option<Partition> {
        match self {
            Step::DestroyKeys | Step::CreateVolume | Step::CreateOverlay => Some(Partition::Root),
            Step::FormatOciStorage => Some(Partition::OciStorage),
            Step::FormatHome => Some(Partition::Home),
            Step::Survey
            | Step::StageKept
            | Step::RestoreKept
            | Step::DestroyStage
            | Step::Audit
            | Step::TakeOver
            | Step::Revert
            | Step::Save
            | Step::Apply
            | Step::GoBack => None,
        }
    }

    /// Whether it works on what is in the overlay's volume that there is: it needs a key of it, and the volume must be this
    /// device's.
    pub const fn opens_volume(self) -> bool {
        matches!(self, Step::StageKept | Step::Revert | Step::Save | Step::Apply | Step::GoBack)
    }

    /// The name used in files and on the bus.
    pub const fn name(self) -> &'static str {
        match self {
            Step::Survey => "survey",
            Step::StageKept => "stage-kept",
            Step::DestroyKeys => "destroy-keys",
            Step::CreateVolume => "create-volume",
            Step::CreateOverlay => "create-overlay",
            Step::FormatOciStorage => "format-oci-storage",
            Step::FormatHome => "format-home",
            Step::RestoreKept => "restore-kept",
            Step::DestroyStage => "destroy-stage",
            Step::Audit => "audit",
            Step::TakeOver => "take-over",
            Step::Revert => "revert",
            Step::Save => "save",
            Step::Apply => "apply",
            Step::GoBack => "go-back",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a partition's contents go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Erasure {
    /// The key that the contents are encrypted with is gone: nobody can read them.
    KeyDestroyed,
    /// That key is gone, and the same contents are there encrypted with another.
    KeyReplaced,
    /// A new, empty file system: not reachable any more, but not overwritten either.
    Formatted,
}

impl Erasure {
    /// The name used on the bus.
    pub const fn name(self) -> &'static str {
        match self {
            Erasure::KeyDestroyed => "key-destroyed",
            Erasure::KeyReplaced => "key-replaced",
            Erasure::Formatted => "formatted",
        }
    }
}

impl fmt::Display for Erasure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Erasure::KeyDestroyed => "key destroyed",
            Erasure::KeyReplaced => "key replaced",
            Erasure::Formatted => "formatted",
        })
    }
}

/// What became of a partition's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    /// They went.
    Erased(Erasure),
    /// Nothing was done to them.
    Untouched,
}

impl Grade {
    /// The name used on the bus.
    pub const fn name(self) -> &'static str {
        match self {
            Grade::Erased(how) => how.name(),
            Grade::Untouched => "untouched",
        }
    }
}

/// What became of each partition in a reset of that scope, which keeps so much and of which these steps were done. Until
/// everything is back, its key is gone and not replaced.
pub fn grades(scope: Scope, keeping: Keeping, done: &[Step]) -> Vec<(Partition, Grade)> {
    let keeping = if done.contains(&Step::RestoreKept) { keeping } else { Keeping::Nothing };
    let grade = |partition: Partition| {
        let erased = scope.erased_by(keeping).find(|(erased, _)| *erased == partition);
        let is_done = done.iter().any(|step| step.erases() == Some(partition));
        match erased {
            Some((_, how)) if is_done => (partition, Grade::Erased(how)),
            _ => (partition, Grade::Untouched),
        }
    };
    Partition::ALL.into_iter().map(grade).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEPING: [Keeping; 3] = [Keeping::Nothing, Keeping::Paths, Keeping::Everything];

    fn every_reset() -> impl Iterator<Item = (Scope, Keeping, Vec<Step>)> {
        let of = |scope: Scope| KEEPING.map(|keeping| (scope, keeping, scope.steps(keeping)));
        Scope::ALL.into_iter().flat_map(of)
    }

    #[test]
    fn keys_are_destroyed_before_anything_else_is() {
        for (_, _, steps) in every_reset() {
            assert_eq!(steps.iter().find(|step| step.erases().is_some()), Some(&Step::DestroyKeys));
        }
    }

    #[test]
    fn a_factory_reset_makes_what_a_first_boot_makes() {
        let made = Scope::Factory.steps(Keeping::Nothing);
        assert!(made.windows(Step::PROVISION.len()).any(|steps| steps == Step::PROVISION));
    }

    #[test]
    fn kept_data_is_safe_before_anything_is_erased_and_until_it_is_back() {
        for (_, _, steps) in every_reset().filter(|(_, keeping, _)| *keeping != Keeping::Nothing) {
            let place = |step| steps.iter().position(|known| *known == step).unwrap();
            for erasing in steps.iter().filter(|step| step.erases().is_some()) {
                assert!(place(Step::StageKept) < place(*erasing) && place(*erasing) < place(Step::RestoreKept));
            }
            assert!(place(Step::RestoreKept) < place(Step::DestroyStage));
        }
    }

    #[test]
    fn a_reset_ends_with_a_look_at_what_is_left() {
        for (_, _, steps) in every_reset() {
            assert_eq!((steps.first(), steps.last()), (Some(&Step::Survey), Some(&Step::Audit)));
        }
    }

    #[test]
    fn every_step_erases_only_what_the_reset_says_it_erases() {
        for (scope, keeping, steps) in every_reset() {
            assert!(steps.iter().filter_map(|step| step.erases()).all(|partition| scope.erases(partition)));
            let all_done = grades(scope, keeping, &steps);
            assert!(all_done.iter().all(|(partition, grade)| scope.erases(*partition) == (*grade != Grade::Untouched)));
            assert!(grades(scope, keeping, &[Step::Survey]).iter().all(|(_, grade)| *grade == Grade::Untouched));
        }
    }

    #[test]
    fn a_key_is_replaced_once_everything_is_back_and_gone_until_then() {
        let steps = Scope::Overlay.steps(Keeping::Everything);
        assert!(
            !steps.contains(&Step::CreateOverlay),
            "a new file system would take the place of the one that is kept"
        );
        let of_root =
            |done| grades(Scope::Overlay, Keeping::Everything, done).into_iter().find(|(at, _)| *at == Partition::Root);
        let (before, after) = steps.split_at(steps.iter().position(|step| *step == Step::RestoreKept).unwrap());
        assert_eq!(of_root(before), Some((Partition::Root, Grade::Erased(Erasure::KeyDestroyed))));
        assert_eq!(
            of_root(&[before, &after[..1]].concat()),
            Some((Partition::Root, Grade::Erased(Erasure::KeyReplaced)))
        );
    }

    #[test]
    fn the_image_and_the_state_are_never_erased() {
        for scope in Scope::ALL {
            let untouched: Vec<_> = scope.untouched().collect();
            for partition in [Partition::Esp, Partition::OciPreloaded, Partition::Readonly, Partition::State] {
                assert!(untouched.contains(&partition), "{partition} must outlive a reset");
            }
        }
        assert!(Scope::Overlay.untouched().any(|partition| partition == Partition::Home));
    }
}
