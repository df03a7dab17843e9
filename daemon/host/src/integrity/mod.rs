//! What is done about integrity: volumes are opened under dm-verity, damage is heard of, looked for, and remembered.

pub(crate) mod fsmap;
pub mod ledger;
pub mod names;
pub mod owner;
pub mod scrub;
pub mod verity;
pub mod watch;
