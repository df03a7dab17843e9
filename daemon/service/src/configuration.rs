//! Saved configurations, and what is on trial: what may be asked, and what is done while the system runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nemos_api::configuration::{ApplyOptions, ConfigurationRecord, SaveOptions, within};
use nemos_api::{Error, ErrorKind};
use nemos_host::overlay::archive::{shipped, shipped_about};
use nemos_host::overlay::configuration::{self as host, ConfigurationError, Known};
use nemos_host::overlay::trial::{self, TrialError};
use nemos_host::overlay::volume_mount;
use nemos_model::health::{Health, verdict};
use nemos_model::job::{Job, JobState, Kind, Requester};
use nemos_model::overlay::archive::Voucher;
use nemos_model::overlay::changes::to_text;
use nemos_model::overlay::{ConfigurationName, LOWER_MOUNT, Mode, Tried, Within};
use nemos_model::state::{NotTaken, Wanted};
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::archive;
use crate::bus::Service;
use crate::desk::Asked;

/// All configurations that are saved or shipped, by name.
pub async fn list() -> Result<Vec<ConfigurationRecord>, Error> {
    blocking(|| {
        let found = host::list(volume_mount()).map_err(|error| refusal(&error))?;
        let record =
            |(name, about): Known| ConfigurationRecord::new(&name, about.as_ref().map_err(ToString::to_string));
        let mut records: Vec<ConfigurationRecord> = found.into_iter().map(record).collect();
        let root = Path::new(LOWER_MOUNT);
        for name in shipped(root).map_err(|error| Error::new(ErrorKind::Failed, error.to_string()))? {
            if records.iter().all(|record| record.name != name.as_str()) {
                let about = shipped_about(root, &name);
                records.push(ConfigurationRecord::new(&name, about.as_ref().map_err(ToString::to_string)));
            }
        }
        records.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(records)
    })
    .await
}

/// Where the changes of a saved configuration are.
pub fn tree(name: &ConfigurationName) -> Result<PathBuf, Error> {
    let tree = host::tree(volume_mount(), name);
    // The factory configuration has no changes, and so no place.
    if name.is_factory() || tree.is_dir() {
        Ok(tree)
    } else {
        Err(refusal(&ConfigurationError::NotThere(name.clone())))
    }
}

impl Service {
    /// Asks to have the changes to the root saved.
    pub async fn save(&self, name: &str, by: Requester, options: SaveOptions) -> Result<Job, Error> {
        let name = name.parse::<ConfigurationName>()?.saved()?;
        if let Some(job) = self.desk.known(options.key.as_deref(), Kind::Save).await? {
            return of_that_name(job, &name);
        }
        self.writes_to_volume("saved").await?;
        let replace = options.replace.unwrap_or_default();
        let wanted = name.clone();
        let there = blocking(move || match host::about(volume_mount(), &wanted) {
            Err(ConfigurationError::NotThere(_)) => Ok(false),
            _ => Ok(true),
        });
        if !replace && there.await? {
            return Err(refusal(&ConfigurationError::Exists(name)));
        }
        let asked = Asked { by, key: options.key, not_before: None, reboot: options.reboot.unwrap_or_default() };
        self.desk.ask(Wanted::Save { name, replace }, asked).await
    }

    /// Asks to have saved changes put in the place of those that there are.
    pub async fn apply(&self, name: &str, by: Requester, options: ApplyOptions) -> Result<Job, Error> {
        let (name, within) = (name.parse::<ConfigurationName>()?, within(options.confirm_within)?);
        if let Some(job) = self.desk.known(options.key.as_deref(), Kind::Apply).await? {
            return of_that_name(job, &name);
        }
        self.writes_to_volume("applied").await?;
        self.next_boot_shows_it().await?;
        self.can_be_tried(within).await?;
        if !name.is_factory() {
            archive::bring_shipped(self, name.clone()).await?;
            self.fits(&name, options.force.unwrap_or_default()).await?;
        }
        let asked = Asked { by, key: options.key, not_before: None, reboot: options.reboot.unwrap_or_default() };
        self.desk.ask(Wanted::Apply { name, within }, asked).await
    }

    /// What is applied is seen, and can be confirmed, only at a boot that has the overlay's volume.
    pub async fn next_boot_shows_it(&self) -> Result<(), Error> {
        let next = self.desk.state().await?.modes().next();
        if next == Mode::Persistent {
            return Ok(());
        }
        let message = format!("the next boot is {next}, and would not have it; `nemosctl overlay mode persistent`");
        Err(Error::new(ErrorKind::NotSupported, message))
    }

    /// What is on trial is gone back from when health turns critical.
    pub async fn can_be_tried(&self, within: Option<Within>) -> Result<(), Error> {
        if within.is_some() && verdict(&self.findings_of_this_boot().await?) == Health::Critical {
            let message = "health is critical already, and the device would go back at once; see `nemosctl health`";
            return Err(Error::new(ErrorKind::NotSupported, message));
        }
        Ok(())
    }

    /// A configuration of another image may hide what is new in this one.
    async fn fits(&self, name: &ConfigurationName, force: bool) -> Result<(), Error> {
        let wanted = name.clone();
        let known = blocking(move || {
            let about = host::about(volume_mount(), &wanted).map_err(|error| refusal(&error))?;
            let hidden = host::shadowed(volume_mount(), Path::new(LOWER_MOUNT), &wanted);
            Ok((about, hidden.map_err(|error| refusal(&error))?))
        });
        let (about, hidden) = known.await?;
        let here = self.desk.seen().await?.report.as_ref().map(|report| report.root_hash);
        // The image knows why it ships one, and cannot know its own hash.
        let is_shipped = about.imported.as_ref().is_some_and(|imported| imported.voucher == Voucher::Image);
        let is_of_this = here == Some(about.root_hash);
        let hides_nothing = hidden.as_ref().map_or(is_of_this, Vec::is_empty);
        if force || is_shipped || hides_nothing {
            return Ok(());
        }
        let (image, here) = (about.image, self.desk.image().await?);
        let hides =
            hidden.map_or_else(|| "which of its files hide newer ones is not known".to_owned(), |paths| told(&paths));
        let made = if is_of_this {
            "holds changes that were made before this image came".to_owned()
        } else {
            format!("was made on {} {}, and this is {} {}", image.id, image.version, here.id, here.version)
        };
        let message = format!("configuration {name} {made}: {hides}; --force applies it all the same");
        Err(Error::new(ErrorKind::NotSupported, message))
    }

    /// Deletes a saved configuration.
    pub async fn delete(&self, name: &str) -> Result<ConfigurationName, Error> {
        let name = name.parse::<ConfigurationName>()?.saved()?;
        self.is_not_awaited(&name).await?;
        self.writes_to_volume("deleted").await?;
        let deleted = name.clone();
        blocking(move || host::delete(volume_mount(), &deleted).map_err(|error| refusal(&error))).await?;
        Ok(name)
    }

    /// Gives a saved configuration another name.
    pub async fn rename(&self, from: &str, to: &str) -> Result<(ConfigurationName, ConfigurationName), Error> {
        let (from, to) = (from.parse::<ConfigurationName>()?.saved()?, to.parse::<ConfigurationName>()?.saved()?);
        for name in [&from, &to] {
            self.is_not_awaited(name).await?;
        }
        self.writes_to_volume("renamed").await?;
        let (old, new) = (from.clone(), to.clone());
        blocking(move || host::rename(volume_mount(), &old, &new).map_err(|error| refusal(&error))).await?;
        let follows = self.desk.note(|state| {
            state.configuration_renamed(&from, &to);
            Ok(())
        });
        follows.await?;
        Ok((from, to))
    }

    /// Keeps what is on trial.
    pub async fn confirm(&self) -> Result<(), Error> {
        self.desk.note(|state| Ok(state.confirm().map(drop)?)).await?;
        blocking(|| trial::end().map_err(|error| not_ended(&error))).await?;
        forget_previous().await;
        Ok(())
    }

    /// What is on trial at this boot, if it has turned the device critical.
    pub async fn failed_trial(&self) -> Option<Tried> {
        let state = self.desk.state().await.ok()?;
        let trial = state.running_trial()?;
        let findings = self.findings_of_this_boot().await.ok()?;
        (verdict(&findings) == Health::Critical).then(|| trial.tried.clone())
    }

    async fn is_not_awaited(&self, name: &ConfigurationName) -> Result<(), Error> {
        let state = self.desk.state().await?;
        match state.pending().filter(|job| job.configuration.as_ref() == Some(name)) {
            Some(job) => Err(NotTaken::Busy(job.id).into()),
            None => Ok(()),
        }
    }

    /// In another mode the volume is there to be read.
    async fn writes_to_volume(&self, what: &str) -> Result<(), Error> {
        let seen = self.desk.seen().await?;
        if seen.report.as_ref().is_some_and(|report| report.mode == Mode::Persistent) {
            return Ok(());
        }
        let message = format!("nothing can be {what} at this boot, whose overlay is in memory");
        Err(Error::new(ErrorKind::NotSupported, message))
    }
}

/// The job that was made for an idempotency key, if it was made for that configuration.
fn of_that_name(job: Job, name: &ConfigurationName) -> Result<Job, Error> {
    if job.configuration.as_ref() == Some(name) { Ok(job) } else { Err(NotTaken::OtherRequest(job.id).into()) }
}

/// The paths at which a configuration hides something newer, as many as one reads.
fn told(paths: &[PathBuf]) -> String {
    const MOST: usize = 20;
    let shown: Vec<String> = paths.iter().take(MOST).map(|path| to_text(path)).collect();
    let more = match paths.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("it hides what the image has changed since at {}{more}", shown.join(", "))
}

/// Takes away what interrupted work has left, and what nobody can go back to.
pub async fn settle(service: &Arc<Service>) {
    let Ok(seen) = service.desk.seen().await else { return };
    if seen.report.as_ref().is_none_or(|report| report.mode != Mode::Persistent) {
        return;
    }
    // What is being imported is no leftover.
    let _rests = service.carrier.rests().await;
    let removed = blocking(|| host::remove_leftovers(volume_mount()).map_err(|error| refusal(&error)));
    if let Err(error) = removed.await {
        warn!("what interrupted work has left takes up room still: {error}");
    }
    let Ok(state) = service.desk.state().await else { return };
    // One that did not come to its end may still need it, whatever became of it.
    let may_need_it = |job: &Job| matches!(job.kind, Kind::Apply | Kind::GoBack) && job.state != JobState::Done;
    let is_settled = state.trial().is_none() && !state.jobs().last().is_some_and(may_need_it);
    if is_settled {
        forget_previous().await;
    }
}

async fn forget_previous() {
    let forgotten = blocking(|| host::forget_previous(volume_mount()).map_err(|error| refusal(&error)));
    if let Err(error) = forgotten.await {
        warn!("what was there before takes up room still: {error}");
    }
}

fn not_ended(error: &TrialError) -> Error {
    Error::new(ErrorKind::Failed, format!("it is confirmed, and this boot ends all the same: {error}"))
}

fn refusal(error: &ConfigurationError) -> Error {
    let kind = match error {
        ConfigurationError::NotThere(_) => ErrorKind::NotFound,
        ConfigurationError::Exists(_) => ErrorKind::InvalidArgument,
        ConfigurationError::Unreadable { .. } => ErrorKind::Corrupt,
        _ => ErrorKind::Failed,
    };
    Error::new(kind, error.to_string())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(Error::new(ErrorKind::Failed, error.to_string())))
}
