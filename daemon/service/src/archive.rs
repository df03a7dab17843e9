//! Configurations that come and go in files: one at a time, on a thread that may block.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nemos_api::archive::{ExportedRecord, ImportedRecord, WantedImport};
use nemos_api::{Error, ErrorKind};
use nemos_host::overlay::archive::{
    Caller, ExportError, ImportError, Source, Wanted, export as export_to, import as import_from, import_shipped,
    policy,
};
use nemos_host::overlay::configuration::ConfigurationError;
use nemos_host::reset::keep::identity;
use nemos_model::overlay::changes::to_text;
use nemos_model::overlay::{ConfigurationName, Mode};
use nemos_model::state::NotTaken;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::spawn_blocking;

use crate::bus::Service;

/// Held by who carries a configuration.
#[derive(Debug, Default)]
pub struct Carrier {
    alone: Arc<Mutex<()>>,
}

impl Carrier {
    /// Nobody carries anything until this is dropped.
    pub async fn rests(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.alone).lock_owned().await
    }
}

/// Writes a configuration into the caller's file.
pub async fn export(service: &Service, name: ConfigurationName, file: OwnedFd) -> Result<ExportedRecord, Error> {
    let device = Arc::clone(service.desk.device());
    alone(service, move || {
        let volume = device.volume();
        let belongings = identity(&device.lower()).map_err(|error| Error::new(ErrorKind::Failed, error.to_string()))?;
        let mut file = Caller::new(file).map_err(|error| unusable(&error))?;
        let exported = export_to(&volume, &name, &belongings, &mut file).map_err(|error| not_exported(&error))?;
        let left_out = exported.left_out.iter().map(|path| to_text(path.strip_prefix("/").unwrap_or(path))).collect();
        Ok(ExportedRecord { digest: format!("sha256:{}", exported.digest), left_out })
    })
    .await
}

/// Makes a configuration of the caller's file, and says what it is called.
pub async fn import(
    service: &Service,
    wanted: WantedImport,
    file: OwnedFd,
) -> Result<(ConfigurationName, ImportedRecord), Error> {
    let seen = service.desk.seen().await?;
    if seen.report.as_ref().is_none_or(|report| report.mode != Mode::Persistent) {
        let message =
            "configurations are imported only in mode persistent: in this one the overlay's volume is not written to";
        return Err(Error::new(ErrorKind::NotSupported, message));
    }
    if let Some(job) = service.desk.state().await?.pending()
        && let Some(awaited) = &job.configuration
        && wanted.name.as_ref().is_none_or(|name| name == awaited)
        && !wanted.dry_run
    {
        return Err(NotTaken::Busy(job.id).into());
    }
    let root_hash = seen.report.as_ref().map(|report| report.root_hash);
    let (device, now) = (Arc::clone(service.desk.device()), service.desk.now());
    alone(service, move || {
        let lower = device.lower();
        let policy = policy(&lower).map_err(|error| Error::new(ErrorKind::Failed, error.to_string()))?;
        let file = Caller::new(file).map_err(|error| unusable(&error))?;
        let source = Source::Elsewhere { policy: &policy, signature: wanted.signature.as_deref() };
        let WantedImport { name, replace, dry_run, .. } = &wanted;
        let here = root_hash.map(|hash| (lower.as_path(), hash));
        let wanted = Wanted { name: name.as_ref(), replace: *replace, dry_run: *dry_run, here };
        let unpacked =
            import_from(&device.volume(), file, source, wanted, now).map_err(|error| not_imported(&error))?;
        let record = ImportedRecord::new(&unpacked.about, &unpacked.described, unpacked.entries, unpacked.bytes);
        Ok((unpacked.name, record))
    })
    .await
}

/// Has the configuration of that name at hand that the image may ship.
pub async fn bring_shipped(service: &Service, name: ConfigurationName) -> Result<(), Error> {
    let (device, now) = (Arc::clone(service.desk.device()), service.desk.now());
    alone(service, move || {
        import_shipped(&device.volume(), &device.lower(), &name, now).map_err(|error| not_imported(&error))
    })
    .await
}

/// Two at once would count on the same room.
async fn alone<T: Send + 'static>(
    service: &Service,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let busy = |_| Error::new(ErrorKind::Busy, "another configuration is being exported or imported");
    let held = Arc::clone(&service.carrier.alone).try_lock_owned().map_err(busy)?;
    let done = spawn_blocking(move || {
        // Held by the thread: it goes on when nobody waits for it any more.
        let _held = held;
        work()
    });
    done.await.unwrap_or_else(|error| Err(Error::new(ErrorKind::Failed, error.to_string())))
}

fn unusable(error: &io::Error) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("the file descriptor cannot be used: {error}"))
}

fn not_exported(error: &ExportError) -> Error {
    let kind = match error {
        ExportError::Configuration(ConfigurationError::NotThere(_)) => ErrorKind::NotFound,
        ExportError::Configuration(ConfigurationError::Unreadable { .. }) => ErrorKind::Corrupt,
        ExportError::NotCarried { .. } => ErrorKind::NotSupported,
        ExportError::Changed => ErrorKind::Busy,
        ExportError::Write(source) if source.kind() == io::ErrorKind::StorageFull => ErrorKind::NoSpace,
        ExportError::Configuration(_) | ExportError::Write(_) | ExportError::Io { .. } => ErrorKind::Failed,
    };
    Error::new(kind, error.to_string())
}

fn not_imported(error: &ImportError) -> Error {
    let kind = match error {
        ImportError::Truncated | ImportError::Damaged { .. } => ErrorKind::Corrupt,
        ImportError::Refused(_) => ErrorKind::NotAuthorized,
        ImportError::NoRoom(_) => ErrorKind::NoSpace,
        ImportError::Configuration(ConfigurationError::Exists(_)) => ErrorKind::InvalidArgument,
        ImportError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => ErrorKind::NoSpace,
        ImportError::Configuration(_) | ImportError::Io { .. } | ImportError::Read(_) => ErrorKind::Failed,
        _ => ErrorKind::InvalidArgument,
    };
    Error::new(kind, error.to_string())
}
