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
use crate::journal::Subject;

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

    /// Takes a request for a job, if the caller may ask for it, and replies with the job.
    async fn answer(
        &self,
        call: &Header<'_>,
        action: &'static str,
        objects: &ObjectServer,
        take: impl AsyncFnOnce(&mut Requester) -> Result<(Job, bool), Error>,
    ) -> Result<ResponseDispatchNotifier<OwnedObjectPath>, Error> {
        let work = async |by: &mut Requester| {
            let (job, reboot) = take(by).await?;
            Ok((Subject::Job(job.id), (job, reboot)))
        };
        let (job, reboot) = self.service.on_request(call, action, work).await?;
        self.service.answer(objects, &job, reboot).await
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
        let take = async |by: &mut Requester| {
            let options = SaveOptions::parse(options)?;
            by.label.clone_from(&options.label);
            let reboot = options.reboot.unwrap_or_default();
            Ok((self.service.save(name, by.clone(), options).await?, reboot))
        };
        self.answer(&call, action::OVERLAY_SAVE, objects, take).await
    }

    #[zbus(out_args("job"))]
    async fn apply(
        &self,
        name: &str,
        options: Dictionary,
        #[zbus(header)] call: Header<'_>,
        #[zbus(object_server)] objects: &ObjectServer,
    ) -> Result<ResponseDispatchNotifier<OwnedObjectPath>, Error> {
        let take = async |by: &mut Requester| {
            let options = ApplyOptions::parse(options)?;
            by.label.clone_from(&options.label);
            let reboot = options.reboot.unwrap_or_default();
            Ok((self.service.apply(name, by.clone(), options).await?, reboot))
        };
        self.answer(&call, action::OVERLAY_APPLY, objects, take).await
    }

    async fn confirm(&self, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        let work = async |_: &mut _| Ok((Subject::Nothing, self.service.confirm().await?));
        self.service.on_request(&call, action::OVERLAY_CONFIRM, work).await
    }

    async fn delete(&self, name: &str, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        let work = async |_: &mut _| Ok((Subject::Configuration(self.service.delete(name).await?), ()));
        self.service.on_request(&call, action::OVERLAY_DELETE, work).await
    }

    async fn rename(&self, from: &str, to: &str, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        let work = async |_: &mut _| {
            let (from, to) = self.service.rename(from, to).await?;
            Ok((Subject::Renamed(from, to), ()))
        };
        self.service.on_request(&call, action::OVERLAY_DELETE, work).await
    }

    async fn set_mode(&self, mode: &str, options: Dictionary, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        let work = async |_: &mut _| {
            let (mode, (once, within)) = (parse(mode)?, ModeOptions::parse(options)?);
            self.service.can_be_tried(within).await?;
            self.service.desk.note(|state| Ok(state.set_mode(mode, once, within)?)).await?;
            Ok((Subject::Mode(mode), ()))
        };
        self.service.on_request(&call, action::OVERLAY_MODE, work).await
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
        let take = async |by: &mut Requester| {
            let options = RevertOptions::parse(options)?;
            by.label.clone_from(&options.label);
            let reboot = options.reboot.unwrap_or_default();
            // What it took back is no change any more.
            if let Some(job) = self.service.desk.known(options.key.as_deref(), Kind::Revert).await? {
                return Ok((job, reboot));
            }
            let paths = self.revertible(&paths).await?;
            let asked = Asked { by: by.clone(), key: options.key, not_before: None, reboot };
            Ok((self.service.desk.ask(Wanted::Revert { paths }, asked).await?, reboot))
        };
        self.answer(&call, action::OVERLAY_REVERT, objects, take).await
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
        let work = async |_: &mut _| {
            ExportOptions::parse(options)?;
            let name = name.parse::<ConfigurationName>()?.saved()?;
            let details = archive::export(&self.service, name.clone(), file.into()).await?;
            Ok((Subject::Configuration(name), details))
        };
        self.service.on_request(&call, action::OVERLAY_EXPORT, work).await
    }

    #[zbus(out_args("name", "details"))]
    async fn import(
        &self,
        name: &str,
        file: zbus::OwnedFd,
        options: Dictionary,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<(String, ImportedRecord), Error> {
        let work = async |_: &mut _| {
            let wanted = WantedImport::parse(name, options)?;
            let (name, details) = archive::import(&self.service, wanted, file.into()).await?;
            Ok((Subject::Configuration(name.clone()), (name.into(), details)))
        };
        self.service.on_request(&call, action::OVERLAY_IMPORT, work).await
    }

    /// Names of files are not for everybody.
    #[zbus(out_args("changes", "next"))]
    async fn changes(
        &self,
        options: Dictionary,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<(Vec<ChangeRecord>, String), Error> {
        self.service.admit(&call, action::OVERLAY_CHANGES).await?;
        let wanted = WantedChanges::parse(options)?;
        let (layers, pages) = (self.service.desk.layers().await?, Arc::clone(&self.pages));
        let walked = spawn_blocking(move || pages.page(&layers, &wanted)).await;
        walked.unwrap_or_else(|error| Err(Error::new(ErrorKind::Failed, error.to_string())))
    }

    /// All of the volume is looked through for it, which is not for everybody to ask.
    #[zbus(out_args("usage"))]
    async fn usage(&self, options: Dictionary, #[zbus(header)] call: Header<'_>) -> Result<UsageRecord, Error> {
        self.service.admit(&call, action::OVERLAY_CHANGES).await?;
        usage::parse(options)?;
        self.service.desk.usage().await
    }
}
