//! Where Debian comes from: what the host's own apt is configured with.

use std::path::Path;

use thiserror::Error;

use super::tool::{Tool, ToolError};
use crate::recipe::Debian;

const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

/// Seconds that a mirror has to answer.
const PATIENCE: u32 = 10;

/// Settings of the host's apt that decide how a mirror is reached and believed.
const SETTINGS: [&str; 8] = [
    "Acquire::http::",
    "Acquire::https::",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Max-FutureTime",
    "Acquire::ForceIPv4",
    "Acquire::ForceIPv6",
    "Acquire::Retries",
];

/// Why there is nothing to install from.
#[derive(Debug, Error)]
pub enum MirrorError {
    /// The host has no Debian mirror.
    #[error("the host's apt knows no Debian mirror; run: sudo apt-get update, or give --mirror URL")]
    None,
    /// The mirror does not answer, or has no such release.
    #[error("the mirror {uri} does not give {suite}: {said}; check the network, or give another one with --mirror URL")]
    Silent {
        /// The mirror.
        uri: String,
        /// The release that was asked for.
        suite: String,
        /// What apt says.
        said: String,
    },
    /// apt itself fails.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// What it answered cannot be read back.
    #[error("the answer of the mirror cannot be read: {0}")]
    Io(#[from] std::io::Error),
}

/// One archive, as a line of `sources.list` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// Its address.
    pub uri: String,
    /// The release in it.
    pub suite: String,
    /// Components of the release.
    pub components: Vec<String>,
}

/// The archives that a root is made from, and how to reach them.
#[derive(Debug)]
pub struct Mirror {
    /// The release, and its security updates if the host uses them.
    pub archives: Vec<Archive>,
    /// Settings for apt, `Name "value";` each.
    pub settings: Vec<String>,
}

impl Archive {
    /// The line for `sources.list`.
    pub fn line(&self) -> String {
        format!("deb {} {} {}", self.uri, self.suite, self.components.join(" "))
    }
}

impl Mirror {
    /// The mirror that was given, or else the host's.
    pub fn find(given: Option<&str>, debian: &Debian) -> Result<Self, MirrorError> {
        let archive =
            |uri: &str, suite: String| Archive { uri: uri.to_owned(), suite, components: debian.components.clone() };
        let settings = settings(&text(Tool::new("apt-config").arg("dump").output()?));
        let archives = if let Some(uri) = given {
            vec![archive(uri, debian.suite.clone())]
        } else {
            let format = "$(LABEL)\t$(REPO_URI)";
            let targets = Tool::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]);
            let targets = text(targets.output()?);
            let main = repository(&targets, "Debian").ok_or(MirrorError::None)?;
            let mut archives = vec![archive(main, debian.suite.clone())];
            if let Some(security) = repository(&targets, "Debian-Security") {
                archives.push(archive(security, format!("{}-security", debian.suite)));
            }
            archives
        };
        Ok(Mirror { archives, settings })
    }

    /// Asks every archive what it has; the answer changes whenever a package does.
    pub fn releases(&self, scratch: &Path) -> Result<Vec<Vec<u8>>, MirrorError> {
        self.archives.iter().map(|archive| self.release(archive, scratch)).collect()
    }

    fn release(&self, archive: &Archive, scratch: &Path) -> Result<Vec<u8>, MirrorError> {
        let Archive { uri, suite, .. } = archive;
        let file = scratch.join("InRelease");
        let asked = Tool::new(APT_HELPER)
            .args(["-o", "Acquire::Retries=0"])
            .args(["http", "https"].map(|scheme| format!("-oAcquire::{scheme}::Timeout={PATIENCE}")))
            .args(["http", "https"].map(|scheme| format!("-oAcquire::{scheme}::ConnectionAttemptDelayMsec=250")))
            .arg("download-file")
            .arg(format!("{}/dists/{suite}/InRelease", uri.trim_end_matches('/')))
            .arg(&file)
            .run();
        match asked {
            Ok(()) => {
                let release = std::fs::read(&file)?;
                std::fs::remove_file(&file)?;
                Ok(release)
            }
            Err(ToolError::Failed { said, .. }) => {
                Err(MirrorError::Silent { uri: uri.clone(), suite: suite.clone(), said: said.replace("E: ", "") })
            }
            Err(other) => Err(other.into()),
        }
    }
}

fn text(output: Vec<u8>) -> String {
    String::from_utf8_lossy(&output).into_owned()
}

/// The address of the first repository with that label.
fn repository<'a>(targets: &'a str, label: &str) -> Option<&'a str> {
    let named = targets.lines().filter_map(|line| line.split_once('\t'));
    named.filter(|(known, _)| *known == label).map(|(_, uri)| uri.trim_end_matches('/')).find(|uri| !uri.is_empty())
}

fn settings(dump: &str) -> Vec<String> {
    dump.lines()
        .filter(|line| SETTINGS.iter().any(|setting| line.starts_with(setting)) && !line.ends_with(" \"\";"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_mirror_is_found_by_its_label() {
        let targets = "Debian Backports\thttp://b.example/debian/\nDebian\thttp://m.example/debian/\n\
                       Debian-Security\thttp://s.example/debian-security/\n";
        assert_eq!(repository(targets, "Debian"), Some("http://m.example/debian"));
        assert_eq!(repository(targets, "Debian-Security"), Some("http://s.example/debian-security"));
        assert_eq!(repository("\thttp://never-updated.example/\n", "Debian"), None);
    }

    #[test]
    fn only_what_concerns_the_mirror_is_taken_over() {
        let dump = "APT \"\";\nAcquire \"\";\nAcquire::http::Proxy \"http://proxy.example:3128\";\n\
                    Acquire::https::CaInfo \"\";\nAcquire::Check-Valid-Until \"false\";\nAcquire::Languages:: \"none\";\n";
        assert_eq!(
            settings(dump),
            ["Acquire::http::Proxy \"http://proxy.example:3128\";", "Acquire::Check-Valid-Until \"false\";"]
        );
    }
}
