//! The containers that are shipped: made of Debian's packages by mmdebstrap, or taken from OCI archives.

use std::path::Path;

use jiff::Timestamp;

use super::cache::Digest;
use super::chroot;
use super::distribution::released;
use super::error::BuildError;
use super::mirror::{Archive, Mirror};
use super::root::quoted;
use super::{Context, size_of};
use crate::containers::{Blob, Image, Layer, oci};
use crate::recipe::Container;

/// Changes whenever the code below makes something else of the same inputs.
const FORMAT: &[u8] = b"1";

/// Folders as Debian has them since version 12, whose packages rely on them.
const MERGED: &str = r#"mkdir -p "$1/usr"; for folder in bin sbin lib lib64; do mkdir "$1/usr/$folder"; ln -s "usr/$folder" "$1/$folder"; done"#;

/// What apt and mmdebstrap need, and a container does not: the names of mirror and host, and who installed what.
const LEFT_OUT: &str = r#"rm -rf "$1/etc/apt" "$1/etc/dpkg" "$1/etc/fstab" "$1/etc/hostname" "$1/etc/resolv.conf" "$1/var" "$1/tmp"; mkdir -m 1777 "$1/tmp""#;

/// Makes all of them, and names them.
pub fn make(context: &Context, mirror: &Mirror, releases: &[Vec<u8>]) -> Result<(Vec<Image>, String), BuildError> {
    let mut images = Vec::new();
    for container in &context.recipe.containers {
        images.push(match &container.archive {
            Some(archive) => from_archive(context, container, archive)?,
            None => from_packages(context, container, mirror, releases)?,
        });
    }
    let names = images.iter().map(|image| image.name.as_str()).collect::<Vec<_>>().join(", ");
    Ok((images, if names.is_empty() { "none".to_owned() } else { names }))
}

fn from_archive(context: &Context, container: &Container, archive: &Path) -> Result<Image, BuildError> {
    check_sum(archive, container.sha256.as_deref().unwrap_or_default())?;
    Ok(oci::read(archive, &container.name, &context.scratch)?)
}

/// Whether a file is the one that is meant.
pub fn check_sum(path: &Path, expected: &str) -> Result<(), BuildError> {
    let actual = Digest::of_file(path).map_err(BuildError::io("reading", path))?.hex();
    if actual == expected {
        return Ok(());
    }
    Err(BuildError::Checksum { path: path.to_owned(), expected: expected.to_owned(), actual })
}

fn from_packages(
    context: &Context,
    container: &Container,
    mirror: &Mirror,
    releases: &[Vec<u8>],
) -> Result<Image, BuildError> {
    let lines: Vec<_> = mirror.archives.iter().map(Archive::line).collect();
    let debian = &context.recipe.debian;
    let words = [&container.packages, &container.setup, &debian.exclude, &lines];
    let inputs = words.iter().flat_map(|list| list.iter().map(String::as_bytes).chain([b"".as_slice()]));
    let key = Digest::of([FORMAT].into_iter().chain(inputs).chain(releases.iter().map(Vec::as_slice)));
    let epoch = released(releases)?;
    let entry = context.cache.get("container", &key, |folder| {
        let mut unpacked = chroot::mmdebstrap(epoch)
            .args(["--variant=extract", "--skip=cleanup"])
            .arg(format!("--include={}", container.packages.join(",")))
            .arg("--aptopt=APT::Install-Recommends \"false\";")
            .args(mirror.settings.iter().map(|setting| format!("--aptopt={setting}")))
            .args(debian.exclude.iter().map(|pattern| format!("--dpkgopt=path-exclude={pattern}")))
            .arg(format!("--setup-hook={MERGED}"))
            .arg(format!("--extract-hook={LEFT_OUT}"));
        if !container.setup.is_empty() {
            let setup = container.setup.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
            unpacked = unpacked.arg(format!("--extract-hook=chroot \"$1\" {setup}"));
        }
        unpacked.args(["--format=tar", &debian.suite]).arg(folder.join("layer.tar")).args(&lines).run()?;
        Ok::<_, BuildError>(())
    })?;
    let tar = entry.folder.join("layer.tar");
    let digest = Digest::of_file(&tar).map_err(BuildError::io("reading", &tar))?;
    let blob = Blob { digest, size: size_of(&tar)? };
    let created = i64::try_from(epoch).ok().and_then(|epoch| Timestamp::from_second(epoch).ok()).unwrap_or_default();
    let layer = Layer { tar, diff: blob, blob };
    Ok(Image::of_one_layer(&container.name, &container.command, layer, &created.to_string()))
}
