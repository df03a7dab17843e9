//! The timer that ends a trial which nobody confirms: systemd's, so that it does not need nemosd.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nemos_model::overlay::Within;
use nemos_model::overlay::trial::{RUNNING_FILE, UNIT};
use thiserror::Error;

/// Where units live for one boot.
const RUNTIME_UNITS: &str = "/run/systemd/system";

/// A timer that cannot be set, or taken back.
#[derive(Debug, Error)]
#[error("cannot write {}: {source}", path.display())]
pub struct TrialError {
    path: PathBuf,
    source: io::Error,
}

/// Has this boot end after that time, counted from its beginning, in the initrd: also if it ends up in emergency mode.
pub fn begin(within: Within) -> Result<(), TrialError> {
    let units = Path::new(RUNTIME_UNITS);
    let (timer, wants) = (units.join(format!("{UNIT}.timer")), units.join("timers.target.wants"));
    let seconds = u32::from(within);
    let text = format!(
        "[Unit]\nDescription=end of the time to confirm a change of the overlay\nDefaultDependencies=no\nConflicts=shutdown.target\nBefore=shutdown.target\n\n[Timer]\nOnBootSec={seconds}s\nAccuracySec=1s\n"
    );
    let link = wants.join(format!("{UNIT}.timer"));
    make_folder_of(Path::new(RUNNING_FILE))?;
    write(Path::new(RUNNING_FILE), "")?;
    make_folder_of(&link)?;
    write(&timer, &text)?;
    match symlink(&timer, &link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked.map_err(|source| TrialError { path: link, source }),
    }
}

/// Lets it go on. There may be nothing to end.
pub fn end() -> Result<(), TrialError> {
    match fs::remove_file(RUNNING_FILE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|source| TrialError { path: RUNNING_FILE.into(), source }),
    }
}

fn make_folder_of(path: &Path) -> Result<(), TrialError> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|source| TrialError { path: folder.to_owned(), source })
}

fn write(path: &Path, text: &str) -> Result<(), TrialError> {
    fs::write(path, text).map_err(|source| TrialError { path: path.to_owned(), source })
}
