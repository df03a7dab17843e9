//! The overlay on the read-only root: its names and what it consists of.

pub mod changes;

use std::fmt;

use serde::{Deserialize, Serialize};

/// dm-crypt mapping of the overlay's volume.
pub const LUKS_MAPPING: &str = "luks";
/// dm-integrity mapping below [`LUKS_MAPPING`]; libcryptsetup derives the name.
pub const INTEGRITY_MAPPING: &str = "luks_dif";
/// Source shown for the overlay mount on `/`.
pub const OVERLAY_SOURCE: &str = "OverlayOS_rootfs";
/// Where the initrd mounts the read-only root; it stays there on the running system.
pub const LOWER_MOUNT: &str = "/run/nemos/root";
/// Where the initrd mounts the overlay's file system; it stays there on the running system.
pub const UPPER_MOUNT: &str = "/run/nemos/overlay";

/// The folder in it that holds what the device has made.
pub const UPPER_FOLDER: &str = "upper";

/// Where changes to the root go at this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The encrypted volume: changes stay.
    Persistent,
    /// Memory: changes are gone at the next boot.
    Volatile,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Persistent => "persistent",
            Mode::Volatile => "volatile",
        })
    }
}
