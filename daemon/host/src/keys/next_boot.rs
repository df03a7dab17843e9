//! Looks at what the next boot will measure: the variables of Secure Boot, and the kernel's image on the ESP.

use std::fs;
use std::io::{self, Read, SeekFrom};
use std::ops::Range;
use std::path::Path;

use nemos_model::keys::NextBoot;
use nemos_model::keys::measured::{LOG, Measured, VARIABLES, Variable};
use nemos_model::keys::next_boot::{Found, KernelImage, SecureBoot};
use nemos_model::uki::pcr::{self, Digest, INITRD, Key, MEASURED, Signatures};
use nemos_model::uki::{HEADERS, NotProgram, Program, pkcs7};
use sha2::{Digest as _, Sha256};

use crate::keys::bound;
use crate::keys::esp::{Bytes, esp, with_file};
use crate::overlay::identity;

/// What the firmware starts from a disk that it knows nothing else of. Source: UEFI 2.10, 3.5.1.1.
const REMOVABLE: &str = if cfg!(target_arch = "aarch64") { "EFI/BOOT/BOOTAA64.EFI" } else { "EFI/BOOT/BOOTX64.EFI" };

/// What the next boot from the disk that has this partition measures.
pub fn next_boot(partition: &Path) -> NextBoot {
    let measured = measured(Path::new(LOG));
    let variables = Path::new(VARIABLES);
    let secure_boot = measured.as_ref().map_err(Clone::clone).and_then(|measured| secure_boot(measured, variables));
    NextBoot {
        secure_boot: secure_boot.unwrap_or_else(SecureBoot::Unknown),
        image: image(partition, measured.as_ref().map_err(Clone::clone), variables),
        is_foreign: identity(partition).is_ok_and(|volume| !bound().allows(&volume)),
    }
}

/// What is another once somebody has changed what the next boot measures: seen without reading all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// Sectors that were written to the ESP since the kernel has known it.
    written: Option<u64>,
    /// What is in the variables that Secure Boot decides by.
    variables: Vec<Vec<u8>>,
}

/// How it is now, on the disk that has this partition.
pub fn traces(partition: &Path) -> Traces {
    let measured = measured(Path::new(LOG)).map(|measured| measured.variables).unwrap_or_default();
    let variables = measured.iter().map(|variable| value(variable, Path::new(VARIABLES)).unwrap_or_default());
    Traces { written: esp(partition).ok().and_then(|esp| sectors_written(&esp)), variables: variables.collect() }
}

/// Source: the kernel's Documentation/block/stat.rst, "write sectors".
fn sectors_written(device: &Path) -> Option<u64> {
    const WRITE_SECTORS: usize = 6;
    let device = fs::canonicalize(device).ok()?;
    let told = fs::read_to_string(Path::new("/sys/class/block").join(device.file_name()?).join("stat")).ok()?;
    told.split_whitespace().nth(WRITE_SECTORS)?.parse().ok()
}

fn unreadable(path: &Path, error: &dyn std::error::Error) -> String {
    format!("{}: {error}", path.display())
}

fn measured(log: &Path) -> Result<Measured, String> {
    let text = fs::read(log).map_err(|error| unreadable(log, &error))?;
    Measured::parse(&text).map_err(|error| unreadable(log, &error))
}

fn secure_boot(measured: &Measured, folder: &Path) -> Result<SecureBoot, String> {
    if !measured.variables.is_empty() {
        // Without it, each variable would look as if it were deleted.
        let mut files = fs::read_dir(folder).map_err(|error| unreadable(folder, &error))?;
        let first = files.next().ok_or_else(|| format!("{}: it is empty", folder.display()))?;
        first.map_err(|error| unreadable(folder, &error))?;
    }
    let mut changed = Vec::new();
    for variable in &measured.variables {
        if !variable.is_still(&value(variable, folder)?) && !changed.contains(&variable.name) {
            changed.push(variable.name.clone());
        }
    }
    Ok(if changed.is_empty() { SecureBoot::Same } else { SecureBoot::Differs(changed) })
}

/// The file of a variable; nothing if there is none.
fn value(variable: &Variable, folder: &Path) -> Result<Vec<u8>, String> {
    let path = folder.join(variable.file_name());
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|error| unreadable(&path, &error)),
    }
}

fn image(partition: &Path, measured: Result<&Measured, String>, variables: &Path) -> KernelImage {
    let esp = match esp(partition) {
        Ok(esp) => esp,
        Err(error) => return KernelImage::Unknown(error),
    };
    let judged = with_file(&esp, REMOVABLE, |file, length| judge(file, length, measured, variables));
    judged.unwrap_or_else(|error| match error {
        Unreadable::Program(why) => KernelImage::Refused(why.to_string()),
        Unreadable::Io(error) if error.kind() == io::ErrorKind::NotFound => {
            KernelImage::Refused(format!("there is no {REMOVABLE}"))
        }
        Unreadable::Io(error) => KernelImage::Unknown(format!("{REMOVABLE}: {error}")),
    })
}

fn judge(
    file: &mut dyn Bytes,
    length: u64,
    measured: Result<&Measured, String>,
    variables: &Path,
) -> Result<KernelImage, Unreadable> {
    let program = Program::parse(&read(file, 0..length.min(HEADERS as u64))?, length)?;
    let known = measured.and_then(|measured| {
        let db = measured.trusted().map(|db| value(db, variables)).transpose()?;
        Ok((measured, db.unwrap_or_default()))
    });
    Ok(match known {
        Ok((measured, db)) => KernelImage::judge(look(file, &program)?, measured, &db),
        Err(why) => KernelImage::Unknown(why),
    })
}

/// A file that nothing can be said of, or only one thing.
enum Unreadable {
    Io(io::Error),
    Program(NotProgram),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Unreadable::Io(error)
    }
}

impl From<NotProgram> for Unreadable {
    fn from(error: NotProgram) -> Self {
        Unreadable::Program(error)
    }
}

fn look(file: &mut dyn Bytes, program: &Program) -> Result<Found, Unreadable> {
    let signature = match program.signature.clone() {
        Some(place) => Some(pkcs7(&read(file, place)?)?.to_vec()),
        None => None,
    };
    let digest = digest(file, &program.hashed)?;
    Ok(Found { digest, signature, signed_for_tpm: signed_for_tpm(file, program)? })
}

/// Whose key signed what a TPM measures of it in the initrd, if anybody's: the one that it brings along.
fn signed_for_tpm(file: &mut dyn Bytes, program: &Program) -> io::Result<Option<Key>> {
    let mut text = |name: &str| {
        let read = program.section(name).map(|place| read(file, place)).transpose()?;
        Ok::<_, io::Error>(read.map(|bytes| String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()))
    };
    let (key, signatures) = (text(".pcrpkey")?, text(".pcrsig")?);
    let (Some(key), Some(signatures)) = (key, signatures) else { return Ok(None) };
    let (Some(key), Ok(signatures)) = (Key::from_pem(&key), serde_json::from_str::<Signatures>(&signatures)) else {
        return Ok(None);
    };
    let mut sections = Vec::new();
    for name in MEASURED {
        if let Some(place) = program.section(name) {
            sections.push((name, digest(file, &[place])?));
        }
    }
    Ok(key.allows(pcr::expected(&sections, INITRD), &signatures).then_some(key))
}

/// A part that is small: headers, a signature.
fn read(file: &mut dyn Bytes, place: Range<u64>) -> io::Result<Vec<u8>> {
    /// More than any of them has.
    const LARGEST: u64 = 1 << 20;
    if place.end - place.start > LARGEST {
        return Err(io::Error::other("a signature is too large"));
    }
    file.seek(SeekFrom::Start(place.start))?;
    let mut bytes = Vec::new();
    Read::take(&mut *file, place.end - place.start).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == place.end - place.start { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn digest(file: &mut dyn Bytes, places: &[Range<u64>]) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for place in places {
        file.seek(SeekFrom::Start(place.start))?;
        let mut rest = Read::take(&mut *file, place.end - place.start);
        loop {
            match rest.read(&mut buffer)? {
                0 if rest.limit() > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                0 => break,
                length => hash.update(&buffer[..length]),
            }
        }
    }
    Ok(Digest::from_bytes(hash.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log with one event, as a firmware writes it: `db` with the value `keys`.
    fn log() -> Vec<u8> {
        let beginning = [&[0, 0, 0, 0, 3, 0, 0, 0][..], &[0; 20], &[33, 0, 0, 0]].concat();
        let announced = [b"Spec ID Event03\0".as_slice(), &[0; 8], &[1, 0, 0, 0, 0x0b, 0, 32, 0, 0]].concat();
        let vendor = b"\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f";
        let variable = [vendor.as_slice(), &[2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0], b"d\0b\0keys"].concat();
        let digest = [&[1, 0, 0, 0, 0x0b, 0][..], &[7; 32]].concat();
        [&beginning[..], &announced, &[7, 0, 0, 0, 1, 0, 0, 0x80][..], &digest, &[40, 0, 0, 0], &variable].concat()
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_claimed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, variables) = (folder.path().join("log"), folder.path().join("efivars"));
        let look = |log: &Path, variables: &Path| measured(log).and_then(|measured| secure_boot(&measured, variables));
        assert!(look(&path, &variables).unwrap_err().contains("log: No such file"));
        fs::write(&path, log()).unwrap();
        assert!(look(&path, &variables).unwrap_err().contains("efivars: No such file"));
        fs::create_dir(&variables).unwrap();
        assert!(look(&path, &variables).unwrap_err().ends_with("it is empty"), "it is not mounted");
        let [db, other] = ["db-d719b2cb-3d3a-4596-a3bc-dad00e67656f", "other"].map(|name| variables.join(name));
        fs::write(&other, "").unwrap();
        assert_eq!(look(&path, &variables), Ok(SecureBoot::Differs(vec!["db".into()])), "it was deleted");
        fs::write(&db, "\x27\0\0\0keys").unwrap();
        assert_eq!(look(&path, &variables), Ok(SecureBoot::Same));
        fs::write(&path, &log()[..100]).unwrap();
        assert!(look(&path, &variables).unwrap_err().ends_with("cut off or damaged"));
    }
}
