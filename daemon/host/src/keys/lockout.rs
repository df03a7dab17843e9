//! Asks the TPM whether it is locked out.

use std::path::Path;

use nemos_model::keys::lockout::{Lockout, QUESTION, lockout as understand};
use tracing::debug;

use crate::keys::tpm2::{DEVICE, ask};

/// The TPM, if it is locked out; one that does not say so is not.
pub fn lockout() -> Option<Lockout> {
    let answer = ask(Path::new(DEVICE), &QUESTION);
    understand(&answer.inspect_err(|error| debug!("cannot ask {DEVICE} whether it is locked out: {error}")).ok()?)
}
