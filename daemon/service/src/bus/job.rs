//! Jobs, one object each.

use std::sync::Arc;

use nemos_api::job::{JobError, JobRecord, JobResult, RequesterRecord, RetryOptions, path};
use nemos_api::options::Dictionary;
use nemos_api::{Error, action};
use nemos_model::JobId;
use nemos_model::job::Kind;
use zbus::message::Header;
use zbus::{ObjectServer, interface};

use crate::bus::Service;
use crate::bus::reset::action_for;
use crate::journal::Subject;

/// `org.nemos.Device1.Job`.
pub struct Job {
    service: Arc<Service>,
    id: JobId,
}

/// Adds the job's object, if it is not there yet.
pub async fn serve(objects: &ObjectServer, service: &Arc<Service>, id: JobId) -> Result<(), Error> {
    let job = Job { service: Arc::clone(service), id };
    objects.at(path(id), job).await?;
    Ok(())
}

impl Job {
    async fn record(&self) -> Result<JobRecord, Error> {
        Ok(JobRecord::from(&self.service.desk.job(self.id).await?))
    }

    async fn retry_now(&self) -> Result<nemos_model::job::Job, Error> {
        if self.service.desk.job(self.id).await?.kind == Kind::Apply {
            self.service.next_boot_shows_it().await?;
        }
        self.service.desk.retry(self.id).await
    }
}

#[interface(name = "org.nemos.Device1.Job", introspection_docs = false)]
impl Job {
    async fn cancel(&self, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        let work = async |_: &mut _| {
            self.service.desk.cancel(self.id).await?;
            Ok((Subject::Job(self.id), ()))
        };
        self.service.on_request(&call, action::JOB_CANCEL, work).await
    }

    /// Asks for as much as the job's own request does: it erases the same.
    async fn retry(&self, options: Dictionary, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        let reboot = RetryOptions::parse(options)?.reboot.unwrap_or_default();
        let action = match self.service.desk.job(self.id).await?.kind {
            Kind::Reset { scope } => action_for(scope),
            Kind::Provision | Kind::TakeOver => action::RESET_FACTORY,
            Kind::Revert => action::OVERLAY_REVERT,
            Kind::Save => action::OVERLAY_SAVE,
            Kind::Apply | Kind::GoBack => action::OVERLAY_APPLY,
        };
        let work = async |_: &mut _| {
            self.retry_now().await?;
            Ok((Subject::Job(self.id), ()))
        };
        self.service.on_request(&call, action, work).await?;
        if reboot {
            self.service.reboot_after(std::future::ready(()), self.id);
        }
        Ok(())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> String {
        self.id.to_string()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn kind(&self) -> Result<String, Error> {
        Ok(self.record().await?.kind)
    }

    #[zbus(property)]
    async fn state(&self) -> Result<String, Error> {
        Ok(self.record().await?.state)
    }

    #[zbus(property)]
    async fn progress(&self) -> Result<f64, Error> {
        Ok(self.record().await?.progress)
    }

    #[zbus(property)]
    async fn step(&self) -> Result<String, Error> {
        Ok(self.record().await?.step)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn requested_by(&self) -> Result<RequesterRecord, Error> {
        Ok(self.record().await?.requested_by)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn requested_at(&self) -> Result<u64, Error> {
        Ok(self.record().await?.requested_at)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn not_before(&self) -> Result<u64, Error> {
        Ok(self.record().await?.not_before)
    }

    #[zbus(property)]
    async fn begun_at(&self) -> Result<u64, Error> {
        Ok(self.record().await?.begun_at)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn plan(&self) -> Result<String, Error> {
        Ok(self.record().await?.plan)
    }

    #[zbus(property)]
    async fn finished_at(&self) -> Result<u64, Error> {
        Ok(self.record().await?.finished_at)
    }

    #[zbus(property)]
    async fn result(&self) -> Result<JobResult, Error> {
        Ok(self.record().await?.result)
    }

    #[zbus(property)]
    async fn error(&self) -> Result<JobError, Error> {
        Ok(self.record().await?.error)
    }
}
