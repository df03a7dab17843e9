//! What the TPM keeps of the overlay's volume.

use std::io;
use std::path::Path;

use nemos_model::keys::bound::{Bound, Fingerprint};
use nemos_model::keys::nv;
use thiserror::Error;

use crate::keys::tpm2::{DEVICE, ask, has_tpm2};

/// A TPM that does not keep what it should.
#[derive(Debug, Error)]
pub enum BindError {
    /// It cannot be asked.
    #[error("cannot ask {DEVICE}: {0}")]
    NotAsked(#[from] io::Error),
    /// It refuses.
    #[error("{DEVICE} does not keep which volume is this device's: {0}")]
    Refused(#[from] nv::Refused),
}

/// What it keeps now.
pub fn bound() -> Bound {
    if has_tpm2() {
        read(Path::new(DEVICE)).unwrap_or_else(|error| Bound::Unknown(error.to_string()))
    } else {
        Bound::NoTpm
    }
}

fn read(device: &Path) -> Result<Bound, BindError> {
    let found = nv::found(&ask(device, &nv::read())?)?;
    Ok(found.map_or(Bound::ToNothing, Bound::To))
}

/// Has it keep that from now on; when this returns, it does.
pub fn bind(fingerprint: &Fingerprint) -> Result<(), BindError> {
    let device = Path::new(DEVICE);
    nv::defined(&ask(device, &nv::define())?)?;
    Ok(nv::written(&ask(device, &nv::write(fingerprint))?)?)
}
