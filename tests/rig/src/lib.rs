//! The same test anywhere: tests that need device-mapper, root and disks of their own, run by `cargo test` as anybody.
//!
//! A test binary of the rig has `harness = false` and hands its tests to [`main`]:
//!
//! ```no_run
//! fn the_overlay_survives() {
//!     let disk = nemos_rig::Disk::new(64 << 20);
//!     nemos_rig::run("cryptsetup", ["isLuks", disk.path().to_str().unwrap()]);
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     nemos_rig::main(nemos_rig::tests![the_overlay_survives])
//! }
//! ```
//!
//! The binary runs itself again inside User-Mode Linux, a Linux kernel that is an ordinary program. There it is root over
//! a throw-away copy of this machine: its root is the host's `/`, seen through hostfs, with a tmpfs overlay on it. So the
//! binary, the host's programs and their libraries are all there, and whatever a test does to them is gone afterwards.
//! All tests of a binary share one such machine, one after the other; it starts in about a second.
//!
//! On a machine that is itself to be thrown away, `NEMOS_RIG=native` runs them in place.

#![forbid(unsafe_code)]
#![allow(clippy::missing_panics_doc, reason = "panicking is how a test fails")]

mod command;
mod disk;
mod init;
mod kernel;
mod machine;
mod power;
mod reboot;

use std::process::ExitCode;

use devicemapper::DM;
use libtest_mimic::{Arguments, Trial};

pub use command::{refused, run};
pub use disk::{Disk, Image, corrupt};
pub use kernel::{CommandLine, KernelLog};
pub use power::WriteLog;
pub use reboot::leave_nothing_open;

/// Says that tests may run in place: this machine is one to be thrown away. [`init`] sets it inside User-Mode Linux.
const NATIVE: (&str, &str) = ("NEMOS_RIG", "native");

/// The tests of a binary, named after their functions.
#[macro_export]
macro_rules! tests {
    ($($test:path),* $(,)?) => { vec![$($crate::test(stringify!($test), $test)),*] };
}

/// A test; it fails by panicking. [`tests!`] says the name for you.
pub fn test(name: &str, body: fn()) -> Trial {
    Trial::test(name, move || {
        body();
        Ok(())
    })
}

/// Runs the tests where they can run. Understands the arguments of `cargo test`.
pub fn main(tests: Vec<Trial>) -> ExitCode {
    if let Some(shared) = init::called_by_the_kernel() {
        init::main(&shared);
    }
    // The kernel's names (mappings, mounts) are shared by all tests.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    if arguments.list || may_run_in_place() {
        return libtest_mimic::run(&arguments, tests).exit_code();
    }
    match machine::run_this_program_again() {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether we were told that we may, and can. A node `/dev/mapper/control` says nothing: the driver has to answer.
fn may_run_in_place() -> bool {
    std::env::var(NATIVE.0).is_ok_and(|value| value == NATIVE.1)
        && rustix::process::geteuid().is_root()
        && DM::new().and_then(|dm| dm.version()).is_ok()
}
