//! Points in time, as they are stored and sent.

use serde::{Deserialize, Serialize};

/// Seconds since the Unix epoch, by the device's own clock (which may be wrong before the network is up).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);
