//! The overlay on the read-only root: its names and what it consists of.

pub mod archive;
pub mod changes;
pub mod configuration;
pub mod index;
pub mod mode;
pub mod policy;
pub mod revert;
pub mod shadow;
pub mod trial;
pub mod usage;

pub use configuration::ConfigurationName;
pub use mode::{Mode, Modes};
pub use trial::{Trial, Tried, Within};

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

/// Where the volume's file system is instead at a boot that was to go without it: read-only.
pub const SAVED_MOUNT: &str = "/run/nemos/saved";

/// The folder in it that holds what the device has made.
pub const UPPER_FOLDER: &str = "upper";
