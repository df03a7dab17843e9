//! What an image is made of: a TOML document, one a profile.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nemos_model::boot::PRELOADED_HASH_OPTION;
use nemos_model::integrity::protection::{FEC_ROOTS, OnCorruption, PROTECTION_OPTION};
use nemos_model::partitions::Partition;
use serde::Deserialize;
use thiserror::Error;

/// The recipes that the builder carries in itself.
const SHIPPED: [(&str, &str); 1] = [("default", include_str!("../recipes/default.toml"))];

/// What an image is made of.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// A few words on it.
    pub description: String,
    /// The distribution.
    pub debian: Debian,
    /// The kernel.
    pub kernel: Kernel,
    /// Sizes of the partitions that are not sized by their content.
    pub partitions_mib: Sizes,
    /// The read-only root.
    pub squashfs: Squashfs,
    /// How the root is protected beyond its hash.
    #[serde(default)]
    pub verity: Verity,
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
    /// It is not a recipe.
    #[error("{origin}, line {line}: {message}")]
    Malformed {
        /// The file, or the profile.
        origin: String,
        /// Where.
        line: usize,
        /// What.
        message: String,
    },
    /// It asks for what cannot be.
    #[error("{origin}: {what}")]
    Unfit {
        /// The file, or the profile.
        origin: String,
        /// What.
        what: String,
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

impl Recipe {
    /// One of the recipes that the builder carries in itself, and its text.
    pub fn shipped(profile: &str) -> Result<(Self, String), RecipeError> {
        let (_, text) = SHIPPED
            .into_iter()
            .find(|(name, _)| *name == profile)
            .ok_or_else(|| RecipeError::UnknownProfile { profile: profile.to_owned() })?;
        Ok((Recipe::parse(text, &format!("profile {profile}"))?, text.to_owned()))
    }

    /// A recipe from a file, and its text.
    pub fn read(path: &Path) -> Result<(Self, String), RecipeError> {
        let unreadable = |source| RecipeError::Unreadable { path: path.to_owned(), source };
        let text = fs::read_to_string(path).map_err(unreadable)?;
        Ok((Recipe::parse(&text, &path.display().to_string())?, text))
    }

    /// Reads a recipe; `origin` names it in errors.
    pub fn parse(text: &str, origin: &str) -> Result<Self, RecipeError> {
        let recipe: Recipe = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
            let message = error.message().lines().collect::<Vec<_>>().join(" ");
            RecipeError::Malformed { origin: origin.to_owned(), line, message }
        })?;
        let unfit = |what| RecipeError::Unfit { origin: origin.to_owned(), what };
        recipe.check().map_err(unfit)?;
        Ok(recipe)
    }

    fn check(&self) -> Result<(), String> {
        let smallest = [
            (Partition::Esp, 64, "the unified kernel image, with space for a second one"),
            (Partition::Home, 16, "ext4"),
            (Partition::OciStorage, 304, "mkfs.xfs"),
            (Partition::State, 8, "ext4 with a journal"),
            (Partition::Root, 320, "mkfs.xfs inside of LUKS2 with integrity"),
        ];
        for (partition, mib, what_for) in smallest {
            if self.partitions_mib.of(partition).is_some_and(|size| size < mib) {
                return Err(format!("{partition} needs {mib} MiB at least, for {what_for}"));
            }
        }
        if !(1..=22).contains(&self.squashfs.zstd_level) {
            return Err(format!("zstd has the levels 1 to 22, not {}", self.squashfs.zstd_level));
        }
        for (name, user) in &self.users {
            if !is_name(name) || !user.groups.iter().all(|group| is_name(group)) {
                return Err(format!("user `{name}`: names of users and groups are a-z, 0-9, `-` and `_`"));
            }
            if user.password_hash.as_ref().is_some_and(|hash| !hash.starts_with('$')) {
                return Err(format!("user `{name}`: the password is not hashed; make a hash with: openssl passwd -6"));
            }
        }
        if let Some(path) = self.files.keys().find(|path| !is_path(path)) {
            return Err(format!("file `{path}`: a path begins with `/`, and has neither `..` nor white space"));
        }
        let words = self.debian.packages.iter().chain(&self.debian.components).chain([&self.debian.suite]);
        let words = words.chain(&self.units.enable).chain(&self.units.mask).chain(&self.kernel.command_line);
        if let Some(word) = words.into_iter().find(|word| word.is_empty() || word.contains(char::is_whitespace)) {
            return Err(format!("`{word}`: one word was expected"));
        }
        let ours = ["roothash", PRELOADED_HASH_OPTION, PROTECTION_OPTION];
        let is_ours = |word: &String| ours.iter().any(|name| word.split('=').next() == Some(name));
        if let Some(word) = self.kernel.command_line.iter().find(|word| is_ours(word)) {
            return Err(format!("`{word}`: the builder puts it into the command line; [verity] has the options"));
        }
        match self.verity.fec_roots {
            roots if roots == 0 || FEC_ROOTS.contains(&roots) => Ok(()),
            roots => Err(format!("fec-roots is 0 for no parity, or 2 to 24, not {roots}")),
        }
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('-')
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

fn is_path(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")))
        && !path.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn default_with(what: &str, instead: &str) -> Result<Recipe, RecipeError> {
        let (_, text) = Recipe::shipped("default").expect("the default recipe");
        assert!(text.contains(what), "the default recipe has no {what:?}");
        Recipe::parse(&text.replacen(what, instead, 1), "my.toml")
    }

    fn refusal(what: &str, instead: &str) -> String {
        default_with(what, instead).expect_err("the recipe is refused").to_string()
    }

    #[test]
    fn every_shipped_recipe_is_sound() {
        for (profile, _) in SHIPPED {
            let (recipe, _) = Recipe::shipped(profile).expect(profile);
            assert!(!recipe.debian.packages.is_empty());
        }
    }

    #[test]
    fn an_unknown_profile_is_told_the_known_ones() {
        let told = Recipe::shipped("defualt").expect_err("no such profile").to_string();
        assert_eq!(told, "there is no profile `defualt`; the profiles are: default");
    }

    #[test]
    fn a_mistake_is_found_by_its_line() {
        let text = "description = \"x\"\n\n[debian]\nsuite = 13\n";
        let told = Recipe::parse(text, "my.toml").expect_err("the suite is text").to_string();
        assert!(told.starts_with("my.toml, line 4: "), "{told}");
        assert!(refusal("zstd-level", "zstd-levle").contains("zstd-levle"));
    }

    #[test]
    fn a_partition_too_small_for_its_file_system_is_refused() {
        assert_eq!(
            refusal("oci-storage = 512", "oci-storage = 300"),
            "my.toml: p.lxoci-storage needs 304 MiB at least, for mkfs.xfs"
        );
    }

    #[test]
    fn a_password_in_the_clear_is_refused() {
        assert!(refusal("password-hash = \"$6", "password-hash = \"secret").contains("openssl passwd -6"));
    }

    #[test]
    fn a_file_stays_inside_the_image() {
        for path in ["/etc/../../x", "etc/x", "/etc//x", "/etc/a b", "/"] {
            assert!(refusal("\"/etc/hostname\"", &format!("\"{path}\"")).contains("a path begins with"), "{path}");
        }
    }

    #[test]
    fn the_root_hash_is_the_builders() {
        assert!(refusal("\"panic=10\"", "\"roothash=00\"").contains("roothash="));
    }
}
