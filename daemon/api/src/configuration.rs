//! Saved configurations, and what is on trial.

use nemos_model::overlay::archive::Voucher;
use nemos_model::overlay::configuration::About;
use nemos_model::overlay::{ConfigurationName, Trial, Tried, Within};
use zbus::{DeserializeDict, SerializeDict, Type};

use crate::options::{Dictionary, Options};
use crate::{Error, ErrorKind};

/// A saved configuration on the wire.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct ConfigurationRecord {
    /// Its name.
    pub name: String,
    /// When it was saved, or came to the device; 0 if that is not known.
    pub made_at: u64,
    /// `IMAGE_ID` of the image that it is a change of.
    pub image_id: String,
    /// `IMAGE_VERSION` of it.
    pub image_version: String,
    /// Its root hash.
    pub root_hash: String,
    /// `saved`, `imported`, `image`: it comes with the image.
    pub origin: Option<String>,
    /// The fingerprint of the key that signed it, and the comment that the image has for it.
    pub signed_by: Option<String>,
    /// Why it cannot be applied, if it cannot.
    pub error: Option<String>,
}

impl ConfigurationRecord {
    /// What is known of a configuration, or why nothing is.
    pub fn new(name: &ConfigurationName, about: Result<&About, String>) -> Self {
        let (about, error) = match about {
            Ok(about) => (Some(about), None),
            Err(error) => (None, Some(error)),
        };
        let image = about.map(|about| about.image.clone()).unwrap_or_default();
        ConfigurationRecord {
            name: name.to_string(),
            made_at: about.map_or(0, |about| about.made_at.0),
            image_id: image.id,
            image_version: image.version,
            root_hash: about.map(|about| about.root_hash.to_string()).unwrap_or_default(),
            origin: about.map(|about| origin(about).to_owned()),
            signed_by: about.and_then(About::signed_by).map(str::to_owned),
            error,
        }
    }
}

fn origin(about: &About) -> &'static str {
    match about.imported.as_ref().map(|imported| &imported.voucher) {
        None => "saved",
        Some(Voucher::Image) => "image",
        Some(Voucher::Nobody | Voucher::Signer(_)) => "imported",
    }
}

/// What nobody has confirmed yet; empty if there is nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct TrialRecord {
    /// `mode`, `configuration`.
    pub of: Option<String>,
    /// The mode, or the name of the configuration.
    pub name: Option<String>,
    /// Seconds from the beginning of its boot within which it has to be confirmed.
    pub within: Option<u32>,
    /// Whether this is that boot; if not, the next one is.
    pub running: Option<bool>,
}

impl From<&Trial> for TrialRecord {
    fn from(trial: &Trial) -> Self {
        let (of, name) = match &trial.tried {
            Tried::Mode { mode, .. } => ("mode", mode.to_string()),
            Tried::Configuration { name, .. } => ("configuration", name.to_string()),
        };
        TrialRecord {
            of: Some(of.to_owned()),
            name: Some(name),
            within: Some(trial.within.into()),
            running: Some(trial.running),
        }
    }
}

/// Options of `Save`.
#[derive(Debug, Clone, PartialEq, Eq, Default, SerializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct SaveOptions {
    /// Take the place of the one that has the name.
    pub replace: Option<bool>,
    /// Idempotency key: asking again with it gives back the same job.
    pub key: Option<String>,
    /// A label for the caller's own records.
    pub label: Option<String>,
    /// Reboot at once.
    pub reboot: Option<bool>,
}

impl SaveOptions {
    /// Reads what a caller sent.
    pub fn parse(dictionary: Dictionary) -> Result<Self, Error> {
        let mut options = Options::new(dictionary);
        let read = SaveOptions {
            replace: options.take("replace")?,
            key: options.take("key")?,
            label: options.take("label")?,
            reboot: options.take("reboot")?,
        };
        options.finish().map(|()| read)
    }
}

/// Options of `Apply`.
#[derive(Debug, Clone, PartialEq, Eq, Default, SerializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct ApplyOptions {
    /// Seconds from the beginning of its boot within which it has to be confirmed, or the device goes back.
    pub confirm_within: Option<u32>,
    /// Also if it was made on another image.
    pub force: Option<bool>,
    /// Idempotency key: asking again with it gives back the same job.
    pub key: Option<String>,
    /// A label for the caller's own records.
    pub label: Option<String>,
    /// Reboot at once.
    pub reboot: Option<bool>,
}

impl ApplyOptions {
    /// Reads what a caller sent.
    pub fn parse(dictionary: Dictionary) -> Result<Self, Error> {
        let mut options = Options::new(dictionary);
        let read = ApplyOptions {
            confirm_within: options.take("confirm-within")?,
            force: options.take("force")?,
            key: options.take("key")?,
            label: options.take("label")?,
            reboot: options.take("reboot")?,
        };
        options.finish().map(|()| read)
    }
}

/// The time that a caller gives, if it gives one.
pub fn within(seconds: Option<u32>) -> Result<Option<Within>, Error> {
    let read = seconds.map(Within::try_from).transpose();
    read.map_err(|error| Error::new(ErrorKind::InvalidArgument, error.to_string()))
}
