//! The overlay, and what differs from the factory image.

use std::path::Path;
use std::sync::Arc;

use nemos_api::archive::{ExportOptions, ExportedRecord, ImportedRecord, WantedImport};
use nemos_api::configuration::{ApplyOptions, ConfigurationRecord, SaveOptions, TrialRecord};
use nemos_api::options::Dictionary;
use nemos_api::overlay::{ChangeRecord, ModeOptions, RevertOptions, WantedChanges};
use nemos_api::usage::{self, UsageRecord};
use nemos_api::{Error, ErrorKind, action};
use nemos_host::overlay::changes::Trees;
use nemos_host::overlay::revert::RevertError;
use nemos_model::job::{Job, Kind, Requester};
use nemos_model::overlay::revert::decide;
use nemos_model::overlay::{ConfigurationName, LOWER_MOUNT, Mode, UPPER_FOLDER, UPPER_MOUNT};
use nemos_model::reset::KeptPath;
use nemos_model::stack::SeenMount;
use nemos_model::state::Wanted;
use tokio::task::spawn_blocking;
use zbus::message::Header;
use zbus::object_server::ResponseDispatchNotifier;
use zbus::{ObjectServer, OwnedObjectPath, interface};

use crate::archive;
use crate::bus::Service;
use crate::changes::Pages;
use crate::configuration;
use crate::desk::Asked;
use crate::journal::{self, Subject};

/// `org.nemos.Device1.Overlay`.
pub struct Overlay {
    service: Arc<Service>,
    pages: Arc<Pages>,
}

impl Overlay {
    /// The interface of that service.
    pub fn new(service: Arc<Service>) -> Self {
        Overlay { service, pages: Arc::default() }
    }

    /// Paths with changes that the next boot can take back.
    async fn revertible(&self, paths: &[String]) -> Result<Vec<KeptPath>, Error> {
        let paths = decide(paths).map_err(|error| Error::new(ErrorKind::InvalidArgument, error.to_string()))?;
        let seen = self.service.desk.seen().await?;
        if seen.report.as_ref().is_none_or(|report| report.mode != Mode::Persistent) {
            let message =
                "changes can be taken back only in mode persistent: in this one they are gone at the next boot";
            return Err(Error::new(ErrorKind::NotSupported, message));
        }
        let checked = spawn_blocking(move || {
            let upper = Path::new(UPPER_MOUNT).join(UPPER_FOLDER);
            paths.iter().try_for_each(|path| trees(&upper).can_revert(path)).map(|()| paths)
        });
        let checked = checked.await.map_err(|error| Error::new(ErrorKind::Failed, error.to_string()))?;
        checked.map_err(|error| {
            let kind = match error {
                RevertError::Unchanged(_) => ErrorKind::NotFound,
                RevertError::Around { .. } | RevertError::ThroughLink { .. } => ErrorKind::InvalidArgument,
                _ => ErrorKind::Failed,
            };
            Error::new(kind, error.to_string())
        })
    }

    /// Notes in the journal how a request for a job ended, and replies with the job.
    async fn answer(
        &self,
        action: &str,
        taken: Result<(Job, bool), Error>,
        caller: &Requester,
        objects: &ObjectServer,
    ) -> Result<ResponseDispatchNotifier<OwnedObjectPath>, Error> {
        journal::request(action, caller, taken.as_ref().map(|(job, _)| Subject::Job(job.id)));
        let (job, reboot) = taken?;
        self.service.answer(objects, &job, reboot).await
    }

    /// Does what makes no job, for who may ask it, and notes in the journal how it ended.
    async fn admitted(
        &self,
        action: &'static str,
        call: &Header<'_>,
        work: impl Future<Output = Result<Subject, Error>>,
    ) -> Result<(), Error> {
        let gate = &self.service.gate;
        let caller = gate.caller(call).await.inspect_err(|error| journal::stranger(action, error))?;
        let outcome = match gate.admit(call, &caller, action).await {
            Ok(()) => work.await,
            Err(refusal) => Err(refusal),
        };
        match outcome {
            Ok(subject) => {
                journal::request(action, &caller, Ok(subject));
                Ok(())
            }
            Err(error) => {
                journal::request(action, &caller, Err(&error));
                Err(error)
            }
        }
    }

    /// Exports or imports a configuration, if the caller may ask for it, and notes both.
    async fn carry<T>(
        &self,
        call: &Header<'_>,
        action: &'static str,
        work: impl AsyncFnOnce() -> Result<(ConfigurationName, T), Error>,
    ) -> Result<(ConfigurationName, T), Error> {
        let gate = &self.service.gate;
        let caller = gate.caller(call).await.inspect_err(|error| journal::stranger(action, error))?;
        let outcome = match gate.admit(call, &caller, action).await {
            Ok(()) => work().await,
            Err(refusal) => Err(refusal),
        };
        journal::request(action, &caller, outcome.as_ref().map(|(name, _)| Subject::Configuration(name.clone())));
        outcome
    }

    /// A number of the overlay's file system; 0 if it is not mounted.
    async fn mounted(&self, number: impl FnOnce(&SeenMount) -> u64) -> Result<u64, Error> {
        let seen = self.service.desk.seen().await?;
        Ok(seen.mounts.iter().find(|mount| mount.target == UPPER_MOUNT).map(number).unwrap_or_default())
    }
}

/// Where the changes of this boot are, beside the image.
fn trees(upper: &Path) -> Trees<'_> {
    Trees { upper, lower: Path::new(LOWER_MOUNT) }
}

fn parse(mode: &str) -> Result<Mode, Error> {
    mode.parse().map_err(|_| {
        let known: Vec<&str> = Mode::ALL.iter().map(|mode| mode.name()).collect();
        let message = format!("`{}` is no mode; there are {}", mode.escape_debug(), known.join(", "));
        Error::new(ErrorKind::InvalidArgument, message)
    })
}

#[interface(name = "org.nemos.Device1.Overlay", introspection_docs = false)]
impl Overlay {
    #[zbus(property)]
    async fn mode(&self) -> Result<String, Error> {
        let seen = self.service.desk.seen().await?;
        Ok(seen.report.as_ref().map(|report| report.mode.to_string()).unwrap_or_default())
    }

    #[zbus(property)]
    async fn next_mode(&self) -> Result<String, Error> {
        Ok(self.service.desk.state().await?.modes().next().to_string())
    }

    #[zbus(property)]
    async fn mode_after_next(&self) -> Result<String, Error> {
        Ok(self.service.desk.state().await?.modes().then().to_string())
    }

    #[zbus(property)]
    async fn size(&self) -> Result<u64, Error> {
        self.mounted(|mount| mount.size).await
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn used(&self) -> Result<u64, Error> {
        self.mounted(|mount| mount.used).await
    }

    #[zbus(property)]
    async fn active_configuration(&self) -> Result<String, Error> {
        Ok(self.service.desk.state().await?.configuration().to_string())
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn configurations(&self) -> Result<Vec<ConfigurationRecord>, Error> {
        configuration::list().await
    }

    #[zbus(property)]
    async fn trial(&self) -> Result<TrialRecord, Error> {
        Ok(self.service.desk.state().await?.trial().map(TrialRecord::from).unwrap_or_default())
    }

    #[zbus(out_args("job"))]
    async fn save(
        &self,
        name: &str,
        options: Dictionary,
        #[zbus(header)] call: Header<'_>,
        #[zbus(object_server)] objects: &ObjectServer,
    ) -> Result<ResponseDispatchNotifier<OwnedObjectPath>, Error> {
        let action = action::OVERLAY_SAVE;
        let gate = &self.service.gate;
        let mut caller = gate.caller(&call).await.inspect_err(|error| journal::stranger(action, error))?;
        let taken = async {
            gate.admit(&call, &caller, action).await?;
            let options = SaveOptions::parse(options)?;
            caller.label.clone_from(&options.label);
            let reboot = options.reboot.unwrap_or_default();
            Ok((self.service.save(name, caller.clone(), options).await?, reboot))
        };
        self.answer(action, taken.await, &caller, objects).await
    }

    #[zbus(out_args("job"))]
    async fn apply(
        &self,
        name: &str,
        options: Dictionary,
        #[zbus(header)] call: Header<'_>,
        #[zbus(object_server)] objects: &ObjectServer,
    ) -> Result<ResponseDispatchNotifier<OwnedObjectPath>, Error> {
        let action = action::OVERLAY_APPLY;
        let gate = &self.service.gate;
        let mut caller = gate.caller(&call).await.inspect_err(|error| journal::stranger(action, error))?;
        let taken = async {
            gate.admit(&call, &caller, action).await?;
            let options = ApplyOptions::parse(options)?;
            caller.label.clone_from(&options.label);
            let reboot = options.reboot.unwrap_or_default();
            Ok((self.service.apply(name, caller.clone(), options).await?, reboot))
        };
        self.answer(action, taken.await, &caller, objects).await
    }

    async fn confirm(&self, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        let confirmed = async { self.service.confirm().await.map(|()| Subject::Nothing) };
        self.admitted(action::OVERLAY_CONFIRM, &call, confirmed).await
    }

    async fn delete(&self, name: &str, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        let deleted = async { self.service.delete(name).await.map(Subject::Configuration) };
        self.admitted(action::OVERLAY_DELETE, &call, deleted).await
    }

    async fn rename(&self, from: &str, to: &str, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        let renamed = async { self.service.rename(from, to).await.map(|(from, to)| Subject::Renamed(from, to)) };
        self.admitted(action::OVERLAY_DELETE, &call, renamed).await
    }

    async fn set_mode(&self, mode: &str, options: Dictionary, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        let set = async {
            let (mode, (once, within)) = (parse(mode)?, ModeOptions::parse(options)?);
            self.service.can_be_tried(within).await?;
            self.service.desk.note(|state| Ok(state.set_mode(mode, once, within)?)).await.map(|()| Subject::Mode(mode))
        };
        self.admitted(action::OVERLAY_MODE, &call, set).await
    }

    /// Replies, and only then reboots, if that is wished.
    #[zbus(out_args("job"))]
    async fn revert(
        &self,
        paths: Vec<String>,
        options: Dictionary,
        #[zbus(header)] call: Header<'_>,
        #[zbus(object_server)] objects: &ObjectServer,
    ) -> Result<ResponseDispatchNotifier<OwnedObjectPath>, Error> {
        let action = action::OVERLAY_REVERT;
        let gate = &self.service.gate;
        let mut caller = gate.caller(&call).await.inspect_err(|error| journal::stranger(action, error))?;
        let taken = async {
            gate.admit(&call, &caller, action).await?;
            let options = RevertOptions::parse(options)?;
            caller.label.clone_from(&options.label);
            let reboot = options.reboot.unwrap_or_default();
            // What it took back is no change any more.
            if let Some(job) = self.service.desk.known(options.key.as_deref(), Kind::Revert).await? {
                return Ok((job, reboot));
            }
            let paths = self.revertible(&paths).await?;
            let asked = Asked { by: caller.clone(), key: options.key, not_before: None, reboot };
            Ok((self.service.desk.ask(Wanted::Revert { paths }, asked).await?, reboot))
        };
        self.answer(action, taken.await, &caller, objects).await
    }

    /// Whoever has the file has all that is in the configuration, and so this is asked for like a change.
    #[zbus(out_args("details"))]
    async fn export(
        &self,
        name: &str,
        file: zbus::OwnedFd,
        options: Dictionary,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<ExportedRecord, Error> {
        let work = async || {
            ExportOptions::parse(options)?;
            let name = name.parse::<ConfigurationName>()?.saved()?;
            Ok((name.clone(), archive::export(&self.service, name, file.into()).await?))
        };
        self.carry(&call, action::OVERLAY_EXPORT, work).await.map(|(_, details)| details)
    }

    #[zbus(out_args("name", "details"))]
    async fn import(
        &self,
        name: &str,
        file: zbus::OwnedFd,
        options: Dictionary,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<(String, ImportedRecord), Error> {
        let work = async || archive::import(&self.service, WantedImport::parse(name, options)?, file.into()).await;
        let imported = self.carry(&call, action::OVERLAY_IMPORT, work).await;
        imported.map(|(name, details)| (name.into(), details))
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
        let (layers, pages) = (self.service.desk.layers().await?, Arc::clone(&self.pages));
        let walked = spawn_blocking(move || pages.page(&layers, &wanted)).await;
        walked.unwrap_or_else(|error| Err(Error::new(ErrorKind::Failed, error.to_string())))
    }

    /// All of the volume is looked through for it, which is not for everybody to ask.
    #[zbus(out_args("usage"))]
    async fn usage(&self, options: Dictionary, #[zbus(header)] call: Header<'_>) -> Result<UsageRecord, Error> {
        let Service { gate, desk, .. } = &*self.service;
        let caller = gate.caller(&call).await?;
        gate.admit(&call, &caller, action::OVERLAY_CHANGES).await?;
        usage::parse(options)?;
        desk.usage().await
    }
}
