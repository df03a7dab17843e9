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

pub fn a_mistake_in_a_recipe_is_told_with_its_line() -> Case {
    let mistakes = [
        ("[debain]\n", "mine.toml, line 3: unknown field `debain`"),
        ("[partitions-mib]\nhome = 300\nhome = 400\n", "mine.toml, line 5: duplicate key"),
        ("[partitions-mib]\noci-storage = 200\n", "mine.toml, line 4: p.lxoci-storage needs 304 MiB at least"),
    ];
    for (lines, expected) in mistakes {
        let folder = tempfile::tempdir()?;
        let said = with_recipe(folder.path(), "build", lines)?;
        assert!(said.complaint()?.contains(expected), "{said:?}");
    }
    Ok(())
}

pub fn a_package_that_debian_has_not_is_told_with_its_line() -> Case {
    let folder = tempfile::tempdir()?;
    // Not `build`: that compiles our own package first.
    let said =
        with_recipe(folder.path(), "bootstrap", "[debian]\npackages = [\n    \"vim\",\n    \"no-such-package\",\n]\n")?;
    assert!(
        said.complaint()?.ends_with("mine.toml, line 6: there is no package `no-such-package` in trixie"),
        "{said:?}"
    );
    Ok(())
}

pub fn an_archive_that_is_not_the_one_of_the_recipe_is_refused() -> Case {
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("archive.tar");
    fs::write(&archive, "something else")?;
    let zeros = "0".repeat(64);
    let container =
        format!("[[containers]]\nname = \"localhost/app:1\"\narchive = \"archive.tar\"\nsha256 = \"{zeros}\"\n");
    let bootstrap = format!("[bootstrap]\narchive = \"archive.tar\"\nsha256 = \"{zeros}\"\n");
    for lines in [container, bootstrap] {
        let said = with_recipe(folder.path(), "build", &lines)?;
        assert!(said.complaint()?.contains(&format!("and {zeros} was expected")), "{said:?}");
    }
    let nothing = folder.path().join("nothing.tar.zst");
    let output = folder.path().join("out");
    let said = build(&output, &["--profile", "bootstrapped", "--rootfs", &nothing.to_string_lossy()])?;
    assert!(said.complaint()?.contains("make it with `nemos-image bootstrap`"), "{said:?}");
    assert!(!output.exists(), "something is left behind");
    Ok(())
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

/// Gives a subcommand a recipe with these lines behind the first two; nothing is left of what it did.
fn with_recipe(folder: &Path, subcommand: &str, lines: &str) -> Result<Said, Failed> {
    let recipe = folder.join("mine.toml");
    fs::write(&recipe, format!("description = \"mine\"\nextends = \"default\"\n{lines}"))?;
    let (output, cache) = (folder.join("out"), folder.join("cache"));
    let paths = [&recipe, &output, &cache].map(|path| path.to_string_lossy().into_owned());
    let said = nemos_image(&[subcommand, "--recipe", &paths[0], "--output", &paths[1], "--cache", &paths[2]])?;
    assert!(!output.exists(), "something is left behind");
    Ok(said)
}

fn source_tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn is_empty(folder: &Path) -> Case {
    let left: Vec<_> = fs::read_dir(folder)?.flatten().map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
