//! The nemos daemon: translates between the bus and the device.
//!
//! It only asks; the initrd acts. A request is checked, written down durably, and carried out by the next boot.

#![forbid(unsafe_code)]

pub mod archive;
pub mod authorization;
pub mod bus;
pub mod changes;
pub mod configuration;
pub mod desk;
pub mod device;
pub mod integrity;
pub mod journal;
mod journal_layer;
pub mod keys;
pub mod reboot;
