//! The ways into the overlay's volume.

mod ask;
mod change;
mod context;
mod demo_key;
mod escrow;
mod header;
mod key_file;
mod passphrase;
mod policy;
mod recovery_key;
mod secret;
mod tpm2;
mod way;

pub use change::{BACKUP, ChangeError, Keys, Memory, NewKey, destroy_backup};
pub use escrow::{EscrowError, Recipient};
pub(crate) use header::{keyslot, open_by_tpm2, pbkdf, record};
pub use header::{slots, try_key, try_secret};
pub use policy::{PolicyError, order, policy};
pub use secret::{KeyFileError, Secret, SecretError, read_key_file};
pub use tpm2::has_tpm2;
pub use way::{Given, Moment, Unlocked, Way, try_slot, unlock, way};

/// What opens a volume.
#[derive(Debug)]
pub enum Key {
    /// These bytes.
    Secret(Secret),
    /// What the device's TPM keeps.
    Tpm2,
}
