//! How the device is, as a whole.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::integrity::VERITY_MAPPING;
use crate::job::{Job, JobState};
use crate::overlay::UPPER_MOUNT;
use crate::partitions::Partition;
use crate::stack::{LayerState, Observed, layers};

/// The verdict, worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Nothing to do.
    Ok,
    /// Somebody should look.
    Warning,
    /// Something does not work, or is not safe.
    Critical,
}

impl Health {
    /// The name used on the bus.
    pub const fn name(self) -> &'static str {
        match self {
            Health::Ok => "ok",
            Health::Warning => "warning",
            Health::Critical => "critical",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad.
    pub health: Health,
    /// What, and what to do.
    pub message: String,
}

const DEMO_KEY: &str = "demo key in use: whoever has the image can open this device's overlay";

const USED_RECOVERY_KEY: &str = "a recovery key was used, and is known now to whoever typed it: have the device make another (`nemosctl keys recovery create --rotate`)";

/// Percent of a file system in use from which on somebody should make room, and from which on hardly anything fits.
pub const NEARLY_FULL: u64 = 90;
/// See [`NEARLY_FULL`].
pub const FULL: u64 = 98;

/// What there is little room left on, of what a device cannot do without: for content, or for names.
fn space(seen: &Observed) -> impl Iterator<Item = Finding> {
    let places = [UPPER_MOUNT, Partition::State.mount_point().unwrap_or_default()];
    seen.mounts.iter().filter(move |mount| places.contains(&mount.target.as_str())).filter_map(|mount| {
        let full = [(percent(mount.used, mount.size), ""), (percent(mount.names_used, mount.names), " of files")];
        let (percent, of) = full.into_iter().max_by_key(|(percent, of)| (*percent, of.is_empty()))?;
        let health = match percent {
            ..NEARLY_FULL => return None,
            NEARLY_FULL..FULL => Health::Warning,
            FULL.. => Health::Critical,
        };
        let what = if mount.target == UPPER_MOUNT {
            "delete what is not needed on /, or take it back; `nemosctl overlay usage` says what takes the room"
        } else {
            "it holds jobs and events"
        };
        Some(Finding { health, message: format!("{} is {percent} % full{of}; {what}", mount.target) })
    })
}

fn percent(used: u64, size: u64) -> u64 {
    let percent = (u128::from(used) * 100).checked_div(u128::from(size)).unwrap_or_default();
    u64::try_from(percent).unwrap_or(u64::MAX)
}

/// A volume does not grow with its partition: its new blocks would have no tags.
fn grown(seen: &Observed) -> Option<Finding> {
    let bytes = seen.unused()?;
    let message = format!(
        "{} MiB of {} are not used: it has grown, and an encrypted volume with integrity cannot; `nemosctl reset --overlay` makes one of all of it",
        bytes >> 20,
        Partition::Root
    );
    Some(Finding { health: Health::Warning, message })
}

/// Everything that is not as it should be; empty on a healthy device.
///
/// `last` is the newest job, or why the device's memory cannot be read: a job that failed is a finding until another was
/// done.
pub fn findings(seen: &Observed, last: Result<Option<&Job>, &str>) -> Vec<Finding> {
    let critical = |message| Finding { health: Health::Critical, message };
    let warning = |message| Finding { health: Health::Warning, message };

    let mut findings: Vec<Finding> = layers(seen)
        .into_iter()
        .filter(|layer| layer.state == LayerState::Failed)
        .map(|layer| critical(format!("{} ({}): {}", layer.name, layer.kind, layer.detail)))
        .collect();
    findings.extend(seen.degraded().into_iter().map(critical));
    let root = seen.mapping_named(VERITY_MAPPING).and_then(|mapping| mapping.table.as_ref());
    if root.is_some_and(|table| !table.signed) {
        let message = "the root is verified, and its root hash is not signed: whoever can write the disk can put another \
                       one there; `nemos-image build --keys` makes a signed image";
        findings.push(warning(message.into()));
    }
    findings.extend(seen.report.iter().flat_map(|report| &report.repaired).map(|partition| {
        warning(format!(
            "{partition} was broken and repaired at this boot, as after a power cut; `journalctl -b` says how"
        ))
    }));
    findings.extend(space(seen));
    findings.extend(grown(seen));
    if seen.demo_key_opens() {
        findings.push(warning(DEMO_KEY.into()));
    }
    if let Some(tried) = seen.report.as_ref().and_then(|report| report.went_back.as_ref()) {
        findings.push(warning(format!(
            "this boot went back from {tried}: nobody had confirmed it (`nemosctl overlay confirm`)"
        )));
    }
    if seen.recovery_key_was_used() {
        findings.push(warning(USED_RECOVERY_KEY.into()));
    }
    let volume = seen.report.as_ref().and_then(|report| report.volume.as_ref());
    if let Some(why) = volume.and_then(|volume| volume.unbound.as_ref()) {
        findings.push(warning(format!(
            "the TPM does not vouch for the overlay's volume, which another may have put there ({why}); a boot that is opened by a passphrase or recovery key has it vouch, and so does `nemosctl reset --overlay`"
        )));
    }
    if volume.is_some_and(|volume| volume.built) {
        findings.push(warning(
            "the overlay's volume key and passphrase came from the build of the image: whoever built or has it can read the overlay, even when the passphrase is another one; `nemosctl reset --overlay` makes one with a key of its own"
                .into(),
        ));
    }
    match last {
        Err(error) => findings.push(critical(format!("the device's memory cannot be used: {error}"))),
        Ok(Some(job)) if job.state == JobState::Failed => {
            let Job { id, kind, .. } = job;
            let next = format!("`nemosctl job retry {id}` tries again, `nemosctl job cancel {id}` gives it up");
            findings.push(critical(format!("job {id} ({kind}) failed; {next}")));
        }
        Ok(Some(job)) if job.state == JobState::WaitingForReboot => {
            findings.push(warning(format!("job {} ({}) waits for a reboot", job.id, job.kind)));
        }
        Ok(_) => {}
    }
    findings
}

/// The worst of the findings.
pub fn verdict(findings: &[Finding]) -> Health {
    findings.iter().map(|finding| finding.health).max().unwrap_or(Health::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::tests::{open_volume, report};
    use crate::boot::{BootReport, OpenVolume};
    use crate::overlay::LUKS_MAPPING;
    use crate::stack::{SeenMapping, SeenMount, SeenPartition};

    #[test]
    fn a_volume_that_came_with_the_image_is_no_secret() {
        let told = |built| {
            let report = BootReport { volume: Some(OpenVolume { built, ..open_volume() }), ..report() };
            let findings = findings(&Observed { report: Some(report), ..Observed::default() }, Ok(None));
            findings.iter().any(|finding| finding.health == Health::Warning && finding.message.contains("volume key"))
        };
        assert!(told(true));
        assert!(!told(false));
    }

    #[test]
    fn room_is_told_before_it_is_gone() {
        let told = |target: &str, used: u64| {
            let mount = SeenMount {
                target: target.into(),
                source: String::new(),
                fs_type: "xfs".into(),
                read_only: false,
                size: 1000,
                used,
                ..SeenMount::default()
            };
            let seen = Observed { mounts: vec![mount], ..Observed::default() };
            space(&seen).map(|finding| finding.health).collect::<Vec<_>>()
        };
        assert_eq!(told(UPPER_MOUNT, 899), []);
        assert_eq!(told(UPPER_MOUNT, 900), [Health::Warning]);
        assert_eq!(told("/var/lib/nemos", 980), [Health::Critical]);
        assert_eq!(told("/home", 1000), [], "that is the users' own");
        let mount =
            SeenMount { target: UPPER_MOUNT.into(), size: 1000, names: 100, names_used: 98, ..SeenMount::default() };
        let findings: Vec<_> = space(&Observed { mounts: vec![mount], ..Observed::default() }).collect();
        assert_eq!(findings[0].health, Health::Critical);
        assert!(findings[0].message.contains("98 % full of files"), "{}", findings[0].message);
    }

    #[test]
    fn a_partition_that_has_grown_is_told() {
        let told = |mib: u64| {
            let partition = SeenPartition { partition: Partition::Root, device: String::new(), size: mib << 20 };
            let volume = SeenMapping {
                name: LUKS_MAPPING.into(),
                target: "crypt".into(),
                status: String::new(),
                table: None,
                device: String::new(),
                size: 488 << 20,
            };
            let seen = Observed { partitions: vec![partition], mappings: vec![volume], ..Observed::default() };
            grown(&seen).map(|finding| finding.message)
        };
        assert_eq!(told(512), None, "what the volume needs for itself");
        assert!(told(1024).unwrap().starts_with("468 MiB of p.lxroot"));
    }
}
