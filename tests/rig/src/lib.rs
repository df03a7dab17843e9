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
//! On a machine that is itself to be thrown away, `NEMOS_RIG=native` runs them in place. They may take half an hour
//! together, or `NEMOS_RIG_LIMIT` seconds.

#![forbid(unsafe_code)]
#![allow(clippy::missing_panics_doc, reason = "panicking is how a test fails")]

mod command;
mod disk;
mod init;
mod kernel;
mod machine;
mod power;
mod reboot;
mod writes;

use std::process::ExitCode;

use devicemapper::DM;
use libtest_mimic::{Arguments, Failed, Trial};

pub use command::{refused, run};
pub use disk::{Disk, Image, corrupt};
pub use fastrand::Rng;
pub use kernel::{CommandLine, KernelLog};
pub use power::WriteLog;
pub use reboot::leave_nothing_open;

/// Says that tests may run in place: this machine is one to be thrown away. [`init`] sets it inside User-Mode Linux.
const NATIVE: (&str, &str) = ("NEMOS_RIG", "native");

/// A test, which fails by panicking, and its name.
pub type Test = (&'static str, fn());

/// The tests of a binary, named after their functions.
#[macro_export]
macro_rules! tests {
    ($($test:path),* $(,)?) => { vec![$((stringify!($test), $test as fn())),*] };
}

/// Runs the tests where they can run, one after the other. Understands the arguments of `cargo test`.
pub fn main(tests: Vec<Test>) -> ExitCode {
    if let Some(shared) = init::called_by_the_kernel() {
        init::main(&shared);
    }
    let arguments = Arguments::from_args();
    if arguments.list || may_run_in_place() {
        return run_in_place(arguments, tests);
    }
    match machine::run_this_program_again() {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Like [`main`], but each test has a machine of its own, and as many run at once as there are processors. What a test
/// prints is shown when it has ended.
pub fn main_apart(tests: Vec<Test>) -> ExitCode {
    if let Some(shared) = init::called_by_the_kernel() {
        init::main(&shared);
    }
    if let Some(name) = machine::only_test() {
        let (_, body) = tests.into_iter().find(|(known, _)| *known == name).expect("a test of this program");
        body();
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    if arguments.list || may_run_in_place() {
        return run_in_place(arguments, tests);
    }
    let trial = |(name, _): Test| Trial::test(name, move || run_apart(name));
    libtest_mimic::run(&arguments, tests.into_iter().map(trial).collect()).exit_code()
}

fn run_in_place(arguments: Arguments, tests: Vec<Test>) -> ExitCode {
    let trial = |(name, body): Test| {
        Trial::test(name, move || {
            body();
            Ok(())
        })
    };
    // The kernel's names (mappings, mounts) are shared by all tests.
    let arguments = Arguments { test_threads: Some(1), ..arguments };
    libtest_mimic::run(&arguments, tests.into_iter().map(trial).collect()).exit_code()
}

fn run_apart(name: &str) -> Result<(), Failed> {
    let (status, printed) = machine::run_one_test(name).map_err(|error| format!("{error:#}"))?;
    if status == 0 {
        print!("{printed}");
        Ok(())
    } else {
        Err(format!("{printed}\nexit status {status}").into())
    }
}

/// Whether we were told that we may, and can. A node `/dev/mapper/control` says nothing: the driver has to answer.
fn may_run_in_place() -> bool {
    std::env::var(NATIVE.0).is_ok_and(|value| value == NATIVE.1)
        && rustix::process::geteuid().is_root()
        && DM::new().and_then(|dm| dm.version()).is_ok()
}
