//! Where Debian's part of an image comes from: a mirror, an archive that was made before, or both.

use std::path::Path;

use super::bootstrap::Bootstrap;
use super::error::BuildError;
use super::mirror::{Archive, Mirror};
use super::progress::Progress;
use super::tool::{Tool, ToolError};
use super::{BuildArgs, Context};

/// A mirror that answered.
#[derive(Debug)]
pub struct Online {
    /// The mirror.
    pub mirror: Mirror,
    /// What each of its archives has; the answer changes whenever a package does.
    pub releases: Vec<Vec<u8>>,
    /// Seconds since 1970 when the newest of them was released.
    pub epoch: u64,
}

/// Where Debian's part comes from.
#[derive(Debug)]
pub enum Source {
    /// A mirror has all of it.
    Mirror(Online),
    /// An archive has all of it.
    Archive(Bootstrap),
    /// An archive, and for these packages a mirror.
    Both(Bootstrap, Online, Vec<String>),
}

impl Online {
    /// Asks the mirror.
    pub fn ask(given: Option<&str>, context: &Context, progress: &Progress) -> Result<Self, BuildError> {
        progress.step("mirror", || {
            let mirror = Mirror::find(given, &context.recipe.debian)?;
            let releases = mirror.releases(&context.scratch)?;
            let told = mirror.archives.iter().map(|archive| format!("{} {}", archive.uri, archive.suite));
            let told = told.collect::<Vec<_>>().join(", ");
            let epoch = released(&releases)?;
            Ok((Online { mirror, releases, epoch }, told))
        })
    }

    /// Lines for `sources.list`.
    pub fn lines(&self) -> Vec<String> {
        self.mirror.archives.iter().map(Archive::line).collect()
    }

    /// Options of mmdebstrap that say how the mirror is reached.
    pub fn options(&self) -> impl Iterator<Item = String> {
        let settings = self.mirror.settings.iter().map(|setting| format!("--aptopt={setting}"));
        settings.chain(["--aptopt=APT::Install-Recommends \"false\";".to_owned()])
    }

    /// All that its packages depend on, for a key of the cache.
    pub fn key(&self) -> Vec<Vec<u8>> {
        self.lines().into_iter().map(String::into_bytes).chain(self.releases.iter().cloned()).collect()
    }
}

impl Source {
    /// Opens the archive of the recipe, if it asks for one, and a mirror, if that is needed.
    pub fn find(args: &BuildArgs, context: &Context, progress: &Progress) -> Result<Self, BuildError> {
        if context.recipe.bootstrap.is_none() && args.rootfs.is_none() {
            return Ok(Source::Mirror(Online::ask(args.mirror.as_deref(), context, progress)?));
        }
        let (archive, lacks) = progress.step("archive", || {
            let archive = Bootstrap::open(context, args.rootfs.as_deref(), &args.output)?;
            let lacks = archive.lacks(&context.recipe)?;
            let told = match lacks.as_slice() {
                [] => "has all of the recipe; no mirror is asked".to_owned(),
                some => format!("lacks {}", some.join(", ")),
            };
            Ok(((archive, lacks), told))
        })?;
        if lacks.is_empty() {
            return Ok(Source::Archive(archive));
        }
        let online = Online::ask(args.mirror.as_deref(), context, progress)?;
        let packages = archive.lacks_packages(&context.recipe);
        Ok(Source::Both(archive, online, packages))
    }

    /// The mirror, if there is one.
    pub fn online(&self) -> Option<&Online> {
        match self {
            Source::Mirror(online) | Source::Both(_, online, _) => Some(online),
            Source::Archive(_) => None,
        }
    }

    /// The archive, if there is one.
    pub fn archive(&self) -> Option<&Bootstrap> {
        match self {
            Source::Archive(archive) | Source::Both(archive, ..) => Some(archive),
            Source::Mirror(_) => None,
        }
    }
}

/// When the newest release was made, by its own word.
fn released(releases: &[Vec<u8>]) -> Result<u64, BuildError> {
    let mut newest = 0;
    for release in releases {
        let text = String::from_utf8_lossy(release);
        let date = text.lines().find_map(|line| line.strip_prefix("Date: ")).unwrap_or_default();
        let seconds = Tool::new("date").args(["--utc", "+%s", "--date", date]).output()?;
        newest = newest.max(String::from_utf8_lossy(&seconds).trim().parse().unwrap_or(0));
    }
    Ok(newest)
}

/// Says which line of the recipe names the package that apt did not find.
pub fn blame(context: &Context, error: ToolError) -> BuildError {
    const UNKNOWN: [(&str, &str); 2] =
        [("E: Unable to locate package ", ""), ("E: Package '", "' has no installation candidate")];
    if let ToolError::Failed { said, .. } = &error {
        let package =
            |(before, behind): (&str, &str)| said.strip_prefix(before)?.strip_suffix(behind).map(str::to_owned);
        if let Some(blamed) = UNKNOWN.into_iter().find_map(package).and_then(|name| context.recipe.blame_package(&name))
        {
            return blamed.into();
        }
    }
    error.into()
}

/// Whether a file is the one that is meant.
pub fn check_sum(path: &Path, expected: &str) -> Result<(), BuildError> {
    let actual = super::Digest::of_file(path).map_err(BuildError::io("reading", path))?.hex();
    if actual == expected {
        return Ok(());
    }
    Err(BuildError::Checksum { path: path.to_owned(), expected: expected.to_owned(), actual })
}
