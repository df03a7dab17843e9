//! Looks at what the next boot will measure of Secure Boot.

use std::fs;
use std::io;
use std::path::Path;

use nemos_model::keys::NextBoot;
use nemos_model::keys::measured::{LOG, VARIABLES, Variable, variables};

/// What of PCR 7 the next boot measures.
pub fn next_boot() -> NextBoot {
    look(Path::new(LOG), Path::new(VARIABLES)).unwrap_or_else(NextBoot::Unknown)
}

fn look(log: &Path, folder: &Path) -> Result<NextBoot, String> {
    let unreadable = |path: &Path, error: &io::Error| format!("{}: {error}", path.display());
    let text = fs::read(log).map_err(|error| unreadable(log, &error))?;
    let measured = variables(&text).map_err(|error| format!("{}: {error}", log.display()))?;
    if !measured.is_empty() {
        // Without it, each variable would look as if it were deleted.
        let mut files = fs::read_dir(folder).map_err(|error| unreadable(folder, &error))?;
        files
            .next()
            .ok_or_else(|| format!("{}: it is empty", folder.display()))?
            .map_err(|error| unreadable(folder, &error))?;
    }
    let mut changed = Vec::new();
    for variable in &measured {
        if !is_still(variable, folder)? && !changed.contains(&variable.name) {
            changed.push(variable.name.clone());
        }
    }
    Ok(if changed.is_empty() { NextBoot::Same } else { NextBoot::Differs(changed) })
}

fn is_still(variable: &Variable, folder: &Path) -> Result<bool, String> {
    let path = folder.join(variable.file_name());
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(variable.is_still(b"")),
        read => read.map(|file| variable.is_still(&file)).map_err(|error| format!("{}: {error}", path.display())),
    }
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
        assert!(look(&path, &variables).unwrap_err().contains("log: No such file"));
        fs::write(&path, log()).unwrap();
        assert!(look(&path, &variables).unwrap_err().contains("efivars: No such file"));
        fs::create_dir(&variables).unwrap();
        assert!(look(&path, &variables).unwrap_err().ends_with("it is empty"), "it is not mounted");
        let [db, other] = ["db-d719b2cb-3d3a-4596-a3bc-dad00e67656f", "other"].map(|name| variables.join(name));
        fs::write(&other, "").unwrap();
        assert_eq!(look(&path, &variables), Ok(NextBoot::Differs(vec!["db".into()])), "it was deleted");
        fs::write(&db, "\x27\0\0\0keys").unwrap();
        assert_eq!(look(&path, &variables), Ok(NextBoot::Same));
        fs::write(&path, &log()[..100]).unwrap();
        assert!(look(&path, &variables).unwrap_err().ends_with("cut off or damaged"));
    }
}
