//! Configurations in files: options of `Export` and `Import`, and what they tell. The files themselves go through file
//! descriptors.

use nemos_model::overlay::ConfigurationName;
use nemos_model::overlay::archive::Description;
use nemos_model::overlay::configuration::About;
use zbus::{DeserializeDict, SerializeDict, Type};

use crate::Error;
use crate::options::{Dictionary, Options};

/// Options of `Export`: none yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, SerializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct ExportOptions {}

impl ExportOptions {
    /// Reads what a caller sent.
    pub fn parse(dictionary: Dictionary) -> Result<Self, Error> {
        Options::new(dictionary).finish().map(|()| ExportOptions {})
    }
}

/// What was exported, on the wire.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct ExportedRecord {
    /// Digest of the manifest, as `sha256:...`.
    pub digest: String,
    /// Sockets and pipes that did not go along; at most 100.
    pub left_out: Vec<String>,
}

/// Options of `Import`.
#[derive(Debug, Clone, PartialEq, Eq, Default, SerializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct ImportOptions {
    /// The signature, as `ssh-keygen -Y sign` makes it.
    pub signature: Option<String>,
    /// In place of the configuration that has the name.
    pub replace: Option<bool>,
    /// Only read the file through, and tell what would be imported.
    pub dry_run: Option<bool>,
}

/// [`ImportOptions`] as a caller sent them, and the name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WantedImport {
    /// The name; without one, that in the file.
    pub name: Option<ConfigurationName>,
    /// See [`ImportOptions::signature`].
    pub signature: Option<String>,
    /// See [`ImportOptions::replace`].
    pub replace: bool,
    /// See [`ImportOptions::dry_run`].
    pub dry_run: bool,
}

impl WantedImport {
    /// Reads what a caller sent.
    pub fn parse(name: &str, dictionary: Dictionary) -> Result<Self, Error> {
        let mut options = Options::new(dictionary);
        let (signature, replace, dry_run) =
            (options.take("signature")?, options.take("replace")?, options.take("dry-run")?);
        options.finish()?;
        let name = if name.is_empty() { None } else { Some(name.parse::<ConfigurationName>()?.saved()?) };
        Ok(WantedImport { name, signature, replace: replace.unwrap_or_default(), dry_run: dry_run.unwrap_or_default() })
    }
}

/// What was imported, on the wire.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
pub struct ImportedRecord {
    /// The name that it had where it was exported.
    pub exported_as: String,
    /// When it was made there, by that device's clock.
    pub made_at: u64,
    /// The image that it is a change of.
    pub image_id: String,
    /// Its version.
    pub image_version: String,
    /// Its root hash.
    pub root_hash: String,
    /// Digest of the manifest, as `sha256:...`.
    pub digest: String,
    /// The fingerprint of the key that signed it, and the comment that the image has for it.
    pub signed_by: Option<String>,
    /// Files, folders, links, and what is deleted.
    pub entries: u64,
    /// Bytes of the files.
    pub bytes: u64,
}

impl ImportedRecord {
    /// A configuration that was imported, or would be.
    pub fn new(about: &About, described: &Description, entries: u64, bytes: u64) -> Self {
        let imported = about.imported.as_ref();
        ImportedRecord {
            exported_as: described.name.to_string(),
            made_at: described.made_at.0,
            image_id: about.image.id.clone(),
            image_version: about.image.version.clone(),
            root_hash: about.root_hash.to_string(),
            digest: imported.map(|imported| format!("sha256:{}", imported.digest)).unwrap_or_default(),
            signed_by: about.signed_by().map(str::to_owned),
            entries,
            bytes,
        }
    }
}
