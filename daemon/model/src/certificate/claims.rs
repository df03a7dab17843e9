//! What a certificate says.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use super::key::Keeping;
use crate::image::Image;
use crate::job::{Job, JobId, JobState, Kind, Requester};
use crate::partitions::Partition;
use crate::reset::audit::Check;
use crate::reset::{Grade, Keep, Scope, Step};
use crate::state::{DeviceState, Volume};
use crate::time::Timestamp;

/// Version of the claims that this code writes, and the only one it reads. Within a version, claims are only added, and
/// words may come that this code does not know: a scope, a grade, a check, a place for keys.
pub const VERSION: u32 = 1;

/// What a certificate says. Everything in it is the device's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    version: u32,
    /// When it was signed; the name is that of RFC 7519.
    #[serde(rename = "iat")]
    pub issued_at: Timestamp,
    /// Name of the [`Keeping`] of the key that signed it.
    pub key_kept_in: String,
    /// The image that the device ran when it signed.
    pub image: Image,
    /// Name of the reset's job.
    pub job: JobId,
    /// Name of the [`Scope`].
    pub scope: String,
    /// Name of the plan that said what would be done, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Uuid>,
    /// Who asked.
    pub requested_by: Requester,
    /// When it was asked.
    pub requested_at: Timestamp,
    /// When the initrd began.
    pub begun_at: Option<Timestamp>,
    /// When the last step was done.
    pub finished_at: Option<Timestamp>,
    /// What became of each partition.
    pub targets: Vec<Target>,
    /// Paths that survived, with everything in them; `/` if the overlay has the same contents under a new key.
    pub kept: Vec<String>,
    /// LUKS UUID of the volume that was erased, if there was one to be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_volume: Option<Uuid>,
    /// LUKS UUID of the volume that the reset made, if the device still has that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_volume: Option<Uuid>,
    /// What was looked for afterwards, on the disk.
    pub audit: Vec<Checked>,
}

/// A partition, and what became of its contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its label.
    pub partition: String,
    /// Name of the [`Grade`].
    pub grade: String,
}

/// A check of the audit, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Name of the [`Subject`](crate::reset::audit::Subject).
    pub check: String,
    /// Whether it is as it should be.
    pub passed: bool,
    /// What was seen.
    pub seen: String,
}

/// Why a job has no certificate.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoCertificate {
    /// It erased nothing.
    #[error("job {id} is a {kind}, and there are certificates of resets only; `nemosctl reset history` lists them")]
    NotAReset {
        /// The job.
        id: JobId,
        /// What it is.
        kind: Kind,
    },
    /// It is not done, or never will be.
    #[error("job {id} is {state}: there is a certificate only of what was done to its end")]
    NotDone {
        /// The job.
        id: JobId,
        /// Its state.
        state: JobState,
    },
}

/// Whether there is a certificate of such a job, and of which scope; to be asked before a key is made for it.
pub fn certifiable(job: &Job) -> Result<Scope, NoCertificate> {
    match job.kind {
        Kind::Reset { scope } if job.state == JobState::Done => Ok(scope),
        Kind::Reset { .. } => Err(NoCertificate::NotDone { id: job.id, state: job.state }),
        _ => Err(NoCertificate::NotAReset { id: job.id, kind: job.kind }),
    }
}

impl Claims {
    /// What can be said of that job by the device that remembers this.
    pub fn new(
        job: &Job,
        state: &DeviceState,
        image: Image,
        keeping: Keeping,
        now: Timestamp,
    ) -> Result<Self, NoCertificate> {
        let scope = certifiable(job)?;
        Ok(Claims {
            version: VERSION,
            issued_at: now,
            key_kept_in: keeping.to_string(),
            image,
            job: job.id,
            scope: scope.to_string(),
            plan: job.plan,
            requested_by: job.requested_by.clone(),
            requested_at: job.requested_at,
            begun_at: job.begun_at,
            finished_at: job.finished_at,
            targets: job.grades().iter().map(Target::from).collect(),
            kept: match job.kept() {
                Keep::Paths(paths) => paths.into_iter().map(String::from).collect(),
                Keep::Everything(_) => vec!["/".to_owned()],
            },
            old_volume: job.survey.as_ref().and_then(|survey| survey.volume),
            new_volume: volume_of(job, state),
            audit: job.audit.iter().flat_map(|audit| &audit.checks).map(Checked::from).collect(),
        })
    }
}

/// The volume that the job made, unless a later one has made another, or begun to.
fn volume_of(job: &Job, state: &DeviceState) -> Option<Uuid> {
    let touches = |job: &&Job| job.has_done(Step::DestroyKeys) || job.has_done(Step::CreateVolume);
    let last = state.jobs().iter().rev().find(touches)?;
    match state.volume {
        Volume::Provisioned(identity) if last.id == job.id => Some(identity.uuid),
        _ => None,
    }
}

impl From<&(Partition, Grade)> for Target {
    fn from((partition, grade): &(Partition, Grade)) -> Self {
        Target { partition: partition.to_string(), grade: grade.name().to_owned() }
    }
}

impl From<&Check> for Checked {
    fn from(check: &Check) -> Self {
        Checked { check: check.check.to_string(), passed: check.passed, seen: check.seen.clone() }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::keys::Identity;
    use crate::partitions::Partition;
    use crate::reset::audit::{Audit, Subject, Survey};
    use crate::state::{AtBoot, Outcome, Request, Wanted};

    /// What a device says of its reset.
    pub fn claims() -> Claims {
        let (state, reset) = after_reset();
        claims_of(&state, reset).unwrap()
    }

    fn claims_of(state: &DeviceState, job: JobId) -> Result<Claims, NoCertificate> {
        let image = Image { id: "nemos-image".into(), version: "1.2.3".into() };
        Claims::new(state.job(job).unwrap(), state, image, Keeping::Tpm, Timestamp(100))
    }

    const FIRST_BOOT: JobId = JobId::from_random(1);
    const PLAN: Uuid = Uuid::from_u128(17);

    fn asked(state: &mut DeviceState, id: JobId) {
        let by = Requester {
            uid: 1000,
            user: Some("admin".into()),
            process: Some("nemosctl[7]".into()),
            label: Some("returned".into()),
        };
        let request = Request {
            wanted: Wanted::Reset {
                scope: Scope::Overlay,
                keep: Keep::Paths(vec!["/etc/hostname".parse().unwrap()]),
                plan: Some(PLAN),
            },
            by,
            key: None,
            not_before: None,
            reboot: true,
        };
        state.request(request, id, Timestamp(20)).unwrap();
    }

    /// Boots: carries out what is to be carried out, and makes this volume.
    fn booted(state: &mut DeviceState, volume: u128) {
        let AtBoot::CarryOut(job) = state.begin_at_boot(FIRST_BOOT, false, Timestamp(30)).unwrap() else {
            panic!("there is nothing to do");
        };
        while let Some(step) = state.job(job).unwrap().next_step() {
            let outcome = match step {
                Step::Survey => {
                    Outcome::Surveyed(Survey { volume: Some(Uuid::from_u128(volume - 1)), ..Survey::default() })
                }
                Step::CreateVolume => Outcome::Volume(Identity { uuid: Uuid::from_u128(volume), key: None }),
                Step::Audit => Outcome::Audited(audit()),
                _ => Outcome::Done,
            };
            state.step_done(job, outcome, Timestamp(40)).unwrap();
        }
    }

    fn audit() -> Audit {
        Audit { checks: vec![Check { check: Subject::OldHeader, passed: true, seen: "0 of 2".into() }] }
    }

    fn after_reset() -> (DeviceState, JobId) {
        let (mut state, reset) = (DeviceState::shipped(), JobId::from_random(2));
        booted(&mut state, 7);
        asked(&mut state, reset);
        booted(&mut state, 8);
        (state, reset)
    }

    #[test]
    fn a_reset_that_was_done_is_told_with_who_when_and_what() {
        let claims = claims();
        assert_eq!((claims.scope.as_str(), claims.plan), ("overlay", Some(PLAN)));
        assert_eq!((claims.requested_by.uid, claims.requested_by.label.as_deref()), (1000, Some("returned")));
        assert_eq!((claims.requested_at, claims.finished_at), (Timestamp(20), Some(Timestamp(40))));
        assert_eq!((claims.old_volume, claims.new_volume), (Some(Uuid::from_u128(7)), Some(Uuid::from_u128(8))));
    }

    #[test]
    fn what_was_not_erased_is_told_too() {
        let claims = claims();
        let grade = |partition: Partition| {
            let target = claims.targets.iter().find(|target| target.partition == partition.label()).unwrap();
            target.grade.clone()
        };
        assert_eq!(grade(Partition::Root), "key-destroyed");
        assert_eq!(grade(Partition::Home), "untouched");
        assert_eq!(claims.kept, ["/etc/hostname"]);
        assert_eq!(claims.audit, [Checked { check: "old-header".into(), passed: true, seen: "0 of 2".into() }]);
    }

    #[test]
    fn what_is_not_a_reset_that_was_done_has_no_certificate() {
        let (mut state, _) = after_reset();
        let kind = Kind::Provision;
        assert_eq!(claims_of(&state, FIRST_BOOT), Err(NoCertificate::NotAReset { id: FIRST_BOOT, kind }));
        let id = JobId::from_random(3);
        asked(&mut state, id);
        assert_eq!(claims_of(&state, id), Err(NoCertificate::NotDone { id, state: JobState::WaitingForReboot }));
        state.cancel(id, Timestamp(50)).unwrap();
        assert_eq!(claims_of(&state, id), Err(NoCertificate::NotDone { id, state: JobState::Cancelled }));
    }

    #[test]
    fn a_later_reset_does_not_lend_an_earlier_one_its_volume() {
        let (mut state, earlier) = after_reset();
        let later = JobId::from_random(3);
        asked(&mut state, later);
        booted(&mut state, 9);
        assert_eq!(claims_of(&state, earlier).unwrap().new_volume, None);
        assert_eq!(claims_of(&state, later).unwrap().new_volume, Some(Uuid::from_u128(9)));
    }
}
