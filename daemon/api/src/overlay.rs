//! The overlay: what it holds, and what differs from the factory image.

use nemos_model::overlay::changes::{Change, from_text, to_text};
use nemos_model::overlay::{ConfigurationName, Within};
use std::path::PathBuf;
use zbus::{DeserializeDict, Fd, OwnedObjectPath, SerializeDict, Type, proxy};

use crate::archive::{ExportOptions, ExportedRecord, ImportOptions, ImportedRecord};
use crate::configuration::{ApplyOptions, ConfigurationRecord, SaveOptions, TrialRecord, within};
use crate::options::{Dictionary, Options};
use crate::usage::UsageRecord;
use crate::{CallError, Error, ErrorKind};

/// Most changes in one answer.
pub const MOST_CHANGES: u32 = 1000;

/// The Overlay interface.
#[proxy(
    interface = "org.nemos.Device1.Overlay",
    default_service = "org.nemos.Device1",
    default_path = "/org/nemos/Device1"
)]
pub trait Overlay {
    /// `persistent`, `volatile` or `readonly`: where changes go at this boot.
    #[zbus(property)]
    fn mode(&self) -> Result<String, CallError>;

    /// The mode of the next boot.
    #[zbus(property)]
    fn next_mode(&self) -> Result<String, CallError>;

    /// The mode of the boots after that one.
    #[zbus(property)]
    fn mode_after_next(&self) -> Result<String, CallError>;

    /// Bytes that its file system has.
    #[zbus(property)]
    fn size(&self) -> Result<u64, CallError>;

    /// Bytes of them in use.
    #[zbus(property(emits_changed_signal = "false"))]
    fn used(&self) -> Result<u64, CallError>;

    /// Name of the configuration that was applied last; `factory` if none was.
    #[zbus(property)]
    fn active_configuration(&self) -> Result<String, CallError>;

    /// The configurations that are saved.
    #[zbus(property(emits_changed_signal = "false"))]
    fn configurations(&self) -> Result<Vec<ConfigurationRecord>, CallError>;

    /// What nobody has confirmed yet.
    #[zbus(property)]
    fn trial(&self) -> Result<TrialRecord, CallError>;

    /// Has the next boot save the changes to the root under a name, and returns the job.
    #[zbus(allow_interactive_auth)]
    fn save(&self, name: &str, options: SaveOptions) -> Result<OwnedObjectPath, CallError>;

    /// Has the next boot put saved changes in the place of those that there are, and returns the job.
    #[zbus(allow_interactive_auth)]
    fn apply(&self, name: &str, options: ApplyOptions) -> Result<OwnedObjectPath, CallError>;

    /// Keeps what is on trial.
    #[zbus(allow_interactive_auth)]
    fn confirm(&self) -> Result<(), CallError>;

    /// Deletes a saved configuration.
    #[zbus(allow_interactive_auth)]
    fn delete(&self, name: &str) -> Result<(), CallError>;

    /// Gives a saved configuration another name.
    #[zbus(allow_interactive_auth)]
    fn rename(&self, from: &str, to: &str) -> Result<(), CallError>;

    /// Sets the mode from the next boot on.
    #[zbus(allow_interactive_auth)]
    fn set_mode(&self, mode: &str, options: ModeOptions) -> Result<(), CallError>;

    /// Has the next boot take the changes at and below these paths back, and returns the job.
    #[zbus(allow_interactive_auth)]
    fn revert(&self, paths: &[String], options: RevertOptions) -> Result<OwnedObjectPath, CallError>;

    /// Writes a configuration into a file or pipe.
    #[zbus(allow_interactive_auth)]
    fn export(&self, name: &str, file: Fd<'_>, options: ExportOptions) -> Result<ExportedRecord, CallError>;

    /// Makes a configuration of what is in a file or pipe, and returns what it is called and what is in it. Without a name, it
    /// has that in the file.
    #[zbus(allow_interactive_auth)]
    fn import(&self, name: &str, file: Fd<'_>, options: ImportOptions) -> Result<(String, ImportedRecord), CallError>;

    /// What differs from the factory image, in the order of the paths, and where to go on; empty at the end.
    #[zbus(allow_interactive_auth)]
    fn changes(&self, options: ChangesOptions) -> Result<(Vec<ChangeRecord>, String), CallError>;

    /// What takes room on the volume.
    #[zbus(allow_interactive_auth)]
    fn usage(&self, options: Dictionary) -> Result<UsageRecord, CallError>;
}

/// Options of `SetMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, SerializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct ModeOptions {
    /// For the next boot alone.
    pub once: Option<bool>,
    /// Seconds from the beginning of the next boot within which it has to be confirmed, or the device goes back.
    pub confirm_within: Option<u32>,
}

impl ModeOptions {
    /// Reads what a caller sent: whether it is for the next boot alone, and whether it has to be confirmed there.
    pub fn parse(dictionary: Dictionary) -> Result<(bool, Option<Within>), Error> {
        let mut options = Options::new(dictionary);
        let (once, confirm_within) = (options.take("once")?.unwrap_or_default(), options.take("confirm-within")?);
        options.finish()?;
        if once && confirm_within.is_some() {
            let message = "a mode for one boot ends with it: there is nothing to confirm";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        Ok((once, within(confirm_within)?))
    }
}

/// Options of `Revert`.
#[derive(Debug, Clone, PartialEq, Eq, Default, SerializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct RevertOptions {
    /// Idempotency key: asking again with it gives back the same job.
    pub key: Option<String>,
    /// A label for the caller's own records.
    pub label: Option<String>,
    /// Reboot at once.
    pub reboot: Option<bool>,
}

impl RevertOptions {
    /// Reads what a caller sent.
    pub fn parse(dictionary: Dictionary) -> Result<Self, Error> {
        let mut options = Options::new(dictionary);
        let read =
            RevertOptions { key: options.take("key")?, label: options.take("label")?, reboot: options.take("reboot")? };
        options.finish().map(|()| read)
    }
}

/// Options of `Changes`.
#[derive(Debug, Clone, PartialEq, Eq, Default, SerializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct ChangesOptions {
    /// Only at and below this path.
    pub path: Option<String>,
    /// Only after this path: what the last answer ended with.
    pub after: Option<String>,
    /// At most so many.
    pub limit: Option<u32>,
    /// Of this saved configuration, instead of what the root has.
    pub configuration: Option<String>,
}

/// [`ChangesOptions`] as a caller sent them. Paths are without the slash at their beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedChanges {
    /// See [`ChangesOptions::path`].
    pub path: PathBuf,
    /// See [`ChangesOptions::after`].
    pub after: Option<PathBuf>,
    /// See [`ChangesOptions::limit`].
    pub limit: usize,
    /// See [`ChangesOptions::configuration`].
    pub configuration: Option<ConfigurationName>,
}

impl WantedChanges {
    /// Reads what a caller sent.
    pub fn parse(dictionary: Dictionary) -> Result<Self, Error> {
        let mut options = Options::new(dictionary);
        let (path, after, limit) = (options.take("path")?, options.take("after")?, options.take("limit")?);
        let configuration: Option<String> = options.take("configuration")?;
        options.finish()?;
        let read =
            |text: String| from_text(&text).map_err(|error| Error::new(ErrorKind::InvalidArgument, error.to_string()));
        let limit: u32 = limit.unwrap_or(MOST_CHANGES);
        if !(1..=MOST_CHANGES).contains(&limit) {
            let message = format!("option `limit` must be 1 to {MOST_CHANGES}");
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        Ok(WantedChanges {
            path: path.map(read).transpose()?.unwrap_or_default(),
            after: after.map(read).transpose()?,
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            configuration: configuration.map(|name| name.parse()).transpose()?,
        })
    }
}

/// A change on the wire.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct ChangeRecord {
    /// The path; what is no text in it is written as `\\xNN`.
    pub path: String,
    /// `added`, `changed`, `metadata`, `deleted`, `replaced`, `renamed`, `type`.
    pub what: String,
    /// `file`, `folder`, `link`, `special`.
    pub kind: String,
    /// Bytes of the file that there is.
    pub size: u64,
    /// Bytes of the file that the image has there.
    pub factory_size: Option<u64>,
    /// Where a folder that was renamed had been.
    pub from: Option<String>,
    /// Whether it hides something that a newer image has changed.
    pub shadowed: bool,
}

impl ChangeRecord {
    /// Of a change, which is shadowed, or not.
    pub fn new(change: &Change, shadowed: bool) -> Self {
        ChangeRecord {
            shadowed,
            path: to_text(&change.path),
            what: change.what.name().to_owned(),
            kind: change.kind.name().to_owned(),
            size: change.size,
            factory_size: change.factory_size,
            from: change.from.as_deref().map(|from| to_text(from.strip_prefix("/").unwrap_or(from))),
        }
    }
}
