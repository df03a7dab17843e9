//! What a caller asks of the device, and why it is not taken.

use thiserror::Error;
use uuid::Uuid;

use crate::job::{JobId, Kind, MAX_TEXT, Refused, Requester};
use crate::overlay::{ConfigurationName, Tried, Within};
use crate::reset::{Keep, KeptPath, Scope};
use crate::time::Timestamp;

/// What a caller wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Back to the image as it was shipped.
    Reset {
        /// How much.
        scope: Scope,
        /// What to keep.
        keep: Keep,
        /// Name of the plan that says what will be done.
        plan: Option<Uuid>,
    },
    /// Some paths back to what the image has.
    Revert {
        /// Which, as [`revert::decide`](crate::overlay::revert::decide) decided.
        paths: Vec<KeptPath>,
    },
    /// The changes to the root saved.
    Save {
        /// The name for them.
        name: ConfigurationName,
        /// Whether they take the place of what has the name.
        replace: bool,
    },
    /// Saved changes in the place of those that there are.
    Apply {
        /// Which.
        name: ConfigurationName,
        /// The time within which that has to be confirmed, if it has to be.
        within: Option<Within>,
    },
}

impl Wanted {
    /// What a job for it does.
    pub const fn kind(&self) -> Kind {
        match self {
            Wanted::Reset { scope, .. } => Kind::Reset { scope: *scope },
            Wanted::Revert { .. } => Kind::Revert,
            Wanted::Save { .. } => Kind::Save,
            Wanted::Apply { .. } => Kind::Apply,
        }
    }
}

/// What a caller asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub wanted: Wanted,
    /// Who asks.
    pub by: Requester,
    /// Idempotency key.
    pub key: Option<String>,
    /// Not to begin before this.
    pub not_before: Option<Timestamp>,
    /// Reboot by itself when it is due.
    pub reboot: bool,
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotTaken {
    /// Another job has not ended.
    #[error("job {0} has not ended; wait for it, or cancel it first")]
    Busy(JobId),
    /// An earlier reset was given up in the middle, and what it was to keep is nowhere else.
    #[error(
        "job {0} was given up with kept data that waits to be copied back; try it again (`nemosctl job retry {0}`), or give that data up (`nemosctl job cancel {0}`)"
    )]
    KeptDataWaits(JobId),
    /// Something was done to the device since.
    #[error("job {0} is not the latest: the device is not any more what it left")]
    NotTheLatest(JobId),
    /// A text is empty, too long, or not printable.
    #[error("the {0} must be 1 to {MAX_TEXT} bytes of printable text")]
    Text(&'static str),
    /// There is no such job.
    #[error("there is no job {0}")]
    NoSuchJob(JobId),
    /// The idempotency key was given for something else.
    #[error("that idempotency key is the one of job {0}, which was asked for something else")]
    OtherRequest(JobId),
    /// Whether it is to stay has to be said first.
    #[error("{0} is on trial: `nemosctl overlay confirm` keeps it, and the next boot goes back without that")]
    OnTrial(Tried),
    /// There is no trial.
    #[error("nothing is on trial at this boot, and so there is nothing to confirm")]
    NothingOnTrial,
    /// The job's state does not allow it.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// Whether a request made a job, or found the one it made before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// A new job.
    New(JobId),
    /// The job that was made for the same idempotency key.
    Known(JobId),
}

pub(super) fn check_text(what: &'static str, text: Option<&str>) -> Result<(), NotTaken> {
    match text {
        Some(text) if text.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control) => {
            Err(NotTaken::Text(what))
        }
        _ => Ok(()),
    }
}
