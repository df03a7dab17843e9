//! What the next boot will be like: foreseen when something has changed it, and kept for health.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use nemos_api::{Error, ErrorKind};
use nemos_host::keys::{Keys, Traces, next_boot, order, tpm2_tokens, traces, try_slot};
use nemos_model::health::{Finding, Health};
use nemos_model::keys::forecast::Tried;
use nemos_model::keys::{Forecast, Slot, forecast};
use nemos_model::overlay::LOWER_MOUNT;
use tokio::task::spawn_blocking;
use tracing::debug;

use super::{volume, work};
use crate::bus::Service;

/// How often it is looked whether somebody has changed what the next boot goes by.
const LOOKS: Duration = Duration::from_secs(60);

/// What the last forecast was, and whether it still holds.
#[derive(Debug)]
pub struct Foresight(std::sync::Mutex<Known>);

#[derive(Debug)]
struct Known {
    /// The last one, or why it could not be made; `None` where there is nothing to foresee.
    last: Option<Result<Forecast, String>>,
    changes: Changes<Traces>,
    looked: Instant,
}

/// Tells when something that changes has come to rest again.
#[derive(Debug)]
struct Changes<T> {
    /// As it was when somebody last acted on it.
    acted_on: Option<T>,
    /// As it was at the last look.
    seen: Option<T>,
}

impl<T: PartialEq> Changes<T> {
    /// Whether it is another than was acted on, and the same as at the last look: who writes a file is not interrupted.
    fn have_come_to_rest(&mut self, now: T) -> bool {
        let rests = self.seen.as_ref() == Some(&now);
        let is_news = self.acted_on.as_ref() != Some(&now);
        self.seen = Some(now);
        rests && is_news
    }
}

impl Default for Foresight {
    fn default() -> Self {
        let changes = Changes { acted_on: None, seen: None };
        Foresight(Known { last: None, changes, looked: Instant::now() }.into())
    }
}

impl Foresight {
    /// What health says of the next boot.
    pub fn finding(&self) -> Option<Finding> {
        self.known(|known| match &known.last {
            Some(Ok(forecast)) => forecast.finding(),
            Some(Err(why)) => {
                let message = format!("whether the next boot opens the overlay by itself is not known: {why}");
                Some(Finding { health: Health::Warning, message })
            }
            None => None,
        })
    }

    fn note(&self, made: &Result<(Forecast, Traces), Error>) {
        self.known(|known| match made {
            Ok((forecast, went_by)) => {
                known.last = Some(Ok(forecast.clone()));
                known.changes.acted_on = Some(went_by.clone());
            }
            Err(error) if error.kind == ErrorKind::NotSupported => known.last = None,
            Err(error) => {
                known.last = Some(Err(error.message.clone()));
                known.changes.acted_on = None;
            }
        });
    }

    /// Whether it is time to look.
    fn is_time(&self) -> bool {
        self.known(|known| {
            let is_time = known.looked.elapsed() >= LOOKS;
            if is_time {
                known.looked = Instant::now();
            }
            is_time
        })
    }

    fn known<T>(&self, work: impl FnOnce(&mut Known) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Tries what the next boot will try, and looks at what it will measure.
pub async fn forecast_boot(service: &Arc<Service>) -> Result<Forecast, Error> {
    let made = work(service, |place, known, _| {
        let went_by = traces(place.partition);
        Ok((foreseen(place, known.slots).0, went_by))
    });
    let made = made.await;
    service.keys.foresight.note(&made);
    made.map(|(forecast, _)| forecast)
}

/// The same, for health alone.
pub(super) async fn foresee(service: &Arc<Service>) {
    if let Err(error) = forecast_boot(service).await {
        debug!("no forecast of the next boot: {error}");
    }
}

/// Foresees it anew, behind, once somebody has changed the kernel's image or what Secure Boot goes by.
pub fn watch(service: &Arc<Service>) {
    if !service.keys.foresight.is_time() {
        return;
    }
    let behind = Arc::clone(service);
    tokio::spawn(async move {
        let Ok(seen) = behind.desk.seen().await else { return };
        let now = spawn_blocking(move || volume(&seen).map(|(partition, _)| traces(&partition))).await;
        let is_news = |now| behind.keys.foresight.known(|known| known.changes.have_come_to_rest(now));
        if now.is_ok_and(|now| now.is_ok_and(is_news)) {
            foresee(&behind).await;
        }
    });
}

/// What the next boot will be like, as far as can be tried, and what came of trying.
pub(super) fn foreseen(place: Keys<'_>, slots: &[Slot]) -> (Forecast, Tried) {
    let tried = tried(place, slots);
    (forecast(slots, &tried, &tpm2_tokens(place.partition), &next_boot(place.partition)), tried)
}

/// What came of trying each slot.
fn tried(place: Keys<'_>, slots: &[Slot]) -> Tried {
    let order = order(Path::new(LOWER_MOUNT));
    let tries = slots.iter().filter_map(|slot| Some((slot.id, try_slot(place.partition, slot, &order)?)));
    tries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_being_changed_is_no_news_before_it_rests() {
        let mut changes = Changes { acted_on: Some(1), seen: Some(1) };
        let news = [1, 2, 3, 3].map(|now| changes.have_come_to_rest(now));
        assert_eq!(news, [false, false, false, true]);
        changes.acted_on = Some(3);
        assert!(!changes.have_come_to_rest(3));
        assert!(!changes.have_come_to_rest(1));
        assert!(changes.have_come_to_rest(1), "what is put back is news as well");
    }
}
