//! What is damaged, and how it was found.

use std::sync::Arc;

use nemos_api::integrity::{EventRecord, ScrubOptions, VolumeRecord};
use nemos_api::options::Dictionary;
use nemos_api::{Error, ErrorKind, action};
use nemos_model::integrity::{Event, Volume};
use tokio::task::spawn_blocking;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{ObjectServer, interface};

use crate::bus::Service;
use crate::integrity::{self, scrub};
use crate::journal::Subject;

/// `org.nemos.Device1.Integrity`.
pub struct Integrity {
    service: Arc<Service>,
}

/// Tells whoever listens of an event.
pub async fn signal(objects: &ObjectServer, event: &Event) -> Result<(), Error> {
    let interface = objects.interface::<_, Integrity>(nemos_api::PATH).await?;
    // Everybody hears signals.
    let record = EventRecord::from(&without_owner(event.clone()));
    Ok(Integrity::corruption_detected(interface.signal_emitter(), event.place.volume.name(), record).await?)
}

/// Names of files on the overlay are not for everybody; those of the image are.
fn without_owner(event: Event) -> Event {
    if event.place.volume == Volume::Overlay { Event { owner: None, ..event } } else { event }
}

impl Integrity {
    /// The interface of that service.
    pub fn new(service: Arc<Service>) -> Self {
        Integrity { service }
    }

    /// Does something that changes something, if the caller may ask for it.
    async fn on_request(
        &self,
        call: &Header<'_>,
        action: &'static str,
        work: impl FnOnce(&Arc<integrity::Integrity>) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let integrity = Arc::clone(&self.service.integrity);
        let work = async |_: &mut _| {
            let done = spawn_blocking(move || work(&integrity)).await;
            done.unwrap_or_else(|error| Err(Error::new(ErrorKind::Failed, error.to_string())))?;
            Ok((Subject::Nothing, ()))
        };
        self.service.on_request(call, action, work).await
    }

    async fn may_see_files(&self, call: &Header<'_>) -> bool {
        self.service.admit(call, action::INTEGRITY_FILES).await.is_ok()
    }
}

#[interface(name = "org.nemos.Device1.Integrity", introspection_docs = false)]
impl Integrity {
    #[zbus(property)]
    async fn state(&self) -> Result<String, Error> {
        let seen = self.service.desk.seen().await?;
        Ok(self.service.integrity.view().known(seen.report.as_ref()).worst().to_string())
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn volumes(&self) -> Result<Vec<VolumeRecord>, Error> {
        let seen = self.service.desk.seen().await?;
        let view = self.service.integrity.view();
        let volumes = view.known(seen.report.as_ref()).volumes(&seen);
        Ok(volumes.into_iter().map(VolumeRecord::from).collect())
    }

    #[zbus(out_args("events"))]
    async fn events(&self, since: u64, limit: u32, #[zbus(header)] call: Header<'_>) -> Vec<EventRecord> {
        let view = self.service.integrity.view();
        let mut events: Vec<Event> = view.events.iter().filter(|event| event.last_seen.0 >= since).cloned().collect();
        events.sort_by_key(|event| (event.last_seen, event.id));
        if limit > 0 {
            events.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        let has_secrets = events.iter().any(|event| event.place.volume == Volume::Overlay && event.owner.is_some());
        if has_secrets && !self.may_see_files(&call).await {
            events = events.into_iter().map(without_owner).collect();
        }
        events.iter().map(EventRecord::from).collect()
    }

    async fn acknowledge(&self, id: u64, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        let now = self.service.desk.now();
        self.on_request(&call, action::INTEGRITY_ACKNOWLEDGE, move |integrity| integrity.acknowledge(id, now)).await
    }

    async fn scrub(&self, volume: &str, options: Dictionary, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        let (volume, rate) = (volume.parse()?, ScrubOptions::parse(options)?);
        let work = move |integrity: &Arc<_>| scrub::begin(integrity, volume, rate);
        self.on_request(&call, action::INTEGRITY_SCRUB, work).await
    }

    async fn cancel_scrub(&self, volume: &str, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        let volume = volume.parse()?;
        let work = move |integrity: &Arc<integrity::Integrity>| integrity.cancel_scrub(volume);
        self.on_request(&call, action::INTEGRITY_SCRUB, work).await
    }

    #[zbus(signal)]
    async fn corruption_detected(emitter: &SignalEmitter<'_>, volume: &str, event: EventRecord) -> zbus::Result<()>;
}
