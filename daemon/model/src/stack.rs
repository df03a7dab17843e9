//! The storage stack as it is drawn: each layer, what it sits on, and how it is.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::boot::{BootReport, Reason};
use crate::integrity::{PRELOADED_MAPPING, VERITY_MAPPING, VerityStatus, VerityTable};
use crate::keys::{KeyslotId, Origin, Provider, Slot};
use crate::overlay::usage::unused;
use crate::overlay::{INTEGRITY_MAPPING, LOWER_MOUNT, LUKS_MAPPING, Mode, OVERLAY_SOURCE, SAVED_MOUNT, UPPER_MOUNT};
use crate::partitions::Partition;

/// How a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerState {
    /// As it should be.
    Ok,
    /// It works, and somebody should look.
    Warning,
    /// It is there and broken, or it should be there and is not.
    Failed,
}

impl LayerState {
    /// The name used on the bus.
    pub const fn name(self) -> &'static str {
        match self {
            LayerState::Ok => "ok",
            LayerState::Warning => "warning",
            LayerState::Failed => "failed",
        }
    }
}

impl fmt::Display for LayerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Unique among the layers: a mount point (`/`), a mapping (`luks`) or a partition label (`p.lxroot`).
    pub name: String,
    /// `overlay`, a file system's type, `dm-verity`, `dm-crypt`, `dm-integrity`, `partition`.
    pub kind: String,
    /// Names of the layers it sits on, most important first.
    pub on: Vec<String>,
    /// How it is.
    pub state: LayerState,
    /// That in words, short.
    pub detail: String,
    /// Device node, where it has one.
    pub device: Option<String>,
    /// Size in bytes, where it has one.
    pub size: Option<u64>,
    /// Bytes used, for file systems.
    pub used: Option<u64>,
}

/// A partition, as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenPartition {
    /// Which.
    pub partition: Partition,
    /// Its device node.
    pub device: String,
    /// Its size in bytes.
    pub size: u64,
}

/// A device-mapper mapping, as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenMapping {
    /// Its name.
    pub name: String,
    /// Its (only) target: `verity`, `crypt`, `integrity`.
    pub target: String,
    /// Status parameters of the target.
    pub status: String,
    /// For `verity`: what is compared with what.
    pub table: Option<VerityTable>,
    /// Its device node.
    pub device: String,
    /// Its size in bytes.
    pub size: u64,
}

/// A mount, as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeenMount {
    /// Where.
    pub target: String,
    /// What: a device node, or the name given to it.
    pub source: String,
    /// File system type.
    pub fs_type: String,
    /// Whether it was remounted or mounted read-only.
    pub read_only: bool,
    /// Size of the file system in bytes.
    pub size: u64,
    /// Bytes used.
    pub used: u64,
    /// Names (inodes) that the file system can have.
    pub names: u64,
    /// Names that it has.
    pub names_used: u64,
}

/// All that was observed of a running system's storage.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Partitions of the disk that was booted.
    pub partitions: Vec<SeenPartition>,
    /// Mappings.
    pub mappings: Vec<SeenMapping>,
    /// Mounts.
    pub mounts: Vec<SeenMount>,
    /// What the initrd reported, if it left a report.
    pub report: Option<BootReport>,
    /// Key slots of the overlay's volume that are in use; none if its header cannot be read.
    pub keyslots: Vec<Slot>,
}

/// Draws the whole stack, from the root down; a layer that should be there and is not is drawn as failed.
pub fn layers(seen: &Observed) -> Vec<Layer> {
    let report = seen.report.as_ref();
    let mode = report.map_or(Mode::Persistent, |report| report.mode);
    let mut layers = vec![seen.root(), seen.mount(LOWER_MOUNT, "squashfs", VERITY_MAPPING)];
    layers.push(seen.verity(VERITY_MAPPING, Partition::Readonly));
    if mode != Mode::Persistent {
        layers.push(seen.memory_upper());
    }
    // On a degraded boot it is not there, and memory is in its place.
    if mode == Mode::Persistent || report.is_some_and(|report| report.volume.is_some()) {
        let place = if mode == Mode::Persistent { UPPER_MOUNT } else { SAVED_MOUNT };
        layers.push(seen.mount(place, Partition::Root.file_system(), LUKS_MAPPING));
        layers.push(seen.mapping(LUKS_MAPPING, "crypt", INTEGRITY_MAPPING));
        layers.push(seen.mapping(INTEGRITY_MAPPING, "integrity", Partition::Root.label()));
    }
    let (preloaded, preloaded_on) = seen.preloaded();
    for partition in [Partition::Home, Partition::OciStorage, Partition::OciPreloaded, Partition::State] {
        let on = if partition == Partition::OciPreloaded { preloaded_on } else { partition.label() };
        layers.push(seen.mount(partition.mount_point().unwrap_or_default(), partition.file_system(), on));
    }
    layers.extend(preloaded);
    layers.extend(Partition::ALL.map(|partition| seen.partition(partition)));
    layers
}

impl Observed {
    /// Whether the demo key opens the overlay's volume, as far as that is known: it is recorded, or it opened this boot and its
    /// slot is still there, or the image came with a volume whose first key slot it opens, of which nothing was recorded.
    pub fn demo_key_opens(&self) -> bool {
        let has = |is: fn(&Slot) -> bool| self.keyslots.iter().any(is);
        let is_recorded = has(|slot| slot.provider() == Some(Provider::DemoKey));
        let by_report = self.report.as_ref().and_then(|report| report.volume.as_ref()).is_some_and(|volume| {
            let came_with_it = volume.built && has(|slot| slot.origin == Origin::Unrecorded && u32::from(slot.id) == 0);
            let opened = volume.provider == Provider::DemoKey;
            came_with_it || opened && (self.keyslots.is_empty() || self.opened_by().is_some())
        });
        is_recorded || by_report
    }

    /// The key slot that opened this boot, as long as nothing else was put in its place.
    pub fn opened_by(&self) -> Option<KeyslotId> {
        self.report.as_ref()?.opened_by(&self.keyslots)
    }

    /// Whether a recovery key that opens the volume has opened a boot: whoever brought it has seen it.
    pub fn recovery_key_was_used(&self) -> bool {
        let opened_this_boot = self.opened_by();
        self.keyslots.iter().filter_map(|slot| Some((slot.id, slot.record()?))).any(|(id, record)| {
            record.provider == Provider::RecoveryKey && (record.used.is_some() || Some(id) == opened_this_boot)
        })
    }

    /// Bytes of the overlay's partition that its volume leaves out, because the partition has grown since the volume was made.
    pub fn unused(&self) -> Option<u64> {
        let partition = self.partitions.iter().find(|seen| seen.partition == Partition::Root)?;
        unused(partition.size, self.mapping_named(LUKS_MAPPING)?.size)
    }

    /// Why this boot is degraded; empty if it is not.
    pub fn degraded(&self) -> Vec<String> {
        match &self.report {
            Some(report) => report.degraded.iter().map(Reason::to_string).collect(),
            None => vec!["nemos-initrd left no report of this boot".to_owned()],
        }
    }

    /// Whether what is written below `/var/lib/nemos` outlives this boot, or why not. Where it does not, nothing may be
    /// accepted: it would be forgotten at the very reboot that was to carry it out.
    pub fn memory(&self) -> Result<(), String> {
        let target = Partition::State.mount_point().unwrap_or_default();
        let layer = self.mount(target, Partition::State.file_system(), Partition::State.label());
        if layer.state == LayerState::Failed {
            return Err(format!("{} ({target}) is {}", Partition::State, layer.detail));
        }
        let unreadable = |reason: &&Reason| matches!(reason, Reason::StateUnreadable { .. });
        match self.report.iter().flat_map(|report| &report.degraded).find(unreadable) {
            Some(reason) => Err(reason.to_string()),
            None => Ok(()),
        }
    }

    fn root(&self) -> Layer {
        let on = [LOWER_MOUNT, UPPER_MOUNT].map(str::to_owned).to_vec();
        let root = self.mounts.iter().find(|mount| mount.target == "/");
        let (state, detail) = match root {
            Some(root) if root.fs_type == "overlay" && root.source == OVERLAY_SOURCE => {
                (LayerState::Ok, if root.read_only { "read-only" } else { "read-write" })
            }
            Some(_) => (LayerState::Failed, "not the overlay that nemos-initrd mounts"),
            None => (LayerState::Failed, "not mounted"),
        };
        Layer { on, device: None, ..Layer::of_mount("/", "overlay", state, detail, root) }
    }

    fn mount(&self, target: &str, fs_type: &str, on: &str) -> Layer {
        let mount = self.mounts.iter().find(|mount| mount.target == target);
        let (state, detail) = match mount {
            Some(mount) if mount.fs_type != fs_type => (LayerState::Failed, "another file system is mounted here"),
            Some(mount) if mount.read_only && (fs_type == "squashfs" || target == SAVED_MOUNT) => {
                (LayerState::Ok, "read-only")
            }
            Some(mount) if mount.read_only => (LayerState::Failed, "read-only after an error"),
            Some(_) => (LayerState::Ok, "read-write"),
            None => (LayerState::Failed, "not mounted"),
        };
        Layer { on: vec![on.to_owned()], ..Layer::of_mount(target, fs_type, state, detail, mount) }
    }

    /// Memory in the place of the volume: as it was asked for, or because the volume is not open.
    fn memory_upper(&self) -> Layer {
        let mount = self.mounts.iter().find(|mount| mount.target == UPPER_MOUNT);
        let detail = "in memory: changes are lost at the next boot";
        let was_asked = mount.is_some() && self.report.as_ref().is_some_and(|report| report.volume.is_some());
        let state = if was_asked { LayerState::Ok } else { LayerState::Failed };
        Layer { device: None, ..Layer::of_mount(UPPER_MOUNT, "tmpfs", state, detail, mount) }
    }

    /// Where the file system of the overlay's volume is mounted, if it is.
    pub fn volume_mount(&self) -> Option<&SeenMount> {
        let at = |target: &str| self.mounts.iter().find(|mount| mount.target == target && mount.fs_type != "tmpfs");
        at(SAVED_MOUNT).or_else(|| at(UPPER_MOUNT))
    }

    /// A mapping by its name.
    pub fn mapping_named(&self, name: &str) -> Option<&SeenMapping> {
        self.mappings.iter().find(|mapping| mapping.name == name)
    }

    /// The dm-verity mapping of the containers that are shipped, and what they lie on: it, if the image has it.
    fn preloaded(&self) -> (Option<Layer>, &'static str) {
        let partition = Partition::OciPreloaded;
        let is_verified = self.report.as_ref().is_some_and(|report| report.preloaded_hash.is_some());
        if is_verified || self.mapping_named(PRELOADED_MAPPING).is_some() {
            (Some(self.verity(PRELOADED_MAPPING, partition)), PRELOADED_MAPPING)
        } else {
            (None, partition.label())
        }
    }

    fn verity(&self, name: &str, on: Partition) -> Layer {
        let mut layer = self.mapping(name, "verity", on.label());
        let mapping = self.mapping_named(name);
        let signed = mapping.and_then(|mapping| mapping.table.as_ref()).is_some_and(|table| table.signed);
        let status = mapping.map(|mapping| VerityStatus::parse(&mapping.status));
        (layer.state, layer.detail) = match status {
            Some(Some(VerityStatus::Verified)) if signed => (LayerState::Ok, "verified (with signature)".to_owned()),
            Some(Some(VerityStatus::Verified)) => (LayerState::Ok, "verified".to_owned()),
            Some(Some(VerityStatus::Corrupted)) => (LayerState::Failed, "corrupted".to_owned()),
            Some(None) | None => (LayerState::Failed, layer.detail),
        };
        layer
    }

    fn mapping(&self, name: &str, target: &str, on: &str) -> Layer {
        let mapping = self.mapping_named(name);
        let (state, detail) = match mapping {
            Some(mapping) if mapping.target == target => (LayerState::Ok, "active"),
            Some(_) => (LayerState::Failed, "another target has this name"),
            None => (LayerState::Failed, "not active"),
        };
        Layer {
            name: name.to_owned(),
            kind: format!("dm-{target}"),
            on: vec![on.to_owned()],
            state,
            detail: detail.to_owned(),
            device: mapping.map(|mapping| mapping.device.clone()),
            size: mapping.map(|mapping| mapping.size),
            used: None,
        }
    }

    fn partition(&self, partition: Partition) -> Layer {
        let seen = self.partitions.iter().find(|seen| seen.partition == partition);
        let (state, detail) = match seen {
            Some(_) => (LayerState::Ok, "present"),
            None => (LayerState::Failed, "missing"),
        };
        Layer {
            name: partition.label().to_owned(),
            kind: "partition".to_owned(),
            on: Vec::new(),
            state,
            detail: detail.to_owned(),
            device: seen.map(|seen| seen.device.clone()),
            size: seen.map(|seen| seen.size),
            used: None,
        }
    }
}

impl Layer {
    fn of_mount(name: &str, kind: &str, state: LayerState, detail: &str, mount: Option<&SeenMount>) -> Layer {
        Layer {
            name: name.to_owned(),
            kind: kind.to_owned(),
            on: Vec::new(),
            state,
            detail: detail.to_owned(),
            device: mount.map(|mount| mount.source.clone()),
            size: mount.map(|mount| mount.size),
            used: mount.map(|mount| mount.used),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;
    use crate::boot::OpenVolume;
    use crate::boot::tests::{open_volume, report};
    use crate::keys::Record;

    fn mount(target: &str, source: &str, fs_type: &str) -> SeenMount {
        let read_only = fs_type == "squashfs";
        SeenMount {
            target: target.into(),
            source: source.into(),
            fs_type: fs_type.into(),
            read_only,
            size: 100,
            used: 10,
            ..SeenMount::default()
        }
    }

    fn mapping(name: &str, target: &str, status: &str) -> SeenMapping {
        SeenMapping {
            name: name.into(),
            target: target.into(),
            status: status.into(),
            table: None,
            device: format!("/dev/mapper/{name}"),
            size: 100,
        }
    }

    pub(crate) fn healthy() -> Observed {
        let device = |partition| format!("/dev/disk/by-partlabel/{partition}");
        Observed {
            partitions: Partition::ALL
                .map(|partition| SeenPartition { partition, device: device(partition), size: 100 })
                .to_vec(),
            mappings: vec![
                mapping("verityRoot", "verity", "V"),
                mapping("luks", "crypt", ""),
                mapping("luks_dif", "integrity", "0 100 -"),
            ],
            mounts: vec![
                mount("/", "OverlayOS_rootfs", "overlay"),
                mount(LOWER_MOUNT, "/dev/mapper/verityRoot", "squashfs"),
                mount(UPPER_MOUNT, "/dev/mapper/luks", "xfs"),
                mount("/home", &device(Partition::Home), "ext4"),
                mount("/var/lib/containers/storage", &device(Partition::OciStorage), "xfs"),
                mount("/var/lib/containers/loaded", &device(Partition::OciPreloaded), "squashfs"),
                mount("/var/lib/nemos", &device(Partition::State), "ext4"),
            ],
            report: None,
            keyslots: Vec::new(),
        }
    }

    fn failed(seen: &Observed) -> Vec<String> {
        let failed = layers(seen).into_iter().filter(|layer| layer.state == LayerState::Failed);
        failed.map(|layer| layer.name).collect()
    }

    #[test]
    fn a_signature_that_the_kernel_checked_is_told() {
        let mut seen = healthy();
        let verity = |seen: &Observed| seen.verity(VERITY_MAPPING, Partition::Readonly).detail;
        assert_eq!(verity(&seen), "verified");
        let root_hash = "ab".repeat(32).parse().unwrap();
        let table = VerityTable { data_blocks: 8, tree: 9, root_hash, salt: Vec::new(), signed: true, parity: None };
        seen.mappings[0].table = Some(table);
        assert_eq!(verity(&seen), "verified (with signature)");
        seen.mappings[0].status = "C".to_owned();
        assert_eq!(verity(&seen), "corrupted");
    }

    #[test]
    fn a_healthy_stack_is_ok_down_to_each_partition() {
        assert_eq!(failed(&healthy()), Vec::<String>::new());
    }

    #[test]
    fn every_layer_sits_on_layers_that_are_drawn() {
        let mut verified = healthy();
        verified.mappings.push(mapping(PRELOADED_MAPPING, "verity", "V"));
        for seen in [healthy(), verified] {
            let layers = layers(&seen);
            for below in layers.iter().flat_map(|layer| &layer.on) {
                assert!(layers.iter().any(|layer| layer.name == *below), "{below} is not drawn");
            }
            assert_eq!(failed(&seen), Vec::<String>::new());
        }
    }

    /// A boot that the demo key opened, in slot 0 of a volume of this device's, or of one that came with the image.
    fn opened_by_the_demo_key(built: bool, keyslots: Vec<Slot>) -> Observed {
        let volume = OpenVolume { built, keyslot_created: (!built).then_some(Timestamp(7)), ..open_volume() };
        let report = BootReport { volume: Some(volume), ..report() };
        Observed { report: Some(report), keyslots, ..healthy() }
    }

    #[test]
    fn what_took_the_place_of_the_key_that_opened_this_boot_has_not_opened_it() {
        let slot = |provider, at| Slot {
            id: 0.try_into().unwrap(),
            origin: Origin::Recorded(Record::new(provider, Timestamp(at))),
        };
        let before = opened_by_the_demo_key(false, vec![slot(Provider::DemoKey, 7)]);
        assert!(before.demo_key_opens() && before.opened_by().is_some());
        let after = opened_by_the_demo_key(false, vec![slot(Provider::RecoveryKey, 9)]);
        assert!(!after.demo_key_opens() && !after.recovery_key_was_used() && after.opened_by().is_none());
    }

    #[test]
    fn the_demo_key_opens_what_came_with_the_image_whatever_opened_this_boot() {
        let unrecorded = Slot { id: 0.try_into().unwrap(), origin: Origin::Unrecorded };
        let mut seen = opened_by_the_demo_key(true, vec![unrecorded]);
        assert!(seen.demo_key_opens());
        if let Some(volume) = seen.report.as_mut().and_then(|report| report.volume.as_mut()) {
            (volume.provider, volume.keyslot) = (Provider::Tpm2, 1.try_into().unwrap());
        }
        assert!(seen.demo_key_opens());
        seen.keyslots.clear();
        assert!(!seen.demo_key_opens());
    }

    #[test]
    fn a_corrupted_root_is_failed() {
        let mut seen = healthy();
        seen.mappings[0].status = "C".into();
        assert_eq!(failed(&seen), ["verityRoot"]);
    }

    #[test]
    fn the_device_remembers_only_on_its_own_partition() {
        let mut seen = healthy();
        assert_eq!(seen.memory(), Ok(()));
        seen.mounts.last_mut().unwrap().fs_type = "tmpfs".into();
        assert!(seen.memory().is_err());
        seen.mounts.pop();
        assert_eq!(seen.memory(), Err("p.lxstate (/var/lib/nemos) is not mounted".into()));
    }

    #[test]
    fn what_is_missing_is_drawn_as_failed() {
        let mut seen = healthy();
        seen.mounts.retain(|mount| mount.target != "/home");
        seen.partitions.retain(|seen| seen.partition != Partition::Home);
        assert_eq!(failed(&seen), ["/home", "p.lxhome"]);
    }
}
