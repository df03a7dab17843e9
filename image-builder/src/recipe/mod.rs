//! What an image is made of: a TOML document, one a profile.

mod check;
mod written;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nemos_model::integrity::protection::OnCorruption;
use nemos_model::keys::Policy;
use nemos_model::overlay::ConfigurationName;
use nemos_model::overlay::archive::Policy as ImportPolicy;
use nemos_model::overlay::policy as overlay;
use nemos_model::partitions::Partition;
use serde::Deserialize;
use thiserror::Error;

pub use self::written::Place;
use self::written::{Text, Written};
use crate::architecture::Architecture;

/// The recipes that the builder carries in itself.
const SHIPPED: [(&str, &str); 3] = [
    ("default", include_str!("../../recipes/default.toml")),
    ("bootstrapped", include_str!("../../recipes/bootstrapped.toml")),
    ("development", include_str!("../../recipes/development.toml")),
];

/// No recipe extends so many others one behind the other, unless in a circle.
const MOST_TEXTS: usize = 16;

/// What an image is made of.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// A few words on it.
    pub description: String,
    /// The recipe that this one adds to: a profile's name, or a file.
    pub extends: Option<String>,
    /// What it is built for, unless the command line says.
    #[serde(default)]
    pub architecture: Architecture,
    /// Debian's part is not installed from a mirror, but taken from an archive that was made before.
    pub bootstrap: Option<Bootstrap>,
    /// The distribution.
    pub debian: Debian,
    /// The kernel.
    pub kernel: Kernel,
    /// Sizes of the partitions that are not sized by their content.
    pub partitions_mib: Sizes,
    /// Partitions besides, by name: `data` has the label `p.lxdata`.
    #[serde(default)]
    pub partitions: BTreeMap<String, OwnPartition>,
    /// The read-only root.
    pub squashfs: Squashfs,
    /// How the root is protected beyond its hash.
    #[serde(default)]
    pub verity: Verity,
    /// Which keys take the demo key's place on a device.
    #[serde(default)]
    pub keys: Policy,
    /// How a device's overlay is.
    #[serde(default)]
    pub overlay: overlay::Policy,
    /// Saved configurations: whose a device imports, and which the image has.
    #[serde(default)]
    pub configurations: Configurations,
    /// Accounts, by name.
    #[serde(default)]
    pub users: BTreeMap<String, User>,
    /// Units of systemd.
    #[serde(default)]
    pub units: Units,
    /// Text files, by path.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Images of containers in the preloaded store.
    #[serde(default)]
    pub containers: Vec<Container>,
    #[serde(skip)]
    written: Written,
}

/// An archive that `nemos-image bootstrap` made.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// Where it is, from the recipe's folder; without it, it is where `nemos-image bootstrap` leaves it.
    pub archive: Option<PathBuf>,
    /// Its SHA-256, in hexadecimal; without it, the file with that behind it (`FILE.sha256`) says.
    pub sha256: Option<String>,
}

/// An image of containers that is shipped: made of packages, or taken from an OCI archive.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// What it is called, with host and tag: `localhost/busybox:latest`.
    pub name: String,
    /// Packages that are unpacked into it, with those they depend on.
    #[serde(default)]
    pub packages: Vec<String>,
    /// A program of those packages, by its path, and its arguments: it is run once, inside.
    #[serde(default)]
    pub setup: Vec<String>,
    /// What it runs, unless it is told otherwise.
    #[serde(default)]
    pub command: Vec<String>,
    /// An OCI archive instead, relative to the recipe.
    pub archive: Option<PathBuf>,
    /// Its SHA-256, in hexadecimal.
    pub sha256: Option<String>,
}

/// Saved configurations of the overlay.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Configurations {
    /// See [`Policy::signers`](ImportPolicy::signers).
    pub signers: Vec<String>,
    /// See [`Policy::require_signature`](ImportPolicy::require_signature).
    pub require_signature: bool,
    /// Those that the image has, and that nobody has to sign.
    pub shipped: Vec<ShippedConfiguration>,
}

impl Configurations {
    /// Whose configurations a device imports.
    pub fn policy(&self) -> ImportPolicy {
        ImportPolicy { signers: self.signers.clone(), require_signature: self.require_signature }
    }
}

/// A configuration that the image has.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShippedConfiguration {
    /// What it is called.
    pub name: ConfigurationName,
    /// What `nemosctl overlay export` made, relative to the recipe.
    pub archive: PathBuf,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// The distribution.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Debian {
    /// Its release, by codename.
    pub suite: String,
    /// Its components.
    pub components: Vec<String>,
    /// Packages beyond the essential ones.
    pub packages: Vec<String>,
    /// Paths that are never unpacked: dpkg's patterns.
    #[serde(default)]
    pub exclude: Vec<String>,
}

/// The kernel.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kernel {
    /// Words of its command line; the root hash is put in front.
    pub command_line: Vec<String>,
}

/// Sizes in MiB.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Sizes {
    esp: u32,
    home: u32,
    oci_storage: u32,
    state: u32,
    root: u32,
}

/// A partition that a recipe adds: empty in the image, its file system made by the device, and no concern of a reset.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OwnPartition {
    /// MiB.
    pub size_mib: u32,
    /// Where it is mounted.
    pub mount_point: String,
    /// What is in it.
    #[serde(default)]
    pub file_system: FileSystem,
}

/// A file system that the device can make.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSystem {
    /// ext4.
    #[default]
    Ext4,
    /// XFS.
    Xfs,
}

impl FileSystem {
    /// MiB that it needs at least.
    const fn least_mib(self) -> u32 {
        match self {
            FileSystem::Ext4 => 16,
            FileSystem::Xfs => 304,
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
        })
    }
}

/// The read-only root.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Squashfs {
    /// 1 (fast) to 22 (small).
    pub zstd_level: u8,
}

/// How the root is protected beyond its hash.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Verity {
    /// What the kernel does when it reads a block that is damaged and cannot be mended.
    pub on_corruption: OnCorruption,
    /// Parity bytes in each code word of 255, 2 to 24; 0 for none. So many damaged blocks of 255, spread over the root, are
    /// mended as they are read.
    pub fec_roots: u32,
}

impl Default for Verity {
    fn default() -> Self {
        Verity { on_corruption: OnCorruption::Report, fec_roots: 2 }
    }
}

/// An account.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct User {
    /// Its number, and its group's.
    pub uid: u32,
    /// Groups besides its own.
    #[serde(default)]
    pub groups: Vec<String>,
    /// As in `/etc/shadow`; without one, no password opens the account.
    pub password_hash: Option<String>,
}

/// Units of systemd.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Units {
    /// Enabled.
    #[serde(default)]
    pub enable: Vec<String>,
    /// Not enabled, though their packages enable them.
    #[serde(default)]
    pub disable: Vec<String>,
    /// Masked: units, and generators by their bare names.
    #[serde(default)]
    pub mask: Vec<String>,
}

/// Why a recipe cannot be used.
#[derive(Debug, Error)]
pub enum RecipeError {
    /// There is no such profile.
    #[error("there is no profile `{profile}`; the profiles are: {}", known())]
    UnknownProfile {
        /// What was asked for.
        profile: String,
    },
    /// The file cannot be read.
    #[error("{path} cannot be read: {source}; name a recipe with --recipe FILE")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a recipe, or asks for what cannot be.
    #[error("{place}: {message}")]
    Malformed {
        /// Where.
        place: Place,
        /// What.
        message: String,
    },
    /// It extends itself, by way of others.
    #[error("{origin} extends {extended}, and so on in a circle")]
    Circle {
        /// The file, or the profile.
        origin: String,
        /// What it extends.
        extended: String,
    },
}

fn known() -> String {
    SHIPPED.map(|(name, _)| name).join(", ")
}

impl Sizes {
    /// The size of a partition, unless its content decides.
    pub const fn of(&self, partition: Partition) -> Option<u32> {
        match partition {
            Partition::Esp => Some(self.esp),
            Partition::Home => Some(self.home),
            Partition::OciStorage => Some(self.oci_storage),
            Partition::State => Some(self.state),
            Partition::Root => Some(self.root),
            Partition::OciPreloaded | Partition::Readonly => None,
        }
    }
}

/// What can be known of a recipe before those that it extends are.
#[derive(Deserialize)]
struct Head {
    extends: Option<String>,
}

/// What decides which parts of a recipe count.
#[derive(Deserialize)]
struct Target {
    #[serde(default)]
    architecture: Architecture,
}

impl Recipe {
    /// One of the recipes that the builder carries in itself, for its own architecture or for this one.
    pub fn shipped(profile: &str, architecture: Option<Architecture>) -> Result<Self, RecipeError> {
        Recipe::parse(shipped(profile)?, architecture)
    }

    /// A recipe from a file, for its own architecture or for this one.
    pub fn read(path: &Path, architecture: Option<Architecture>) -> Result<Self, RecipeError> {
        Recipe::parse(text_of(path)?, architecture)
    }

    /// All that is written in it, and in those that it extends.
    pub fn text(&self) -> String {
        self.written.text()
    }

    /// Says of a package that the recipe names that it cannot be had.
    pub fn blame_package(&self, name: &str) -> Option<RecipeError> {
        let way = |way: &[&str]| way.iter().map(|step| (*step).to_owned()).collect::<Vec<_>>();
        let mut lists = vec![(way(&["debian", "packages"]), &self.debian.packages)];
        for (number, container) in self.containers.iter().enumerate() {
            lists.push((way(&["containers", &number.to_string(), "packages"]), &container.packages));
        }
        for (mut way, list) in lists {
            if let Some(index) = list.iter().position(|package| package == name) {
                way.push(index.to_string());
                let message = format!("there is no package `{name}` in {}", self.debian.suite);
                return Some(RecipeError::Malformed { place: self.written.place(&way), message });
            }
        }
        None
    }

    /// Whether the ESP holds a kernel image of so many bytes, in a FAT file system that needs some for itself.
    pub fn check_esp(&self, kernel_image: u64) -> Result<(), RecipeError> {
        let needed = (kernel_image + (kernel_image >> 4)).div_ceil(1 << 20);
        if needed <= self.partitions_mib.esp.into() {
            return Ok(());
        }
        let message = format!("{} needs {needed} MiB at least, for the unified kernel image", Partition::Esp);
        Err(RecipeError::Malformed { place: self.written.place(&["partitions-mib", "esp"]), message })
    }

    fn parse(text: Text, architecture: Option<Architecture>) -> Result<Self, RecipeError> {
        let mut texts = vec![text];
        while let Some(extended) = extended(&texts[0])? {
            if texts.len() == MOST_TEXTS || texts.iter().any(|text| text.origin == extended.origin) {
                return Err(RecipeError::Circle { origin: texts[0].origin.clone(), extended: extended.origin });
            }
            texts.insert(0, extended);
        }
        let written = Written::new(texts);
        let architecture = match architecture {
            Some(architecture) => architecture,
            None => written.read::<Target>()?.architecture,
        };
        // What is said for another architecture has to be right too: mistakes are found before it is built.
        for other in Architecture::ALL {
            Recipe::of(written.clone(), other)?;
        }
        Recipe::of(written, architecture)
    }

    fn of(written: Written, architecture: Architecture) -> Result<Self, RecipeError> {
        let written = written.built_for(architecture);
        let mut recipe: Recipe = written.read()?;
        recipe.architecture = architecture;
        check::check(&recipe)
            .map_err(|fault| RecipeError::Malformed { place: written.place(&fault.way), message: fault.what })?;
        recipe.resolve(&written);
        recipe.written = written;
        Ok(recipe)
    }

    /// Lets files that it names be found from elsewhere.
    fn resolve(&mut self, written: &Written) {
        for (number, container) in self.containers.iter_mut().enumerate() {
            let way = ["containers", &number.to_string(), "archive"];
            container.archive = container.archive.take().map(|archive| written.resolve(&way, &archive));
        }
        for (number, shipped) in self.configurations.shipped.iter_mut().enumerate() {
            let way = ["configurations", "shipped", &number.to_string(), "archive"];
            shipped.archive = written.resolve(&way, &shipped.archive);
        }
        if let Some(bootstrap) = &mut self.bootstrap {
            let way = ["bootstrap", "archive"];
            bootstrap.archive = bootstrap.archive.take().map(|archive| written.resolve(&way, &archive));
        }
    }
}

fn shipped(profile: &str) -> Result<Text, RecipeError> {
    let found = SHIPPED.into_iter().find(|(name, _)| *name == profile);
    let (_, text) = found.ok_or_else(|| RecipeError::UnknownProfile { profile: profile.to_owned() })?;
    Ok(Text { origin: format!("profile {profile}"), content: text.to_owned(), folder: None })
}

fn text_of(path: &Path) -> Result<Text, RecipeError> {
    let content =
        fs::read_to_string(path).map_err(|source| RecipeError::Unreadable { path: path.to_owned(), source })?;
    Ok(Text { origin: path.display().to_string(), content, folder: path.parent().map(Path::to_owned) })
}

/// What a text extends: a profile, or a file next to it.
fn extended(text: &Text) -> Result<Option<Text>, RecipeError> {
    let written = Written::new(vec![text.clone()]);
    let Some(name) = written.read::<Head>()?.extends else { return Ok(None) };
    let is_file = Path::new(&name).extension().is_some_and(|extension| extension == "toml");
    let folder = text.folder.clone().unwrap_or_default();
    let found = if is_file { text_of(&folder.join(name)) } else { shipped(&name) };
    found
        .map(Some)
        .map_err(|error| RecipeError::Malformed { place: written.place(&["extends"]), message: error.to_string() })
}

#[cfg(test)]
mod tests;
