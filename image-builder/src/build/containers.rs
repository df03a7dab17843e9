//! The containers that are shipped: made of Debian's packages by mmdebstrap, or taken from OCI archives.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::cache::Digest;
use super::chroot;
use super::error::BuildError;
use super::root::quoted;
use super::source::{Online, Source, blame, check_sum};
use super::{Context, size_of};
use crate::containers::{Blob, Image, Layer, oci};
use crate::recipe::{Container, Recipe};

/// Changes whenever the code below makes something else of the same inputs.
const FORMAT: &[u8] = b"1";

/// What apt and mmdebstrap need, and a container does not: the names of mirror and host, and who installed what.
const LEFT_OUT: &str = r#"rm -rf "$1/etc/apt" "$1/etc/dpkg" "$1/etc/fstab" "$1/etc/hostname" "$1/etc/resolv.conf" "$1/var" "$1/tmp"; mkdir -m 1777 "$1/tmp""#;

/// Checks the archives that a recipe names, before anything takes time.
pub fn check(recipe: &Recipe) -> Result<(), BuildError> {
    let mut named =
        recipe.containers.iter().filter_map(|container| container.archive.as_ref().zip(container.sha256.as_ref()));
    named.try_for_each(|(archive, digest)| check_sum(archive, digest))
}

/// Makes all of them, and names them.
pub fn make(context: &Context, source: &Source) -> Result<(Vec<Image>, String), BuildError> {
    let mut images = Vec::new();
    for container in &context.recipe.containers {
        images.push(match &container.archive {
            Some(archive) => oci::read(archive, &container.name, context.recipe.architecture, &context.scratch)?,
            None => from_packages(context, container, source)?,
        });
    }
    let names = images.iter().map(|image| image.name.as_str()).collect::<Vec<_>>().join(", ");
    Ok((images, if names.is_empty() { "none".to_owned() } else { names }))
}

/// The layers of those that are made of packages, each with what it is made of.
pub fn layers(context: &Context, source: &Source) -> Result<Vec<(Digest, PathBuf)>, BuildError> {
    let mut layers = Vec::new();
    for container in context.recipe.containers.iter().filter(|container| container.archive.is_none()) {
        let made_of = made_of(container, &context.recipe);
        if !layers.iter().any(|(other, _)| *other == made_of) {
            layers.push((made_of, layer(context, container, source)?.0));
        }
    }
    Ok(layers)
}

/// What a recipe says that a container's layer is made of.
pub fn made_of(container: &Container, recipe: &Recipe) -> Digest {
    let lists = [&container.packages, &container.setup, &recipe.debian.exclude];
    let words = lists.iter().flat_map(|list| list.iter().map(String::as_bytes).chain([b"".as_slice()]));
    let place = [recipe.architecture.name(), &recipe.debian.suite].map(str::as_bytes);
    Digest::of([FORMAT].into_iter().chain(place).chain(words))
}

fn from_packages(context: &Context, container: &Container, source: &Source) -> Result<Image, BuildError> {
    let (tar, epoch) = layer(context, container, source)?;
    let digest = Digest::of_file(&tar).map_err(BuildError::io("reading", &tar))?;
    let blob = Blob { digest, size: size_of(&tar)? };
    let created = i64::try_from(epoch).ok().and_then(|epoch| Timestamp::from_second(epoch).ok()).unwrap_or_default();
    let layer = Layer { tar, diff: blob, blob };
    Ok(Image::of_one_layer(
        &container.name,
        context.recipe.architecture,
        &container.command,
        layer,
        &created.to_string(),
    ))
}

/// A container's layer, and its date in seconds since 1970.
fn layer(context: &Context, container: &Container, source: &Source) -> Result<(PathBuf, u64), BuildError> {
    let made_of = made_of(container, &context.recipe);
    if let Some(archive) = source.archive()
        && let Some(layer) = archive.layer(&made_of)
    {
        return Ok((layer, archive.epoch()));
    }
    // An archive that lacks it has a mirror beside it.
    let online = source.online().ok_or_else(|| BuildError::NoLayer(container.name.clone()))?;
    let mirror = online.key();
    let key = Digest::of([made_of.0.as_slice()].into_iter().chain(mirror.iter().map(Vec::as_slice)));
    // A kind of its own for each: of a kind, only the last few stay.
    let name: String =
        container.name.chars().map(|letter| if letter.is_alphanumeric() { letter } else { '_' }).collect();
    let entry =
        context.cache.get(&format!("container-{name}"), &key, |folder| unpack(context, container, online, folder))?;
    Ok((entry.folder.join("layer.tar"), online.epoch))
}

fn unpack(context: &Context, container: &Container, online: &Online, folder: &Path) -> Result<(), BuildError> {
    let debian = &context.recipe.debian;
    let mut unpacked = chroot::mmdebstrap(context.recipe.architecture, online.epoch)
        .args(["--variant=extract", "--skip=cleanup"])
        .arg(format!("--include={}", container.packages.join(",")))
        .args(online.options())
        .args(debian.exclude.iter().map(|pattern| format!("--dpkgopt=path-exclude={pattern}")))
        .arg(chroot::merged(context.recipe.architecture))
        .arg(format!("--extract-hook={LEFT_OUT}"));
    if !container.setup.is_empty() {
        let setup = container.setup.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        unpacked = unpacked.arg(format!("--extract-hook=chroot \"$1\" {setup}"));
    }
    let made = unpacked.args(["--format=tar", &debian.suite]).arg(folder.join("layer.tar")).args(online.lines()).run();
    made.map_err(|error| blame(context, error))
}
