//! Reads an OCI archive: the tar archive of an OCI image layout, as `podman save --format oci-archive` or
//! `skopeo copy ... oci-archive:FILE` write it.
//!
//! Source: the OCI image specification 1.1, `image-layout.md`, `image-index.md` and `manifest.md`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::{Blob, Image, Layer};
use crate::architecture::Architecture;
use crate::build::Digest;

/// Longest manifest or configuration that is read; others have megabytes at most.
const LONGEST_DOCUMENT: u64 = 16 << 20;

/// Why an archive gives no image.
#[derive(Debug, Error)]
pub enum OciError {
    /// It cannot be read.
    #[error("{path} cannot be read: {source}")]
    Unreadable {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{path} is not an OCI archive: {what}; make one with: podman save --format oci-archive")]
    NotOci {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// It has images for other machines.
    #[error("{path} has no image for linux on {architecture}, but for {there}")]
    Platform {
        /// The archive.
        path: PathBuf,
        /// What was looked for.
        architecture: Architecture,
        /// What is there.
        there: String,
    },
    /// Its files are packed in a way that is not known here.
    #[error("{path} has a layer of type {kind}, and only plain tar archives, gzip and zstd are unpacked here")]
    Layer {
        /// The archive.
        path: PathBuf,
        /// Its media type.
        kind: String,
    },
    /// A layer cannot be written.
    #[error("writing {path}: {source}")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Config {
    architecture: String,
    os: String,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// An archive that is open.
struct Archive<'a> {
    path: &'a Path,
    /// The architecture of the image that is wanted.
    wanted: Architecture,
    file: File,
    /// Where each file of it begins, and how long it is.
    files: BTreeMap<String, (u64, u64)>,
}

/// Reads the image of an archive; its layers are unpacked into `folder`, each a tar archive.
pub fn read(path: &Path, name: &str, wanted: Architecture, folder: &Path) -> Result<Image, OciError> {
    let mut archive = Archive::open(path, wanted)?;
    let index = archive.document("index.json")?;
    let index: Index = archive.parse(&index, "index.json")?;
    let chosen = archive.choose(index)?;
    let manifest = archive.blob(&chosen)?;
    let parsed: Manifest = archive.parse(&manifest, "its manifest")?;
    let config = archive.blob(&parsed.config)?;
    let Config { architecture, os, rootfs } = archive.parse(&config, "its configuration")?;
    if (os.as_str(), architecture.as_str()) != ("linux", wanted.name()) {
        return Err(archive.other_platform(&[format!("{os} on {architecture}")]));
    }
    if rootfs.diff_ids.len() != parsed.layers.len() || parsed.layers.is_empty() {
        return Err(archive.not_oci("its manifest and its configuration name different numbers of layers"));
    }
    let mut layers = Vec::new();
    for (layer, diff) in parsed.layers.iter().zip(&rootfs.diff_ids) {
        layers.push(archive.unpack(layer, diff, folder)?);
    }
    Ok(Image { name: name.to_owned(), manifest, config, layers })
}

impl<'a> Archive<'a> {
    fn open(path: &'a Path, wanted: Architecture) -> Result<Self, OciError> {
        let unreadable = |source| OciError::Unreadable { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        let mut files = BTreeMap::new();
        let mut listed = || {
            for entry in tar::Archive::new(&file).entries_with_seek()? {
                let entry = entry?;
                let name = entry.path()?.display().to_string();
                files.insert(name.trim_start_matches("./").to_owned(), (entry.raw_file_position(), entry.size()));
            }
            Ok::<_, io::Error>(())
        };
        let listed = listed();
        let archive = Archive { path, wanted, file, files };
        listed.map_err(|error| archive.not_oci(&error.to_string()))?;
        Ok(archive)
    }

    fn not_oci(&self, what: &str) -> OciError {
        OciError::NotOci { path: self.path.to_owned(), what: what.to_owned() }
    }

    fn other_platform(&self, there: &[String]) -> OciError {
        OciError::Platform { path: self.path.to_owned(), architecture: self.wanted, there: there.join(", ") }
    }

    fn content(&mut self, name: &str) -> Result<io::Take<&mut File>, OciError> {
        let unreadable = |source| OciError::Unreadable { path: self.path.to_owned(), source };
        let Some((start, size)) = self.files.get(name).copied() else {
            return Err(self.not_oci(&format!("it has no {name}")));
        };
        self.file.seek(SeekFrom::Start(start)).map_err(unreadable)?;
        Ok((&mut self.file).take(size))
    }

    fn document(&mut self, name: &str) -> Result<Vec<u8>, OciError> {
        let path = self.path;
        let mut bytes = Vec::new();
        let read = self.content(name)?.take(LONGEST_DOCUMENT).read_to_end(&mut bytes);
        read.map_err(|source| OciError::Unreadable { path: path.to_owned(), source })?;
        Ok(bytes)
    }

    fn parse<T: for<'json> Deserialize<'json>>(&self, json: &[u8], what: &str) -> Result<T, OciError> {
        serde_json::from_slice(json).map_err(|error| self.not_oci(&format!("{what}: {error}")))
    }

    /// A small blob, which must be what it is said to be.
    fn blob(&mut self, descriptor: &Descriptor) -> Result<Vec<u8>, OciError> {
        let bytes = self.document(&blob_file(&descriptor.digest))?;
        if super::sha256(&Digest::of_bytes(&bytes)) == descriptor.digest {
            Ok(bytes)
        } else {
            Err(self.not_oci(&format!("{} is damaged", descriptor.digest)))
        }
    }

    /// The image for these machines.
    fn choose(&self, index: Index) -> Result<Descriptor, OciError> {
        let mut manifests = index.manifests;
        if manifests.len() == 1 {
            return Ok(manifests.remove(0));
        }
        let fits = |one: &Descriptor| {
            one.platform.as_ref().is_some_and(|at| at.os == "linux" && at.architecture == self.wanted.name())
        };
        let there: Vec<_> = manifests
            .iter()
            .map(|one| one.platform.as_ref().map_or("?".into(), |at| format!("{} on {}", at.os, at.architecture)))
            .collect();
        manifests.into_iter().find(fits).ok_or_else(|| self.other_platform(&there))
    }

    /// Writes a layer as a tar archive.
    fn unpack(&mut self, layer: &Descriptor, diff: &str, folder: &Path) -> Result<Layer, OciError> {
        let path = self.path;
        let tar = folder.join(diff.trim_start_matches("sha256:")).with_extension("tar");
        let unwritable = |source| OciError::Unwritable { path: tar.clone(), source };
        let kind = layer.media_type.clone();
        let mut blob = Hashing::new(self.content(&blob_file(&layer.digest))?);
        let mut to = Hashing::new(File::create(&tar).map_err(unwritable)?);
        let copied = match kind.rsplit(['.', '+']).next() {
            Some("gzip") => io::copy(&mut MultiGzDecoder::new(&mut blob), &mut to),
            Some("zstd") => zstd::Decoder::new(&mut blob).and_then(|mut plain| io::copy(&mut plain, &mut to)),
            Some("tar") => io::copy(&mut blob, &mut to),
            _ => return Err(OciError::Layer { path: path.to_owned(), kind }),
        };
        copied.map_err(unwritable)?;
        io::copy(&mut blob, &mut io::sink()).map_err(unwritable)?;
        let (blob, unpacked) = (blob.blob(), to.blob());
        for (made, said) in [(&blob, &layer.digest), (&unpacked, &diff.to_owned())] {
            if super::sha256(&made.digest) != *said {
                return Err(self.not_oci(&format!("{said} is damaged")));
            }
        }
        if blob.size != layer.size {
            return Err(self.not_oci(&format!("{} is of another size than it says", layer.digest)));
        }
        Ok(Layer { tar, diff: unpacked, blob })
    }
}

fn blob_file(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// What goes through it is hashed.
struct Hashing<T> {
    inner: T,
    hash: Sha256,
    size: u64,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Hashing { inner, hash: Sha256::new(), size: 0 }
    }

    fn blob(self) -> Blob {
        Blob { digest: Digest(self.hash.finalize().into()), size: self.size }
    }

    fn saw(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.saw(&bytes[..read]);
        Ok(read)
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.saw(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use serde_json::json;

    const LAYER: &[u8] = &[0; 1024];

    fn gzip() -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(LAYER).expect("a layer");
        encoder.finish().expect("a layer")
    }

    /// An archive with an image of one layer, of that kind; `change` may spoil a file of it.
    fn archive(folder: &Path, kind: &str, change: impl Fn(&str, Vec<u8>) -> Vec<u8>) -> PathBuf {
        let packed = match kind {
            "tar+gzip" => gzip(),
            "tar+zstd" => zstd::encode_all(LAYER, 1).expect("a layer"),
            _ => LAYER.to_vec(),
        };
        let blob = |bytes: &[u8]| (super::super::sha256(&Digest::of_bytes(bytes)), bytes.len());
        let descriptor = |kind: &str, bytes: &[u8]| {
            let (digest, size) = blob(bytes);
            json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size })
        };
        let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "diff_ids": [blob(LAYER).0] } });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "config": descriptor("config.v1+json", &config),
            "layers": [descriptor(&format!("layer.v1.{kind}"), &packed)],
        });
        let manifest = manifest.to_string().into_bytes();
        let index = json!({ "manifests": [descriptor("manifest.v1+json", &manifest)] }).to_string().into_bytes();
        let path = folder.join("image.tar");
        let mut tar = tar::Builder::new(File::create(&path).expect("a file"));
        let named = |bytes: &[u8]| blob_file(&blob(bytes).0);
        let files = [
            ("index.json".to_owned(), "index", index),
            (named(&manifest), "manifest", manifest),
            (named(&config), "config", config),
            (named(&packed), "layer", packed),
        ];
        for (name, what, content) in files {
            let content = change(what, content);
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, content.as_slice()).expect("a file in the archive");
        }
        tar.finish().expect("the archive");
        path
    }

    #[test]
    fn an_archive_gives_its_image_and_layers_whether_packed_or_not() {
        for kind in ["tar", "tar+gzip", "tar+zstd"] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let path = archive(folder.path(), kind, |_, content| content);
            let image = read(&path, "localhost/app:1", Architecture::Amd64, folder.path()).expect("an image");
            assert_eq!(std::fs::read(&image.layers[0].tar).expect("its layer"), LAYER);
            assert_eq!(image.layers[0].diff.digest, Digest::of_bytes(LAYER));
            assert_eq!(image.layers[0].blob == image.layers[0].diff, kind == "tar");
        }
    }

    #[test]
    fn a_layer_that_is_packed_in_an_unknown_way_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = archive(folder.path(), "tar+lzip", |_, content| content);
        let told = read(&path, "x", Architecture::Amd64, folder.path()).expect_err("it is unknown").to_string();
        assert!(told.contains("type application/vnd.oci.image.layer.v1.tar+lzip"), "{told}");
    }

    #[test]
    fn an_archive_with_a_damaged_part_is_refused() {
        for part in ["manifest", "config", "layer"] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let spoil = |what: &str, mut content: Vec<u8>| {
                if what == part {
                    content[0] ^= 1;
                }
                content
            };
            let told = read(&archive(folder.path(), "tar", spoil), "x", Architecture::Amd64, folder.path())
                .expect_err(part)
                .to_string();
            assert!(told.contains("is damaged"), "{part}: {told}");
        }
    }

    #[test]
    fn what_is_no_oci_archive_or_for_another_machine_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let text = folder.path().join("text");
        std::fs::write(&text, "not an archive\n".repeat(100)).expect("a file");
        assert!(matches!(read(&text, "x", Architecture::Amd64, folder.path()), Err(OciError::NotOci { .. })));
        assert!(matches!(
            read(&folder.path().join("none"), "x", Architecture::Amd64, folder.path()),
            Err(OciError::Unreadable { .. })
        ));

        // Two images, neither of them for us.
        let other = |what: &str, content: Vec<u8>| {
            if what != "index" {
                return content;
            }
            let mut index: serde_json::Value = serde_json::from_slice(&content).expect("JSON");
            index["manifests"][0]["platform"] = json!({ "architecture": "arm64", "os": "linux" });
            let first = index["manifests"][0].clone();
            index["manifests"] = json!([first, first]);
            index.to_string().into_bytes()
        };
        let told = read(&archive(folder.path(), "tar", other), "x", Architecture::Amd64, folder.path())
            .expect_err("for others")
            .to_string();
        assert!(told.contains("no image for linux on amd64, but for linux on arm64"), "{told}");
    }
}
