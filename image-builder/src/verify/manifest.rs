//! Whether the manifests, the one in the image and the one next to the disk, say what is on the disk.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use nemos_model::manifest::{BadManifest, Disk, FILE, Manifest, installed};
use nemos_model::uki::pcr;
use thiserror::Error;

use crate::image::uki::{NotUki, Uki};
use crate::image::{Image, ImageError};

/// A manifest that says something else than the disk shows.
#[derive(Debug, Error)]
pub(super) enum Untrue {
    /// The image's own cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The kernel image, of which something is said.
    #[error(transparent)]
    Uki(#[from] NotUki),
    /// It is not one.
    #[error("{0}: {1}")]
    Malformed(String, BadManifest),
    /// The one next to the disk cannot be read.
    #[error("{0}: {1}")]
    Unreadable(String, std::io::Error),
    /// A field.
    #[error("{place} says another {field} than there is on the disk")]
    Field {
        /// Which manifest.
        place: String,
        /// Which of its fields.
        field: &'static str,
    },
}

/// Compares both with the disk, field by field.
pub(super) fn check(image: &Image, uki: &Uki, disk: &Path) -> Result<String, Untrue> {
    let own = parse(FILE, &image.root_file(FILE.trim_start_matches('/'))?)?;
    let status = image.root_file("var/lib/dpkg/status")?;
    let field = |name: &str| uki.field(name).unwrap_or_default();
    let differs = |place: &str, field| Err(Untrue::Field { place: place.to_owned(), field });
    let identity = |manifest: &Manifest| {
        manifest.image == field("IMAGE_ID")
            && manifest.version == field("IMAGE_VERSION")
            && manifest.build == field("BUILD_ID")
    };
    if !identity(&own) {
        return differs(FILE, "image");
    }
    // Manifests of older images do not say it.
    if own.architecture.as_ref().is_some_and(|said| said != uki.architecture.name()) {
        return differs(FILE, "architecture");
    }
    if sorted(own.packages.clone()) != sorted(installed(&status)) {
        return differs(FILE, "list of packages");
    }
    let beside = disk.with_extension("manifest.json");
    let place = beside.display().to_string();
    let text = match fs::read_to_string(&beside) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok("true; none next to the disk".to_owned()),
        Err(error) => return Err(Untrue::Unreadable(place, error)),
    };
    let manifest = parse(&place, &text)?;
    match &manifest.disk {
        Some(said) => match wrong(said, image, uki)? {
            Some(field) => differs(&place, field),
            None if Manifest { disk: None, ..manifest.clone() } != own => differs(&place, "image"),
            None => Ok("true, in the image and next to the disk".to_owned()),
        },
        None => differs(&place, "disk"),
    }
}

fn parse(place: &str, text: &str) -> Result<Manifest, Untrue> {
    Manifest::parse(text).map_err(|error| Untrue::Malformed(place.to_owned(), error))
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort();
    list
}

/// The first thing that is said of the disk and is not so.
fn wrong(said: &Disk, image: &Image, uki: &Uki) -> Result<Option<&'static str>, NotUki> {
    let measured = uki.measured()?;
    let expected = |phase: &str| pcr::expected(&measured, phase).to_string();
    let signed_by = uki.signed().ok().map(|signed| signed.certificate.tbs_certificate().subject().to_string());
    let checks = [
        ("size", said.size == image.size()),
        ("root hash", uki.word("roothash") == Some(&said.root_hash.to_string())),
        ("command line", said.command_line == uki.command_line),
        ("kernel", Some(&said.kernel) == uki.kernel.as_ref()),
        ("partition", said.partitions == image.extents()),
        ("signer", said.signed_by == signed_by),
        ("PCR", said.expected_pcrs.iter().all(|pcr| pcr.sha256 == expected(&pcr.phase))),
    ];
    Ok(checks.into_iter().find(|(_, is_so)| !is_so).map(|(field, _)| field))
}
