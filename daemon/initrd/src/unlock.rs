//! The ways into the overlay's volume.

use std::path::Path;

use nemos_host::keys::{self, Moment, Unlocked, order, slots};
use nemos_model::Timestamp;
use nemos_model::keys::Slot;

/// Finds a key that opens the volume, in the order of the image whose root is mounted there. Says when its slot was made, if that
/// was recorded.
pub fn unlock(partition: &Path, root: &Path) -> Result<(Unlocked, Option<Timestamp>), String> {
    let slots = slots(partition).map_err(|error| error.to_string())?;
    let unlocked = keys::unlock(partition, &slots, &order(root), Moment::Boot)?;
    let created = slots.iter().find(|slot| slot.id == unlocked.slot).and_then(Slot::created);
    Ok((unlocked, created))
}
