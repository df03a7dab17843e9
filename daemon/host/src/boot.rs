//! The boot report: written by the initrd, read by the daemon.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nemos_model::boot::{BootReport, REPORT_VERSION};
use nemos_model::image::{Image, OS_RELEASE};
use thiserror::Error;

/// A report that cannot be written or read.
#[derive(Debug, Error)]
pub enum ReportError {
    /// A file operation failed.
    #[error("the boot report {}: {source}", path.display())]
    Io {
        /// The report.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not a report of this nemos.
    #[error("the boot report {} is not one of this nemos: {reason}", path.display())]
    Malformed {
        /// The report.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The image whose root is mounted there, as far as it says.
pub fn image(lower: &Path) -> Image {
    Image::parse(&fs::read_to_string(lower.join(OS_RELEASE)).unwrap_or_default())
}

/// Writes the report. It is in memory: there is nothing to make durable.
pub fn write_report(path: &Path, report: &BootReport) -> Result<(), ReportError> {
    let io = |source| ReportError::Io { path: path.to_owned(), source };
    let text = serde_json::to_vec_pretty(report).map_err(|error| io(error.into()))?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(io)?;
    }
    fs::write(path, text).map_err(io)
}

/// Reads the report; `None` if the initrd left none.
pub fn read_report(path: &Path) -> Result<Option<BootReport>, ReportError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ReportError::Io { path: path.to_owned(), source }),
    };
    let malformed = |reason| ReportError::Malformed { path: path.to_owned(), reason };
    let report: BootReport = serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
    match report.version {
        REPORT_VERSION => Ok(Some(report)),
        other => Err(malformed(format!("version {other}"))),
    }
}

/// The kernel's name for this boot: 32 hexadecimal digits.
pub fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().replace('-', "")
}
