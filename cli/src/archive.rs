//! `nemosctl overlay export`, `import`, `sign`: configurations in files.

use std::fs::{self, File};
use std::future::Future;
use std::io::{self, IsTerminal as _, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Command, Stdio};
use std::time::Duration;

use nemos_api::archive::{ExportOptions, ImportOptions, ImportedRecord};
use nemos_api::overlay::OverlayProxy;
use nemos_model::overlay::archive::signature::{MAX_SIGNATURE, NAMESPACE};
use nemos_model::overlay::archive::{INDEX_FILE, MAX_DOCUMENT, read_index};
use serde::Serialize;
use tempfile::NamedTempFile;
use thiserror::Error;
use tokio::time::timeout;

use crate::arguments::Import;
use crate::output::Output;
use crate::text;

/// Standard input or output.
const STANDARD: &str = "-";
/// How often it is told how far it is.
const TICK: Duration = Duration::from_secs(2);

/// What comes of a file.
#[derive(Debug, Error)]
pub enum Failure {
    /// It cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is nothing to sign in it.
    #[error("{} is no configuration that nemos has exported: {reason}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It was not signed.
    #[error("ssh-keygen has not signed it: {0}")]
    NotSigned(String),
    /// An archive is nothing to look at.
    #[error("an archive is not for a terminal; name a file, or send it through a pipe")]
    Terminal,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    move |source| Failure::Io { path: path.to_owned(), source }
}

/// What was exported, as in `--json`.
#[derive(Debug, Serialize)]
struct Exported {
    name: String,
    file: PathBuf,
    digest: String,
    left_out: Vec<String>,
}

/// What was imported, or would be, as in `--json`; null where there is nothing to say.
#[derive(Debug, Serialize)]
struct Imported {
    name: String,
    exported_as: String,
    /// By the clock of the device that it was made on.
    made_at: Option<String>,
    image_id: String,
    image_version: String,
    root_hash: String,
    digest: String,
    /// Fingerprint and comment of a key.
    signed_by: Option<String>,
    entries: u64,
    /// Bytes of the files.
    bytes: u64,
    dry_run: bool,
}

/// A signature, as in `--json`.
#[derive(Debug, Serialize)]
struct Signed {
    file: PathBuf,
    signature: PathBuf,
}

/// Exports into a file that is there when all of it is.
pub async fn export(
    proxy: &OverlayProxy<'_>,
    name: String,
    file: PathBuf,
    output: Output,
) -> Result<u8, crate::Failure> {
    if file == Path::new(STANDARD) {
        let standard = io::stdout();
        if standard.is_terminal() {
            return Err(Failure::Terminal.into());
        }
        proxy.export(&name, standard.as_fd().into(), ExportOptions::default()).await?;
        return Ok(0);
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let new = NamedTempFile::new_in(folder).map_err(io_error(&file))?;
    let call = proxy.export(&name, new.as_file().as_fd().into(), ExportOptions::default());
    let told = with_progress(new.as_file(), None, output, call).await?;
    new.as_file().sync_all().map_err(io_error(&file))?;
    new.persist(&file).map_err(|error| io_error(&file)(error.error))?;
    let exported = Exported { name, file, digest: told.digest, left_out: told.left_out };
    output.show(&exported, Exported::render)?;
    Ok(0)
}

/// Imports a file.
pub async fn import(proxy: &OverlayProxy<'_>, wanted: Import, output: Output) -> Result<u8, crate::Failure> {
    let Import { file, name, signature, replace, dry_run } = wanted;
    let is_standard = file == Path::new(STANDARD);
    let beside = Some(signature_file(&file)).filter(|beside| !is_standard && beside.exists());
    let signature = signature.or(beside).map(|path| read_signature(&path)).transpose()?;
    let options = ImportOptions { signature, replace: Some(replace), dry_run: Some(dry_run) };
    let name = name.unwrap_or_default();
    let (name, record) = if is_standard {
        proxy.import(&name, io::stdin().as_fd().into(), options).await?
    } else {
        let opened = File::open(&file).map_err(io_error(&file))?;
        let size = opened.metadata().ok().map(|metadata| metadata.len());
        with_progress(&opened, size, output, proxy.import(&name, opened.as_fd().into(), options)).await?
    };
    output.show(&Imported::new(name, record, dry_run), Imported::render)?;
    Ok(0)
}

/// Signs a file with the help of ssh-keygen(1), which knows agents and passphrases, and needs no device.
pub fn sign(file: &Path, key: &Path, output: Output) -> Result<u8, crate::Failure> {
    let index = index(file)?;
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-Y", "sign", "-n", NAMESPACE, "-f"]).arg(key).stdin(Stdio::piped()).stdout(Stdio::piped());
    let not_signed = |error: io::Error| Failure::NotSigned(format!("{error}; is openssh-client installed?"));
    let mut keygen = keygen.spawn().map_err(not_signed)?;
    if let Some(mut input) = keygen.stdin.take() {
        // If it does not read on, it says itself why.
        let _ = input.write_all(&index);
    }
    let signed = keygen.wait_with_output().map_err(not_signed)?;
    if !signed.status.success() {
        return Err(Failure::NotSigned(signed.status.to_string()).into());
    }
    let signature = signature_file(file);
    fs::write(&signature, signed.stdout).map_err(io_error(&signature))?;
    let signed = Signed { file: file.to_owned(), signature };
    output.show(&signed, |signed| format!("the signature is in {}\n", signed.signature.display()))?;
    Ok(0)
}

/// What is signed of a file: it names all else by its digest.
fn index(path: &Path) -> Result<Vec<u8>, Failure> {
    let foreign = |reason: String| Failure::Foreign { path: path.to_owned(), reason };
    let mut archive = tar::Archive::new(File::open(path).map_err(io_error(path))?);
    for entry in archive.entries().map_err(io_error(path))?.raw(true).take(2) {
        let entry = entry.map_err(|error| foreign(error.to_string()))?;
        if *entry.path_bytes() == *INDEX_FILE.as_bytes() {
            let mut index = Vec::new();
            entry.take(MAX_DOCUMENT).read_to_end(&mut index).map_err(io_error(path))?;
            read_index(&index).map_err(|error| foreign(error.to_string()))?;
            return Ok(index);
        }
    }
    Err(foreign(format!("it has no {INDEX_FILE} at its beginning")))
}

/// Where the signature of a file is, unless somebody says otherwise.
fn signature_file(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".sig");
    name.into()
}

fn read_signature(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let file = File::open(path).map_err(io_error(path))?;
    // One byte more than it can have: then it is refused as what it is.
    file.take(MAX_SIGNATURE as u64 + 1).read_to_string(&mut text).map_err(io_error(path))?;
    Ok(text)
}

/// Tells on a terminal how far it is: the daemon reads and writes at the place of the file that is ours, too.
async fn with_progress<T>(mut file: &File, size: Option<u64>, output: Output, call: impl Future<Output = T>) -> T {
    let mut call = pin!(call);
    let is_seen = !output.json && io::stderr().is_terminal();
    let mut has_told = false;
    loop {
        if let Ok(ended) = timeout(TICK, &mut call).await {
            if has_told {
                eprint!("\r\x1b[K");
            }
            return ended;
        }
        if is_seen && let Ok(at) = file.stream_position() {
            let of = size.map(|size| format!(" of {}", text::bytes(size))).unwrap_or_default();
            eprint!("\r\x1b[K{}{of}", text::bytes(at));
            has_told = true;
        }
    }
}

impl Exported {
    fn render(&self) -> String {
        let left_out: Vec<String> = self.left_out.iter().map(|path| format!("left out: {path}\n")).collect();
        let left_out = left_out.concat();
        format!("{} is in {}, {}\n{left_out}", self.name, self.file.display(), self.digest)
    }
}

impl Imported {
    fn new(name: String, record: ImportedRecord, dry_run: bool) -> Self {
        let ImportedRecord {
            exported_as,
            made_at,
            image_id,
            image_version,
            root_hash,
            digest,
            signed_by,
            entries,
            bytes,
        } = record;
        let made_at = text::time(made_at);
        Imported {
            name,
            exported_as,
            made_at,
            image_id,
            image_version,
            root_hash,
            digest,
            signed_by,
            entries,
            bytes,
            dry_run,
        }
    }

    fn render(&self) -> String {
        let Imported { name, image_id, image_version, digest, entries, bytes, .. } = self;
        let done = if self.dry_run { "would be imported" } else { "is imported" };
        let signed = self.signed_by.as_ref().map_or("not signed".into(), |key| format!("signed by {key}"));
        let bytes = text::bytes(*bytes);
        format!("{name} {done}: {entries} entries, {bytes}, of {image_id} {image_version}, {signed}\n{digest}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imported(signed_by: Option<&str>, dry_run: bool) -> String {
        let record = ImportedRecord {
            exported_as: "site".into(),
            made_at: 7,
            image_id: "nemos".into(),
            image_version: "1".into(),
            root_hash: "ab".into(),
            digest: "sha256:cd".into(),
            signed_by: signed_by.map(str::to_owned),
            entries: 12,
            bytes: 2048,
        };
        Imported::new("site-7".into(), record, dry_run).render()
    }

    #[test]
    fn what_was_imported_says_of_which_image_and_by_whom() {
        let told = imported(Some("SHA256:x fleet"), false);
        assert_eq!(told, "site-7 is imported: 12 entries, 2 KiB, of nemos 1, signed by SHA256:x fleet\nsha256:cd\n");
        let told = imported(None, true);
        assert_eq!(told, "site-7 would be imported: 12 entries, 2 KiB, of nemos 1, not signed\nsha256:cd\n");
    }

    #[test]
    fn what_was_left_out_is_told() {
        let exported = Exported {
            name: "site".into(),
            file: "site.tar".into(),
            digest: "sha256:cd".into(),
            left_out: vec!["/run/socket".into()],
        };
        assert_eq!(exported.render(), "site is in site.tar, sha256:cd\nleft out: /run/socket\n");
    }

    #[test]
    fn only_an_archive_is_signed() {
        let file = NamedTempFile::new().unwrap();
        for contents in [&b""[..], b"text", &[0; 2048]] {
            fs::write(file.path(), contents).unwrap();
            assert!(matches!(index(file.path()), Err(Failure::Foreign { .. })));
        }
        assert!(matches!(index(Path::new("/nowhere.tar")), Err(Failure::Io { .. })));
        assert_eq!(signature_file(Path::new("a/site.tar")), Path::new("a/site.tar.sig"));
    }
}
