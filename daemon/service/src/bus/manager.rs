//! The device as a whole.

use std::sync::Arc;

use nemos_api::Error;
use nemos_api::manager::{FindingEntry, LayerEntry};
use nemos_model::health::verdict;
use nemos_model::stack::layers;
use zbus::interface;

use crate::bus::Service;

/// `org.nemos.Device1.Manager`.
pub struct Manager {
    service: Arc<Service>,
}

impl Manager {
    /// The interface of that service.
    pub fn new(service: Arc<Service>) -> Self {
        Manager { service }
    }
}

#[interface(name = "org.nemos.Device1.Manager", introspection_docs = false)]
impl Manager {
    #[allow(clippy::unused_self, reason = "a property is a method")]
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn image_id(&self) -> Result<String, Error> {
        Ok(self.service.desk.image().await?.id)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn image_version(&self) -> Result<String, Error> {
        Ok(self.service.desk.image().await?.version)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn boot_id(&self) -> Result<String, Error> {
        self.service.desk.boot_id().await
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn degraded(&self) -> Result<bool, Error> {
        Ok(!self.service.desk.seen().await?.degraded().is_empty())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn degraded_reasons(&self) -> Result<Vec<String>, Error> {
        Ok(self.service.desk.seen().await?.degraded())
    }

    #[zbus(property)]
    async fn health(&self) -> Result<String, Error> {
        Ok(verdict(&self.service.findings().await?).to_string())
    }

    #[zbus(property)]
    async fn findings(&self) -> Result<Vec<FindingEntry>, Error> {
        Ok(self.service.findings().await?.into_iter().map(FindingEntry::from).collect())
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn storage(&self) -> Result<Vec<LayerEntry>, Error> {
        let seen = self.service.desk.seen().await?;
        Ok(layers(&seen).into_iter().map(LayerEntry::from).collect())
    }
}
