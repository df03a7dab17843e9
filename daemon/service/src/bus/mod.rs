//! The interfaces, one file each, and what they share.

use std::sync::Arc;

use nemos_api::job::path;
use nemos_api::{Error, PATH};
use nemos_model::JobId;
use nemos_model::health::Finding;
use nemos_model::job::{Job, JobState, Requester};
use tokio::sync::mpsc::UnboundedSender;
use zbus::connection::Builder;
use zbus::fdo::ObjectManager;
use zbus::message::Header;
use zbus::object_server::ResponseDispatchNotifier;
use zbus::{ObjectServer, OwnedObjectPath};

use crate::archive::Carrier;
use crate::authorization::Gate;
use crate::desk::Desk;
use crate::integrity::Integrity;
use crate::journal::{self, Subject};
use crate::keys::Keyring;

pub mod announce;
pub mod integrity;
pub mod job;
pub mod keys;
pub mod manager;
pub mod overlay;
pub mod reset;

/// What every interface has at hand.
pub struct Service {
    /// Where requests are taken.
    pub desk: Desk,
    /// Who watches.
    pub integrity: Arc<Integrity>,
    /// What is known of the keys.
    pub keys: Keyring,
    /// Who carries configurations.
    pub carrier: Carrier,
    /// Who may ask.
    pub gate: Box<dyn Gate>,
    /// Jobs that the device is to reboot for.
    pub reboots: UnboundedSender<JobId>,
}

impl Service {
    /// Everything that is not as it should be.
    pub async fn findings(&self) -> Result<Vec<Finding>, Error> {
        let mut findings = self.findings_of_this_boot().await?;
        findings.extend(self.keys.finding());
        Ok(findings)
    }

    /// The same without what is foreseen of the next boot, which is no fault of what this one tries.
    pub async fn findings_of_this_boot(&self) -> Result<Vec<Finding>, Error> {
        let mut findings = self.desk.findings().await?;
        let seen = self.desk.seen().await?;
        findings.extend(self.integrity.view().findings(seen.report.as_ref(), self.desk.now()));
        findings.extend(self.desk.shadowed().await?);
        Ok(findings)
    }

    /// Does what a caller asks for, if they may, and writes to the journal who asked for what, and how it ended. `work` may give
    /// the caller the label of their request.
    async fn on_request<T>(
        &self,
        call: &Header<'_>,
        action: &'static str,
        work: impl AsyncFnOnce(&mut Requester) -> Result<(Subject, T), Error>,
    ) -> Result<T, Error> {
        let mut caller = self.gate.caller(call).await.inspect_err(|error| journal::stranger(action, error))?;
        let outcome = match self.gate.admit(call, &caller, action).await {
            Ok(()) => work(&mut caller).await,
            Err(refusal) => Err(refusal),
        };
        journal::request(action, &caller, outcome.as_ref().map(|(subject, _)| subject));
        outcome.map(|(_, done)| done)
    }

    /// Refuses a caller who may not see something. That they looked is nobody's business.
    async fn admit(&self, call: &Header<'_>, action: &'static str) -> Result<(), Error> {
        let caller = self.gate.caller(call).await?;
        self.gate.admit(call, &caller, action).await
    }

    /// Answers with a job, and then reboots for it, if that is wished and the job is due.
    async fn answer(
        self: &Arc<Self>,
        objects: &ObjectServer,
        job: &Job,
        reboot: bool,
    ) -> Result<ResponseDispatchNotifier<OwnedObjectPath>, Error> {
        job::serve(objects, self, job.id).await?;
        let (reply, sent) = ResponseDispatchNotifier::new(path(job.id));
        if reboot && job.state == JobState::WaitingForReboot {
            self.reboot_after(sent, job.id);
        }
        Ok(reply)
    }

    /// Reboots for a job once the reply to its caller was sent.
    fn reboot_after(&self, sent: impl Future<Output = ()> + Send + 'static, job: JobId) {
        let reboots = self.reboots.clone();
        tokio::spawn(async move {
            sent.await;
            // The main loop is gone only if the process is about to be.
            let _ = reboots.send(job);
        });
    }
}

/// Adds the device's object to a connection. Jobs are added by the first announcement.
pub fn serve<'a>(connection: Builder<'a>, service: &Arc<Service>) -> Builder<'a> {
    connection
        .serve_at(PATH, ObjectManager)
        .serve_at(PATH, manager::Manager::new(Arc::clone(service)))
        .serve_at(PATH, reset::Reset::new(Arc::clone(service)))
        .serve_at(PATH, overlay::Overlay::new(Arc::clone(service)))
        .serve_at(PATH, keys::Keys::new(Arc::clone(service)))
        .serve_at(PATH, integrity::Integrity::new(Arc::clone(service)))
}
