//! `nemosctl reset certificate`, `certificate-key`, `verify-certificate`: what the device certifies, and whether it did.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use nemos_api::options::Dictionary;
use nemos_api::reset::ResetProxy;
use nemos_model::Timestamp;
use nemos_model::certificate::{Checked, Claims, Invalid, MAX_BYTES, NotAKey, PublicKey, Verified};
use nemos_model::job::Requester;
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

use crate::arguments::Certificate as Command;
use crate::output::Output;
use crate::{connect, job, table, text};

/// Why there is no certificate, or no verdict, or a bad one.
#[derive(Debug, Error)]
pub enum Failure {
    /// It does not hold.
    #[error("{} is not valid: {reason}", file.display())]
    Invalid {
        /// The certificate.
        file: PathBuf,
        /// Why not.
        reason: Invalid,
    },
    /// A file to verify, or to verify with.
    #[error("cannot read {}: {source}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is nothing to verify with.
    #[error("{} cannot be verified with: {reason}", file.display())]
    Key {
        /// The file.
        file: PathBuf,
        /// Why not.
        reason: NotAKey,
    },
    /// What the device gave cannot be kept.
    #[error("cannot write {}: {source}", file.display())]
    NotWritten {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Failure {
    pub const fn exit_code(&self) -> u8 {
        match self {
            Failure::Invalid { .. } | Failure::NotWritten { .. } => 1,
            Failure::Unreadable { .. } | Failure::Key { .. } => 2,
        }
    }
}

/// What the device certifies. This is also the shape of `certificate --json`.
#[derive(Debug, Serialize)]
struct Issued {
    /// The certificate: a JSON Web Signature in compact form.
    certificate: String,
}

/// What the device signs with. This is also the shape of `certificate-key --json`.
#[derive(Debug, Serialize)]
struct DeviceKey {
    /// PEM.
    key: String,
    /// Thumbprint; certificates name it as `kid`.
    id: String,
    /// `tpm` or `file`.
    kept_in: String,
}

/// A certificate that holds. This is also the shape of `verify-certificate --json`.
#[derive(Debug, Serialize)]
struct Valid {
    /// The key that signed it.
    key: String,
    /// All that was signed; see `org.nemos.Device1.xml`.
    claims: Value,
    #[serde(skip)]
    known: Claims,
}

/// Carries out a command about certificates. Only those that ask the device need a bus.
pub async fn run(command: Command, output: Output) -> Result<u8, crate::Failure> {
    match command {
        Command::Issue { id, output: file } => {
            let id = job::parse(&id)?;
            let reset = ResetProxy::new(&connect().await?).await?;
            let certificate = reset.certificate(&id.to_string(), Dictionary::new()).await?;
            let issued = Issued { certificate };
            give(&issued, format!("{}\n", issued.certificate), file.as_deref(), output)?;
        }
        Command::Key { output: file } => {
            let reset = ResetProxy::new(&connect().await?).await?;
            let (key, details) = reset.certificate_key(Dictionary::new()).await?;
            let key = DeviceKey { key, id: details.id, kept_in: details.kept_in };
            give(&key, key.key.clone(), file.as_deref(), output)?;
        }
        Command::Verify { file, key } => {
            output.show(&verify(&file, &key)?, Valid::render)?;
        }
    }
    Ok(0)
}

/// Writes a text to a file, if there is one to write to, and shows it otherwise.
fn give(value: &impl Serialize, text: String, file: Option<&Path>, output: Output) -> Result<(), crate::Failure> {
    match file {
        None => output.show(value, |_| text)?,
        Some(file) => {
            fs::write(file, text).map_err(|source| Failure::NotWritten { file: file.to_owned(), source })?;
            if output.json {
                output.show(value, |_| String::new())?;
            }
        }
    }
    Ok(())
}

/// Verifies a certificate with a key.
fn verify(file: &Path, key: &Path) -> Result<Valid, Failure> {
    let certificate = read(file)?;
    let pem = String::from_utf8_lossy(&read(key)?).into_owned();
    let public = PublicKey::from_pem(&pem).map_err(|reason| Failure::Key { file: key.to_owned(), reason })?;
    let Verified { claims, signed } = nemos_model::certificate::verify(&certificate, &public)
        .map_err(|reason| Failure::Invalid { file: file.to_owned(), reason })?;
    Ok(Valid { key: public.id(), claims: signed, known: claims })
}

/// Reads no more of a file than tells that it is too large.
fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let unreadable = |source| Failure::Unreadable { file: file.to_owned(), source };
    let mut bytes = Vec::new();
    let most = MAX_BYTES as u64 + 1;
    File::open(file).map_err(unreadable)?.take(most).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

impl Valid {
    /// The certificate, for people.
    fn render(&self) -> String {
        let claims = &self.known;
        let image = [claims.image.id.as_str(), claims.image.version.as_str()].join(" ");
        let time = |time: Timestamp| text::time(time.0).unwrap_or_else(|| "at an unknown time".to_owned());
        let mut rows = vec![
            ("key", self.key.clone()),
            ("kept in", place(&claims.key_kept_in).to_owned()),
            ("issued at", time(claims.issued_at)),
            ("image", image.trim().to_owned()),
            ("job", claims.job.to_string()),
            ("reset", claims.scope.clone()),
            ("requested by", by(&claims.requested_by)),
            ("requested at", time(claims.requested_at)),
        ];
        rows.extend(claims.begun_at.map(|at| ("begun at", time(at))));
        rows.extend(claims.finished_at.map(|at| ("finished at", time(at))));
        rows.extend(claims.plan.map(|plan| ("plan", plan.to_string())));
        rows.extend(claims.targets.iter().map(|target| (target.partition.as_str(), grade(&target.grade).to_owned())));
        rows.extend(claims.kept.iter().map(|path| ("kept", path.clone())));
        rows.extend(claims.old_volume.map(|volume| ("old volume", volume.to_string())));
        rows.extend(claims.new_volume.map(|volume| ("new volume", volume.to_string())));
        rows.extend(claims.audit.iter().map(|checked| (checked.check.as_str(), audited(checked))));
        let printable = |text: &str| text.replace(char::is_control, "\u{fffd}");
        let rows: Vec<_> = rows.iter().map(|(name, value)| [printable(name), printable(value)]).collect();
        format!("valid: the device that has this key certifies that it was reset\n\n{}", table::columns(&rows))
    }
}

fn by(requester: &Requester) -> String {
    let Requester { uid, user, process, label } = requester.clone();
    job::Requester { uid, user, process, label }.render()
}

/// Where a key is, and what that means; a word of a later version stands for itself.
fn place(name: &str) -> &str {
    match name {
        "tpm" => "the device's TPM, which it never leaves",
        "file" => "a file on the device's disk: whoever could read the disk can sign with it",
        other => other,
    }
}

fn grade(name: &str) -> &str {
    match name {
        "key-destroyed" => "key destroyed: nobody can read it any more",
        "key-replaced" => "key replaced: the same contents are there under a new one",
        "formatted" => "formatted: not reachable, but not overwritten",
        other => other,
    }
}

fn audited(checked: &Checked) -> String {
    format!("{}: {}", if checked.passed { "ok" } else { "NOT OK" }, checked.seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nemos_model::certificate::VERSION;
    use serde_json::json;

    fn valid(kept_in: &str) -> Valid {
        let claims = json!({
            "version": VERSION,
            "iat": 1_795_442_900,
            "key_kept_in": kept_in,
            "image": { "id": "nemos-image", "version": "2026.11.23" },
            "job": "5f0c0000000000000000000000000007",
            "scope": "factory",
            "requested_by": { "uid": 1000, "user": "admin", "process": "x\u{1b}[2J[812]", "label": "returned" },
            "requested_at": 1_795_442_786,
            "begun_at": 1_795_442_806,
            "finished_at": 1_795_442_811,
            "plan": "3d11b5cc-7e2d-4faf-b7ef-77b83176e567",
            "targets": [
                { "partition": "p.lxroot", "grade": "key-destroyed" },
                { "partition": "p.lxhome", "grade": "formatted" },
                { "partition": "p.lxreadonly", "grade": "untouched" },
            ],
            "kept": ["/etc/hostname"],
            "old_volume": "b1b4c1c5-3d8e-4a34-8c7e-1f0f0c1d2e3f",
            "new_volume": "8a2d7a2e-5a24-4f4e-9d80-04b7a6f2a1c3",
            "audit": [{ "check": "old-key-slots", "passed": true, "seen": "0 of 1 are still there" }],
        });
        let key = "oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U".to_owned();
        Valid { key, known: serde_json::from_value(claims.clone()).unwrap(), claims }
    }

    #[test]
    fn a_certificate_says_who_had_what_erased_and_what_its_key_is_worth() {
        insta::assert_snapshot!(valid("tpm").render());
        assert!(valid("file").render().contains("whoever could read the disk"));
    }

    #[test]
    fn the_json_is_stable() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&valid("tpm")).unwrap());
    }
}
