//! Factory reset: what goes, what stays, and in which order.
//!
//! Provisioning at the first boot is the tail of the same list: a device that was reset is a device that boots for
//! the first time.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::{Uuid, uuid};

use crate::overlay::UPPER_MOUNT;
use crate::partitions::Partition;
use crate::stack::{Observed, SeenMount};
use crate::state::{DeviceState, Volume};

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

    /// The partition that the step writes to; it writes to no other.
    pub const fn partition(self) -> Partition {
        match self {
            Step::DestroyKeys | Step::CreateVolume | Step::CreateOverlay => Partition::Root,
            Step::FormatOciStorage => Partition::OciStorage,
            Step::FormatHome => Partition::Home,
        }
    }

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

/// What a reset would do to this device as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How much is taken back.
    pub scope: Scope,
    /// What goes.
    pub erased: Vec<Erased>,
    /// What stays.
    pub kept: Vec<Partition>,
    /// How long it takes, in seconds: as long as the last time on this device.
    pub seconds: Option<u64>,
    volume: Volume,
}

/// A partition whose contents go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erased {
    /// Which.
    pub partition: Partition,
    /// How.
    pub how: Erasure,
    /// Size of the partition in bytes, if it is there.
    pub size: Option<u64>,
    /// Bytes in use on it, if it is mounted.
    pub used: Option<u64>,
}

impl Plan {
    /// Plans a reset of the device that was observed.
    pub fn new(scope: Scope, seen: &Observed, state: &DeviceState) -> Self {
        let erased = scope.erased().iter().map(|&(partition, how)| {
            let mounted_at = if partition == Partition::Root { Some(UPPER_MOUNT) } else { partition.mount_point() };
            // On a degraded boot memory is mounted there, and nobody knows what is on the disk.
            let on_disk = |mount: &&SeenMount| Some(mount.target.as_str()) == mounted_at && mount.fs_type != "tmpfs";
            let mount = seen.mounts.iter().find(on_disk);
            let size = seen.partitions.iter().find(|seen| seen.partition == partition).map(|seen| seen.size);
            Erased { partition, how, size, used: mount.map(|mount| mount.used) }
        });
        Plan {
            scope,
            erased: erased.collect(),
            kept: scope.kept().collect(),
            seconds: state.last_duration(),
            volume: state.volume,
        }
    }

    /// The plan's name. It changes when the device does: with its partitions and with the volume that would be erased,
    /// but not with every byte that is written.
    pub fn id(&self) -> Uuid {
        const PLANS: Uuid = uuid!("3d11b5cc-7e2d-4faf-b7ef-77b83176e567");
        let text = self.erased.iter().fold(format!("{} {:?}", self.scope, self.volume), |text, erased| {
            format!("{text}\n{} {} {:?}", erased.partition, erased.how, erased.size)
        });
        Uuid::new_v5(&PLANS, text.as_bytes())
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

impl Erasure {
    /// The name used on the bus.
    pub const fn name(self) -> &'static str {
        match self {
            Erasure::KeyDestroyed => "key-destroyed",
            Erasure::Formatted => "formatted",
        }
    }
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
    use crate::stack::SeenPartition;

    #[test]
    fn keys_are_destroyed_before_anything_else() {
        assert_eq!(Scope::Factory.steps().first(), Some(&Step::DestroyKeys));
    }

    #[test]
    fn a_reset_ends_like_a_first_boot() {
        assert!(Scope::Factory.steps().ends_with(Step::PROVISION));
    }

    fn provisioned(volume: u128) -> DeviceState {
        let mut state = DeviceState::shipped();
        state.volume = Volume::Provisioned { uuid: Uuid::from_u128(volume) };
        state
    }

    fn seen(home_used: u64) -> Observed {
        let mount = SeenMount {
            target: "/home".into(),
            source: "/dev/vda2".into(),
            fs_type: "ext4".into(),
            read_only: false,
            size: 100,
            used: home_used,
        };
        let partition = SeenPartition { partition: Partition::Home, device: "/dev/vda2".into(), size: 128 };
        Observed { partitions: vec![partition], mounts: vec![mount], ..Observed::default() }
    }

    #[test]
    fn a_plan_says_how_much_goes() {
        let plan = Plan::new(Scope::Factory, &seen(17), &provisioned(1));
        let home = plan.erased.iter().find(|erased| erased.partition == Partition::Home);
        let expected = Erased { partition: Partition::Home, how: Erasure::Formatted, size: Some(128), used: Some(17) };
        assert_eq!(home, Some(&expected));
    }

    #[test]
    fn what_is_in_memory_is_not_what_goes_from_the_disk() {
        let mut seen = seen(17);
        seen.mounts[0].target = UPPER_MOUNT.into();
        seen.mounts[0].fs_type = "tmpfs".into();
        let plan = Plan::new(Scope::Factory, &seen, &provisioned(1));
        assert!(plan.erased.iter().all(|erased| erased.used.is_none()), "{plan:?}");
    }

    #[test]
    fn a_plan_is_another_when_the_device_is_and_not_when_a_file_was_written() {
        let plan = |used, volume| Plan::new(Scope::Factory, &seen(used), &provisioned(volume)).id();
        assert_eq!(plan(17, 1), plan(18, 1));
        assert_ne!(plan(17, 1), plan(17, 2), "the volume is not the one that was looked at");
    }

    #[test]
    fn every_step_writes_only_what_the_reset_says_it_erases() {
        let erased: Vec<_> = Scope::Factory.erased().iter().map(|(partition, _)| *partition).collect();
        assert!(Scope::Factory.steps().iter().all(|step| erased.contains(&step.partition())));
    }

    #[test]
    fn the_image_and_the_state_are_never_erased() {
        let kept: Vec<_> = Scope::Factory.kept().collect();
        for partition in [Partition::Esp, Partition::OciPreloaded, Partition::Readonly, Partition::State] {
            assert!(kept.contains(&partition), "{partition} must outlive a reset");
        }
    }
}
