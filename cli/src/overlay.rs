//! `nemosctl overlay`: where changes to the root go, and what they are.

use std::collections::BTreeMap;

use nemos_api::CallError;
use nemos_api::overlay::{ChangeRecord, ChangesOptions, OverlayProxy};
use serde::Serialize;
use zbus::Connection;
use zbus::proxy::CacheProperties;

use crate::Failure;
use crate::arguments::{Overlay as Arguments, OverlayCommand as Command};
use crate::output::{Output, print};
use crate::{table, text};

/// The overlay, as in `--json`; keys are added, never changed.
#[derive(Debug, Serialize)]
struct Overlay {
    /// `persistent`, `volatile`.
    mode: String,
    /// Bytes.
    size: u64,
    used: u64,
}

/// A change, as in `--json`; null where there is nothing to say.
#[derive(Debug, Serialize)]
struct Change {
    path: String,
    /// `added`, `changed`, `metadata`, `deleted`, `replaced`, `renamed`, `type`.
    what: String,
    /// `file`, `folder`, `link`, `special`.
    kind: String,
    /// Bytes.
    size: u64,
    factory_size: Option<u64>,
    from: Option<String>,
}

/// The changes below a folder, as in `--json` with `--stat`.
#[derive(Debug, Default, Serialize)]
struct Total {
    path: String,
    changes: u64,
    /// Bytes of files that there are now.
    size: u64,
}

/// Carries out a command about the overlay.
pub async fn run(connection: &Connection, arguments: Arguments, output: Output) -> Result<u8, Failure> {
    let proxy = OverlayProxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
    match arguments.command {
        None => {
            let overlay = Overlay { mode: proxy.mode().await?, size: proxy.size().await?, used: proxy.used().await? };
            output.show(&overlay, Overlay::render)?;
        }
        Some(Command::Diff { path, stat: true }) => {
            let mut totals = Totals::default();
            each_page(&proxy, path, |page| {
                for change in &page {
                    totals.add(change);
                }
                Ok(())
            })
            .await?;
            let totals = totals.0.into_values().collect::<Vec<_>>();
            output.show(&totals, |totals| render_totals(totals))?;
        }
        // A list for programs is whole or not at all; one for people is shown as it comes.
        Some(Command::Diff { path, stat: false }) if output.json => {
            let mut changes = Vec::new();
            each_page(&proxy, path, |page| {
                changes.extend(page);
                Ok(())
            })
            .await?;
            output.show(&changes, |_| String::new())?;
        }
        Some(Command::Diff { path, stat: false }) => {
            each_page(&proxy, path, |page| Ok(print(&page.iter().map(Change::render).collect::<String>())?)).await?;
        }
    }
    Ok(0)
}

/// Asks for all changes, page by page.
async fn each_page(
    proxy: &OverlayProxy<'_>,
    path: Option<String>,
    mut show: impl FnMut(Vec<Change>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut after = None;
    loop {
        let options = ChangesOptions { path: path.clone(), after, limit: None };
        let (page, next) = ask(proxy, options).await?;
        show(page)?;
        if next.is_empty() {
            return Ok(());
        }
        after = Some(next);
    }
}

async fn ask(proxy: &OverlayProxy<'_>, options: ChangesOptions) -> Result<(Vec<Change>, String), CallError> {
    let (page, next) = proxy.changes(options).await?;
    Ok((page.into_iter().map(Change::from).collect(), next))
}

/// By the first two folders of their paths.
#[derive(Debug, Default)]
struct Totals(BTreeMap<String, Total>);

impl Totals {
    fn add(&mut self, change: &Change) {
        let parts: Vec<&str> = change.path.trim_start_matches('/').splitn(3, '/').collect();
        let folder = match parts.as_slice() {
            [first, second, _] => format!("/{first}/{second}"),
            [first, _] => format!("/{first}"),
            _ => "/".to_owned(),
        };
        let total = self.0.entry(folder.clone()).or_insert_with(|| Total { path: folder, ..Total::default() });
        total.changes += 1;
        total.size += change.size;
    }
}

fn render_totals(totals: &[Total]) -> String {
    let head = ["FOLDER", "CHANGES", "SIZE"].map(str::to_owned);
    let row = |total: &Total| [total.path.clone(), total.changes.to_string(), text::bytes(total.size)];
    table::columns(&std::iter::once(head).chain(totals.iter().map(row)).collect::<Vec<_>>())
}

impl Overlay {
    fn render(&self) -> String {
        let where_to = if self.mode == "volatile" { ", gone at the next boot" } else { "" };
        format!("{}{where_to}: {} of {} in use\n", self.mode, text::bytes(self.used), text::bytes(self.size))
    }
}

impl Change {
    fn render(&self) -> String {
        let was = match (&self.from, self.factory_size) {
            (Some(from), _) => format!(" from {from}"),
            (None, Some(was)) if self.what == "changed" => {
                format!(" ({}, was {})", text::bytes(self.size), text::bytes(was))
            }
            _ => String::new(),
        };
        let folder = if self.kind == "folder" && self.path != "/" { "/" } else { "" };
        format!("{:8}  {}{folder}{was}\n", self.what, self.path)
    }
}

impl From<ChangeRecord> for Change {
    fn from(record: ChangeRecord) -> Self {
        let ChangeRecord { path, what, kind, size, factory_size, from } = record;
        Change { path, what, kind, size, factory_size, from }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &str, what: &str, kind: &str) -> Change {
        let (path, what, kind) = (path.to_owned(), what.to_owned(), kind.to_owned());
        Change { path, what, kind, size: 2048, factory_size: Some(10), from: None }
    }

    #[test]
    fn a_change_is_a_line() {
        assert_eq!(change("/etc/a", "changed", "file").render(), "changed   /etc/a (2 KiB, was 10 B)\n");
        assert_eq!(change("/etc/b", "added", "folder").render(), "added     /etc/b/\n");
        let renamed = Change { from: Some("/etc/c".into()), ..change("/etc/d", "renamed", "folder") };
        assert_eq!(renamed.render(), "renamed   /etc/d/ from /etc/c\n");
    }

    #[test]
    fn totals_are_by_folder() {
        let mut totals = Totals::default();
        for path in ["/etc/ssh/a", "/etc/ssh/keys/b", "/etc/c", "/d"] {
            totals.add(&change(path, "added", "file"));
        }
        let totals: Vec<(String, u64)> = totals.0.into_values().map(|total| (total.path, total.changes)).collect();
        assert_eq!(totals, [("/".into(), 1), ("/etc".into(), 1), ("/etc/ssh".into(), 2)]);
    }
}
