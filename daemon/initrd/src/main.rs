//! Sets the storage up at boot, and carries out what the daemon was asked.
//!
//! Runs once, in the initrd, as root and without arguments. It exits 0 when `/sysroot` is ready, degraded or not,
//! and 1 when the root is not the one that the command line vouches for: that boot must not go on.

#![forbid(unsafe_code)]

mod boot;
mod bound;
mod overlay;
mod reset;
mod unlock;

use std::alloc::System;
use std::process::ExitCode;

use zeroizing_alloc::ZeroAlloc;

/// Secrets pass through the memory of libraries as well, which do not wipe it.
#[global_allocator]
static MEMORY: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    // Standard error goes to the journal and to the console; both have their own clock.
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false).without_time().init();
    match boot::boot() {
        Ok(()) => ExitCode::SUCCESS,
        Err(refused) => {
            eprintln!("nemos: boot refused: {refused}");
            ExitCode::FAILURE
        }
    }
}
