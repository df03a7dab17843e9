//! What takes room on the overlay's volume, as it travels.

use nemos_model::overlay::usage::{Taken, Usage};
use zbus::{DeserializeDict, SerializeDict, Type};

use crate::Error;
use crate::options::{Dictionary, Options};

/// Refuses options of `Usage`: there are none yet.
pub fn parse(dictionary: Dictionary) -> Result<(), Error> {
    Options::new(dictionary).finish()
}

/// What there is in a folder on the volume.
#[derive(Debug, Clone, PartialEq, Eq, Default, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct FolderRecord {
    /// Of a saved configuration.
    pub name: Option<String>,
    /// Files, folders, and whatever else has a name.
    pub entries: u64,
    /// Bytes of all their blocks.
    pub bytes: u64,
    /// Bytes of blocks among them that are somebody else's, too.
    pub shared: u64,
}

impl From<Taken> for FolderRecord {
    fn from(taken: Taken) -> Self {
        let Taken { entries, bytes, shared } = taken;
        FolderRecord { name: None, entries, bytes, shared }
    }
}

/// What takes room, in bytes; without the volume's own where it is not open.
#[derive(Debug, Clone, PartialEq, Eq, Default, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct UsageRecord {
    /// Of the volume's file system, without its log.
    pub size: Option<u64>,
    /// Of it, free.
    pub free: Option<u64>,
    /// Names that it could have, as it is now.
    pub names: Option<u64>,
    /// How many of them it has not.
    pub names_free: Option<u64>,
    /// What the device has made.
    pub changes: Option<FolderRecord>,
    /// Saved configurations.
    pub configurations: Option<Vec<FolderRecord>>,
    /// What there was before a configuration that is on trial.
    pub previous: Option<FolderRecord>,
    /// What was taken back, and is still being deleted.
    pub reverted: Option<FolderRecord>,
    /// Kept so that a full volume boots.
    pub reserve: Option<u64>,
    /// Of all blocks that are shared, each counted once.
    pub shared: Option<u64>,
    /// What the file system needs for itself, and what nemos notes beside the changes.
    pub rest: Option<u64>,
    /// Of the partition, left out by the volume, because the partition has grown.
    pub unused: Option<u64>,
    /// Of memory, that changes may take in modes volatile and readonly.
    pub memory_limit: u64,
    /// Of memory, that changes take at this boot, if they go there.
    pub memory_used: Option<u64>,
}

impl UsageRecord {
    /// Adds what is known of the volume.
    #[must_use]
    pub fn with_volume(self, usage: &Usage) -> Self {
        let configurations = usage.configurations.iter();
        let configurations =
            configurations.map(|(name, taken)| FolderRecord { name: Some(name.clone()), ..(*taken).into() });
        UsageRecord {
            size: Some(usage.size),
            free: Some(usage.free),
            names: Some(usage.names),
            names_free: Some(usage.names_free),
            changes: Some(usage.changes.into()),
            configurations: Some(configurations.collect()),
            previous: Some(usage.previous.into()),
            reverted: Some(usage.reverted.into()),
            reserve: Some(usage.reserve),
            shared: Some(usage.shared),
            rest: Some(usage.rest()),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::wire::{LE, serialized::Context, to_bytes};

    #[test]
    fn usage_travels_whole() {
        let taken = Taken { entries: 1, bytes: 2, shared: 1 };
        let usage = Usage { changes: taken, configurations: vec![("lab".into(), taken)], ..Usage::default() };
        let record = UsageRecord { memory_limit: 7, ..UsageRecord::default() }.with_volume(&usage);
        let sent = to_bytes(Context::new(LE, 0), &record).unwrap();
        let received: UsageRecord = sent.deserialize().unwrap().0;
        assert_eq!(received, record);
        assert_eq!(received.configurations.unwrap()[0].name.as_deref(), Some("lab"));
    }
}
