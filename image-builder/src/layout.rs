//! Where the partitions lie on the disk.

use nemos_model::partitions::Partition;

/// Bytes of a sector, as the partition table counts them.
pub const SECTOR: u64 = 512;
/// Partitions begin at multiples of this, and so does the end of the disk.
pub const ALIGNMENT: u64 = 1 << 20;
/// Sectors of the backup partition table: 128 entries and a header.
pub const BACKUP_SECTORS: u64 = 33;

/// A partition on the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Which one.
    pub partition: Partition,
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
    /// Places all partitions one behind the other, each at least as long as `size` says.
    pub fn new(size: impl Fn(Partition) -> u64) -> Self {
        let mut start = ALIGNMENT;
        let mut extents = Vec::new();
        for partition in Partition::ALL {
            let size = size(partition).max(1).next_multiple_of(ALIGNMENT);
            extents.push(Extent { partition, start, size });
            start += size;
        }
        Layout { extents, disk_size: (start + BACKUP_SECTORS * SECTOR).next_multiple_of(ALIGNMENT) }
    }

    /// Where a partition lies.
    #[allow(clippy::missing_panics_doc, reason = "a layout has all partitions")]
    pub fn extent(&self, partition: Partition) -> &Extent {
        self.extents.iter().find(|extent| extent.partition == partition).expect("a layout has all partitions")
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

    proptest! {
        #[test]
        fn partitions_are_aligned_ordered_and_leave_room_for_the_backup_table(sizes in prop::array::uniform7(0..1_u64 << 34)) {
            let wanted = |partition| sizes[Partition::ALL.iter().position(|other| *other == partition).expect("one of all")];
            let layout = Layout::new(wanted);
            let mut free = ALIGNMENT;
            for (extent, partition) in layout.extents.iter().zip(Partition::ALL) {
                prop_assert_eq!(extent.partition, partition);
                prop_assert_eq!(extent.start % ALIGNMENT, 0);
                prop_assert!(extent.size >= wanted(partition));
                prop_assert_eq!(extent.start, free);
                free = extent.start + extent.size;
            }
            prop_assert!(free + BACKUP_SECTORS * SECTOR <= layout.disk_size);
            prop_assert_eq!(layout.disk_size % ALIGNMENT, 0);
        }
    }
}
