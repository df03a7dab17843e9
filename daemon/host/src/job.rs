//! Names for jobs.

use nemos_model::JobId;
use uuid::Uuid;

/// A name that no job had before.
pub fn new_id() -> JobId {
    JobId::from_random(Uuid::new_v4().as_u128())
}
