//! `nemos-image build`: a recipe becomes a disk image.
//!
//! ```text
//!     Debian's mirror,
//!     or an archive   --> distribution (cached) --+--> initrd, dracut's part (cached) --+
//!                                                 |                                     +--> UKI --> ESP --+
//!     our source --> package ---------------------+--> root: squashfs + hash tree ------+                  +--> disk
//!     Debian's packages, OCI archives --> containers (cached) ----> state, preloaded containers -----------+
//! ```
//!
//! Nothing needs root: roots live in a user namespace, file systems and tables are written as files.

mod bootstrap;
mod cache;
mod chroot;
mod configurations;
mod containers;
mod disk;
mod distribution;
mod error;
mod filesystems;
mod host;
mod ids;
mod index;
mod initrd;
mod manifest;
mod mirror;
mod package;
mod progress;
mod root;
mod source;
mod sysroot;
mod table;
mod tool;
mod uki;
mod verity;

use std::env;
use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;

use clap::Args;
use nemos_model::partitions::Partition;
use tempfile::TempDir;

pub use self::bootstrap::{BootstrapArgs, bootstrap};
use self::cache::Cache;
pub use self::cache::Digest;
use self::distribution::Distribution;
pub use self::error::BuildError;
use self::ids::Ids;
use self::initrd::Initrd;
pub use self::package::{PackageArgs, build_package};
use self::progress::Progress;
pub(crate) use self::progress::mib;
use self::root::Root;
use self::source::Source;
pub use self::tool::{Tool, ToolError};
use crate::architecture::Architecture;
use crate::image::metadata;
use crate::keys::Keys;
use crate::layout::Layout;
use crate::recipe::Recipe;

/// Space that a build takes at most, besides what it leaves.
const OUTPUT_MIB: u64 = 1024;
const CACHE_MIB: u64 = 1024;
/// Roots are unpacked where temporary files are.
const TEMPORARY_MIB: u64 = 1024;

/// Build a disk image
///
/// As an ordinary user, from the Debian mirror of the host's apt and the source tree that the current folder is in.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  nemos-image build
  nemos-image build --recipe mine.toml --qcow2
  nemos-image build --arch arm64
  nemos-image build --keys keys
  nemos-image bootstrap && nemos-image build --profile bootstrapped")]
pub struct BuildArgs {
    /// Recipe to build, of those that come with the builder
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub profile: String,

    /// Recipe to build, from a file
    #[arg(long, value_name = "FILE", conflicts_with = "profile")]
    pub recipe: Option<PathBuf>,

    /// Architecture to build for, instead of the recipe's
    #[arg(long, value_name = "NAME")]
    pub arch: Option<Architecture>,

    /// Folder for the disk image and the package
    #[arg(long, value_name = "DIR", default_value = "out")]
    pub output: PathBuf,

    /// Debian mirror, instead of the host's
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,

    /// Archive that `nemos-image bootstrap` made, instead of the recipe's, or instead of a mirror
    #[arg(long, value_name = "FILE")]
    pub rootfs: Option<PathBuf>,

    /// Debian package of nemos, instead of building it
    #[arg(long, value_name = "FILE")]
    pub package: Option<PathBuf>,

    /// Folder for what need not be made again [default: nemos-image in the user's cache]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,

    /// Write the disk as a qcow2 file as well
    #[arg(long)]
    pub qcow2: bool,

    /// Sign the image for Secure Boot, the kernel and a TPM, with the keys in DIR, as `nemos-image keys` makes them
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,

    /// Have COMMAND sign, so that no private key need be here, only DIR's certificates
    ///
    /// A line of shell; it is given two more words, the name of the key (secure-boot, root, pcr) and the scheme
    /// (rsa-pkcs1-sha256, rsa-pss-sha256), and the message on stdin. It prints the bare signature.
    #[arg(long, value_name = "COMMAND", requires = "keys")]
    pub sign_with: Option<String>,

    /// Show what the programs that are run say
    #[arg(long, short)]
    pub verbose: bool,
}

/// What all steps share.
pub struct Context {
    recipe: Recipe,
    profile: String,
    recipe_digest: Digest,
    /// Seconds since 1970 that everything in the image is dated with.
    epoch: u64,
    /// Removed at the end, however it ends.
    scratch: PathBuf,
    cache: Cache,
    /// None for an image that is not signed.
    keys: Option<Keys>,
}

fn read(path: &Path) -> Result<String, BuildError> {
    fs::read_to_string(path).map_err(BuildError::io("reading", path))
}

fn write(path: &Path, text: &str) -> Result<(), BuildError> {
    create_parent(path)?;
    fs::write(path, text).map_err(BuildError::io("writing", path))
}

fn create_parent(path: &Path) -> Result<(), BuildError> {
    path.parent().map_or(Ok(()), |parent| fs::create_dir_all(parent).map_err(BuildError::io("making", parent)))
}

/// Builds the image; its path is returned.
pub fn build(args: &BuildArgs) -> Result<PathBuf, BuildError> {
    begin()?;
    if args.verbose {
        tool::be_verbose();
    }
    let (recipe, profile) = choose(&args.profile, args.recipe.as_deref(), args.arch)?;
    let progress = Progress::new();
    in_folder(&args.output, || {
        let (_scratch, context) = progress.step("host", || {
            host::check(recipe.architecture, args.package.is_none(), args.qcow2)?;
            let keys = args.keys.as_ref().map(|folder| Keys::open(folder, args.sign_with.as_deref())).transpose()?;
            prepare(recipe, profile, &args.output, args.cache.as_deref(), keys)
        })?;
        make(args, &context, &progress)
    })
}

/// The recipe, and what is made of it is called.
fn choose(
    profile: &str,
    file: Option<&Path>,
    architecture: Option<Architecture>,
) -> Result<(Recipe, String), BuildError> {
    let (recipe, name) = match file {
        None => (Recipe::shipped(profile, architecture)?, profile.to_owned()),
        Some(file) => {
            let name = file.file_stem().map_or("image".into(), |stem| stem.to_string_lossy().into_owned());
            (Recipe::read(file, architecture)?, name)
        }
    };
    let name = recipe.architecture.image_name(&name);
    Ok((recipe, name))
}

/// Does work in a folder that need not be there before, and is not there afterwards if the work fails.
fn in_folder<T>(folder: &Path, work: impl FnOnce() -> Result<T, BuildError>) -> Result<T, BuildError> {
    let is_new = !folder.exists();
    let made = work();
    if made.is_err() && is_new {
        // Only if it is empty, which it is unless somebody else found it useful.
        let _ = fs::remove_dir(folder);
    }
    made
}

/// Signals and permissions, before anything is made.
fn begin() -> Result<(), BuildError> {
    host::set_umask();
    tool::end_with_signals().map_err(BuildError::Signals)
}

/// Folders with space, and what all steps share.
fn prepare(
    recipe: Recipe,
    profile: String,
    output: &Path,
    cache: Option<&Path>,
    keys: Option<Keys>,
) -> Result<((TempDir, Context), String), BuildError> {
    containers::check(&recipe)?;
    configurations::check(&recipe)?;
    let cache = cache_folder(cache)?;
    host::check_folder(output, OUTPUT_MIB, "--output")?;
    host::check_folder(&cache, CACHE_MIB, "--cache")?;
    host::check_folder(&host::roots_folder(), TEMPORARY_MIB, "TMPDIR")?;
    let scratch = tempfile::Builder::new().prefix(".nemos-image-").tempdir_in(output);
    let scratch = scratch.map_err(BuildError::io("making a folder in", output))?;
    let context = Context {
        epoch: epoch()?,
        scratch: absolute(scratch.path())?,
        cache: Cache::open(absolute(&cache)?)?,
        recipe_digest: Digest::of_bytes(recipe.text().as_bytes()),
        recipe,
        profile,
        keys,
    };
    Ok(((scratch, context), format!("has all that is needed; cache {}", cache.display())))
}

fn make(args: &BuildArgs, context: &Context, progress: &Progress) -> Result<PathBuf, BuildError> {
    let source = Source::find(args, context, progress)?;
    let deb = progress.step("package", || {
        let architecture = context.recipe.architecture;
        let deb = match &args.package {
            Some(deb) => package::given(deb, architecture)?,
            None => package::build(&context.scratch, context.epoch, architecture, args.mirror.as_deref())?,
        };
        Ok((deb.clone(), describe(&deb, true)?))
    })?;
    // What takes long is done at once with what does not need it.
    let (distribution, containers) = both(
        || {
            progress.step("distribution", || {
                let made = Distribution::make(context, &source)?;
                let told = describe(&made.root, !made.found)?;
                Ok((made, told))
            })
        },
        || progress.step("containers", || containers::make(context, &source)),
    )?;
    let deb_digest = Digest::of_file(&deb).map_err(BuildError::io("reading", &deb))?;
    let epoch = context.epoch.to_le_bytes();
    let inputs =
        [&epoch, distribution.key.0.as_slice(), &deb_digest.0, &context.recipe_digest.0, context.profile.as_bytes()];
    let ids = Ids::new(Digest::of(inputs));
    let (root, (initrd, preloaded)) = both(
        || {
            progress.step("root", || {
                let made = Root::make(context, &distribution, &deb, &ids)?;
                let parity = if made.verified.fec.is_some() { " and parity" } else { "" };
                let (data, tree) = (mib(made.verified.data), mib(made.verified.overhead()?));
                Ok((made, format!("squashfs {data}, hash tree{parity} {tree}")))
            })
        },
        || {
            let initrd = progress.step("initrd", || {
                let made = Initrd::make(context, &distribution, &deb)?;
                let parts = [&distribution.kernel, &made.base, &made.program].map(|part| size_of(part));
                context.recipe.check_esp(parts.into_iter().sum::<Result<u64, BuildError>>()?)?;
                let base = describe(&made.base, !made.found)?;
                let told = format!("{base}; with the program {}", mib(size_of(&made.program)?));
                Ok((made, told))
            })?;
            let preloaded = progress.step("store", || {
                let made = filesystems::preloaded(context, &containers, &ids)?;
                let told = format!("squashfs {}", mib(made.data));
                Ok((made, told))
            })?;
            Ok((initrd, preloaded))
        },
    )?;
    let uki = progress.step("kernel image", || {
        let made = uki::make(context, &distribution, &initrd, &root, &preloaded)?;
        let told = format!("{}, Linux {}", mib(size_of(&made)?), distribution.kernel_version);
        Ok((made, told))
    })?;
    let (disk, layout) = progress.step("disk", || {
        let root_size = size_of(&root.verified.file)? + metadata::BLOCK as u64;
        let preloaded_size = size_of(&preloaded.file)?;
        let ours = |partition| match partition {
            Partition::Readonly => root_size,
            Partition::OciPreloaded => preloaded_size,
            sized => context.recipe.partitions_mib.of(sized).map_or(0, |size| u64::from(size) << 20),
        };
        let added = context.recipe.partitions.iter();
        let layout = Layout::new(ours, added.map(|(name, added)| (name.as_str(), u64::from(added.size_mib) << 20)));
        let esp = uki::make_esp(context, &uki, layout.size_of(Partition::Esp), &ids)?;
        let state = filesystems::state(context, layout.size_of(Partition::State), &ids)?;
        let contents = [
            (Partition::Esp, esp),
            (Partition::OciPreloaded, preloaded.file.clone()),
            (Partition::State, state),
            (Partition::Readonly, root.verified.file.clone()),
        ];
        let metadata = root.metadata(context.keys.as_ref())?;
        let disk = disk::write(context, &layout, &contents, (Partition::Readonly, &metadata), &ids)?;
        let used = disk::allocated(&disk)?;
        let told = format!("{}, {} of it written", mib(layout.disk_size), mib(used));
        Ok(((disk, layout), told))
    })?;
    let qcow2 = args.qcow2.then(|| progress.step("qcow2", || disk::convert(&disk))).transpose()?;
    let beside = progress.step("manifest", || {
        let files: Vec<_> = [Some(disk.as_path()), qcow2.as_deref()].into_iter().flatten().collect();
        let made = manifest::write(context, &layout, &ids, &root, &uki, &files)?;
        let names = made.iter().map(|file| file.file_name().unwrap_or_default().to_string_lossy().into_owned());
        let told = names.collect::<Vec<_>>().join(", ");
        Ok((made, told))
    })?;
    tool::interruption()?;
    if args.package.is_none() {
        disk::publish(&deb, &args.output)?;
    }
    for file in beside.iter().chain(&qcow2) {
        disk::publish(file, &args.output)?;
    }
    let published = disk::publish(&disk, &args.output)?;
    eprintln!("{} in {:.1} s, root hash {}", published.display(), progress.seconds(), root.verified.hash);
    Ok(published)
}

/// Does two things at once, and fails if one of them does.
fn both<One: Send, Other>(
    one: impl FnOnce() -> Result<One, BuildError> + Send,
    other: impl FnOnce() -> Result<Other, BuildError>,
) -> Result<(One, Other), BuildError> {
    thread::scope(|scope| {
        let one = scope.spawn(one);
        let other = other();
        Ok((one.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))?, other?))
    })
}

fn cache_folder(given: Option<&Path>) -> Result<PathBuf, BuildError> {
    let folder = |variable: &str| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    given
        .map(Path::to_owned)
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("nemos-image")))
        .or_else(|| Some(folder("HOME")?.join(".cache/nemos-image")))
        .ok_or(BuildError::NoCacheFolder)
}

/// `SOURCE_DATE_EPOCH`, or the time of the last commit, or else the start of 2025: never the clock.
fn epoch() -> Result<u64, BuildError> {
    const WITHOUT_HISTORY: u64 = 1_735_689_600;
    if let Ok(text) = env::var("SOURCE_DATE_EPOCH") {
        return text.trim().parse().map_err(|_| BuildError::Epoch(text));
    }
    let committed = Tool::new("git").args(["log", "-1", "--format=%ct"]).output();
    let committed = committed.ok().and_then(|output| String::from_utf8(output).ok());
    Ok(committed.and_then(|text| text.trim().parse().ok()).unwrap_or(WITHOUT_HISTORY))
}

fn absolute(path: &Path) -> Result<PathBuf, BuildError> {
    fs::canonicalize(path).map_err(BuildError::io("finding", path))
}

fn size_of(path: &Path) -> Result<u64, BuildError> {
    Ok(fs::metadata(path).map_err(BuildError::io("reading", path))?.len())
}

fn size_of_tree(path: &Path) -> Result<u64, BuildError> {
    let metadata = fs::symlink_metadata(path).map_err(BuildError::io("reading", path))?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    let entries = fs::read_dir(path).map_err(BuildError::io("reading", path))?;
    entries.map(|entry| size_of_tree(&entry.map_err(BuildError::io("reading", path))?.path())).sum()
}

fn describe(path: &Path, made: bool) -> Result<String, BuildError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(format!("{name} {}{}", mib(size_of(path)?), if made { "" } else { ", from the cache" }))
}
