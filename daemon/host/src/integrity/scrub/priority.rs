//! Lets everybody else go first.

use rustix::process::setpriority_process;
use tracing::debug;

/// Of `ioprio_set(2)`: one thread, this one; the class that gets what nobody else wants.
const IOPRIO_WHO_PROCESS: i32 = 1;
const IOPRIO_CLASS_IDLE: i32 = 3 << 13;

/// Gives this thread, and those that it begins, the lowest priority on the processor and on disks. A system that does not let
/// it reads at an ordinary one.
pub fn yield_to_others() {
    if let Err(error) = setpriority_process(None, 19) {
        debug!(%error, "the scrub keeps its priority on the processor");
    }
    // SAFETY: the call takes three numbers, and changes nothing but the calling thread's I/O priority.
    let outcome = unsafe { nix::libc::syscall(nix::libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE) };
    if outcome != 0 {
        debug!(error = %std::io::Error::last_os_error(), "the scrub keeps its priority on disks");
    }
}
