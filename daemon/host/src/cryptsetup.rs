//! libcryptsetup, as nemos uses it: one device, opened, used and dropped in one function.
//!
//! Its errors are numbers only; the words come through a process-wide log callback, on the calling thread. They are
//! collected here and put into the error.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;

use libcryptsetup_rs::consts::vals::CryptLogLevel;
use libcryptsetup_rs::{CryptDevice, CryptInit, LibcryptErr, set_log_callback};
use rustix::io::Errno;
use thiserror::Error;

/// An operation of libcryptsetup that failed.
#[derive(Debug, Error)]
#[error("cannot {action} {}: {source}{}", device.display(), words(messages))]
pub struct CryptError {
    action: &'static str,
    device: PathBuf,
    source: LibcryptErr,
    messages: Vec<String>,
}

impl CryptError {
    /// Whether libcryptsetup says that the device is not what it was taken for: it has no header, or a broken one.
    pub fn is_no_header(&self) -> bool {
        matches!(&self.source, LibcryptErr::IOError(error) if error.kind() == io::ErrorKind::InvalidInput)
    }
}

impl CryptError {
    /// Whether no key slot opens with the key that was given, or there is none.
    pub fn is_wrong_key(&self) -> bool {
        let kinds = [io::ErrorKind::PermissionDenied, io::ErrorKind::NotFound];
        matches!(&self.source, LibcryptErr::IOError(error) if kinds.contains(&error.kind()))
    }

    /// Whether a token wants a PIN, or another one than it was given.
    pub fn needs_pin(&self) -> bool {
        let wants_pin = Some(Errno::NOANO.raw_os_error());
        matches!(&self.source, LibcryptErr::IOError(error) if error.raw_os_error() == wants_pin)
    }

    /// Something that libcryptsetup said and that cannot be.
    pub(crate) fn strange(action: &'static str, device: &Path, error: &dyn std::error::Error) -> Self {
        let source = LibcryptErr::Other(error.to_string());
        CryptError { action, device: device.to_owned(), source, messages: Vec::new() }
    }
}

fn words(messages: &[String]) -> String {
    if messages.is_empty() { String::new() } else { format!(" ({})", messages.join("; ")) }
}

thread_local! {
    static MESSAGES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Runs an operation of libcryptsetup on a device.
pub fn with<T>(
    action: &'static str,
    device: &Path,
    operation: impl FnOnce(&mut CryptDevice) -> Result<T, LibcryptErr>,
) -> Result<T, CryptError> {
    static CALLBACK: Once = Once::new();
    CALLBACK.call_once(|| set_log_callback::<()>(Some(collect), None));
    MESSAGES.take();
    CryptInit::init(device).and_then(|mut handle| operation(&mut handle)).map_err(|source| CryptError {
        action,
        device: device.to_owned(),
        source,
        messages: MESSAGES.take(),
    })
}

/// Keeps errors for [`with`]; the rest goes to the log.
///
/// # Safety
/// libcryptsetup calls it with a message that is a C string for as long as the call lasts.
unsafe extern "C" fn collect(level: c_int, message: *const c_char, _: *mut c_void) {
    if message.is_null() {
        return;
    }
    // SAFETY: not null, and by the callback's contract a C string that outlives this call.
    let message = unsafe { CStr::from_ptr(message) }.to_string_lossy().trim().to_owned();
    if level == CryptLogLevel::Error as c_int {
        MESSAGES.with_borrow_mut(|messages| messages.push(message));
    } else {
        tracing::debug!("libcryptsetup: {message}");
    }
}
