//! The rules of nemos: what a device is, what may be done to it, and in which order.
//!
//! Nothing here reads a disk, a clock or a bus. Every function maps values to values, so that each rule can be
//! tested without a machine; `nemos-host` carries out what is decided here.
//!
//! One word a feature, and that word is the file name in every crate.

#![forbid(unsafe_code)]

pub mod boot;
pub mod certificate;
mod digest;
pub mod health;
pub mod image;
pub mod integrity;
pub mod job;
pub mod keys;
pub mod manifest;
pub mod overlay;
pub mod partitions;
pub mod reset;
pub mod stack;
pub mod state;
pub mod time;
pub mod uki;
mod words;

pub use job::JobId;
pub use time::Timestamp;
