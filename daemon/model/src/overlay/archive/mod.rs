//! A configuration in a file: the tar archive of an OCI image layout that has one layer, so that whatever reads OCI archives
//! reads it.
//!
//! ```text
//! oci-layout
//! index.json                 names the manifest by its digest; it is what is signed
//! blobs/sha256/<manifest>    names the two below by theirs, and says what they are: the annotations `org.nemos.*`
//! blobs/sha256/<config>      what OCI wants to know of an image
//! blobs/sha256/<layer>       the changes: tar, zstd, OCI's whiteouts
//! ```
//!
//! In this order: it is read in one pass, and nothing is unpacked before it is known whose it is.
//!
//! Source: the OCI image specification 1.1, `image-layout.md`, `image-index.md`, `manifest.md`, `config.md`, `layer.md`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::configuration::{About, ConfigurationName};
use crate::Timestamp;
use crate::digest::sha256;
use crate::image::Image;

pub mod layer;
pub mod pax;
pub mod signature;

pub use signature::{Policy, Voucher};

/// Name of the first file in an archive.
pub const LAYOUT_FILE: &str = "oci-layout";
/// What is in it.
pub const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
/// Name of the second.
pub const INDEX_FILE: &str = "index.json";
/// Most bytes that any of them has, but for the layer.
pub const MAX_DOCUMENT: u64 = 64 << 10;

/// Where an image has the configurations that it ships, each as `NAME.tar`. Read them below
/// [`LOWER_MOUNT`](crate::overlay::LOWER_MOUNT), which is verified: that vouches for them.
pub const SHIPPED_FOLDER: &str = "usr/share/nemos/configurations";
/// How the file of a configuration ends.
pub const FILE_ENDING: &str = ".tar";

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

const REFERENCE: &str = "org.opencontainers.image.ref.name";
const NAME: &str = "org.nemos.configuration.name";
const MADE_AT: &str = "org.nemos.configuration.made-at";
const IMAGE_ID: &str = "org.nemos.image.id";
const IMAGE_VERSION: &str = "org.nemos.image.version";
const ROOT_HASH: &str = "org.nemos.image.root-hash";

sha256! {
    /// Digest of a file in an archive.
    BlobDigest,
    /// A text that is no such digest.
    InvalidBlobDigest: "a digest",
}

impl BlobDigest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        BlobDigest::from_bytes(Sha256::digest(bytes).into())
    }
}

/// A file in an archive, as another names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: BlobDigest,
    /// Its bytes.
    pub size: u64,
}

impl Blob {
    /// The one with these contents.
    pub fn of(bytes: &[u8]) -> Self {
        Blob { digest: BlobDigest::of(bytes), size: bytes.len() as u64 }
    }

    /// Its name in the archive.
    pub fn file(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }
}

/// What an archive says of the configuration in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Its name where it was made.
    pub name: ConfigurationName,
    /// The image that it is a change of.
    pub image: Image,
    /// The root hash of that image.
    pub root_hash: crate::integrity::RootHash,
    /// When it was made there.
    pub made_at: Timestamp,
}

impl Description {
    /// What is to be said of a configuration that there is.
    pub fn new(name: ConfigurationName, about: &About) -> Self {
        Description { name, image: about.image.clone(), root_hash: about.root_hash, made_at: about.made_at }
    }
}

/// The files of an archive that come before its layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    /// [`INDEX_FILE`].
    pub index: Vec<u8>,
    /// The manifest.
    pub manifest: Vec<u8>,
    /// What OCI calls the image's configuration.
    pub config: Vec<u8>,
}

/// A file that is no archive of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Foreign {
    /// A document is not what nemos writes.
    #[error("its {document} is not one of a configuration: {reason}")]
    Document {
        /// Which.
        document: &'static str,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: String,
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct Config {
    architecture: &'static str,
    os: &'static str,
    #[serde(rename = "config")]
    runs: BTreeMap<String, String>,
    rootfs: RootFs,
}

#[derive(Debug, Serialize)]
struct RootFs {
    r#type: &'static str,
    diff_ids: [String; 1],
}

impl Descriptor {
    fn new(media_type: &str, blob: &Blob) -> Self {
        let digest = format!("sha256:{}", blob.digest);
        Descriptor { media_type: media_type.to_owned(), digest, size: blob.size, annotations: BTreeMap::new() }
    }

    fn blob(&self, media_type: &str) -> Result<Blob, String> {
        if self.media_type != media_type {
            return Err(format!(
                "it has something of type `{}` where there is {media_type}",
                self.media_type.escape_debug()
            ));
        }
        let digest = self.digest.strip_prefix("sha256:").unwrap_or_default();
        let digest = digest.parse().map_err(|_| format!("`{}` is no digest of SHA-256", self.digest.escape_debug()))?;
        Ok(Blob { digest, size: self.size })
    }
}

impl Documents {
    /// The documents of a configuration whose layer, and that unpacked, are these.
    pub fn new(described: &Description, layer: &Blob, unpacked: &BlobDigest) -> Self {
        let rootfs = RootFs { r#type: "layers", diff_ids: [format!("sha256:{unpacked}")] };
        let config = to_json(&Config { architecture: architecture(), os: "linux", runs: BTreeMap::new(), rootfs });
        let Description { name, image, root_hash, made_at } = described;
        let annotations = [
            (NAME, name.to_string()),
            (MADE_AT, made_at.0.to_string()),
            (IMAGE_ID, image.id.clone()),
            (IMAGE_VERSION, image.version.clone()),
            (ROOT_HASH, root_hash.to_string()),
        ];
        let manifest = to_json(&Manifest {
            schema_version: 2,
            media_type: MANIFEST.to_owned(),
            config: Descriptor::new(CONFIG, &Blob::of(&config)),
            layers: vec![Descriptor::new(LAYER, layer)],
            annotations: annotations.map(|(key, value)| (key.to_owned(), value)).into(),
        });
        let mut named = Descriptor::new(MANIFEST, &Blob::of(&manifest));
        named.annotations.insert(REFERENCE.to_owned(), name.to_string());
        let index = to_json(&Index { schema_version: 2, media_type: INDEX.to_owned(), manifests: vec![named] });
        Documents { index, manifest, config }
    }
}

#[allow(clippy::missing_panics_doc, reason = "it does not panic")]
fn to_json(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("strings and numbers, and maps of strings, always serialize")
}

/// As OCI names what this is compiled for.
const fn architecture() -> &'static str {
    if cfg!(target_arch = "x86_64") {
        "amd64"
    } else if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        std::env::consts::ARCH
    }
}

/// The manifest that an index names.
pub fn read_index(index: &[u8]) -> Result<Blob, Foreign> {
    let foreign = |reason| Foreign::Document { document: INDEX_FILE, reason };
    let index: Index = serde_json::from_slice(index).map_err(|error| foreign(error.to_string()))?;
    match index.manifests.as_slice() {
        [manifest] => manifest.blob(MANIFEST).map_err(foreign),
        others => Err(foreign(format!("it has {} images", others.len()))),
    }
}

/// What a manifest says, and the configuration (as OCI calls it) and the layer that it names.
pub fn read_manifest(manifest: &[u8]) -> Result<(Description, Blob, Blob), Foreign> {
    let foreign = |reason| Foreign::Document { document: "manifest", reason };
    let mut manifest: Manifest = serde_json::from_slice(manifest).map_err(|error| foreign(error.to_string()))?;
    let [layer] = manifest.layers.as_slice() else {
        return Err(foreign(format!("it has {} layers", manifest.layers.len())));
    };
    let (config, layer) = (manifest.config.blob(CONFIG).map_err(foreign)?, layer.blob(LAYER).map_err(foreign)?);
    let mut take =
        |key: &str| manifest.annotations.remove(key).ok_or_else(|| foreign(format!("it has no annotation {key}")));
    let (name, made_at, root_hash) = (take(NAME)?, take(MADE_AT)?, take(ROOT_HASH)?);
    let image = Image { id: take(IMAGE_ID)?, version: take(IMAGE_VERSION)? };
    if [&image.id, &image.version].iter().any(|text| text.len() > 256 || text.contains(char::is_control)) {
        return Err(foreign("its image has no name that an image can have".to_owned()));
    }
    let described = Description {
        name: name
            .parse::<ConfigurationName>()
            .and_then(ConfigurationName::saved)
            .map_err(|error| foreign(error.to_string()))?,
        image,
        root_hash: root_hash.parse().map_err(|error: crate::integrity::InvalidRootHash| foreign(error.to_string()))?,
        made_at: made_at.parse().map(Timestamp).map_err(|_| foreign(format!("{MADE_AT} is no number of seconds")))?,
    };
    Ok((described, config, layer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn described() -> Description {
        Description {
            name: "site-7".parse().unwrap(),
            image: Image { id: "nemos".into(), version: "1.2".into() },
            root_hash: "ab".repeat(32).parse().unwrap(),
            made_at: Timestamp(1_795_442_786),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let layer = Blob { digest: BlobDigest::of(b"layer"), size: 5 };
        let documents = Documents::new(&described(), &layer, &BlobDigest::of(b"unpacked"));
        let manifest = read_index(&documents.index).unwrap();
        assert_eq!(manifest, Blob::of(&documents.manifest));
        let read = read_manifest(&documents.manifest).unwrap();
        assert_eq!(read, (described(), Blob::of(&documents.config), layer));
        assert_eq!(documents, Documents::new(&described(), &layer, &BlobDigest::of(b"unpacked")));
    }

    #[test]
    fn an_image_of_containers_is_no_configuration() {
        let layer = Blob { digest: BlobDigest::of(b""), size: 0 };
        let Documents { manifest, index, .. } = Documents::new(&described(), &layer, &BlobDigest::of(b""));
        let [manifest, index] = [manifest, index].map(|text| String::from_utf8(text).unwrap());
        for (from, to) in [
            ("+zstd", "+gzip"),
            ("site-7", "factory"),
            ("site-7", "../etc"),
            ("org.nemos.image.id", "org.nemos.image.ID"),
            ("1795442786", "now"),
            ("\"layers\":[", "\"layers\":[],\"rest\":["),
            ("sha256:", "sha512:"),
        ] {
            let altered = manifest.replacen(from, to, 1);
            assert_ne!(altered, manifest, "{from}");
            read_manifest(altered.as_bytes()).unwrap_err();
        }
        read_index(index.replace("\"manifests\":[", "\"manifests\":[],\"rest\":[").as_bytes()).unwrap_err();
        read_index(b"").unwrap_err();
    }

    proptest! {
        #[test]
        fn no_document_makes_the_readers_panic(bytes: Vec<u8>) {
            let _ = (read_index(&bytes), read_manifest(&bytes));
        }
    }
}
