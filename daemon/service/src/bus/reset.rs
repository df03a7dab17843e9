//! Back to the image as it was shipped.

use std::sync::Arc;

use nemos_api::certificate::KeyRecord;
use nemos_api::job::{JobRecord, path};
use nemos_api::options::{Dictionary, Options};
use nemos_api::reset::{PlanOptions, PlanRecord, RequestOptions};
use nemos_api::{Error, action};
use nemos_model::job::{Job, Kind, Requester};
use nemos_model::reset::Scope;
use zbus::message::Header;
use zbus::object_server::ResponseDispatchNotifier;
use zbus::{ObjectPath, ObjectServer, OwnedObjectPath, interface};

use crate::bus::Service;
use crate::desk::Asked;
use crate::journal::Subject;

/// `org.nemos.Device1.Reset`.
pub struct Reset {
    service: Arc<Service>,
}

impl Reset {
    /// The interface of that service.
    pub fn new(service: Arc<Service>) -> Self {
        Reset { service }
    }

    /// Takes a request, and gives back its job and whether the caller wants a reboot.
    async fn take(&self, by: &mut Requester, scope: &str, options: Dictionary) -> Result<(Job, bool), Error> {
        let scope: Scope = scope.parse()?;
        let options = RequestOptions::parse(options)?;
        by.label.clone_from(&options.label);
        let reboot = options.reboot.unwrap_or_default();
        let wish = options.wish(scope)?;
        let asked = Asked { by: by.clone(), not_before: options.not_before(), reboot, key: options.key };
        Ok((self.service.desk.request(wish, asked, options.plan).await?, reboot))
    }
}

/// polkit's name for a reset of that scope.
pub(super) const fn action_for(scope: Scope) -> &'static str {
    match scope {
        Scope::Overlay => action::RESET_OVERLAY,
        Scope::Factory => action::RESET_FACTORY,
    }
}

#[interface(name = "org.nemos.Device1.Reset", introspection_docs = false)]
impl Reset {
    #[zbus(out_args("plan", "details"))]
    async fn plan(&self, options: Dictionary, #[zbus(header)] call: Header<'_>) -> Result<(String, PlanRecord), Error> {
        let wish = PlanOptions::parse(options)?.wish()?;
        if wish.keeps() {
            // Paths and how much is there are nobody's business who may not erase them.
            self.service.admit(&call, action_for(wish.scope)).await?;
        }
        let plan = self.service.desk.plan(wish).await?;
        Ok((plan.id().to_string(), PlanRecord::from(&plan)))
    }

    /// Replies, and only then reboots, if that is wished and the job is due.
    #[zbus(out_args("job"))]
    async fn request(
        &self,
        scope: &str,
        options: Dictionary,
        #[zbus(header)] call: Header<'_>,
        #[zbus(object_server)] objects: &ObjectServer,
    ) -> Result<ResponseDispatchNotifier<OwnedObjectPath>, Error> {
        let action = scope.parse().map_or(action::RESET_FACTORY, action_for);
        let work = async |by: &mut _| {
            let (job, reboot) = self.take(by, scope, options).await?;
            Ok((Subject::Job(job.id), (job, reboot)))
        };
        let (job, reboot) = self.service.on_request(&call, action, work).await?;
        self.service.answer(objects, &job, reboot).await
    }

    #[zbus(out_args("certificate"))]
    async fn certificate(
        &self,
        job: &str,
        options: Dictionary,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<String, Error> {
        Options::new(options).finish()?;
        let id = job.parse()?;
        let work = async |_: &mut _| Ok((Subject::Job(id), self.service.desk.certificate(id).await?));
        self.service.on_request(&call, action::RESET_CERTIFICATE, work).await
    }

    /// For everyone: it names the device, and nobody on it.
    #[zbus(out_args("key", "details"))]
    async fn certificate_key(&self, options: Dictionary) -> Result<(String, KeyRecord), Error> {
        Options::new(options).finish()?;
        let (key, keeping) = self.service.desk.certificate_key().await?;
        Ok((key.to_pem(), KeyRecord::new(&key, keeping)))
    }

    #[zbus(property)]
    async fn pending(&self) -> Result<OwnedObjectPath, Error> {
        let state = self.service.desk.state().await?;
        let reset = state.pending().filter(|job| matches!(job.kind, Kind::Reset { .. }));
        Ok(reset.map_or_else(|| ObjectPath::from_static_str_unchecked("/").into(), |job| path(job.id)))
    }

    #[zbus(property)]
    async fn history(&self) -> Result<Vec<JobRecord>, Error> {
        Ok(self.service.desk.state().await?.history().map(JobRecord::from).collect())
    }
}
