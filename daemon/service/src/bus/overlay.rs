//! The overlay, and what differs from the factory image.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use nemos_api::options::Dictionary;
use nemos_api::overlay::{ChangeRecord, WantedChanges};
use nemos_api::{Error, ErrorKind, action};
use nemos_host::overlay::changes::Trees;
use nemos_model::overlay::{LOWER_MOUNT, UPPER_FOLDER, UPPER_MOUNT};
use nemos_model::stack::SeenMount;
use tokio::task::spawn_blocking;
use zbus::interface;
use zbus::message::Header;

use crate::bus::Service;

/// `org.nemos.Device1.Overlay`.
pub struct Overlay {
    service: Arc<Service>,
}

impl Overlay {
    /// The interface of that service.
    pub fn new(service: Arc<Service>) -> Self {
        Overlay { service }
    }

    /// A number of the overlay's file system; 0 if it is not mounted.
    async fn mounted(&self, number: impl FnOnce(&SeenMount) -> u64) -> Result<u64, Error> {
        let seen = self.service.desk.seen().await?;
        Ok(seen.mounts.iter().find(|mount| mount.target == UPPER_MOUNT).map(number).unwrap_or_default())
    }
}

/// One page of changes, and where to go on.
fn changes(wanted: &WantedChanges) -> Result<(Vec<ChangeRecord>, String), Error> {
    let upper = Path::new(UPPER_MOUNT).join(UPPER_FOLDER);
    let trees = Trees { upper: &upper, lower: Path::new(LOWER_MOUNT) };
    let mut page: Vec<ChangeRecord> = Vec::new();
    let mut more = false;
    let walked = trees.changes(&wanted.path, wanted.after.as_deref(), &mut |change| {
        more = page.len() == wanted.limit;
        if more {
            return ControlFlow::Break(());
        }
        page.push(ChangeRecord::from(&change));
        ControlFlow::Continue(())
    });
    walked.map_err(|error| Error::new(ErrorKind::Failed, error.to_string()))?;
    let next = page.last().filter(|_| more).map(|last| last.path.clone()).unwrap_or_default();
    Ok((page, next))
}

#[interface(name = "org.nemos.Device1.Overlay", introspection_docs = false)]
impl Overlay {
    #[zbus(property)]
    async fn mode(&self) -> Result<String, Error> {
        let seen = self.service.desk.seen().await?;
        Ok(seen.report.as_ref().map(|report| report.mode.to_string()).unwrap_or_default())
    }

    #[zbus(property)]
    async fn size(&self) -> Result<u64, Error> {
        self.mounted(|mount| mount.size).await
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn used(&self) -> Result<u64, Error> {
        self.mounted(|mount| mount.used).await
    }

    /// Names of files are not for everybody.
    #[zbus(out_args("changes", "next"))]
    async fn changes(
        &self,
        options: Dictionary,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<(Vec<ChangeRecord>, String), Error> {
        let gate = &self.service.gate;
        let caller = gate.caller(&call).await?;
        gate.admit(&call, &caller, action::OVERLAY_CHANGES).await?;
        let wanted = WantedChanges::parse(options)?;
        let walked = spawn_blocking(move || changes(&wanted)).await;
        walked.unwrap_or_else(|error| Err(Error::new(ErrorKind::Failed, error.to_string())))
    }
}
