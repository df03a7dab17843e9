//! Tells whoever listens what changed since the last time.

use std::sync::Arc;

use nemos_api::job::path;
use nemos_api::{Error, PATH};
use nemos_model::JobId;
use nemos_model::health::{Finding, verdict};
use nemos_model::job::Job as JobFacts;
use nemos_model::keys::{Change, Slot};
use nemos_model::overlay::{ConfigurationName, Modes, Trial};
use nemos_model::stack::{LayerState, layers};
use nemos_model::state::DeviceState;
use zbus::ObjectServer;
use zbus::object_server::{Interface, InterfaceRef};

use crate::bus::Service;
use crate::bus::integrity::Integrity;
use crate::bus::job::{self, Job};
use crate::bus::keys::Keys;
use crate::bus::manager::Manager;
use crate::bus::overlay::Overlay;
use crate::bus::reset::Reset;
use crate::integrity::View;
use crate::journal;

/// What was announced last.
#[derive(Default)]
pub struct Announcer {
    findings: Option<Vec<Finding>>,
    layers: Vec<(String, LayerState, String)>,
    jobs: Vec<JobFacts>,
    integrity: Option<Arc<View>>,
    overlay: Option<(Modes, ConfigurationName, Option<Trial>)>,
    keys: Option<(Vec<Slot>, Option<Change>)>,
}

impl Announcer {
    /// Looks at the device, and announces what is not as it was announced before.
    pub async fn announce(&mut self, objects: &ObjectServer, service: &Arc<Service>) -> Result<(), Error> {
        self.jobs(objects, service).await?;
        self.storage(objects, service).await?;
        self.integrity(objects, service).await?;
        self.overlay(objects, service).await?;
        self.keys(objects, service).await?;
        self.health(objects, service).await
    }

    async fn jobs(&mut self, objects: &ObjectServer, service: &Arc<Service>) -> Result<(), Error> {
        // A device without a memory has no jobs; its findings say so.
        let jobs = service.desk.state().await.map(|state| state.jobs().to_vec()).unwrap_or_default();
        if jobs == self.jobs {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.jobs, jobs);
        for gone in before.iter().filter(|old| self.jobs.iter().all(|job| job.id != old.id)) {
            objects.remove::<Job, _>(path(gone.id)).await?;
        }
        for job in &self.jobs {
            match before.iter().find(|old| old.id == job.id) {
                None => job::serve(objects, service, job.id).await?,
                Some(old) if old != job => job_changed(objects, job.id).await?,
                Some(_) => {}
            }
        }
        let reset = interface::<Reset>(objects).await?;
        let emitter = reset.signal_emitter();
        reset.get().await.pending_changed(emitter).await?;
        Ok(reset.get().await.history_changed(emitter).await?)
    }

    async fn storage(&mut self, objects: &ObjectServer, service: &Service) -> Result<(), Error> {
        // Without the bytes used, which change all the time.
        let layers = layers(&*service.desk.seen().await?);
        let layers = layers.into_iter().map(|layer| (layer.name, layer.state, layer.detail)).collect();
        if layers == self.layers {
            return Ok(());
        }
        self.layers = layers;
        let manager = interface::<Manager>(objects).await?;
        Ok(manager.get().await.storage_invalidate(manager.signal_emitter()).await?)
    }

    async fn integrity(&mut self, objects: &ObjectServer, service: &Service) -> Result<(), Error> {
        let view = service.integrity.view();
        if self.integrity.as_ref() == Some(&view) {
            return Ok(());
        }
        self.integrity = Some(view);
        let interface = interface::<Integrity>(objects).await?;
        let emitter = interface.signal_emitter();
        interface.get().await.volumes_invalidate(emitter).await?;
        Ok(interface.get().await.state_changed(emitter).await?)
    }

    async fn overlay(&mut self, objects: &ObjectServer, service: &Service) -> Result<(), Error> {
        let wanted = |state: DeviceState| (state.modes(), state.configuration().clone(), state.trial().cloned());
        let overlay = service.desk.state().await.ok().map(wanted);
        if self.overlay == overlay {
            return Ok(());
        }
        self.overlay = overlay;
        let interface = interface::<Overlay>(objects).await?;
        let emitter = interface.signal_emitter();
        interface.get().await.next_mode_changed(emitter).await?;
        interface.get().await.mode_after_next_changed(emitter).await?;
        interface.get().await.active_configuration_changed(emitter).await?;
        Ok(interface.get().await.trial_changed(emitter).await?)
    }

    async fn keys(&mut self, objects: &ObjectServer, service: &Service) -> Result<(), Error> {
        let change = service.desk.state().await.ok().and_then(|state| state.key_change().cloned());
        let keys = Some((service.desk.seen().await?.keyslots.clone(), change));
        if self.keys == keys {
            return Ok(());
        }
        self.keys = keys;
        let interface = interface::<Keys>(objects).await?;
        let emitter = interface.signal_emitter();
        interface.get().await.slots_invalidate(emitter).await?;
        interface.get().await.demo_key_invalidate(emitter).await?;
        Ok(interface.get().await.sealed_recovery_key_invalidate(emitter).await?)
    }

    async fn health(&mut self, objects: &ObjectServer, service: &Service) -> Result<(), Error> {
        let findings = service.findings().await?;
        if self.findings.as_ref() == Some(&findings) {
            return Ok(());
        }
        let before = self.findings.replace(findings.clone());
        let manager = interface::<Manager>(objects).await?;
        let emitter = manager.signal_emitter();
        manager.get().await.findings_changed(emitter).await?;
        if before.map(|before| verdict(&before)) != Some(verdict(&findings)) {
            journal::health(&findings);
            manager.get().await.health_changed(emitter).await?;
        }
        Ok(())
    }
}

async fn interface<I: Interface>(objects: &ObjectServer) -> Result<InterfaceRef<I>, Error> {
    Ok(objects.interface(PATH).await?)
}

async fn job_changed(objects: &ObjectServer, id: JobId) -> Result<(), Error> {
    let reference: InterfaceRef<Job> = objects.interface(path(id)).await?;
    let (job, emitter) = (reference.get().await, reference.signal_emitter());
    job.state_changed(emitter).await?;
    job.step_changed(emitter).await?;
    Ok(job.finished_at_changed(emitter).await?)
}
