//! Where the partitions lie on the disk.

use nemos_model::partitions::Partition;
use uuid::Uuid;

/// Bytes of a sector, as the partition table counts them.
pub const SECTOR: u64 = 512;
/// Partitions begin at multiples of this, and so does the end of the disk.
pub const ALIGNMENT: u64 = 1 << 20;
/// Sectors of the backup partition table: 128 entries and a header.
pub const BACKUP_SECTORS: u64 = 33;

/// A partition of every nemos disk, or one that a recipe adds, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// One of ours.
    Ours(Partition),
    /// One of the recipe's.
    Added(String),
}

impl Slot {
    /// The GPT partition name.
    pub fn label(&self) -> String {
        match self {
            Slot::Ours(partition) => partition.label().to_owned(),
            Slot::Added(name) => format!("p.lx{name}"),
        }
    }

    /// The name of the partition that a recipe added, if its label is that of one.
    pub fn added(label: &str) -> Option<&str> {
        let name = label.strip_prefix("p.lx")?;
        label.parse::<Partition>().is_err().then_some(name)
    }

    /// The GPT partition type.
    pub const fn type_guid(&self) -> Uuid {
        match self {
            Slot::Ours(partition) => partition.type_guid(),
            Slot::Added(_) => Partition::Home.type_guid(),
        }
    }
}

/// A partition on the disk, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Which one.
    pub slot: Slot,
    /// Where it begins.
    pub start: u64,
    /// How long it is.
    pub size: u64,
}

/// A whole disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The partitions, in the order of the disk.
    pub extents: Vec<Extent>,
    /// Bytes of the disk.
    pub disk_size: u64,
}

impl Layout {
    /// Places all partitions one behind the other, each at least as long as `size` says, and those that a recipe adds, of these
    /// names and sizes, in front of the root.
    pub fn new<'a>(size: impl Fn(Partition) -> u64, added: impl IntoIterator<Item = (&'a str, u64)>) -> Self {
        let mut slots: Vec<_> = Partition::ALL.map(|partition| (Slot::Ours(partition), size(partition))).to_vec();
        let root = Partition::ALL.iter().position(|partition| *partition == Partition::Readonly).unwrap_or(slots.len());
        slots.splice(root..root, added.into_iter().map(|(name, size)| (Slot::Added(name.to_owned()), size)));
        let mut start = ALIGNMENT;
        let mut extents = Vec::new();
        for (slot, size) in slots {
            let size = size.max(1).next_multiple_of(ALIGNMENT);
            extents.push(Extent { slot, start, size });
            start += size;
        }
        Layout { extents, disk_size: (start + BACKUP_SECTORS * SECTOR).next_multiple_of(ALIGNMENT) }
    }

    /// Where a partition lies.
    #[allow(clippy::missing_panics_doc, reason = "a layout has all partitions")]
    pub fn extent(&self, partition: Partition) -> &Extent {
        let is_it = |extent: &&Extent| extent.slot == Slot::Ours(partition);
        self.extents.iter().find(is_it).expect("a layout has all partitions")
    }

    /// How long a partition is.
    pub fn size_of(&self, partition: Partition) -> u64 {
        self.extent(partition).size
    }
}

impl Extent {
    /// Its first sector.
    pub const fn first_sector(&self) -> u64 {
        self.start / SECTOR
    }

    /// Its last sector.
    pub const fn last_sector(&self) -> u64 {
        (self.start + self.size) / SECTOR - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_added_partition_is_told_from_ours_by_its_label() {
        assert_eq!(Slot::added(&Slot::Added("data".into()).label()), Some("data"));
        assert!(Partition::ALL.iter().all(|partition| Slot::added(partition.label()).is_none()));
    }

    proptest! {
        #[test]
        fn partitions_are_aligned_ordered_and_leave_room_for_the_backup_table(
            sizes in prop::array::uniform7(0..1_u64 << 34),
            added in prop::collection::vec(0..1_u64 << 34, 0..4),
        ) {
            let wanted = |partition| sizes[Partition::ALL.iter().position(|other| *other == partition).expect("one of all")];
            let names: Vec<_> = (0..added.len()).map(|number| format!("data{number}")).collect();
            let layout = Layout::new(wanted, names.iter().map(String::as_str).zip(added.iter().copied()));
            let mut free = ALIGNMENT;
            let mut ours = Vec::new();
            for extent in &layout.extents {
                prop_assert_eq!(extent.start % ALIGNMENT, 0);
                prop_assert_eq!(extent.start, free);
                free = extent.start + extent.size;
                if let Slot::Ours(partition) = extent.slot {
                    prop_assert!(extent.size >= wanted(partition));
                    ours.push(partition);
                }
            }
            prop_assert_eq!(ours, Partition::ALL);
            prop_assert_eq!(layout.extents.len(), Partition::ALL.len() + added.len());
            prop_assert_eq!(&layout.extents.last().expect("the root is last").slot, &Slot::Ours(Partition::Root));
            prop_assert!(free + BACKUP_SECTORS * SECTOR <= layout.disk_size);
            prop_assert_eq!(layout.disk_size % ALIGNMENT, 0);
        }
    }
}
