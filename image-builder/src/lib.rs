//! Builds the nemos reference disk image, and runs it in QEMU.

#![forbid(unsafe_code)]

pub mod run;
pub mod vm;
