//! The Linux edge of nemos: device-mapper, LUKS, mounts and the state store, synchronous.
//!
//! What is to happen is decided in `nemos-model`; here it is done, each function saying on which device or file it
//! failed. This is the only crate with `unsafe` in it.

pub mod boot;
pub mod certificate;
pub mod command;
mod copy;
mod cryptsetup;
pub mod fsck;
pub mod integrity;
pub mod job;
pub mod keys;
mod mkfs;
pub mod mounts;
pub mod overlay;
pub mod partitions;
pub mod policy;
pub mod reset;
pub mod stack;
pub mod state;
pub mod time;
mod wipe;
