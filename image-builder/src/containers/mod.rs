//! Containers that are shipped with an image: read from OCI archives or described by us, and written as a store that podman
//! reads.

pub mod layer;
pub mod oci;
pub mod split;
pub mod store;

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::architecture::Architecture;
use crate::build::Digest;

/// A blob of an OCI image, by what it hashes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    /// SHA-256.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its files, as a tar archive that is not compressed.
    pub tar: PathBuf,
    /// The archive itself.
    pub diff: Blob,
    /// The archive as the image's manifest names it, which may be compressed.
    pub blob: Blob,
}

/// An image of containers, in the words of the OCI image specification 1.1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What it is called, with a tag.
    pub name: String,
    /// Its manifest, byte for byte.
    pub manifest: Vec<u8>,
    /// Its configuration, byte for byte.
    pub config: Vec<u8>,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
}

impl Image {
    /// An image of one layer.
    pub fn of_one_layer(
        name: &str,
        architecture: Architecture,
        command: &[String],
        layer: Layer,
        created: &str,
    ) -> Self {
        const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let config = json!({
            "architecture": architecture.name(),
            "os": "linux",
            "created": created,
            "config": { "Env": [PATH], "Cmd": command },
            "rootfs": { "type": "layers", "diff_ids": [sha256(&layer.diff.digest)] },
            "history": [{ "created": created, "created_by": "nemos-image" }],
        });
        let config = config.to_string().into_bytes();
        let config_blob = Blob { digest: Digest::of_bytes(&config), size: config.len() as u64 };
        let descriptor = |kind: &str, blob: &Blob| -> Value {
            json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": sha256(&blob.digest),
                "size": blob.size,
            })
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &config_blob),
            "layers": [descriptor("layer.v1.tar", &layer.blob)],
        });
        Image { name: name.to_owned(), manifest: manifest.to_string().into_bytes(), config, layers: vec![layer] }
    }
}

/// A digest as OCI writes it.
pub(crate) fn sha256(digest: &Digest) -> String {
    format!("sha256:{}", digest.hex())
}
