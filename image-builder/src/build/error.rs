//! Why there is no image.

use std::io;
use std::path::{Path, PathBuf};

use nemos_model::integrity::InvalidRootHash;
use nemos_model::manifest::BadManifest;
use nemos_model::uki::NotProgram;
use thiserror::Error;

use super::bootstrap::BootstrapError;
use super::cache::CacheError;
use super::configurations::NoConfiguration;
use super::host::HostError;
use super::mirror::MirrorError;
use super::table::TableError;
use super::tool::ToolError;
use crate::architecture::Architecture;
use crate::containers::oci::OciError;
use crate::image::uki::NotUki;
use crate::keys::KeyError;
use crate::recipe::RecipeError;

/// Why there is no image.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The step in which something failed.
    #[error("{step}: {source}")]
    Step {
        /// The step.
        step: &'static str,
        /// What failed.
        source: Box<BuildError>,
    },
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The mirror.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// An archive of Debian's part.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The archive of Debian's part has not what a container is made of.
    #[error("the packages of container {0} are neither in the archive nor is there a mirror")]
    NoLayer(String),
    /// A container's archive.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// A configuration that is shipped.
    #[error(transparent)]
    Configuration(#[from] NoConfiguration),
    /// An archive that is not the one of the recipe.
    #[error("{path} has the SHA-256 {actual}, and {expected} was expected; it is damaged, or another one")]
    Checksum {
        /// The archive.
        path: PathBuf,
        /// What it should hash to.
        expected: String,
        /// What it hashes to.
        actual: String,
    },
    /// The partition table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// What ukify made.
    #[error("ukify made no unified kernel image: {0}")]
    Uki(#[from] NotUki),
    /// What ukify made cannot be signed.
    #[error("ukify made what cannot be signed: {0}")]
    Pe(#[from] NotProgram),
    /// What the root says of itself.
    #[error("the manifest in the root: {0}")]
    Manifest(#[from] BadManifest),
    /// Too long for its block.
    #[error("the metadata behind the root does not fit into its block; sign with a shorter key")]
    Metadata,
    /// A program.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// veritysetup's answer.
    #[error("veritysetup gave no root hash: {0}")]
    RootHash(#[from] InvalidRootHash),
    /// A file.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was done to it.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Signals cannot be watched for.
    #[error("signals cannot be watched for: {0}")]
    Signals(io::Error),
    /// `SOURCE_DATE_EPOCH` is set, and not to a number.
    #[error("SOURCE_DATE_EPOCH is `{0}`; set it to seconds since 1970, or unset it")]
    Epoch(String),
    /// No cache folder.
    #[error("neither XDG_CACHE_HOME nor HOME is set; give --cache DIR")]
    NoCacheFolder,
    /// Not in the source.
    #[error(
        "this is not in the source tree of nemos, so there is nothing to build the package from; go there, or give --package FILE.deb"
    )]
    NotInSource,
    /// cargo built something else.
    #[error("cargo did not build {0}")]
    NoProgram(&'static str),
    /// Not our package.
    #[error("{0} is not a package of nemos; give one that `nemos-image package` built")]
    NotOurPackage(PathBuf),
    /// Our package, for other devices.
    #[error(
        "{package} is for {of}, and the image for {architecture}; make one with `nemos-image package --arch {architecture}`"
    )]
    OtherArchitecture {
        /// The package.
        package: PathBuf,
        /// Its architecture.
        of: String,
        /// The image's.
        architecture: Architecture,
    },
    /// More than one kernel, or none.
    #[error("the packages of the recipe bring other than one kernel ({0}); name one linux-image package")]
    Kernels(String),
}

impl BuildError {
    /// For `map_err`: what was done to which file.
    pub fn io(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> BuildError + use<> {
        let path = path.to_owned();
        move |source| BuildError::Io { doing, path: path.clone(), source }
    }
}
