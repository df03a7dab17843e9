//! Builds the nemos reference disk image, and runs it in QEMU.

#![forbid(unsafe_code)]

pub mod architecture;
pub mod build;
pub mod containers;
pub mod image;
pub mod inspect;
pub mod keys;
pub mod layout;
pub mod mbr;
pub mod recipe;
pub mod run;
pub mod verify;
pub mod vm;
