//! Saved configurations: the whole of the changes to the root, under a name.
//!
//! They lie on the overlay's volume, beside the folder that takes changes, and go with it at a reset:
//!
//! ```text
//! upper/                            the changes that the root has
//! configurations/NAME/about.json    what is known of them
//! configurations/NAME/tree/         them, as the upper folder had them
//! configurations/NAME/base          what the image had at each of their paths, where that is known
//! configurations/.*                 one that is being made, or deleted: what is left of it means nothing
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::archive::{BlobDigest, Voucher};
use crate::image::Image;
use crate::integrity::RootHash;
use crate::job::JobId;
use crate::time::Timestamp;

/// The folder on the volume that holds them.
pub const FOLDER: &str = "configurations";
/// What is known of one, in its folder.
pub const ABOUT_FILE: &str = "about.json";
/// Its changes, in its folder.
pub const TREE_FOLDER: &str = "tree";

/// What the image had where they are, in its folder.
pub const BASE_FILE: &str = "base";

/// Version of [`About`] that this code writes, and the only one it reads.
pub const VERSION: u32 = 1;

/// Longest name, in bytes.
pub const MAX_NAME: usize = 64;

/// Name of a configuration: letters, digits, `.`, `_` and `-`, with a letter or digit first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ConfigurationName(String);

/// A name that no configuration can have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadName {
    /// It is not a name.
    #[error(
        "`{0}` is no name of a configuration: those are 1 to {MAX_NAME} letters, digits, `.`, `_` and `-`, with a letter or digit first"
    )]
    Name(String),
    /// It is always there, and always the same.
    #[error("`factory` is the image as it was shipped: it cannot be saved over, deleted or renamed")]
    Factory,
}

impl ConfigurationName {
    /// The configuration that has no changes.
    pub fn factory() -> Self {
        ConfigurationName("factory".into())
    }

    /// Whether it is [`ConfigurationName::factory`].
    pub fn is_factory(&self) -> bool {
        *self == ConfigurationName::factory()
    }

    /// The name, if it is of one that can be made and taken away.
    pub fn saved(self) -> Result<Self, BadName> {
        if self.is_factory() { Err(BadName::Factory) } else { Ok(self) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ConfigurationName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let is_known = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-');
        let begins = text.starts_with(|letter: char| letter.is_ascii_alphanumeric());
        if begins && text.len() <= MAX_NAME && text.chars().all(is_known) {
            Ok(ConfigurationName(text.to_owned()))
        } else {
            Err(BadName::Name(text.escape_debug().take(80).collect()))
        }
    }
}

impl TryFrom<String> for ConfigurationName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<ConfigurationName> for String {
    fn from(name: ConfigurationName) -> String {
        name.0
    }
}

impl fmt::Display for ConfigurationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of a saved configuration: the contents of its [`ABOUT_FILE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    version: u32,
    /// The image that it is a change of.
    pub image: Image,
    /// The root hash of that image.
    pub root_hash: RootHash,
    /// When it was saved, or imported.
    pub made_at: Timestamp,
    /// The job that saved it; `None` if it was imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// What it was imported from; `None` if it was saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<Imported>,
}

/// Where an imported configuration is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Imported {
    /// The digest of its manifest: of one that is exported, the same wherever it is imported.
    pub digest: BlobDigest,
    /// Who vouches for it.
    pub voucher: Voucher,
}

/// Why what is known of a configuration cannot be used.
#[derive(Debug, Error)]
pub enum Unreadable {
    /// It was written by a newer (or unknown) nemos.
    #[error("it has version {0}, and this nemos knows only version {VERSION}")]
    Version(u64),
    /// It is not what nemos writes.
    #[error("it is not what nemos writes: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl About {
    /// What is known of one that is made now.
    pub const fn new(image: Image, root_hash: RootHash, made_at: Timestamp, job: Option<JobId>) -> Self {
        About { version: VERSION, image, root_hash, made_at, job, imported: None }
    }

    /// Who has signed it, if it was imported, and signed.
    pub fn signed_by(&self) -> Option<&str> {
        match &self.imported.as_ref()?.voucher {
            Voucher::Signer(signer) => Some(signer),
            Voucher::Nobody | Voucher::Image => None,
        }
    }

    /// Reads a document.
    pub fn parse(text: &[u8]) -> Result<Self, Unreadable> {
        #[derive(Deserialize)]
        struct Head {
            version: u64,
        }
        let Head { version } = serde_json::from_slice(text)?;
        if version != u64::from(VERSION) {
            return Err(Unreadable::Version(version));
        }
        Ok(serde_json::from_slice(text)?)
    }

    /// Writes the document: JSON, a newline at its end.
    #[allow(clippy::missing_panics_doc, reason = "it does not panic")]
    pub fn to_text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("strings and numbers without maps always serialize");
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_those_of_plain_files() {
        for name in ["a", "site-7", "2026.11_b", "Factory", &"n".repeat(MAX_NAME)] {
            assert_eq!(name.parse::<ConfigurationName>().unwrap().as_str(), name);
        }
        let long = "n".repeat(MAX_NAME + 1);
        for name in ["", ".", "..", ".new", "-x", "a/b", "a b", "a\n", "ä", "a\0", &long, &"n".repeat(300)] {
            assert!(matches!(name.parse::<ConfigurationName>(), Err(BadName::Name(_))), "{name:?}");
        }
    }

    #[test]
    fn the_factory_configuration_is_nobodys() {
        let factory: ConfigurationName = "factory".parse().unwrap();
        assert!(factory.is_factory());
        assert_eq!(factory.saved(), Err(BadName::Factory));
    }

    #[test]
    fn what_is_known_of_one_is_read_back() {
        let image = Image { id: "nemos".into(), version: "1".into() };
        let hash = "ab".repeat(32).parse().unwrap();
        let about = About::new(image, hash, Timestamp(7), Some(JobId::from_random(1)));
        assert_eq!(About::parse(about.to_text().as_bytes()).unwrap(), about);
        let newer = about.to_text().replace("\"version\": 1,\n  \"image\"", "\"version\": 2,\n  \"image\"");
        assert!(matches!(About::parse(newer.as_bytes()), Err(Unreadable::Version(2))));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text: String) {
            let _ = text.parse::<ConfigurationName>();
            let _ = About::parse(text.as_bytes());
        }
    }
}
