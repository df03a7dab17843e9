//! Whole devices under test, in words: a disk [boots](Disk::boots), a device [loses its power](Device::loses_power), a
//! partition is [corrupted](Disk::corrupt).
//!
//! ```text
//!     image ---> Disk::fresh -----boots----> Device
//!       |                                     |  ^
//!       +--first boot, once, saved            |  |
//!             |                        powers off, boots
//!             +---> Device::running           v  |
//!                   (resumes, 1 s)            Disk
//! ```
//!
//! The image is named by `NEMOS_IMAGE`, signed ones by `NEMOS_SIGNED`, and none is ever written. Everything else lives in temporary folders, and goes
//! with the value that holds it.

#![forbid(unsafe_code)]

mod device;
mod disk;
mod image;
mod partitions;
mod program;
mod signed;
mod squashfs;

pub use device::Device;
pub use disk::Disk;
pub use image::{NEMOS_IMAGE, clean_up, image};
pub use libtest_mimic::Failed;
pub use program::{Said, nemos_image, nemosctl_elsewhere, program};
pub use signed::{NEMOS_SIGNED, Signed};

/// How a case ends.
pub type Case = Result<(), Failed>;
