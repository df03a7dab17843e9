//! The D-Bus contract of nemos: names, wire types, errors and client proxies.
//!
//! Everything carries its version in its name. It grows by new keys in dictionaries and by new members, never by a
//! changed signature. The same contract as XML is `org.nemos.Device1.xml` in `/usr/share/dbus-1/interfaces`; a test
//! of nemosd holds the running service against it.

#![forbid(unsafe_code)]

pub mod archive;
pub mod certificate;
pub mod configuration;
pub mod error;
pub mod integrity;
pub mod job;
pub mod keys;
pub mod manager;
pub mod options;
pub mod overlay;
pub mod reset;
pub mod usage;

pub use error::{CallError, Error, ErrorKind};

/// The name on the system bus.
pub const BUS_NAME: &str = "org.nemos.Device1";

/// The device: Manager, Reset, and the `ObjectManager` of all jobs.
pub const PATH: &str = "/org/nemos/Device1";

/// polkit's names for what may be asked. Each verb has its own, so that an agent can be given exactly one.
pub mod action {
    /// Take all changes to the root back.
    pub const RESET_OVERLAY: &str = "org.nemos.device1.reset.overlay";
    /// Take the device back to its factory state.
    pub const RESET_FACTORY: &str = "org.nemos.device1.reset.factory";
    /// Certify a reset: a certificate names users, and paths that were kept.
    pub const RESET_CERTIFICATE: &str = "org.nemos.device1.reset.certificate";
    /// Say that an event is known of.
    pub const INTEGRITY_ACKNOWLEDGE: &str = "org.nemos.device1.integrity.acknowledge";
    /// See which files on the overlay are damaged.
    pub const INTEGRITY_FILES: &str = "org.nemos.device1.integrity.files";
    /// Begin or stop a scrub.
    pub const INTEGRITY_SCRUB: &str = "org.nemos.device1.integrity.scrub";
    /// Add a key to the overlay's volume.
    pub const KEYS_ENROLL: &str = "org.nemos.device1.keys.enroll";
    /// Put a key in place of another.
    pub const KEYS_ROTATE: &str = "org.nemos.device1.keys.rotate";
    /// Remove a key.
    pub const KEYS_REMOVE: &str = "org.nemos.device1.keys.remove";
    /// Have the device make a recovery key, and see it.
    pub const KEYS_RECOVERY: &str = "org.nemos.device1.keys.recovery";
    /// Set where changes to the root go.
    pub const OVERLAY_MODE: &str = "org.nemos.device1.overlay.mode";
    /// Take changes to the root back.
    pub const OVERLAY_REVERT: &str = "org.nemos.device1.overlay.revert";
    /// Save the changes to the root under a name.
    pub const OVERLAY_SAVE: &str = "org.nemos.device1.overlay.save";
    /// Put saved changes in the place of those that there are.
    pub const OVERLAY_APPLY: &str = "org.nemos.device1.overlay.apply";
    /// Keep what is on trial.
    pub const OVERLAY_CONFIRM: &str = "org.nemos.device1.overlay.confirm";
    /// Delete or rename saved changes.
    pub const OVERLAY_DELETE: &str = "org.nemos.device1.overlay.delete";
    /// See which files differ from the factory image.
    pub const OVERLAY_CHANGES: &str = "org.nemos.device1.overlay.changes";
    /// Write a configuration into a file.
    pub const OVERLAY_EXPORT: &str = "org.nemos.device1.overlay.export";
    /// Make a configuration of a file.
    pub const OVERLAY_IMPORT: &str = "org.nemos.device1.overlay.import";
    /// Take back a job that has not begun.
    pub const JOB_CANCEL: &str = "org.nemos.device1.job.cancel";
}
