//! The configurations that an image ships.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use nemos_model::overlay::archive::{FILE_ENDING, INDEX_FILE, MAX_DOCUMENT, SHIPPED_FOLDER, read_index};
use thiserror::Error;

use super::chroot::Chroot;
use super::error::BuildError;
use super::source::check_sum;
use crate::recipe::{Recipe, ShippedConfiguration};

/// A file that is no configuration.
#[derive(Debug, Error)]
#[error("{path} is no configuration: {reason}; make one with: nemosctl overlay export")]
pub struct NoConfiguration {
    path: PathBuf,
    reason: String,
}

/// Refuses files that are not what the recipe says, or that no device could import.
pub fn check(recipe: &Recipe) -> Result<(), BuildError> {
    recipe.configurations.shipped.iter().try_for_each(|ShippedConfiguration { archive, sha256, .. }| {
        check_sum(archive, sha256)?;
        let named = manifest_is_named(archive);
        named.map_err(|reason| NoConfiguration { path: archive.clone(), reason }.into())
    })
}

/// Whether what a device reads first is there.
fn manifest_is_named(path: &Path) -> Result<(), String> {
    let mut index = Vec::new();
    let mut read = || {
        let mut archive = tar::Archive::new(File::open(path)?);
        let second = archive.entries()?.nth(1).ok_or(io::ErrorKind::UnexpectedEof)??;
        if *second.path_bytes() != *INDEX_FILE.as_bytes() {
            return Err(io::Error::other(format!("it has no {INDEX_FILE} at its beginning")));
        }
        second.take(MAX_DOCUMENT).read_to_end(&mut index)
    };
    read().map_err(|error| error.to_string())?;
    read_index(&index).map(drop).map_err(|error| error.to_string())
}

/// Has them uploaded; [`script`] puts them in their place.
pub fn upload(recipe: &Recipe, root: Chroot) -> Chroot {
    let shipped = recipe.configurations.shipped.iter();
    shipped.fold(root, |root, shipped| root.upload(&shipped.archive, &uploaded(shipped)))
}

/// Lines of a shell script that knows the root as `$root`.
pub fn script(recipe: &Recipe) -> Vec<String> {
    let folder = format!("\"$root/{SHIPPED_FOLDER}\"");
    let place = |shipped: &ShippedConfiguration| {
        let place = format!("\"$root/{SHIPPED_FOLDER}/{}{FILE_ENDING}\"", shipped.name);
        format!("mkdir -p {folder}\nmv \"$root{}\" {place}\nchmod 644 {place}", uploaded(shipped))
    };
    recipe.configurations.shipped.iter().map(place).collect()
}

fn uploaded(shipped: &ShippedConfiguration) -> String {
    format!("/tmp/configuration-{}", shipped.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_configuration_is_shipped() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("site.tar");
        for contents in [&b""[..], b"text", &[0; 2048]] {
            std::fs::write(&path, contents).expect("a file");
            manifest_is_named(&path).unwrap_err();
        }
        let mut archive = tar::Builder::new(File::create(&path).expect("a file"));
        for (name, contents) in [("oci-layout", "{}"), (INDEX_FILE, r#"{"manifests": []}"#)] {
            let mut header = tar::Header::new_ustar();
            header.set_size(contents.len() as u64);
            archive.append_data(&mut header, name, contents.as_bytes()).expect("an entry");
        }
        archive.finish().expect("an archive");
        let told = manifest_is_named(&path).unwrap_err();
        assert!(told.contains("index.json"), "{told}");
    }
}
