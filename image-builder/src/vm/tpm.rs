//! A TPM 2.0 in software, for a machine: `swtpm`.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use tempfile::TempDir;

use super::error::{VmError, io};
use super::host::Host;

/// A TPM that is switched on. Dropping it switches it off.
#[derive(Debug)]
pub(super) struct Tpm {
    swtpm: Child,
    /// What it complains about.
    complaints: File,
    folder: TempDir,
}

impl Tpm {
    /// Switches on the TPM whose memory is in the folder `state`, which is made if it is not there. With `snapshot`, it
    /// works on a copy that is forgotten.
    pub(super) fn start(state: &Path, snapshot: bool) -> Result<Self, VmError> {
        let swtpm = Host::swtpm()?;
        let folder = tempfile::tempdir().map_err(io("make a temporary folder"))?;
        let state = if snapshot { copy(state, &folder.path().join("state")) } else { make(state) }?;
        let complaints = tempfile::tempfile().map_err(io("make a temporary file"))?;
        // It takes a socket that listens already: whoever connects to it need not wait until it is ready.
        let listener = UnixListener::bind(folder.path().join(SOCKET)).map_err(io("make the TPM's socket"))?;
        let mut state_argument = OsString::from("dir=");
        state_argument.push(&state);
        let swtpm = Host::with_us(&swtpm)
            .args(["socket", "--tpm2", "--terminate", "--ctrl", "type=unixio,fd=0", "--tpmstate"])
            .arg(state_argument)
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(complaints.try_clone().map_err(io("make a temporary file"))?)
            .stderr(complaints.try_clone().map_err(io("make a temporary file"))?)
            .spawn()
            .map_err(io("start swtpm"))?;
        Ok(Tpm { swtpm, complaints, folder })
    }

    /// The socket by which QEMU finds it.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join(SOCKET)
    }

    /// Why it ended by itself; `None` if it did not.
    pub(super) fn failure(&mut self) -> Option<VmError> {
        let status = self.swtpm.try_wait().ok()??;
        let mut said = String::new();
        let read = self.complaints.rewind().and_then(|()| self.complaints.read_to_string(&mut said));
        (!status.success() && read.is_ok()).then(|| VmError::Tpm(said.trim().replace('\n', "; ")))
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        // Both fail only if it is gone already, which it is when QEMU has ended.
        let _ = self.swtpm.kill();
        let _ = self.swtpm.wait();
    }
}

const SOCKET: &str = "tpm";

fn make(state: &Path) -> Result<PathBuf, VmError> {
    let failed = |source| VmError::TpmState { path: state.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(failed)?;
    Ok(state.to_owned())
}

/// Copies a TPM's memory; one that does not exist is a new TPM.
fn copy(state: &Path, to: &Path) -> Result<PathBuf, VmError> {
    let failed = |source| VmError::TpmState { path: state.to_owned(), source };
    fs::create_dir(to).map_err(failed)?;
    let entries = match fs::read_dir(state) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(to.to_owned()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        fs::copy(entry.path(), to.join(entry.file_name())).map_err(failed)?;
    }
    Ok(to.to_owned())
}
