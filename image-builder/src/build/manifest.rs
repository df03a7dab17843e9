//! What is said about an image: the manifest, in it and next to it; the bill of materials and the checksums next to it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nemos_model::manifest::{Disk, ExpectedPcr, Extent, FILE, Manifest, Package, VERSION};
use nemos_model::uki::pcr;
use serde_json::{Value, json};

use super::Context;
use super::cache::Digest;
use super::error::BuildError;
use super::ids::Ids;
use super::root::{Root, quoted};
use crate::image::uki::Uki;
use crate::layout::{self, Layout};

/// The line of the customization that writes the manifest into the root `$1`: what is known before, and the packages as dpkg
/// knows them then.
pub fn line(context: &Context, ids: &Ids) -> String {
    const PACKAGES: &str = "\"packages\":[";
    let text = serde_json::to_string(&known(context, ids, Vec::new())).unwrap_or_default();
    let (head, tail) = text.split_once(PACKAGES).unwrap_or_default();
    let package =
        r#"${db:Status-Status} {"name":"${Package}","version":"${Version}","architecture":"${Architecture}"}\n"#;
    format!(
        "mkdir -p \"$(dirname \"$root{FILE}\")\"\n{{ printf %s {}\ninside dpkg-query --show --showformat {} | \
         sed -n 's/^installed //p' | LC_ALL=C sort | paste -s -d , | tr -d '\\n'\nprintf '%s\\n' {}; }} > \"$root{FILE}\"\n\
         chmod 644 \"$root{FILE}\"",
        quoted(&format!("{head}{PACKAGES}")),
        quoted(package),
        quoted(tail)
    )
}

fn known(context: &Context, ids: &Ids, packages: Vec<Package>) -> Manifest {
    Manifest {
        manifest: VERSION,
        image: format!("nemos-{}", context.profile),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        build: ids.build_id(),
        architecture: Some(context.recipe.architecture.name().to_owned()),
        recipe: context.recipe_digest.hex(),
        source_date_epoch: context.epoch,
        packages,
        disk: None,
    }
}

/// Writes the files that stand next to a disk, and returns them.
pub fn write(
    context: &Context,
    layout: &Layout,
    ids: &Ids,
    root: &Root,
    uki: &Path,
    files: &[&Path],
) -> Result<Vec<PathBuf>, BuildError> {
    let packages = Manifest::parse(&super::read(&root.manifest)?)?.packages;
    let manifest = Manifest { disk: Some(disk(layout, ids, root, uki)?), ..known(context, ids, packages) };
    let name = |suffix: &str| context.scratch.join(format!("nemos-{}.{suffix}", context.profile));
    let (manifest_file, bill_file, sums_file) = (name("manifest.json"), name("cdx.json"), name("SHA256SUMS"));
    super::write(&manifest_file, &manifest.to_text())?;
    let mut bill =
        serde_json::to_string_pretty(&bill(&manifest, ids, &context.recipe.debian.suite)).unwrap_or_default();
    bill.push('\n');
    super::write(&bill_file, &bill)?;
    let mut sums = String::new();
    for file in files.iter().copied().chain([manifest_file.as_path(), &bill_file]) {
        let digest = Digest::of_file(file).map_err(BuildError::io("reading", file))?.hex();
        let _ = writeln!(sums, "{digest}  {}", file.file_name().unwrap_or_default().to_string_lossy());
    }
    super::write(&sums_file, &sums)?;
    Ok(vec![manifest_file, bill_file, sums_file])
}

fn disk(layout: &Layout, ids: &Ids, root: &Root, uki: &Path) -> Result<Disk, BuildError> {
    let uki = Uki::parse(fs::read(uki).map_err(BuildError::io("reading", uki))?)?;
    let measured = uki.measured()?;
    let expected = pcr::PHASES.map(|phase| {
        let sha256 = pcr::expected(&measured, phase).to_string();
        ExpectedPcr { pcr: pcr::PCR, phase: phase.to_owned(), sha256 }
    });
    let extent = |found: &layout::Extent| {
        let label = found.slot.label();
        Extent { guid: ids.uuid(&label), label, start: found.start, size: found.size }
    };
    Ok(Disk {
        root_hash: root.verified.hash,
        size: layout.disk_size,
        partitions: layout.extents.iter().map(extent).collect(),
        kernel: uki.kernel.clone().unwrap_or_default(),
        command_line: uki.command_line.clone(),
        signed_by: uki.signed().ok().map(|signed| signed.certificate.tbs_certificate().subject().to_string()),
        expected_pcrs: expected.to_vec(),
    })
}

/// A software bill of materials: `CycloneDX` 1.6 (ECMA-424), with a package URL for each of Debian's packages.
fn bill(manifest: &Manifest, ids: &Ids, suite: &str) -> Value {
    let component = |package: &Package| {
        let Package { name, version, architecture } = package;
        let reference = format!("{name}:{architecture}");
        if name == "nemos" {
            return json!({ "type": "application", "bom-ref": reference, "name": name, "version": version });
        }
        // `+` and `:` are what a version may have and a package URL must escape.
        let escaped = version.replace('+', "%2B").replace(':', "%3A");
        let name_escaped = name.replace('+', "%2B");
        let purl = format!("pkg:deb/debian/{name_escaped}@{escaped}?arch={architecture}&distro={suite}");
        json!({ "type": "library", "bom-ref": reference, "name": name, "version": version, "purl": purl })
    };
    let seconds = i64::try_from(manifest.source_date_epoch).unwrap_or_default();
    let time = Timestamp::from_second(seconds).unwrap_or_default().to_string();
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": format!("urn:uuid:{}", ids.uuid("bill of materials")),
        "version": 1,
        "metadata": {
            "timestamp": time,
            "tools": { "components": [{ "type": "application", "name": "nemos-image", "version": env!("CARGO_PKG_VERSION") }] },
            "component": {
                "type": "operating-system", "bom-ref": "image", "name": manifest.image, "version": manifest.version,
            },
        },
        "components": manifest.packages.iter().map(component).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bill_names_each_package_by_its_url() {
        let package = |name: &str, version: &str| Package {
            name: name.into(),
            version: version.into(),
            architecture: "amd64".into(),
        };
        let manifest = Manifest {
            manifest: VERSION,
            image: "nemos-default".into(),
            version: "0.1.0".into(),
            build: "0123".into(),
            architecture: Some("amd64".into()),
            recipe: String::new(),
            source_date_epoch: 1_735_689_600,
            packages: vec![package("libstdc++6", "2:14.2.0-19+b1"), package("nemos", "0.1.0")],
            disk: None,
        };
        let bill = bill(&manifest, &Ids::new(Digest::of([])), "trixie");
        assert_eq!(bill["metadata"]["timestamp"], "2025-01-01T00:00:00Z");
        let url = "pkg:deb/debian/libstdc%2B%2B6@2%3A14.2.0-19%2Bb1?arch=amd64&distro=trixie";
        assert_eq!(bill["components"][0]["purl"], url);
        assert_eq!(bill["components"][1]["type"], "application");
    }
}
