//! Back to the image as it was shipped.

use std::sync::Arc;

use nemos_api::job::{JobRecord, path};
use nemos_api::options::Dictionary;
use nemos_api::reset::{PlanOptions, PlanRecord, RequestOptions};
use nemos_api::{Error, action};
use nemos_model::job::{Job, JobState, Kind, Requester};
use nemos_model::reset::Scope;
use nemos_model::state::Request;
use zbus::message::Header;
use zbus::object_server::ResponseDispatchNotifier;
use zbus::{ObjectPath, ObjectServer, OwnedObjectPath, interface};

use crate::bus::{Service, job};
use crate::journal;

/// `org.nemos.Device1.Reset`.
pub struct Reset {
    service: Arc<Service>,
}

impl Reset {
    /// The interface of that service.
    pub fn new(service: Arc<Service>) -> Self {
        Reset { service }
    }

    /// Takes a request, and gives back its job and whether the caller wants a reboot. Notes the caller's label as its own.
    async fn take(
        &self,
        call: &Header<'_>,
        caller: &mut Requester,
        scope: &str,
        options: Dictionary,
    ) -> Result<(Job, bool), Error> {
        let scope: Scope = scope.parse()?;
        let options = RequestOptions::parse(options)?;
        caller.label.clone_from(&options.label);
        self.service.gate.admit(call, caller, action_for(scope)).await?;
        let reboot = options.reboot.unwrap_or_default();
        let request = Request { scope, by: caller.clone(), not_before: options.not_before(), reboot, key: options.key };
        Ok((self.service.desk.request(request, options.plan).await?, reboot))
    }
}

const fn action_for(scope: Scope) -> &'static str {
    match scope {
        Scope::Factory => action::RESET_FACTORY,
    }
}

#[interface(name = "org.nemos.Device1.Reset", introspection_docs = false)]
impl Reset {
    #[zbus(out_args("plan", "details"))]
    async fn plan(&self, options: Dictionary) -> Result<(String, PlanRecord), Error> {
        let scope = PlanOptions::parse(options)?.scope.map_or(Ok(Scope::Factory), |scope| scope.parse())?;
        let plan = self.service.desk.plan(scope).await?;
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
        let action = action::RESET_FACTORY;
        let mut caller = self.service.gate.caller(&call).await.inspect_err(|error| journal::stranger(action, error))?;
        let taken = self.take(&call, &mut caller, scope, options).await;
        journal::request(action, &caller, taken.as_ref().map(|(job, _)| job.id));
        let (taken, reboot) = taken?;
        job::serve(objects, &self.service, taken.id).await?;
        let (reply, sent) = ResponseDispatchNotifier::new(path(taken.id));
        if reboot && taken.state == JobState::WaitingForReboot {
            let reboots = self.service.reboots.clone();
            tokio::spawn(async move {
                sent.await;
                // The main loop is gone only if the process is about to be.
                let _ = reboots.send(taken.id);
            });
        }
        Ok(reply)
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
