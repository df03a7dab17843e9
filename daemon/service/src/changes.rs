//! Tells changes page by page, without looking for each page at all that came before it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nemos_api::overlay::{ChangeRecord, WantedChanges};
use nemos_api::{Error, ErrorKind};
use nemos_host::overlay::changes::{Trees, Walk};
use nemos_host::overlay::shadow::Shadows;
use nemos_model::integrity::RootHash;
use nemos_model::overlay::changes::{Change, from_text};
use nemos_model::overlay::{ConfigurationName, UPPER_FOLDER};
use tracing::warn;

use crate::configuration;

/// How long a walk waits for whoever reads its next page: what it has seen of a folder gets old.
const WAITS: Duration = Duration::from_secs(60);

/// Where changes are looked for.
#[derive(Debug, Clone)]
pub struct Layers {
    /// Where the file system with the overlay's upper folder is mounted.
    pub volume: PathBuf,
    /// Where the image is mounted.
    pub lower: PathBuf,
    /// Its root hash, if the volume is the one that stays.
    pub root_hash: Option<RootHash>,
}

/// The walk of the last page that was not the last one.
#[derive(Debug, Default)]
pub struct Pages(Mutex<Option<Waiting>>);

#[derive(Debug)]
struct Waiting {
    since: Instant,
    /// Below what was asked for.
    path: PathBuf,
    /// The saved configuration that it is of.
    configuration: Option<ConfigurationName>,
    /// The path that its page ended with.
    after: PathBuf,
    /// The first change of the next page.
    next: Change,
    walk: Walk,
    shadows: Option<Shadows>,
}

impl Pages {
    /// One page of changes, and where to go on; empty at the end.
    pub fn page(&self, layers: &Layers, wanted: &WantedChanges) -> Result<(Vec<ChangeRecord>, String), Error> {
        let upper = match &wanted.configuration {
            None => layers.volume.join(UPPER_FOLDER),
            Some(name) => configuration::tree(name)?,
        };
        let trees = Trees { upper: &upper, lower: &layers.lower };
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let is_wanted = |waiting: &Waiting| {
            waiting.since.elapsed() < WAITS
                && waiting.path == wanted.path
                && waiting.configuration == wanted.configuration
                && wanted.after.as_deref() == Some(waiting.after.as_path())
        };
        let (mut next, mut walk, mut shadows) = match waiting.filter(is_wanted) {
            Some(Waiting { next, walk, shadows, .. }) => (Some(next), walk, shadows),
            None => (None, Walk::new(&wanted.path, wanted.after.as_deref()), shadows(layers, wanted)),
        };
        let failed = |error: &dyn std::error::Error| Error::new(ErrorKind::Failed, error.to_string());
        let mut page: Vec<ChangeRecord> = Vec::new();
        loop {
            let found = match next.take() {
                Some(next) => Some(next),
                None => walk.next(&trees).map_err(|error| failed(&error))?,
            };
            let Some(change) = found else { return Ok((page, String::new())) };
            if let Some(last) = page.last().filter(|_| page.len() == wanted.limit) {
                let end = last.path.clone();
                let after = from_text(&end).map_err(|error| failed(&error))?;
                let (path, configuration) = (wanted.path.clone(), wanted.configuration.clone());
                let waiting =
                    Waiting { since: Instant::now(), path, configuration, after, next: change, walk, shadows };
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(waiting);
                return Ok((page, end));
            }
            let is_shadowed = is_shadowed(shadows.as_mut(), &change.path, &trees);
            page.push(ChangeRecord::new(&change, is_shadowed));
        }
    }
}

/// Which changes are shadowed is told by health if it is not known; the changes are.
fn shadows(layers: &Layers, wanted: &WantedChanges) -> Option<Shadows> {
    // Copies have other marks.
    if wanted.configuration.is_some() {
        return None;
    }
    Shadows::read(&layers.volume, layers.root_hash?).unwrap_or_else(|error| {
        warn!("changes are told without those that are shadowed: {error}");
        None
    })
}

fn is_shadowed(shadows: Option<&mut Shadows>, path: &Path, trees: &Trees<'_>) -> bool {
    let Some(shadows) = shadows else { return false };
    shadows.hides(path, trees).unwrap_or_else(|error| {
        warn!("whether a change is shadowed is not known: {error}");
        false
    })
}
