//! What programs for another architecture are compiled against: headers and libraries of Debian, unpacked and never run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::chroot;
use super::error::BuildError;
use super::mirror::{Archive, Mirror};
use super::tool::Tool;
use crate::architecture::Architecture;
use crate::recipe::Debian;

/// The oldest release that the package depends on; see its control file.
const SUITE: &str = "bookworm";
const PACKAGES: [&str; 4] = ["libblkid-dev", "libc6-dev", "libcryptsetup-dev", "libdevmapper-dev"];

/// Finds it in the folder, or takes it from a mirror. It stays: what is linked against does not change within a release.
pub fn make(
    folder: &Path,
    scratch: &Path,
    architecture: Architecture,
    given: Option<&str>,
) -> Result<PathBuf, BuildError> {
    let sysroot = folder.join(format!("sysroot-{SUITE}-{architecture}"));
    if sysroot.is_dir() {
        return Ok(sysroot);
    }
    let debian = Debian {
        suite: SUITE.to_owned(),
        components: vec!["main".to_owned()],
        packages: PACKAGES.map(str::to_owned).into(),
        exclude: Vec::new(),
    };
    let mirror = Mirror::find(given, &debian)?;
    let tar = scratch.join("sysroot.tar");
    chroot::mmdebstrap(architecture, 0)
        .args(["--variant=extract", "--dpkgopt=path-exclude=/usr/share/*"])
        .arg(format!("--include={}", debian.packages.join(",")))
        .args(mirror.settings.iter().map(|setting| format!("--aptopt={setting}")))
        .arg("--aptopt=APT::Install-Recommends \"false\";")
        .arg(chroot::merged(architecture))
        .args(["--format=tar", &debian.suite])
        .arg(&tar)
        .args(mirror.archives.iter().map(Archive::line))
        .run()?;
    fs::create_dir_all(folder).map_err(BuildError::io("making", folder))?;
    // Where it is going to be, so that it is there whole or not at all.
    let new = tempfile::Builder::new().prefix(".sysroot-").tempdir_in(folder);
    let new = new.map_err(BuildError::io("making a folder in", folder))?;
    Tool::new("tar")
        .args(["--extract", "--no-same-owner", "--file"])
        .arg(&tar)
        .arg("--directory")
        .arg(new.path())
        .run()?;
    lead_inside(new.path(), Path::new(".")).map_err(BuildError::io("changing links in", new.path()))?;
    fs::rename(new.path(), &sysroot).map_err(BuildError::io("renaming", new.path()))?;
    let _ = new.keep();
    Ok(sysroot)
}

/// Makes relative what is a link to a path of the host's.
fn lead_inside(folder: &Path, up: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            lead_inside(&path, &up.join(".."))?;
        } else if kind.is_symlink()
            && let Ok(inside) = fs::read_link(&path)?.strip_prefix("/")
        {
            fs::remove_file(&path)?;
            symlink(up.join(inside), &path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_leads_out_of_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (lib, usr) = (folder.path().join("usr/lib"), folder.path().join("usr"));
        fs::create_dir_all(&lib).expect("folders");
        fs::write(lib.join("liba.so.1"), "library").expect("a library");
        symlink("/usr/lib/liba.so.1", lib.join("liba.so")).expect("a link");
        symlink("lib/liba.so.1", usr.join("relative")).expect("a link");
        lead_inside(folder.path(), Path::new(".")).expect("links are changed");
        assert_eq!(fs::read_to_string(lib.join("liba.so")).expect("what is linked to"), "library");
        assert_eq!(fs::read_link(usr.join("relative")).expect("a link"), Path::new("lib/liba.so.1"));
    }
}
