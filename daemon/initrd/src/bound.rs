//! Whether the overlay's volume is this device's: as its state says, and its TPM, if it has one.

use std::time::Duration;

use nemos_host::keys::{bind, bound};
use nemos_host::time::wait_for;
use nemos_model::boot::Reason;
use nemos_model::keys::bound::Bound;
use nemos_model::keys::{Identity, Provider};
use nemos_model::state::Volume;
use tracing::{info, warn};

/// How long a TPM may take to answer.
const ANSWERS: Duration = Duration::from_secs(10);

/// Refuses a volume that is another's. `expected` is what the state says, if it can be read.
pub fn check(found: &Identity, expected: Option<Volume>) -> Result<Bound, Reason> {
    let bound = bound();
    if expected.is_some_and(|volume| !volume.is(found)) || !bound.allows(found) {
        return Err(Reason::OverlayForeign { uuid: found.uuid });
    }
    Ok(bound)
}

/// Has the TPM keep which volume it is that was made, or taken over, before the state says so. A TPM that does not is no reason
/// to stop, unless it would refuse that volume from now on.
pub fn bind_new(made: &Identity) -> Result<(), String> {
    let before = bound();
    if before == Bound::NoTpm {
        return Ok(());
    }
    // One that does not answer yet may keep another, and the next boot would go by that.
    let bound = wait_for(ANSWERS, || bind(&made.fingerprint()).ok());
    match bound.map_or_else(|| bind(&made.fingerprint()), Ok) {
        Ok(()) => info!("the TPM keeps which volume is this device's"),
        Err(error) if before.allows(made) => warn!("{error}"),
        Err(error) => return Err(error.to_string()),
    }
    Ok(())
}

/// Has a TPM that keeps nothing keep which volume it is that was opened, if who opened it vouches for it. Gives why nobody does.
pub fn bind_opened(bound: &Bound, opened: &Identity, provider: Provider) -> Option<String> {
    if !bound.begins_with(provider) {
        return bound.trouble();
    }
    bind(&opened.fingerprint())
        .inspect(|()| info!("the TPM keeps which volume is this device's from now on"))
        .err()
        .map(|error| error.to_string())
}
