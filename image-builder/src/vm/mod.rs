//! A nemos disk in QEMU: boots it, runs commands in it, resumes it, cuts its power.
//!
//! ```text
//!             console (serial) ----------------------+
//!     QEMU    QMP (stdin, stdout) -------------------+--> events --> Machine::wait
//!             command port, its stdout, its stderr --+
//! ```
//!
//! Everything a machine says arrives in one queue, and every wait is the same loop over it: take the next event,
//! look whether what is waited for is there, give up at the limit. Nothing polls and nothing sleeps.

mod config;
mod console;
mod disk;
mod error;
mod guest;
mod host;
mod machine;
mod qmp;
mod seen;
mod terminal;
mod tpm;
mod variables;

pub use config::{Boot, Config};
pub use console::Tail;
pub use disk::{Disk, DiskError, Format};
pub use error::VmError;
pub use guest::quoted;
pub use host::Host;
pub use machine::{Machine, Output};
pub use terminal::attach;
