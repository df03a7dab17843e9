//! `nemosctl overlay`: where changes to the root go, and what they are.

use std::collections::BTreeMap;

use nemos_api::CallError;
use nemos_api::overlay::{ChangeRecord, ChangesOptions, ModeOptions, OverlayProxy, RevertOptions};
use serde::Serialize;
use zbus::Connection;
use zbus::proxy::CacheProperties;

use crate::Failure;
use crate::archive;
use crate::arguments::{Overlay as Arguments, OverlayCommand as Command};
use crate::configuration::{self, Trial};
use crate::content::difference;
use crate::job::Accepted;
use crate::output::{Output, agrees, can_ask, print};
use crate::{table, text, usage};

/// The overlay, as in `--json`; keys are added, never changed.
#[derive(Debug, Serialize)]
struct Overlay {
    /// `persistent`, `volatile`, `readonly`.
    mode: String,
    /// Bytes.
    size: u64,
    used: u64,
    /// The configuration that was applied last.
    configuration: String,
    trial: Option<Trial>,
}

/// The mode of this boot, the next, and those after it, as in `--json`.
#[derive(Debug, Serialize)]
struct Modes {
    now: String,
    next: String,
    then: String,
    trial: Option<Trial>,
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
    /// Whether it hides what a newer image has changed.
    shadowed: bool,
    /// As `diff --unified` tells it, with `--content`.
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<String>,
}

/// The changes below a folder, as in `--json` with `--stat`.
#[derive(Debug, Default, Serialize)]
struct Total {
    path: String,
    changes: u64,
    /// Bytes of files that there are now.
    size: u64,
}

/// Refuses to take changes back without asking where there is nobody to ask.
pub fn check(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    if let Some(Command::Configuration(command)) = &arguments.command {
        return configuration::check(command, output);
    }
    let asks = matches!(arguments.command, Some(Command::Revert { yes: false, dry_run: false, .. }));
    if asks && !can_ask(output) { Err(Failure::NobodyToAskForChanges) } else { Ok(()) }
}

/// Carries out a command about the overlay.
pub async fn run(connection: &Connection, arguments: Arguments, output: Output) -> Result<u8, Failure> {
    let proxy = OverlayProxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
    match arguments.command {
        None => {
            let overlay = Overlay {
                mode: proxy.mode().await?,
                size: proxy.size().await?,
                used: proxy.used().await?,
                configuration: proxy.active_configuration().await?,
                trial: Trial::of(proxy.trial().await?),
            };
            output.show(&overlay, Overlay::render)?;
        }
        Some(Command::Configuration(command)) => configuration::run(connection, &proxy, command, output).await?,
        Some(Command::Mode { mode, once, confirm_within }) => {
            if let Some(mode) = &mode {
                proxy.set_mode(mode, ModeOptions { once: Some(once), confirm_within }).await?;
            }
            let modes = Modes {
                now: proxy.mode().await?,
                next: proxy.next_mode().await?,
                then: proxy.mode_after_next().await?,
                trial: Trial::of(proxy.trial().await?),
            };
            output.show(&modes, Modes::render)?;
        }
        Some(Command::Export { name, file }) => return archive::export(&proxy, name, file, output).await,
        Some(Command::Import(wanted)) => return archive::import(&proxy, wanted, output).await,
        Some(Command::Sign { file, key }) => return archive::sign(&file, &key, output),
        Some(Command::Usage) => usage::run(&proxy, output).await?,
        Some(Command::Diff { path, configuration, stat: true, shadowed, .. }) => {
            let mut totals = Totals::default();
            each_page(&proxy, of(path, configuration), |page| {
                for change in page.iter().filter(|change| change.shadowed || !shadowed) {
                    totals.add(change);
                }
                Ok(())
            })
            .await?;
            let totals = totals.0.into_values().collect::<Vec<_>>();
            output.show(&totals, |totals| render_totals(totals))?;
        }
        // A list for programs is whole or not at all; one for people is shown as it comes.
        Some(Command::Diff { path, configuration, content, shadowed, .. }) if output.json => {
            let mut changes = Vec::new();
            each_page(&proxy, of(path, configuration), |page| {
                changes.extend(page.into_iter().filter(|change| change.shadowed || !shadowed));
                Ok(())
            })
            .await?;
            for change in changes.iter_mut().filter(|_| content) {
                change.difference = change.differs_inside().then(|| difference(&change.path)).transpose()?;
            }
            output.show(&changes, |_| String::new())?;
        }
        Some(Command::Revert { paths, dry_run: true, .. }) => {
            output.show(&all_changes(&proxy, &paths).await?, |changes| render_changes(changes))?;
        }
        Some(Command::Revert { paths, yes, no_reboot, .. }) => {
            if !yes {
                confirm(&all_changes(&proxy, &paths).await?, no_reboot)?;
            }
            let options = RevertOptions { reboot: Some(!no_reboot), ..RevertOptions::default() };
            let job = proxy.revert(&paths, options).await?;
            let accepted = Accepted::of(connection, &job, !no_reboot).await?;
            output.show(&accepted, |accepted| accepted.render("the next boot takes the changes back"))?;
        }
        Some(Command::Diff { path, configuration, content, shadowed, .. }) => {
            each_page(&proxy, of(path, configuration), |page| {
                let mut told = String::new();
                for change in page.iter().filter(|change| change.shadowed || !shadowed) {
                    told.push_str(&change.render());
                    if content && change.differs_inside() {
                        told.push_str(&difference(&change.path)?);
                    }
                }
                Ok(print(&told)?)
            })
            .await?;
        }
    }
    Ok(0)
}

/// The changes at and below these paths, of which each must have some.
async fn all_changes(proxy: &OverlayProxy<'_>, paths: &[String]) -> Result<Vec<Change>, Failure> {
    let mut changes = Vec::new();
    for path in paths {
        let before = changes.len();
        each_page(proxy, of(Some(path.clone()), None), |page| {
            changes.extend(page);
            Ok(())
        })
        .await?;
        if changes.len() == before {
            return Err(Failure::Unchanged(path.clone()));
        }
    }
    Ok(changes)
}

fn render_changes(changes: &[Change]) -> String {
    changes.iter().map(Change::render).collect()
}

/// Says what goes, and asks.
fn confirm(changes: &[Change], no_reboot: bool) -> Result<(), Failure> {
    let when = if no_reboot { "At the next boot, take" } else { "Reboot now, and take" };
    print(&format!("{}\n{when} {} changes back? [y/N] ", render_changes(changes), changes.len()))?;
    if agrees()? { Ok(()) } else { Err(Failure::Declined) }
}

/// Asks for all changes, page by page.
async fn each_page(
    proxy: &OverlayProxy<'_>,
    wanted: ChangesOptions,
    mut show: impl FnMut(Vec<Change>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut after = None;
    loop {
        let options = ChangesOptions { after, limit: None, ..wanted.clone() };
        let (page, next) = ask(proxy, options).await?;
        show(page)?;
        if next.is_empty() {
            return Ok(());
        }
        after = Some(next);
    }
}

/// Changes at and below a path, of the root or of a saved configuration.
fn of(path: Option<String>, configuration: Option<String>) -> ChangesOptions {
    ChangesOptions { path, configuration, ..ChangesOptions::default() }
}

/// How many changes there are, and how large the files in them.
pub async fn count(proxy: &OverlayProxy<'_>, configuration: Option<&str>) -> Result<(u64, u64), Failure> {
    let (mut changes, mut size) = (0, 0);
    each_page(proxy, of(None, configuration.map(str::to_owned)), |page| {
        changes += page.len() as u64;
        size += page.iter().map(|change| change.size).sum::<u64>();
        Ok(())
    })
    .await?;
    Ok((changes, size))
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
        let where_to = match self.mode.as_str() {
            "volatile" => ", gone at the next boot",
            "readonly" => " but for /etc and /var, gone at the next boot",
            _ => "",
        };
        let Overlay { mode, size, used, configuration, trial } = self;
        let (used, size) = (text::bytes(*used), text::bytes(*size));
        let trial = trial.as_ref().map(Trial::render).unwrap_or_default();
        format!(
            "{mode}{where_to}: {used} of {size} in use\nconfiguration {configuration}, and what was changed since\n{trial}"
        )
    }
}

impl Modes {
    fn render(&self) -> String {
        let Modes { now, next, then, trial } = self;
        let modes = match (next == now, then == next) {
            (true, true) => format!("{now}\n"),
            (false, true) => format!("{now}; {next} from the next boot on\n"),
            (_, false) => format!("{now}; {next} at the next boot, {then} from then on\n"),
        };
        modes + &trial.as_ref().map(Trial::render).unwrap_or_default()
    }
}

impl Change {
    /// Whether one of the two is a file, and the other a file or nothing.
    fn differs_inside(&self) -> bool {
        self.kind == "file" && matches!(self.what.as_str(), "added" | "changed" | "deleted")
    }

    fn render(&self) -> String {
        let was = match (&self.from, self.factory_size) {
            (Some(from), _) => format!(" from {from}"),
            (None, Some(was)) if self.what == "changed" => {
                format!(" ({}, was {})", text::bytes(self.size), text::bytes(was))
            }
            _ => String::new(),
        };
        let folder = if self.kind == "folder" && self.path != "/" { "/" } else { "" };
        let shadowed = if self.shadowed { " [shadowed: this image has another]" } else { "" };
        format!("{:8}  {}{folder}{was}{shadowed}\n", self.what, self.path)
    }
}

impl From<ChangeRecord> for Change {
    fn from(record: ChangeRecord) -> Self {
        let ChangeRecord { path, what, kind, size, factory_size, from, shadowed } = record;
        Change { path, what, kind, size, factory_size, from, shadowed, difference: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &str, what: &str, kind: &str) -> Change {
        let (path, what, kind) = (path.to_owned(), what.to_owned(), kind.to_owned());
        Change { path, what, kind, size: 2048, factory_size: Some(10), from: None, shadowed: false, difference: None }
    }

    #[test]
    fn a_change_is_a_line() {
        assert_eq!(change("/etc/a", "changed", "file").render(), "changed   /etc/a (2 KiB, was 10 B)\n");
        assert_eq!(change("/etc/b", "added", "folder").render(), "added     /etc/b/\n");
        let renamed = Change { from: Some("/etc/c".into()), ..change("/etc/d", "renamed", "folder") };
        assert_eq!(renamed.render(), "renamed   /etc/d/ from /etc/c\n");
        let shadowed = Change { shadowed: true, ..change("/etc/e", "deleted", "file") };
        assert_eq!(shadowed.render(), "deleted   /etc/e [shadowed: this image has another]\n");
    }

    #[test]
    fn modes_are_told_as_far_as_they_differ() {
        let told = |now: &str, next: &str, then: &str| {
            Modes { now: now.into(), next: next.into(), then: then.into(), trial: None }.render()
        };
        assert_eq!(told("persistent", "persistent", "persistent"), "persistent\n");
        assert_eq!(told("persistent", "readonly", "readonly"), "persistent; readonly from the next boot on\n");
        assert_eq!(
            told("persistent", "volatile", "persistent"),
            "persistent; volatile at the next boot, persistent from then on\n"
        );
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
