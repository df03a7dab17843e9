//! Where Debian comes from: what the host's own apt is configured with.

use std::path::Path;

use thiserror::Error;

use super::tool::{Tool, ToolError};
use crate::recipe::Debian;

const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

/// Seconds that a mirror has to answer; apt asks a silent one twice.
const PATIENCE: u32 = 8;

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

    /// Asks for the release file.
    fn release(&self, scratch: &Path) -> Result<Vec<u8>, MirrorError> {
        let Archive { uri, suite, .. } = self;
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

impl Mirror {
    /// The mirror that was given, or else the host's.
    pub fn find(given: Option<&str>, debian: &Debian) -> Result<Self, MirrorError> {
        let archive =
            |uri: &str, suite: String| Archive { uri: uri.to_owned(), suite, components: debian.components.clone() };
        let settings = settings(&text(&Tool::new("apt-config").arg("dump").output()?));
        let archives = if let Some(uri) = given {
            vec![archive(uri, debian.suite.clone())]
        } else {
            let (main, security) = host_repositories()?;
            let mut archives = vec![archive(&main, debian.suite.clone())];
            archives.extend(security.map(|uri| archive(&uri, format!("{}-security", debian.suite))));
            archives
        };
        Ok(Mirror { archives, settings })
    }

    /// Asks every archive what it has; the answer changes whenever a package does.
    pub fn releases(&self, scratch: &Path) -> Result<Vec<Vec<u8>>, MirrorError> {
        self.archives.iter().map(|archive| archive.release(scratch)).collect()
    }
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

/// Where the host gets Debian from, and Debian's security updates.
fn host_repositories() -> Result<(String, Option<String>), MirrorError> {
    let targets =
        Tool::new("apt-get").args(["indextargets", "--format", "$(LABEL)\t$(REPO_URI)", "Created-By: Packages"]);
    let targets = text(&targets.output()?);
    if let Some(main) = by_label(&targets, "Debian") {
        return Ok((main, by_label(&targets, "Debian-Security")));
    }
    // apt knows a label only after its first update; what it would fetch then, it can tell.
    let os_release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or("stable");
    let uris = text(&Tool::new("apt-get").args(["update", "--print-uris"]).output()?);
    let main = by_release(&uris, &format!("{codename}-updates")).or_else(|| by_release(&uris, codename));
    Ok((main.ok_or(MirrorError::None)?, by_release(&uris, &format!("{codename}-security"))))
}

/// The address of the first repository with that label.
fn by_label(targets: &str, label: &str) -> Option<String> {
    let named = targets.lines().filter_map(|line| line.split_once('\t'));
    let mut uris = named.filter(|(known, _)| *known == label).map(|(_, uri)| uri.trim_end_matches('/'));
    uris.find(|uri| !uri.is_empty()).map(str::to_owned)
}

/// The address of the first repository with that release. Third parties name theirs after Debian's, but have no updates.
fn by_release(uris: &str, release: &str) -> Option<String> {
    let end = format!("/dists/{release}/InRelease");
    let first = |line: &str| line.split('\'').nth(1)?.strip_suffix(&end).map(str::to_owned);
    uris.lines().find_map(first)
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
        assert_eq!(by_label(targets, "Debian").as_deref(), Some("http://m.example/debian"));
        assert_eq!(by_label(targets, "Debian-Security").as_deref(), Some("http://s.example/debian-security"));
        assert_eq!(by_label(targets, "Ubuntu"), None);
    }

    #[test]
    fn before_the_first_update_it_is_found_by_its_release() {
        let uris = "'https://third.example/linux/debian/dists/bookworm/InRelease' third_InRelease 0 \n\
                    'http://m.example/debian/dists/bookworm/InRelease' m_InRelease 0 \n\
                    'http://m.example/debian/dists/bookworm-updates/InRelease' m-updates_InRelease 0 \n";
        assert_eq!(by_release(uris, "bookworm-updates").as_deref(), Some("http://m.example/debian"));
        assert_eq!(by_release(uris, "trixie"), None);
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
