//! What takes room on the overlay's volume.
//!
//! Saved configurations share blocks with the changes and with each other, as far as nobody has changed them since. So each has
//! two numbers: all of its blocks, and those of them that somebody else has, too. What is shared is free once the last one goes.

/// The folder on the volume that takes what is taken back: a path goes in one step, however much is in it.
pub const REVERTED_FOLDER: &str = "reverted";
/// The file on the volume that keeps room for a boot.
pub const RESERVE_FILE: &str = "reserve";

/// Bytes of a partition that an encrypted volume of that many bytes on it leaves out, if they are more than its headers, tags and
/// journal take: at most a twentieth, on partitions of all sizes that an image may have.
pub fn unused(partition: u64, volume: u64) -> Option<u64> {
    let left_out = partition.saturating_sub(volume);
    let own = HEADERS + partition / 20;
    (left_out > own + partition / 20).then(|| left_out - own)
}

/// Bytes in front of the data of a LUKS2 volume: both headers, and the key slots.
const HEADERS: u64 = 16 << 20;

/// What there is in a folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Files, folders, and whatever else has a name, the folder itself among them.
    pub entries: u64,
    /// Bytes of all their blocks.
    pub bytes: u64,
    /// Bytes of blocks among them that are somebody else's, too.
    pub shared: u64,
}

/// What takes room on the volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of its file system, without its log.
    pub size: u64,
    /// Bytes of them that are free.
    pub free: u64,
    /// Names that it could have, as it is now.
    pub names: u64,
    /// How many of them it has not.
    pub names_free: u64,
    /// What the device has made.
    pub changes: Taken,
    /// Saved configurations, by name.
    pub configurations: Vec<(String, Taken)>,
    /// What there was before a configuration that is on trial.
    pub previous: Taken,
    /// What was taken back, and is still being deleted.
    pub reverted: Taken,
    /// Bytes that are kept so that a full volume boots.
    pub reserve: u64,
    /// Bytes of all blocks that are shared, each counted once.
    pub shared: u64,
}

impl Usage {
    /// Bytes of what the file system needs for itself, and of what nemos notes beside the changes.
    pub fn rest(&self) -> u64 {
        let folders = [self.changes, self.previous, self.reverted]
            .into_iter()
            .chain(self.configurations.iter().map(|(_, taken)| *taken));
        let own: u64 = folders.map(|taken| taken.bytes.saturating_sub(taken.shared)).sum();
        (self.size - self.free.min(self.size)).saturating_sub(own + self.shared + self.reserve)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_is_counted_once() {
        let taken = |bytes, shared| Taken { entries: 1, bytes, shared };
        let usage = Usage {
            size: 1000,
            free: 400,
            changes: taken(200, 150),
            configurations: vec![("one".into(), taken(150, 150)), ("two".into(), taken(160, 150))],
            reserve: 100,
            shared: 150,
            ..Usage::default()
        };
        assert_eq!(usage.rest(), 600 - 50 - 10 - 150 - 100);
        assert_eq!(Usage { free: 2000, ..usage }.rest(), 0, "it was read while it changed");
    }
}
