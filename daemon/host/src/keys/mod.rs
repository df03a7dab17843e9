//! The ways into the overlay's volume.

mod ask;
mod bound;
mod change;
mod context;
mod cryptenroll;
mod demo_key;
mod escrow;
mod esp;
mod handover;
mod header;
mod key_file;
mod lockout;
mod next_boot;
mod passphrase;
mod pkcs11;
mod policy;
mod recovery_key;
mod secret;
mod tpm2;
mod way;

pub use bound::{BindError, bind, bound};
pub use change::{BACKUP, ChangeError, Keys, Memory, NewKey, destroy_backup};
pub use escrow::{EscrowError, Recipient};
pub use handover::{Handover, NotFetched};
pub(crate) use header::{keyslot, open_by_token, pbkdf, record};
pub use header::{slots, try_key, try_secret};
pub use next_boot::{Traces, next_boot, traces};
pub use policy::{order, policy};
pub use secret::{KeyFileError, Secret, SecretError, read_key_file};
pub use tpm2::{has_tpm2, tpm2_tokens, wait_for_tpm2};
pub use way::{Given, Moment, Unlocked, Way, try_slot, unlock, way};

/// What opens a volume.
#[derive(Debug)]
pub enum Key {
    /// These bytes.
    Secret(Secret),
    /// What a token in the header says how to get at.
    Token(Token),
}

/// Tokens of libcryptsetup that open a volume, each a key slot of its own.
#[derive(Debug)]
pub struct Token {
    /// Their type.
    pub(crate) kind: &'static str,
    /// What they want to be given.
    pub(crate) pin: Option<Secret>,
}
