//! An archive of Debian's part of an image: made once from a mirror, and then as good as one.
//!
//! ```text
//!     nemos-NAME.rootfs.tar.zst         bootstrap.json, root.tar, kernel, EFI stub and ukify, containers' layers
//!     nemos-NAME.rootfs.tar.zst.sha256  as sha256sum writes it
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::cache::Digest;
use super::distribution::{self, Distribution};
use super::error::BuildError;
use super::progress::{Progress, mib};
use super::source::{Online, Source, check_sum};
use super::tool::{self, Tool};
use super::{Context, containers, disk, host, size_of};
use crate::architecture::Architecture;
use crate::recipe::Recipe;

/// Of the archive's own document.
const VERSION: u32 = 1;
const DOCUMENT: &str = "bootstrap.json";

/// Make an archive to build images from without a mirror
///
/// It has all packages of the recipe, installed, and the containers that are made of packages. Next to it stands its SHA-256.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  nemos-image bootstrap
  nemos-image build --profile bootstrapped
  nemos-image bootstrap --recipe mine.toml --output /srv/roots
  nemos-image build --recipe mine.toml --rootfs /srv/roots/nemos-mine.rootfs.tar.zst")]
pub struct BootstrapArgs {
    /// Recipe whose packages to install, of those that come with the builder
    #[arg(long, value_name = "NAME", default_value = "bootstrapped")]
    pub profile: String,

    /// Recipe whose packages to install, from a file
    #[arg(long, value_name = "FILE", conflicts_with = "profile")]
    pub recipe: Option<PathBuf>,

    /// Folder for the archive
    #[arg(long, value_name = "DIR", default_value = "out")]
    pub output: PathBuf,

    /// Debian mirror, instead of the host's
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,

    /// Architecture of the packages, instead of the recipe's
    #[arg(long, value_name = "NAME")]
    pub arch: Option<Architecture>,

    /// Folder for what need not be made again [default: nemos-image in the user's cache]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,

    /// Show what the programs that are run say
    #[arg(long, short)]
    pub verbose: bool,
}

/// Why an archive cannot be used.
#[derive(Debug, Error)]
pub enum BootstrapError {
    /// It was not made yet.
    #[error(
        "{path} is not there; make it with `nemos-image bootstrap`, given the same recipe, or name another one with --rootfs FILE"
    )]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Nobody says what it should be.
    #[error("nothing says what {path} should hash to: neither sha256 in [bootstrap] of the recipe nor {path}.sha256")]
    NoSum {
        /// The archive.
        path: PathBuf,
    },
    /// It is something else.
    #[error("{path} is not an archive of `nemos-image bootstrap`: {what}")]
    Foreign {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// It was made for another recipe.
    #[error("{path} does not fit the recipe: {what}; make another one with `nemos-image bootstrap`")]
    Unfit {
        /// The archive.
        path: PathBuf,
        /// What differs.
        what: String,
    },
}

/// What an archive says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Contents {
    bootstrap: u32,
    #[serde(default)]
    architecture: Architecture,
    suite: String,
    components: Vec<String>,
    packages: Vec<String>,
    exclude: Vec<String>,
    /// Seconds since 1970 that it is dated with.
    epoch: u64,
    /// Layers of containers: what they are made of, and the file.
    containers: BTreeMap<String, String>,
}

/// An archive that is open.
#[derive(Debug)]
pub struct Bootstrap {
    path: PathBuf,
    /// Where it is unpacked.
    pub folder: PathBuf,
    /// What it hashes to.
    pub digest: String,
    contents: Contents,
}

/// What an archive of this name is called.
pub fn file_name(name: &str) -> String {
    format!("nemos-{name}.rootfs.tar.zst")
}

impl Contents {
    fn of(recipe: &Recipe, epoch: u64, containers: BTreeMap<String, String>) -> Self {
        let sorted = |list: &[String]| {
            let mut list = list.to_vec();
            list.sort();
            list.dedup();
            list
        };
        let debian = &recipe.debian;
        Contents {
            bootstrap: VERSION,
            architecture: recipe.architecture,
            suite: debian.suite.clone(),
            components: sorted(&debian.components),
            packages: sorted(&debian.packages),
            exclude: sorted(&debian.exclude),
            epoch,
            containers,
        }
    }

    /// What keeps it from being used for a recipe.
    fn misfit(&self, recipe: &Contents) -> Option<String> {
        let besides: Vec<_> = self.packages.iter().filter(|name| !recipe.packages.contains(name)).cloned().collect();
        if self.architecture != recipe.architecture {
            Some(format!("it is for {}, and the image for {}", self.architecture, recipe.architecture))
        } else if self.suite != recipe.suite {
            Some(format!("it has {}, and the recipe asks for {}", self.suite, recipe.suite))
        } else if self.components != recipe.components {
            Some(format!(
                "it is of {}, and the recipe asks for {}",
                self.components.join(", "),
                recipe.components.join(", ")
            ))
        } else if self.exclude != recipe.exclude {
            Some("other paths were left out of it than the recipe leaves out".to_owned())
        } else if !besides.is_empty() {
            Some(format!("it has {} besides", besides.join(", ")))
        } else {
            None
        }
    }
}

impl Bootstrap {
    /// Finds the archive, checks it, and unpacks it into the cache.
    pub fn open(context: &Context, given: Option<&Path>, output: &Path) -> Result<Self, BuildError> {
        let wanted = context.recipe.bootstrap.clone().unwrap_or_default();
        let named = given.map(Path::to_owned).or(wanted.archive);
        let path = named.unwrap_or_else(|| output.join(file_name(&context.profile)));
        if !path.is_file() {
            return Err(BootstrapError::Missing { path }.into());
        }
        let digest = match wanted.sha256 {
            Some(digest) => digest,
            None => sum_beside(&path)?,
        };
        check_sum(&path, &digest)?;
        let entry = context
            .cache
            .get("bootstrap", &Digest::of([digest.as_bytes()]), |folder| unpack(context, &path, folder))?;
        let foreign = |what: String| BootstrapError::Foreign { path: path.clone(), what };
        let document =
            super::read(&entry.folder.join(DOCUMENT)).map_err(|_| foreign(format!("it has no {DOCUMENT}")))?;
        let contents: Contents = serde_json::from_str(&document).map_err(|error| foreign(error.to_string()))?;
        if contents.bootstrap != VERSION {
            return Err(foreign(format!("it is of version {}, and {VERSION} is known here", contents.bootstrap)).into());
        }
        let files = distribution::files(contents.architecture)
            .into_iter()
            .chain(contents.containers.values().map(String::as_str));
        if let Some(absent) = files.into_iter().find(|file| !entry.folder.join(file).is_file()) {
            return Err(foreign(format!("it has no {absent}")).into());
        }
        Ok(Bootstrap { path, folder: entry.folder, digest, contents })
    }

    /// What of a recipe is not in it, or else why it must not be used for the recipe.
    pub fn lacks(&self, recipe: &Recipe) -> Result<Vec<String>, BootstrapError> {
        if let Some(what) = self.contents.misfit(&Contents::of(recipe, 0, BTreeMap::new())) {
            return Err(BootstrapError::Unfit { path: self.path.clone(), what });
        }
        let made = |container: &&crate::recipe::Container| {
            container.archive.is_none() && self.layer(&containers::made_of(container, recipe)).is_none()
        };
        let containers = recipe.containers.iter().filter(made).map(|container| container.name.clone());
        Ok(self.lacks_packages(recipe).into_iter().chain(containers).collect())
    }

    /// Packages of a recipe that are not in it.
    pub fn lacks_packages(&self, recipe: &Recipe) -> Vec<String> {
        let lacking = recipe.debian.packages.iter().filter(|name| !self.contents.packages.contains(name));
        lacking.cloned().collect()
    }

    /// The layer of a container that is made of that.
    pub fn layer(&self, made_of: &Digest) -> Option<PathBuf> {
        self.contents.containers.get(&made_of.hex()).map(|file| self.folder.join(file))
    }

    /// Seconds since 1970 that it is dated with.
    pub fn epoch(&self) -> u64 {
        self.contents.epoch
    }
}

/// The digest in the file that `sha256sum` wrote.
fn sum_beside(archive: &Path) -> Result<String, BuildError> {
    let mut file = archive.as_os_str().to_owned();
    file.push(".sha256");
    let text = fs::read_to_string(file).map_err(|_| BootstrapError::NoSum { path: archive.to_owned() })?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

fn unpack(context: &Context, archive: &Path, folder: &Path) -> Result<(), BuildError> {
    let plain = context.scratch.join("rootfs.tar");
    let failed = BuildError::io("writing", &plain);
    Tool::new("zstd")
        .args(["--quiet", "--decompress", "--stdout"])
        .arg(archive)
        .output_to(File::create(&plain).map_err(failed)?)?;
    let foreign = |source: io::Error| BootstrapError::Foreign { path: archive.to_owned(), what: source.to_string() };
    let read = || {
        for entry in tar::Archive::new(File::open(&plain)?).entries()? {
            let mut entry = entry?;
            let name = entry.path()?.into_owned();
            // Files next to each other, and nothing else.
            if name.components().count() == 1 && entry.header().entry_type().is_file() {
                io::copy(&mut entry, &mut File::create_new(folder.join(name))?)?;
            }
        }
        fs::remove_file(&plain)
    };
    Ok(read().map_err(foreign)?)
}

/// Makes the archive; its path is returned.
pub fn bootstrap(args: &BootstrapArgs) -> Result<PathBuf, BuildError> {
    super::begin()?;
    if args.verbose {
        tool::be_verbose();
    }
    let (recipe, name) = super::choose(&args.profile, args.recipe.as_deref(), args.arch)?;
    let progress = Progress::new();
    super::in_folder(&args.output, || {
        let (_scratch, context) = progress.step("host", || {
            host::check_for_bootstrap(recipe.architecture)?;
            super::prepare(recipe, name, &args.output, args.cache.as_deref(), None)
        })?;
        let source = Source::Mirror(Online::ask(args.mirror.as_deref(), &context, &progress)?);
        let distribution = progress.step("distribution", || {
            let made = Distribution::make(&context, &source)?;
            let told = super::describe(&made.root, !made.found)?;
            Ok((made, told))
        })?;
        let layers = progress.step("containers", || {
            let layers = containers::layers(&context, &source)?;
            let told = format!("{} made of packages", layers.len());
            Ok((layers, told))
        })?;
        let archive = progress.step("archive", || {
            let made = write(&context, &distribution, &layers)?;
            let told = mib(size_of(&made)?);
            Ok((made, told))
        })?;
        tool::interruption()?;
        let digest = Digest::of_file(&archive).map_err(BuildError::io("reading", &archive))?.hex();
        let sum = archive.with_extension("zst.sha256");
        super::write(&sum, &format!("{digest}  {}\n", file_name(&context.profile)))?;
        disk::publish(&sum, &args.output)?;
        let published = disk::publish(&archive, &args.output)?;
        eprintln!("{} in {:.1} s, SHA-256 {digest}", published.display(), progress.seconds());
        Ok(published)
    })
}

fn write(context: &Context, distribution: &Distribution, layers: &[(Digest, PathBuf)]) -> Result<PathBuf, BuildError> {
    let plain = context.scratch.join("rootfs.tar");
    let archive = context.scratch.join(file_name(&context.profile));
    let failed = BuildError::io("writing", &plain);
    let layer_file = |made_of: &Digest| format!("container-{}.tar", &made_of.hex()[..32]);
    let named = layers.iter().map(|(made_of, _)| (made_of.hex(), layer_file(made_of))).collect();
    let contents = Contents::of(&context.recipe, distribution.epoch, named);
    let mut document = serde_json::to_string_pretty(&contents).unwrap_or_default();
    document.push('\n');
    let header = |size: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(distribution.epoch);
        header
    };
    let mut files: Vec<_> = distribution::files(context.recipe.architecture)
        .map(|file| (file.to_owned(), distribution.folder.join(file)))
        .into();
    files.extend(layers.iter().map(|(made_of, tar)| (layer_file(made_of), tar.clone())));
    let write = || {
        let mut tar = tar::Builder::new(File::create(&plain)?);
        tar.append_data(&mut header(document.len() as u64), DOCUMENT, document.as_bytes())?;
        for (name, path) in &files {
            let file = File::open(path)?;
            tar.append_data(&mut header(file.metadata()?.len()), name, file)?;
        }
        tar.finish()
    };
    write().map_err(failed)?;
    Tool::new("zstd").args(["--quiet", "-T0", "-9", "--rm"]).arg(&plain).arg("-o").arg(&archive).run()?;
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Contents {
        Contents::of(&Recipe::shipped("default", None).expect("the default recipe"), 7, BTreeMap::new())
    }

    #[test]
    fn an_archive_may_have_less_than_the_recipe_but_nothing_else() {
        let recipe = contents();
        let mut archive = contents();
        archive.packages.retain(|name| name != "podman");
        assert_eq!(archive.misfit(&recipe), None);
        archive.packages.push("vim".to_owned());
        assert_eq!(archive.misfit(&recipe).as_deref(), Some("it has vim besides"));
    }

    #[test]
    fn an_archive_of_another_release_or_with_other_files_left_out_is_not_the_recipes() {
        let other_suite = Contents { suite: "forky".into(), ..contents() };
        assert_eq!(other_suite.misfit(&contents()).as_deref(), Some("it has forky, and the recipe asks for trixie"));
        let other_processor = Contents { architecture: Architecture::Arm64, ..contents() };
        assert_eq!(other_processor.misfit(&contents()).as_deref(), Some("it is for arm64, and the image for amd64"));
        let with_all = Contents { exclude: Vec::new(), ..contents() };
        assert!(with_all.misfit(&contents()).expect("it differs").contains("left out"));
        let more = Contents { components: vec!["contrib".into(), "main".into()], ..contents() };
        assert_eq!(more.misfit(&contents()).as_deref(), Some("it is of contrib, main, and the recipe asks for main"));
    }

    #[test]
    fn what_an_archive_says_of_itself_is_read_back() {
        let text = serde_json::to_string(&contents()).expect("JSON");
        assert_eq!(serde_json::from_str::<Contents>(&text).expect("contents"), contents());
    }
}
