//! The ways into the overlay's volume.

use std::path::Path;

use nemos_host::keys::{self, Moment, Unlocked, order, slots};

/// Finds a key that opens the volume, in the order of the image whose root is mounted there.
pub fn unlock(partition: &Path, root: &Path) -> Result<Unlocked, String> {
    let slots = slots(partition).map_err(|error| error.to_string())?;
    keys::unlock(partition, &slots, &order(root), Moment::Boot)
}
