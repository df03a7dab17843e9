//! nemos-image, given what it cannot work with: one sentence, and nothing left behind.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use nemos_tests::{Case, Disk, Failed, Said, image, nemos_image, program};
use serde_json::Value;

/// Subcommands that take a disk.
const LOOK: [&str; 3] = ["run", "inspect", "verify"];

pub fn what_is_not_a_disk_is_refused_in_a_sentence() -> Case {
    let folder = tempfile::tempdir()?;
    let text = folder.path().join("text");
    fs::write(&text, "not a disk\n".repeat(1000))?;
    for path in [text, folder.path().to_owned(), folder.path().join("nothing")] {
        for command in LOOK {
            let path = path.to_string_lossy();
            let said = nemos_image(&[command, &path])?;
            assert!(said.complaint()?.contains(&*path), "{command}: {said:?}");
        }
    }
    Ok(())
}

pub fn a_truncated_disk_is_refused_in_a_sentence() -> Case {
    let mut disk = Disk::fresh()?;
    let file = File::options().write(true).open(disk.bytes()?)?;
    file.set_len(file.metadata()?.len() / 2)?;
    let path = disk.bytes()?.to_string_lossy().into_owned();
    for command in LOOK {
        let said = nemos_image(&[command, &path])?;
        assert!(said.complaint()?.contains("truncated"), "{command}: {said:?}");
    }
    Ok(())
}

pub fn a_manifest_that_says_something_else_is_found() -> Case {
    let folder = tempfile::tempdir()?;
    let (disk, manifest) = (folder.path().join("nemos.raw"), folder.path().join("nemos.manifest.json"));
    symlink(image()?, &disk)?;
    let verify = || nemos_image(&["verify", &disk.to_string_lossy()]);
    let mut said: Value = serde_json::from_str(&fs::read_to_string(image()?.with_extension("manifest.json"))?)?;
    fs::write(&manifest, said.to_string())?;
    assert!(verify()?.stdout.contains("true, in the image and next to the disk"), "{:?}", verify()?);

    said["disk"]["root-hash"] = "0".repeat(64).into();
    fs::write(&manifest, said.to_string())?;
    let told = verify()?;
    assert!(told.status != Some(0) && told.stdout.contains("says another root hash than"), "{told:?}");
    Ok(())
}

pub fn an_unknown_profile_is_refused_in_a_sentence() -> Case {
    let folder = tempfile::tempdir()?;
    let said = build(folder.path(), &["--profile", "defautl"])?;
    assert!(said.complaint()?.contains("defautl"), "{said:?}");
    is_empty(folder.path())
}

pub fn a_dead_mirror_leaves_nothing_behind() -> Case {
    let folder = tempfile::tempdir()?;
    // Nobody listens on the port of "discard".
    let said = build(folder.path(), &["--mirror", "http://127.0.0.1:9/debian"])?;
    assert!(said.complaint()?.contains("127.0.0.1:9"), "{said:?}");
    is_empty(folder.path())
}

pub fn a_full_folder_is_told_and_left_as_it_was() -> Case {
    let folder = tempfile::tempdir()?;
    let cache = tempfile::tempdir()?;
    // A file system of 4 MiB, in a mount namespace of its own: what is left in it is listed before it is gone.
    let script = r#"mount -t tmpfs -o size=4M none "$1" && cd "$2" || exit 99
        "$0" build --output "$1" --cache "$3"; status=$?
        ls -A "$1"; exit $status"#;
    let said = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .args([&program()?, folder.path(), &source_tree(), cache.path()])
        .output()
        .map(Said::from)?;
    assert!(said.complaint()?.contains("MiB free"), "{said:?}");
    assert_eq!(said.stdout, "", "something is left behind");
    Ok(())
}

fn build(folder: &Path, arguments: &[&str]) -> Result<Said, Failed> {
    let cache = tempfile::tempdir()?;
    let (folder, cache) = (folder.to_string_lossy(), cache.path().to_string_lossy().into_owned());
    nemos_image(&[&["build", "--output", &folder, "--cache", &cache], arguments].concat())
}

fn source_tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn is_empty(folder: &Path) -> Case {
    let left: Vec<_> = fs::read_dir(folder)?.flatten().map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
