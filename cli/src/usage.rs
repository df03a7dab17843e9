//! `nemosctl overlay usage`: what takes room on the overlay's volume.

use nemos_api::options::Dictionary;
use nemos_api::overlay::OverlayProxy;
use nemos_api::usage::{FolderRecord, UsageRecord};
use serde::Serialize;

use crate::output::Output;
use crate::{Failure, table, text};

/// What takes room, as in `--json`, in bytes; keys are added, never changed. Null where the volume is not open.
#[derive(Debug, Serialize)]
struct Usage {
    size: Option<u64>,
    free: Option<u64>,
    names: Option<u64>,
    names_free: Option<u64>,
    changes: Option<Folder>,
    configurations: Vec<Folder>,
    previous: Option<Folder>,
    reverted: Option<Folder>,
    shared: Option<u64>,
    reserve: Option<u64>,
    rest: Option<u64>,
    /// Null if the partition has not grown.
    unused: Option<u64>,
    memory_limit: u64,
    /// Null in mode persistent.
    memory_used: Option<u64>,
}

/// What there is in a folder; `shared` are the bytes of it that somebody else has, too.
#[derive(Debug, Serialize)]
struct Folder {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    entries: u64,
    bytes: u64,
    shared: u64,
}

/// Asks, and prints.
pub async fn run(proxy: &OverlayProxy<'_>, output: Output) -> Result<(), Failure> {
    let usage = Usage::from(proxy.usage(Dictionary::new()).await?);
    Ok(output.show(&usage, Usage::render)?)
}

impl Usage {
    fn render(&self) -> String {
        let mut rows = vec![["WHAT", "SIZE", "OF IT SHARED", "FILES"].map(str::to_owned)];
        let mut folder = |name: &str, folder: &Folder| {
            let shared = if folder.shared > 0 { text::bytes(folder.shared) } else { "-".to_owned() };
            rows.push([name.to_owned(), text::bytes(folder.bytes), shared, folder.entries.to_string()]);
        };
        if let Some(changes) = &self.changes {
            folder("changes", changes);
        }
        for configuration in &self.configurations {
            folder(&format!("configuration {}", configuration.name.as_deref().unwrap_or_default()), configuration);
        }
        // Hardly ever is there any of these; the folder itself always is.
        for (name, there) in [("before the trial", &self.previous), ("taken back", &self.reverted)] {
            if let Some(there) = there.as_ref().filter(|there| there.entries > 1) {
                folder(name, there);
            }
        }
        let plain =
            [("kept for boots", self.reserve), ("file system", self.rest), ("free", self.free), ("all", self.size)];
        for (name, bytes) in plain.into_iter().filter_map(|(name, bytes)| Some((name, bytes?))) {
            rows.push([name.to_owned(), text::bytes(bytes), String::new(), String::new()]);
        }
        let volume = if rows.len() > 1 { table::columns(&rows) } else { "the volume is not open\n".to_owned() };
        let limit = text::bytes(self.memory_limit);
        let memory = match self.memory_used {
            Some(used) => format!("changes of this boot take {} of {limit} of memory\n", text::bytes(used)),
            None => format!("in modes volatile and readonly, changes may take {limit} of memory\n"),
        };
        let unused = self.unused.map(|unused| {
            let unused = text::bytes(unused);
            format!("{unused} of the partition are not used, for it has grown; `nemosctl reset --overlay` makes use of them\n")
        });
        [volume, memory, unused.unwrap_or_default()].concat()
    }
}

impl From<UsageRecord> for Usage {
    fn from(record: UsageRecord) -> Self {
        let UsageRecord { size, free, names, names_free, changes, configurations, previous, reverted, .. } = record;
        let UsageRecord { shared, reserve, rest, .. } = record;
        Usage {
            size,
            free,
            names,
            names_free,
            changes: changes.map(Folder::from),
            configurations: configurations.into_iter().flatten().map(Folder::from).collect(),
            previous: previous.map(Folder::from),
            reverted: reverted.map(Folder::from),
            shared,
            reserve,
            rest,
            unused: record.unused,
            memory_limit: record.memory_limit,
            memory_used: record.memory_used,
        }
    }
}

impl From<FolderRecord> for Folder {
    fn from(record: FolderRecord) -> Self {
        let FolderRecord { name, entries, bytes, shared } = record;
        Folder { name, entries, bytes, shared }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: Option<&str>, bytes: u64, shared: u64) -> FolderRecord {
        FolderRecord { name: name.map(str::to_owned), entries: 12, bytes, shared }
    }

    fn usage() -> UsageRecord {
        UsageRecord {
            size: Some(490 << 20),
            free: Some(400 << 20),
            names: Some(250_000),
            names_free: Some(249_000),
            changes: Some(folder(None, 30 << 20, 10 << 20)),
            configurations: Some(vec![folder(Some("lab"), 20 << 20, 10 << 20)]),
            previous: Some(FolderRecord::default()),
            reverted: Some(FolderRecord::default()),
            shared: Some(10 << 20),
            reserve: Some(8 << 20),
            rest: Some(42 << 20),
            unused: Some(468 << 20),
            memory_limit: 512 << 20,
            memory_used: None,
        }
    }

    #[test]
    fn what_takes_room_is_a_table() {
        insta::assert_snapshot!(Usage::from(usage()).render());
    }

    #[test]
    fn a_device_in_memory_tells_of_memory() {
        let record = UsageRecord { memory_limit: 512 << 20, memory_used: Some(1 << 20), ..UsageRecord::default() };
        let told = Usage::from(record).render();
        assert_eq!(told, "the volume is not open\nchanges of this boot take 1 MiB of 512 MiB of memory\n");
    }

    #[test]
    fn the_json_is_stable() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&Usage::from(usage())).unwrap());
    }
}
