//! The ways into the overlay's volume.

mod ask;
mod change;
mod context;
mod escrow;
mod header;
mod policy;
mod secret;
mod tpm2;

pub use ask::{ask, credential};
pub use change::{BACKUP, ChangeError, Keys, Memory, NewKey, destroy_backup};
pub use escrow::{EscrowError, Recipient};
pub(crate) use header::{keyslot, open_by_tpm2, pbkdf, record};
pub use header::{slots, try_key, try_secret};
pub use policy::{PolicyError, policy};
pub use secret::{KeyFileError, Secret, SecretError, read_key_file};
pub use tpm2::has_tpm2;

/// What opens a volume.
#[derive(Debug)]
pub enum Key {
    /// These bytes.
    Secret(Secret),
    /// What the device's TPM keeps.
    Tpm2,
}
