//! `nemosctl status --against-manifest`: whether the device runs what was built.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nemos_model::boot::CommandLine;
use nemos_model::image::OS_RELEASE;
use nemos_model::manifest::{BadManifest, Difference, Manifest, Running};
use nemos_model::overlay::LOWER_MOUNT;
use serde::Serialize;
use thiserror::Error;

use crate::Failure;
use crate::output::Output;

/// dpkg's book.
const DPKG_STATUS: &str = "/var/lib/dpkg/status";
const COMMAND_LINE: &str = "/proc/cmdline";

/// Why nothing can be compared.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// A file that is needed.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is no manifest.
    #[error("{}: {source}; give the .manifest.json that `nemos-image build` left next to the disk image", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: BadManifest,
    },
}

/// All that is shown. This is also the shape of `--json`; keys are added, never changed.
#[derive(Debug, Serialize)]
struct Comparison {
    /// The image that the manifest is of.
    image: String,
    version: String,
    build: String,
    /// Whether the root hash was compared too.
    root_hash: bool,
    packages: usize,
    /// `[{"what", "expected", "found"}]`; empty if nothing differs.
    differences: Vec<Difference>,
}

/// Compares, prints, and says how to exit.
pub fn run(file: &Path, output: Output) -> Result<u8, Failure> {
    let text = read(file)?;
    let manifest =
        Manifest::parse(&text).map_err(|source| ManifestError::Malformed { path: file.to_owned(), source })?;
    // What is verified, and not what the overlay shows in its place.
    let os_release = read(&Path::new(LOWER_MOUNT).join(OS_RELEASE))?;
    let root_hash = CommandLine::parse(&read(Path::new(COMMAND_LINE))?).ok().map(|line| line.root_hash);
    let running = Running { os_release, root_hash, dpkg_status: read(Path::new(DPKG_STATUS))? };
    let comparison = Comparison::new(&manifest, &running);
    output.show(&comparison, Comparison::render)?;
    Ok(u8::from(!comparison.differences.is_empty()))
}

fn read(path: &Path) -> Result<String, ManifestError> {
    fs::read_to_string(path).map_err(|source| ManifestError::Unreadable { path: path.to_owned(), source })
}

impl Comparison {
    fn new(manifest: &Manifest, running: &Running) -> Self {
        Comparison {
            image: manifest.image.clone(),
            version: manifest.version.clone(),
            build: manifest.build.clone(),
            root_hash: manifest.disk.is_some(),
            packages: manifest.packages.len(),
            differences: manifest.differences(running),
        }
    }

    fn render(&self) -> String {
        let Comparison { image, version, build, packages, .. } = self;
        let root_hash = if self.root_hash { "root hash and " } else { "" };
        let head = format!("{image} {version}, build {build}, {root_hash}{packages} packages");
        if self.differences.is_empty() {
            return format!("{head}: as it was built\n");
        }
        let mut text = format!("{head}: {} not as it was built\n", self.differences.len());
        for difference in &self.differences {
            let _ = writeln!(text, "  {difference}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_listed_below_what_was_compared() {
        let difference = |what: &str| Difference { what: what.into(), expected: Some("1".into()), found: None };
        let comparison = |differences| Comparison {
            image: "nemos-default".into(),
            version: "0.1.0".into(),
            build: "0123".into(),
            root_hash: true,
            packages: 2,
            differences,
        };
        let same = comparison(vec![]).render();
        assert_eq!(same, "nemos-default 0.1.0, build 0123, root hash and 2 packages: as it was built\n");
        let told = comparison(vec![difference("package vim:amd64")]).render();
        assert_eq!(
            told,
            "nemos-default 0.1.0, build 0123, root hash and 2 packages: 1 not as it was built\n  \
             package vim:amd64: none, and should be 1\n"
        );
    }
}
