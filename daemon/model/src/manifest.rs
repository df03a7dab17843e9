//! What an image is made of, as its builder says it; and where a device differs from that.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::image;
use crate::integrity::RootHash;

/// Where an image has its own manifest.
pub const FILE: &str = "/usr/share/nemos/manifest.json";
/// The version of the form below; keys may be added to it, never changed.
pub const VERSION: u32 = 1;

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Manifest {
    /// [`VERSION`].
    pub manifest: u32,
    /// `IMAGE_ID`.
    pub image: String,
    /// `IMAGE_VERSION`.
    pub version: String,
    /// `BUILD_ID`: names this very image.
    pub build: String,
    /// What it runs on, as Debian names it; builders did not say it at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// SHA-256 of the recipe, in hexadecimal.
    pub recipe: String,
    /// Seconds since 1970 that everything in it is dated with.
    pub source_date_epoch: u64,
    /// Debian's packages and ours, by name.
    pub packages: Vec<Package>,
    /// What is known once the disk is made; an image cannot have it in itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
}

/// A package that is installed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version, as Debian writes it.
    pub version: String,
    /// Its architecture.
    pub architecture: String,
}

/// The disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Disk {
    /// Root hash of the read-only root.
    pub root_hash: RootHash,
    /// Bytes of the disk.
    pub size: u64,
    /// Its partitions, in their order.
    pub partitions: Vec<Extent>,
    /// Version of the kernel.
    pub kernel: String,
    /// The kernel's command line.
    pub command_line: String,
    /// Whose certificate firmware has to trust; none for an image that is not signed.
    pub signed_by: Option<String>,
    /// What a TPM will have measured.
    pub expected_pcrs: Vec<ExpectedPcr>,
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Its label.
    pub label: String,
    /// Its identity.
    pub guid: Uuid,
    /// Where it begins, in bytes.
    pub start: u64,
    /// How long it is, in bytes.
    pub size: u64,
}

/// A register of a TPM, at one moment of a boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpectedPcr {
    /// Which.
    pub pcr: u8,
    /// What systemd has measured of the boot itself by then: words with `:` between, at first none.
    pub phase: String,
    /// Its value in the SHA-256 bank, in hexadecimal.
    pub sha256: String,
}

/// Text that is no manifest.
#[derive(Debug, Error)]
pub enum BadManifest {
    /// Not in this form.
    #[error("it is not a manifest of an image: {0}")]
    Malformed(#[from] serde_json::Error),
    /// From the future.
    #[error("it is a manifest of version {0}, and this program knows version {VERSION}")]
    Version(u32),
}

/// What a running device says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its os-release.
    pub os_release: String,
    /// The root hash that it was booted with.
    pub root_hash: Option<RootHash>,
    /// dpkg's book of what is installed.
    pub dpkg_status: String,
}

/// Something that is not as the manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `image`, `version`, `build`, `root-hash`, or `package NAME`.
    pub what: String,
    /// In the manifest; null if there is nothing.
    pub expected: Option<String>,
    /// On the device; null if there is nothing.
    pub found: Option<String>,
}

impl Manifest {
    /// Reads a manifest.
    pub fn parse(text: &str) -> Result<Self, BadManifest> {
        #[derive(Deserialize)]
        struct Form {
            manifest: u32,
        }
        match serde_json::from_str::<Form>(text)? {
            Form { manifest: VERSION } => Ok(serde_json::from_str(text)?),
            Form { manifest } => Err(BadManifest::Version(manifest)),
        }
    }

    /// Its text: one JSON document.
    pub fn to_text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Where a device differs from it: what it runs, and each package that is another, missing, or there besides.
    pub fn differences(&self, running: &Running) -> Vec<Difference> {
        let field = |name| image::value(&running.os_release, name);
        let mut compared = vec![
            ("image", Some(self.image.clone()), Some(field("IMAGE_ID"))),
            ("version", Some(self.version.clone()), Some(field("IMAGE_VERSION"))),
            ("build", Some(self.build.clone()), Some(field("BUILD_ID"))),
        ];
        if let Some(disk) = &self.disk {
            compared.push((
                "root-hash",
                Some(disk.root_hash.to_string()),
                running.root_hash.map(|hash| hash.to_string()),
            ));
        }
        let compared = compared.into_iter().map(|(what, expected, found)| (what.to_owned(), expected, found));
        let compared = compared.chain(packages(&self.packages, &installed(&running.dpkg_status)));
        let differs = |(what, expected, found)| (expected != found).then_some(Difference { what, expected, found });
        compared.filter_map(differs).collect()
    }
}

/// What is compared, as it should be and as it is.
type Compared = (String, Option<String>, Option<String>);

/// Each package that is on either side, with its versions.
fn packages(expected: &[Package], found: &[Package]) -> Vec<Compared> {
    let mut versions = BTreeMap::<String, (Option<String>, Option<String>)>::new();
    let key = |package: &Package| format!("package {}:{}", package.name, package.architecture);
    for package in expected {
        versions.entry(key(package)).or_default().0 = Some(package.version.clone());
    }
    for package in found {
        versions.entry(key(package)).or_default().1 = Some(package.version.clone());
    }
    versions.into_iter().map(|(what, (expected, found))| (what, expected, found)).collect()
}

/// Installed packages by dpkg's own book, `/var/lib/dpkg/status`, ordered by name.
pub fn installed(status: &str) -> Vec<Package> {
    let package = |paragraph: &str| {
        let field = |name: &str| paragraph.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        field("Status: ")?.ends_with(" installed").then_some(Package {
            name: field("Package: ")?,
            version: field("Version: ")?,
            architecture: field("Architecture: ")?,
        })
    };
    let mut packages: Vec<_> = status.split("\n\n").filter_map(package).collect();
    packages.sort();
    packages
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { what, expected, found } = self;
        let shown = |value: &Option<String>| match value.as_deref() {
            None | Some("") => "none".to_owned(),
            Some(value) => value.to_owned(),
        };
        write!(f, "{what}: {}, and should be {}", shown(found), shown(expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STATUS: &str = "Package: xfsprogs\nStatus: install ok installed\nArchitecture: amd64\nVersion: 6.13\n\n\
                          Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n\n\
                          Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2\n";

    fn manifest() -> Manifest {
        let disk = Disk {
            root_hash: "ab".repeat(32).parse().unwrap(),
            size: 1 << 30,
            partitions: Vec::new(),
            kernel: "6.12".into(),
            command_line: "quiet".into(),
            signed_by: None,
            expected_pcrs: Vec::new(),
        };
        Manifest {
            manifest: VERSION,
            image: "nemos-default".into(),
            version: "0.1.0".into(),
            build: "0123".into(),
            architecture: Some("amd64".into()),
            recipe: "cd".repeat(32),
            source_date_epoch: 1,
            packages: installed(STATUS),
            disk: Some(disk),
        }
    }

    fn running() -> Running {
        Running {
            os_release: "IMAGE_ID=nemos-default\nIMAGE_VERSION=0.1.0\nBUILD_ID=0123\n".into(),
            root_hash: Some("ab".repeat(32).parse().unwrap()),
            dpkg_status: STATUS.into(),
        }
    }

    #[test]
    fn only_what_is_installed_is_listed_by_name() {
        let names: Vec<_> = installed(STATUS).into_iter().map(|package| package.name).collect();
        assert_eq!(names, ["bash", "xfsprogs"]);
    }

    #[test]
    fn a_device_as_it_was_built_does_not_differ() {
        assert_eq!(manifest().differences(&running()), []);
        let without = Manifest { disk: None, ..manifest() };
        assert_eq!(without.differences(&Running { root_hash: None, ..running() }), []);
    }

    #[test]
    fn each_difference_is_told_from_both_sides() {
        let dpkg_status = STATUS.replace("5.2", "5.3").replace("xfsprogs", "vim");
        let os_release = running().os_release.replace("0123", "4567");
        let differences = manifest().differences(&Running { os_release, root_hash: None, dpkg_status });
        let told: Vec<_> = differences.iter().map(ToString::to_string).collect();
        let root_hash = format!("root-hash: none, and should be {}", "ab".repeat(32));
        let expected = [
            "build: 4567, and should be 0123",
            &root_hash,
            "package bash:amd64: 5.3, and should be 5.2",
            "package vim:amd64: 6.13, and should be none",
            "package xfsprogs:amd64: none, and should be 6.13",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_manifest_survives_being_written_and_read_and_one_of_the_future_is_refused() {
        let text = manifest().to_text();
        assert_eq!(Manifest::parse(&text).unwrap(), manifest());
        let future = Manifest::parse(&text.replace("\"manifest\": 1", "\"manifest\": 2"));
        assert!(matches!(future, Err(BadManifest::Version(2))));
        assert!(matches!(Manifest::parse("{}"), Err(BadManifest::Malformed(_))));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text: String) {
            let _ = Manifest::parse(&text);
            let _ = installed(&text);
        }
    }
}
