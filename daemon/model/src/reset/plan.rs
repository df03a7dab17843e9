//! What a reset would do to a device as it is now.

use uuid::{Uuid, uuid};

use crate::partitions::Partition;
use crate::reset::keep::{Everything, Kept, Room, is_at_or_below};
use crate::reset::{Erasure, Keeping, Scope, Step};
use crate::stack::{Observed, SeenMount};
use crate::state::{DeviceState, Volume};

/// What a device has of its own and makes anew when it is gone: its name for people, and where it is.
const IDENTITY: [(&str, &str); 2] = [("machine-id", "/etc/machine-id"), ("SSH host keys", "/etc/ssh")];

/// What a reset would do to this device as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How much is taken back.
    pub scope: Scope,
    /// What goes.
    pub erased: Vec<Erased>,
    /// What stays.
    pub untouched: Vec<Partition>,
    /// What is kept of that which goes.
    pub keep: Vec<Kept>,
    /// All that is on the overlay's volume, if all of it is kept.
    pub everything: Option<Everything>,
    /// The room for it where it waits, and where that is; `None` if nothing is kept.
    pub room: Option<(Partition, Room)>,
    /// How long it takes, in seconds: as long as each of its steps took on this device when it was quickest.
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
    /// Plans a reset of the device that was observed; `free` bytes are free on `p.lxstate`.
    pub fn new(scope: Scope, keep: Vec<Kept>, free: u64, seen: &Observed, state: &DeviceState) -> Self {
        let usage = keep.iter().map(|kept| kept.usage).sum();
        let (keeping, room) = match &keep[..] {
            [] => (Keeping::Nothing, None),
            _ => (Keeping::Paths, Some((Partition::State, Room::new(usage, free)))),
        };
        Plan { keep, room, ..Plan::keeping(keeping, scope, seen, state) }
    }

    /// Plans a new volume key for the contents that there are.
    pub fn of_everything(everything: Everything, seen: &Observed, state: &DeviceState) -> Self {
        let room = Some((everything.on, everything.room));
        let plan = Plan::keeping(Keeping::Everything, Scope::Overlay, seen, state);
        Plan { everything: Some(everything), room, ..plan }
    }

    fn keeping(keeping: Keeping, scope: Scope, seen: &Observed, state: &DeviceState) -> Self {
        let erased = scope.erased_by(keeping).map(|(partition, how)| {
            let is_there = |mount: &&SeenMount| Some(mount.target.as_str()) == partition.mount_point();
            let mount = match partition {
                Partition::Root => seen.volume_mount(),
                _ => seen.mounts.iter().find(is_there),
            };
            let size = seen.partitions.iter().find(|seen| seen.partition == partition).map(|seen| seen.size);
            Erased { partition, how, size, used: mount.map(|mount| mount.used) }
        });
        Plan {
            scope,
            erased: erased.collect(),
            untouched: scope.untouched().collect(),
            keep: Vec::new(),
            everything: None,
            room: None,
            seconds: state.expected_duration(&scope.steps(keeping)),
            volume: state.volume,
        }
    }

    /// What is done, in order.
    pub fn steps(&self) -> Vec<Step> {
        self.scope.steps(match self.everything {
            Some(_) => Keeping::Everything,
            None if self.keep.is_empty() => Keeping::Nothing,
            None => Keeping::Paths,
        })
    }

    /// What the device makes anew of its own at the boot after it: its identity, unless that is kept.
    pub fn regenerated(&self) -> Vec<&'static str> {
        if self.everything.is_some() {
            return Vec::new();
        }
        let is_kept = |place: &str| {
            self.keep.iter().any(|kept| {
                let path = kept.path.as_str();
                is_at_or_below(place, path) || is_at_or_below(path, place)
            })
        };
        IDENTITY.into_iter().filter(|(_, place)| !is_kept(place)).map(|(name, _)| name).collect()
    }

    /// The plan's name. It changes when what the plan shows does: with the partitions, with the volume that would be erased
    /// and with what is kept, but not with every byte that is written elsewhere, or on a volume that is kept as a whole.
    pub fn id(&self) -> Uuid {
        const PLANS: Uuid = uuid!("3d11b5cc-7e2d-4faf-b7ef-77b83176e567");
        let head = format!("{} {:?}", self.scope, self.volume);
        let erased = self.erased.iter().map(|erased| format!("{} {} {:?}", erased.partition, erased.how, erased.size));
        let kept =
            self.keep.iter().map(|Kept { path, usage }| format!("keep {} {} {path}", usage.entries, usage.bytes));
        let everything = self.everything.iter().map(|everything| format!("keep everything on {}", everything.on));
        let text = std::iter::once(head).chain(erased).chain(kept).chain(everything).collect::<Vec<_>>().join("\n");
        Uuid::new_v5(&PLANS, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Identity;
    use crate::overlay::UPPER_MOUNT;
    use crate::reset::keep::Usage;
    use crate::stack::SeenPartition;

    const FREE: u64 = 64 << 20;

    fn provisioned(volume: u128) -> DeviceState {
        let mut state = DeviceState::shipped();
        state.volume = Volume::Provisioned(Identity { uuid: Uuid::from_u128(volume), key: None });
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
            ..SeenMount::default()
        };
        let partition = SeenPartition { partition: Partition::Home, device: "/dev/vda2".into(), size: 128 };
        Observed { partitions: vec![partition], mounts: vec![mount], ..Observed::default() }
    }

    fn kept(path: &str, bytes: u64) -> Kept {
        Kept { path: path.parse().unwrap(), usage: Usage { entries: 1, bytes } }
    }

    fn plan(seen: &Observed, keep: Vec<Kept>, volume: u128) -> Plan {
        Plan::new(Scope::Factory, keep, FREE, seen, &provisioned(volume))
    }

    #[test]
    fn a_plan_says_how_much_goes() {
        let plan = plan(&seen(17), vec![], 1);
        let home = plan.erased.iter().find(|erased| erased.partition == Partition::Home);
        let expected = Erased { partition: Partition::Home, how: Erasure::Formatted, size: Some(128), used: Some(17) };
        assert_eq!(home, Some(&expected));
    }

    #[test]
    fn what_is_in_memory_is_not_what_goes_from_the_disk() {
        let mut seen = seen(17);
        seen.mounts[0].target = UPPER_MOUNT.into();
        seen.mounts[0].fs_type = "tmpfs".into();
        let plan = plan(&seen, vec![], 1);
        assert!(plan.erased.iter().all(|erased| erased.used.is_none()), "{plan:?}");
    }

    #[test]
    fn a_plan_is_another_when_what_it_shows_is_and_not_when_a_file_was_written() {
        let id = |used, keep, volume| plan(&seen(used), keep, volume).id();
        assert_eq!(id(17, vec![], 1), id(18, vec![], 1));
        assert_ne!(id(17, vec![], 1), id(17, vec![], 2), "the volume is not the one that was looked at");
        assert_ne!(id(17, vec![kept("/etc/x", 1)], 1), id(17, vec![], 1));
        assert_ne!(id(17, vec![kept("/etc/x", 1)], 1), id(17, vec![kept("/etc/x", 2)], 1), "there is more to keep");
    }

    #[test]
    fn an_identity_that_is_kept_is_not_made_anew() {
        let regenerated = |path| plan(&seen(17), vec![kept(path, 1)], 1).regenerated();
        assert_eq!(regenerated("/etc/hostname"), ["machine-id", "SSH host keys"]);
        assert_eq!(regenerated("/etc/machine-id"), ["SSH host keys"]);
        assert_eq!(regenerated("/etc/ssh/ssh_host_ed25519_key"), ["machine-id"]);
        assert!(regenerated("/etc").is_empty());
    }

    #[test]
    fn what_is_kept_needs_room() {
        assert_eq!(plan(&seen(17), vec![], 1).room, None);
        let fits = |bytes| plan(&seen(17), vec![kept("/etc/x", bytes)], 1).room.map(|(on, room)| (on, room.fits()));
        assert_eq!(fits(1), Some((Partition::State, true)));
        assert_eq!(fits(FREE), Some((Partition::State, false)));
    }

    #[test]
    fn a_device_whose_contents_are_all_kept_stays_the_same_under_another_key() {
        let plan = |bytes, volume| {
            let usage = Usage { entries: 2, bytes };
            let everything = Everything::on_one_of(&[(Partition::Home, FREE)], usage).unwrap();
            Plan::of_everything(everything, &seen(17), &provisioned(volume))
        };
        let erased: Vec<_> = plan(1, 1).erased.iter().map(|erased| (erased.partition, erased.how)).collect();
        assert_eq!(erased, [(Partition::Root, Erasure::KeyReplaced)]);
        assert!(plan(1, 1).regenerated().is_empty());
        assert!(!plan(1, 1).steps().contains(&Step::CreateOverlay));
        assert_eq!(plan(1, 1).id(), plan(2, 1).id(), "something is always written");
        assert_ne!(plan(1, 1).id(), plan(1, 2).id());
        assert_ne!(plan(1, 1).id(), super::Plan::new(Scope::Overlay, vec![], 0, &seen(17), &provisioned(1)).id());
    }
}
