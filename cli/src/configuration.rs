//! `nemosctl overlay save`, `apply` and their like: the changes to the root under a name.

use nemos_api::configuration::{ApplyOptions, ConfigurationRecord, SaveOptions, TrialRecord};
use nemos_api::overlay::OverlayProxy;
use nemos_api::{CallError, Error, ErrorKind};
use serde::Serialize;
use zbus::Connection;

use crate::Failure;
use crate::arguments::Configuration as Command;
use crate::job::Accepted;
use crate::output::{Output, agrees, can_ask, print};
use crate::overlay::count;
use crate::{table, text};

/// A configuration, as in `--json`; keys are added, never changed.
#[derive(Debug, Serialize)]
struct Configuration {
    name: String,
    /// The one that was applied last.
    active: bool,
    made_at: Option<String>,
    image_id: String,
    image_version: String,
    root_hash: Option<String>,
    /// `saved`, `imported`, `image`.
    origin: Option<String>,
    /// Fingerprint and comment of a key.
    signed_by: Option<String>,
    /// Why it cannot be used.
    error: Option<String>,
}

/// One configuration, as in `--json` of `show`.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    configuration: Configuration,
    /// How many paths it changes, and bytes of files that it has there.
    changes: u64,
    size: u64,
}

/// What is on trial, as in `--json`; null where there is nothing to say.
#[derive(Debug, Serialize)]
pub struct Trial {
    /// `mode`, `configuration`.
    of: String,
    name: String,
    /// Seconds from the beginning of its boot.
    within: u32,
    /// Whether this is that boot.
    running: bool,
}

/// What a command would take away, as in `--json` of `--dry-run`.
#[derive(Debug, Serialize)]
struct Loss {
    /// Changes to the root that are gone then.
    changes: u64,
    /// Bytes of files in them.
    size: u64,
}

/// What was done at once, as in `--json`.
#[derive(Debug, Serialize)]
struct Done {
    name: String,
    state: &'static str,
}

/// Refuses to do what cannot be taken back without asking, where there is nobody to ask.
pub fn check(command: &Command, output: Output) -> Result<(), Failure> {
    let asks = match command {
        Command::Save { yes, no_reboot, .. } => !yes && !no_reboot,
        Command::Apply { yes, dry_run, .. } => !yes && !dry_run,
        Command::Delete { yes, .. } => !yes,
        _ => false,
    };
    if asks && !can_ask(output) { Err(Failure::NobodyToAskForChanges) } else { Ok(()) }
}

/// Carries out a command about configurations.
pub async fn run(
    connection: &Connection,
    proxy: &OverlayProxy<'_>,
    command: Command,
    output: Output,
) -> Result<(), Failure> {
    match command {
        Command::Save { name, replace, yes, no_reboot } => {
            if !yes && !no_reboot {
                ask(&format!("Reboot now, and save the changes as {name}?"))?;
            }
            let options = SaveOptions { replace: Some(replace), reboot: Some(!no_reboot), ..SaveOptions::default() };
            let job = proxy.save(&name, options).await?;
            let accepted = Accepted::of(connection, &job, !no_reboot).await?;
            output.show(&accepted, |accepted| accepted.render("the next boot saves the changes"))?;
        }
        Command::Apply { name, dry_run: true, .. } => {
            is_there(proxy, &name).await?;
            output.show(&loss(proxy).await?, Loss::render)?;
        }
        Command::Apply { name, confirm_within, force, yes, no_reboot, .. } => {
            if !yes {
                is_there(proxy, &name).await?;
                let when = if no_reboot { "At the next boot, put" } else { "Reboot now, and put" };
                print(&loss(proxy).await?.render())?;
                ask(&format!("{when} {name} in their place?"))?;
            }
            let options = ApplyOptions {
                confirm_within,
                force: Some(force),
                reboot: Some(!no_reboot),
                ..ApplyOptions::default()
            };
            let job = proxy.apply(&name, options).await?;
            let accepted = Accepted::of(connection, &job, !no_reboot).await?;
            output.show(&accepted, |accepted| accepted.render("the next boot has them"))?;
        }
        Command::List => {
            let active = proxy.active_configuration().await?;
            let saved = proxy.configurations().await?;
            let all: Vec<Configuration> = std::iter::once(Configuration::factory(&active))
                .chain(saved.into_iter().map(|record| Configuration::new(record, &active)))
                .collect();
            output.show(&all, |all| render_list(all))?;
        }
        Command::Show { name } => {
            let active = proxy.active_configuration().await?;
            let known = proxy.configurations().await?.into_iter().find(|record| record.name == name);
            let (changes, size) = count(proxy, Some(&name)).await?;
            let configuration =
                known.map_or_else(|| Configuration::factory(&active), |record| Configuration::new(record, &active));
            output.show(&Shown { configuration, changes, size }, Shown::render)?;
        }
        Command::Delete { name, yes } => {
            if !yes {
                ask(&format!("Delete configuration {name}?"))?;
            }
            proxy.delete(&name).await?;
            output.show(&Done { name, state: "deleted" }, Done::render)?;
        }
        Command::Rename { from, to } => {
            proxy.rename(&from, &to).await?;
            output.show(&Done { name: to, state: "renamed" }, Done::render)?;
        }
        Command::Confirm => {
            let tried = Trial::of(proxy.trial().await?);
            proxy.confirm().await?;
            let name = tried.map_or_else(String::new, |trial| format!("{} {}", trial.of, trial.name));
            output.show(&Done { name, state: "stays" }, Done::render)?;
        }
    }
    Ok(())
}

fn ask(question: &str) -> Result<(), Failure> {
    print(&format!("{question} [y/N] "))?;
    if agrees()? { Ok(()) } else { Err(Failure::Declined) }
}

/// Before anybody is asked, or told what would go for it.
async fn is_there(proxy: &OverlayProxy<'_>, name: &str) -> Result<(), Failure> {
    let is_known = name == "factory" || proxy.configurations().await?.iter().any(|record| record.name == name);
    let missing = || {
        let message = format!("there is no configuration {name}; `nemosctl overlay list` tells those that there are");
        CallError::Refused(Error::new(ErrorKind::NotFound, message))
    };
    if is_known { Ok(()) } else { Err(missing().into()) }
}

async fn loss(proxy: &OverlayProxy<'_>) -> Result<Loss, Failure> {
    let (changes, size) = count(proxy, None).await?;
    Ok(Loss { changes, size })
}

fn render_list(all: &[Configuration]) -> String {
    let head = ["NAME", "MADE", "FROM", "IMAGE"].map(str::to_owned);
    let row = |configuration: &Configuration| {
        let Configuration { name, active, made_at, error, .. } = configuration;
        let image = error.as_ref().map_or_else(|| configuration.image(), |error| format!("cannot be used: {error}"));
        let name = if *active { format!("{name} *") } else { name.clone() };
        [name, made_at.clone().unwrap_or_else(|| "-".into()), configuration.from(), image]
    };
    table::columns(&std::iter::once(head).chain(all.iter().map(row)).collect::<Vec<_>>())
}

impl Configuration {
    /// The image as it was shipped.
    fn factory(active: &str) -> Self {
        let nothing = String::new;
        Configuration {
            name: "factory".into(),
            active: active == "factory",
            made_at: None,
            image_id: nothing(),
            image_version: nothing(),
            root_hash: None,
            origin: Some("image".into()),
            signed_by: None,
            error: None,
        }
    }

    fn new(record: ConfigurationRecord, active: &str) -> Self {
        let ConfigurationRecord { name, made_at, image_id, image_version, root_hash, origin, signed_by, error } =
            record;
        Configuration {
            active: name == active,
            name,
            made_at: text::time(made_at),
            image_id,
            image_version,
            root_hash: Some(root_hash).filter(|hash| !hash.is_empty()),
            origin,
            signed_by,
            error,
        }
    }

    /// Where it came from, and whose word there is for it.
    fn from(&self) -> String {
        match (self.origin.as_deref(), &self.signed_by) {
            (Some("imported"), Some(key)) => format!("imported, signed by {key}"),
            (Some("imported"), None) => "imported, not signed".into(),
            (origin, _) => origin.unwrap_or("-").to_owned(),
        }
    }

    fn image(&self) -> String {
        let image = format!("{} {}", self.image_id, self.image_version);
        if image.trim().is_empty() { "as shipped".into() } else { image }
    }
}

impl Shown {
    fn render(&self) -> String {
        let Shown { configuration, changes, size } = self;
        let mut rows = vec![["name".to_owned(), configuration.name.clone()]];
        rows.extend(configuration.made_at.iter().map(|at| ["made".to_owned(), at.clone()]));
        rows.push(["from".to_owned(), configuration.from()]);
        rows.push(["image".to_owned(), configuration.image()]);
        rows.extend(configuration.error.iter().map(|error| ["cannot be used".to_owned(), error.clone()]));
        rows.push(["changes".to_owned(), format!("{changes}, with {} in files", text::bytes(*size))]);
        table::columns(&rows)
    }
}

impl Loss {
    fn render(&self) -> String {
        format!("{} changes go, with {} in files, unless they are saved\n", self.changes, text::bytes(self.size))
    }
}

impl Done {
    fn render(&self) -> String {
        format!("{}: {}\n", self.name, self.state)
    }
}

impl Trial {
    /// What is on trial, if anything is.
    pub fn of(record: TrialRecord) -> Option<Self> {
        let TrialRecord { of, name, within, running } = record;
        Some(Trial { of: of?, name: name?, within: within?, running: running? })
    }

    /// For people, in a line.
    pub fn render(&self) -> String {
        let Trial { of, name, within, running } = self;
        if *running {
            format!(
                "{of} {name} is on trial: without `nemosctl overlay confirm` the device goes back, {} after this boot began\n",
                text::seconds(*within)
            )
        } else {
            format!("{of} {name} is tried at the next boot, for {}\n", text::seconds(*within))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, error: Option<&str>) -> ConfigurationRecord {
        ConfigurationRecord {
            name: name.into(),
            made_at: 1_795_442_786,
            image_id: "nemos".into(),
            image_version: "1.2".into(),
            root_hash: "ab".into(),
            origin: Some("imported".into()),
            signed_by: None,
            error: error.map(Into::into),
        }
    }

    #[test]
    fn the_list_begins_with_the_image_and_marks_what_is_in_use() {
        let all = [
            Configuration::factory("site"),
            Configuration::new(record("site", None), "site"),
            Configuration::new(record("worn", Some("it has version 9")), "site"),
        ];
        let list = render_list(&all);
        let lines: Vec<Vec<&str>> = list
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(lines[1], ["factory", "-", "image", "as shipped"]);
        assert_eq!(lines[2], ["site *", "2026-11-23T14:06:26Z", "imported, not signed", "nemos 1.2"]);
        assert_eq!(lines[3][3], "cannot be used: it has version 9");
    }

    #[test]
    fn a_trial_says_how_long_it_lasts() {
        let trial = |running| {
            let (of, name) = (Some("mode".into()), Some("volatile".into()));
            Trial::of(TrialRecord { of, name, within: Some(600), running: Some(running) }).unwrap().render()
        };
        assert!(trial(true).contains("on trial") && trial(true).contains("10 min"), "{}", trial(true));
        assert_eq!(trial(false), "mode volatile is tried at the next boot, for 10 min\n");
        assert!(Trial::of(TrialRecord::default()).is_none());
    }
}
