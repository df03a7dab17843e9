//! A store of images as podman's library keeps it with its overlay driver, to be read only: an additional image store.
//!
//! ```text
//!     overlay-images/images.json           ID (digest of the configuration), names, top layer
//!     overlay-images/ID/KEY                manifest and configuration; a KEY other than a-z, 0-9 and `.` in Base64 behind `=`
//!     overlay-layers/layers.json           ID, parent, digests
//!     overlay-layers/ID.tar-split.gz       what is left of the layer's archive without the files
//!     overlay/ID/diff/...                  the files
//!     overlay/ID/link, overlay/l/LINK      a short name for diff, so that many fit into the options of a mount
//!     overlay/ID/lower                     the short names of the layers below, the nearest first
//! ```
//!
//! Own code, and not podman run by the builder: that needs overlay mounts in a user namespace, and draws names and times that
//! would differ in each build. Source: `images.go`, `layers.go` and `drivers/overlay/overlay.go` of
//! github.com/containers/storage 1.57; IDs of layers from `storage/storage_dest.go` of github.com/containers/image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::layer::{self, Contents};
use super::{Image, Layer, sha256, split};
use crate::build::Digest;

/// Letters of a short name.
const LINK: usize = 26;

/// Writes a store with these images as a tar archive, all of it dated with `created`.
pub fn write(images: &[Image], created: jiff::Timestamp, to: impl Write) -> io::Result<()> {
    let mtime = u64::try_from(created.as_second()).unwrap_or_default();
    let mut store = Store { tar: Builder::new(to), mtime, created: created.to_string() };
    for path in ["overlay", "overlay/l", "overlay-layers", "overlay-images"] {
        store.folder(path, 0o755)?;
    }
    let mut layers: BTreeMap<String, Value> = BTreeMap::new();
    for image in images {
        for (layer, chain) in image.layers.iter().zip(chains(&image.layers)) {
            if let Some((id, _)) = chain.split_last()
                && !layers.contains_key(id)
            {
                layers.insert(id.clone(), store.layer(layer, &chain)?);
            }
        }
    }
    let layers: Value = layers.into_values().collect();
    store.file("overlay-layers/layers.json", layers.to_string().as_bytes())?;
    store.file("overlay-layers/layers.lock", b"")?;
    let mut described = Vec::new();
    for id in images.iter().map(Image::id).collect::<BTreeSet<_>>() {
        let same: Vec<_> = images.iter().filter(|image| image.id() == id).collect();
        let names: Vec<_> = same.iter().map(|image| image.name.as_str()).collect();
        described.push(store.image(same[0], &names)?);
    }
    store.file("overlay-images/images.json", Value::from(described).to_string().as_bytes())?;
    store.file("overlay-images/images.lock", b"")?;
    store.tar.finish()
}

impl Image {
    fn id(&self) -> String {
        Digest::of_bytes(&self.config).hex()
    }
}

/// For each layer, the IDs of those below it and its own, the lowest first: the same files on other ones are another layer.
fn chains(layers: &[Layer]) -> Vec<Vec<String>> {
    let mut chain: Vec<String> = Vec::new();
    let mut chains = Vec::new();
    for layer in layers {
        let diff = layer.diff.digest.hex();
        let id = match chain.last() {
            None => diff,
            Some(parent) => Digest::of_bytes(format!("{parent}+{diff}").as_bytes()).hex(),
        };
        chain.push(id);
        chains.push(chain.clone());
    }
    chains
}

/// The short name of a layer; the library draws it at random.
fn link(id: &str) -> String {
    id.chars().take(LINK).collect::<String>().to_uppercase()
}

/// The name of the file that an image's data of this name is in.
fn data_file(key: &str) -> String {
    let plain = |letter: char| matches!(letter, '.' | '0'..='9' | 'a'..='z');
    if key.chars().all(plain) { key.to_owned() } else { format!("={}", STANDARD.encode(key)) }
}

struct Store<W: Write> {
    tar: Builder<W>,
    mtime: u64,
    created: String,
}

impl<W: Write> Store<W> {
    fn folder(&mut self, path: impl AsRef<Path>, mode: u32) -> io::Result<()> {
        layer::folder(&mut self.tar, path.as_ref(), mode, self.mtime)
    }

    fn header(&self, kind: EntryType, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(self.mtime);
        header.set_size(0);
        header
    }

    fn file(&mut self, path: impl AsRef<Path>, content: &[u8]) -> io::Result<()> {
        let mut header = self.header(EntryType::Regular, 0o644);
        header.set_size(content.len() as u64);
        self.tar.append_data(&mut header, path, content)
    }

    /// Adds a layer, and returns its description.
    fn layer(&mut self, layer: &Layer, chain: &[String]) -> io::Result<Value> {
        let mut tar = File::open(&layer.tar)?;
        let contents = Contents::read(&mut tar)?;
        let (id, below) = chain.split_last().map(|(id, below)| (id.as_str(), below)).unwrap_or_default();
        let folder = format!("overlay/{id}");
        self.folder(&folder, 0o700)?;
        layer::copy(&mut tar, &contents, &Path::new(&folder).join("diff"), self.mtime, &mut self.tar)?;
        self.folder(format!("{folder}/work"), 0o700)?;
        if below.is_empty() {
            self.folder(format!("{folder}/empty"), 0o700)?;
        } else {
            let lower = below.iter().rev().map(|id| format!("l/{}", link(id))).collect::<Vec<_>>().join(":");
            self.file(format!("{folder}/lower"), lower.as_bytes())?;
        }
        self.file(format!("{folder}/link"), link(id).as_bytes())?;
        let mut header = self.header(EntryType::Symlink, 0o777);
        self.tar.append_link(&mut header, format!("overlay/l/{}", link(id)), format!("../{id}/diff"))?;

        let mut split = GzEncoder::new(Vec::new(), Compression::best());
        split::write(&mut tar, &mut split)?;
        self.file(format!("overlay-layers/{id}.tar-split.gz"), &split.finish()?)?;
        let mut described = json!({
            "id": id,
            "created": self.created,
            "compressed-diff-digest": sha256(&layer.blob.digest),
            "compressed-size": layer.blob.size,
            "diff-digest": sha256(&layer.diff.digest),
            "diff-size": layer.diff.size,
            "compression": 0,
            "uidset": contents.uids,
            "gidset": contents.gids,
        });
        if let Some(parent) = below.last() {
            described["parent"] = parent.as_str().into();
        }
        Ok(described)
    }

    /// Adds an image, and returns its description.
    fn image(&mut self, image: &Image, names: &[&str]) -> io::Result<Value> {
        let id = image.id();
        let digest = sha256(&Digest::of_bytes(&image.manifest));
        let config = format!("sha256:{id}");
        let data = [
            ("manifest".to_owned(), &image.manifest),
            (format!("manifest-{digest}"), &image.manifest),
            (config, &image.config),
        ];
        self.folder(format!("overlay-images/{id}"), 0o700)?;
        for (key, content) in &data {
            self.file(format!("overlay-images/{id}/{}", data_file(key)), content)?;
        }
        let top = chains(&image.layers).pop().and_then(|mut chain| chain.pop()).unwrap_or_default();
        let created = serde_json::from_slice::<Value>(&image.config).ok();
        let created = created.and_then(|config| config["created"].as_str()?.parse::<jiff::Timestamp>().ok());
        let by_key = |value: &dyn Fn(&[u8]) -> Value| {
            data.iter().map(|(key, content)| (key.clone(), value(content))).collect::<serde_json::Map<_, _>>()
        };
        Ok(json!({
            "id": id,
            "digest": digest,
            "names": names,
            "layer": top,
            "metadata": "{}",
            "big-data-names": data.iter().map(|(key, _)| key).collect::<Vec<_>>(),
            "big-data-sizes": by_key(&|content| content.len().into()),
            "big-data-digests": by_key(&|content| sha256(&Digest::of_bytes(content)).into()),
            "created": created.map_or_else(|| self.created.clone(), |time| time.to_string()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::Architecture;
    use crate::containers::Blob;
    use std::io::Read;

    fn layer(folder: &Path, name: &str) -> Layer {
        let tar = folder.join(name);
        let mut archive = Builder::new(File::create(&tar).expect("a file"));
        let mut header = Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(name.len() as u64);
        archive.append_data(&mut header, name, name.as_bytes()).expect("an entry");
        archive.finish().expect("the layer");
        let digest = Digest::of_file(&tar).expect("its digest");
        let blob = Blob { digest, size: tar.metadata().expect("its size").len() };
        Layer { tar, diff: blob, blob }
    }

    fn written(images: &[Image]) -> BTreeMap<String, String> {
        let mut store = Vec::new();
        write(images, jiff::Timestamp::UNIX_EPOCH, &mut store).expect("a store");
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(store.as_slice()).entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("a content");
            let link = entry.link_name().expect("a link").map(|to| to.display().to_string());
            files.insert(path, link.unwrap_or_else(|| String::from_utf8_lossy(&content).into_owned()));
        }
        files
    }

    #[test]
    fn a_layer_on_another_one_names_it_and_is_found_by_its_short_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let layers = vec![layer(folder.path(), "low"), layer(folder.path(), "high")];
        let ids = chains(&layers).pop().expect("two layers");
        let image = Image { name: "localhost/two:latest".into(), manifest: b"{}".into(), config: b"{}".into(), layers };
        let files = written(&[image]);
        let (low, high) = (&ids[0], &ids[1]);
        assert_eq!(files[&format!("overlay/{low}/diff/low")], "low");
        assert_eq!(files[&format!("overlay/{high}/lower")], format!("l/{}", link(low)));
        assert_eq!(files[&format!("overlay/l/{}", link(low))], format!("../{low}/diff"));
        let described: Value = serde_json::from_str(&files["overlay-layers/layers.json"]).expect("JSON");
        let parent = described.as_array().expect("layers").iter().find(|layer| layer["id"] == **high);
        assert_eq!(parent.expect("the upper layer")["parent"], **low);
    }

    #[test]
    fn an_image_with_two_names_and_a_layer_of_two_images_are_there_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let shared = layer(folder.path(), "shared");
        let image = |name: &str, command: &str| {
            Image::of_one_layer(
                name,
                Architecture::Amd64,
                &[command.to_owned()],
                shared.clone(),
                "1970-01-01T00:00:00Z",
            )
        };
        let files =
            written(&[image("localhost/a:1", "sh"), image("localhost/b:1", "sh"), image("localhost/c:1", "ls")]);
        let images: Value = serde_json::from_str(&files["overlay-images/images.json"]).expect("JSON");
        let mut names: Vec<_> =
            images.as_array().expect("images").iter().map(|image| image["names"].to_string()).collect();
        names.sort();
        assert_eq!(names, [r#"["localhost/a:1","localhost/b:1"]"#, r#"["localhost/c:1"]"#]);
        let layers: Value = serde_json::from_str(&files["overlay-layers/layers.json"]).expect("JSON");
        assert_eq!(layers.as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn data_is_in_files_that_the_library_looks_for() {
        assert_eq!(data_file("manifest"), "manifest");
        assert_eq!(data_file("sha256:ab"), "=c2hhMjU2OmFi");
    }
}
