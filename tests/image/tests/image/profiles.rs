//! Images of other recipes than the default one, built and booted. Each is built from nothing, and takes minutes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nemos_tests::{Case, Device, Disk, Failed, image, nemos_image};
use serde_json::Value;
use tempfile::TempDir;

/// Nobody listens on the port of "discard".
const NO_MIRROR: [&str; 2] = ["--mirror", "http://127.0.0.1:9/debian"];

pub fn a_bootstrapped_image_needs_no_mirror_and_is_the_default_one() -> Case {
    let (mut device, _folder) = built_from_an_archive("bootstrapped")?;
    assert_eq!(device.says("podman run --rm localhost/busybox:latest echo hello")?, "hello");
    Ok(())
}

pub fn a_development_image_needs_no_mirror_and_has_its_tools() -> Case {
    let (mut device, _folder) = built_from_an_archive("development")?;
    device.says("command -v curl gdbserver ltrace strace tcpdump vim")?;
    // Without its store there is nothing to install, but it answers.
    assert!(device.says("snap version")?.contains("snapd"));
    device.says("snap list 2>&1 | grep 'No snaps are installed'")?;
    Ok(())
}

pub fn a_recipe_of_ones_own_has_its_partition_its_container_and_its_file() -> Case {
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("app.tar");
    let sum = container_archive(&archive)?;
    let recipe = format!(
        "description = \"mine\"\nextends = \"default\"\n\
         [partitions.data]\nsize-mib = 64\nmount-point = \"/srv/data\"\n\
         [files]\n\"/etc/motd\" = \"hello\\n\"\n\
         [[containers]]\nname = \"localhost:5000/some/app:1.0\"\narchive = \"app.tar\"\nsha256 = \"{sum}\"\n"
    );
    std::fs::write(folder.path().join("mine.toml"), recipe)?;
    let disk = build(&folder, "mine", &["--recipe", &in_folder(&folder, "mine.toml")])?;
    let mut device = disk.boots_by_firmware()?;
    assert_eq!(device.says("cat /etc/motd")?, "hello");
    assert_eq!(device.says("podman run --rm --network none --pull never localhost:5000/some/app:1.0 echo ran")?, "ran");
    assert_eq!(device.says("findmnt --noheadings --output FSTYPE /srv/data")?, "ext4");
    device.says("echo kept > /srv/data/note && echo gone > /etc/note && sync")?;
    device.reboots_by("nemosctl reset --factory --yes")?;
    assert_eq!(device.says("cat /srv/data/note")?, "kept");
    assert_ne!(device.run("cat /etc/note")?.status, 0);
    Ok(())
}

pub fn a_recipe_of_ones_own_has_a_recovery_key_sealed_for_its_fleet_and_replaced_when_it_was_used() -> Case {
    let fleet = age::x25519::Identity::generate();
    let folder = tempfile::tempdir()?;
    let recipe = format!(
        "description = \"mine\"\nextends = \"default\"\n\
         [keys]\ntpm2-pcrs = [0, 7]\nrecipients = [\"{}\"]\n",
        fleet.to_public()
    );
    std::fs::write(folder.path().join("fleet.toml"), recipe)?;
    let disk = build(&folder, "fleet", &["--recipe", &in_folder(&folder, "fleet.toml")])?;
    let mut device = disk.with_tpm().boots_by_firmware()?;
    device.waits_until("nemosctl keys --json | grep --quiet recovery-key")?;
    assert!(device.says("nemosctl health || true")?.contains("nobody else has the recovery key"));
    let unsealed = |device: &mut Device| -> Result<String, Failed> {
        let sealed = device.says("nemosctl keys recovery show")?;
        Ok(String::from_utf8(age::decrypt(&fleet, sealed.as_bytes())?)?)
    };
    let key = unsealed(&mut device)?;
    device.reboots()?;
    device.waits_until("! nemosctl keys --json | grep --quiet demo-key")?;
    assert_eq!(device.run("nemosctl keys forecast")?.status, 0);
    device.says("tpm2_pcrextend 0:sha256=0000000000000000000000000000000000000000000000000000000000000001")?;
    assert_eq!(device.run("nemosctl keys forecast")?.status, 1, "the recipe binds it to PCR 0, too");
    let added = device.says(&format!(
        "printf horse > /run/horse && printf %s {key} | nemosctl keys enroll passphrase --unlock-file - --secret-file /run/horse"
    ))?;
    assert!(added.contains("was seen to open the volume"), "{added}");
    assert!(device.says("nemosctl health || true")?.contains("a recovery key was used"));

    // Whoever typed it has seen it: a boot that needs nobody makes another, and one that goes as soon as the fleet has that.
    let there_are = |number: u32| format!("[ $(nemosctl keys --json | grep --count recovery-key) = {number} ]");
    device.reboots()?;
    device.waits_until(&there_are(2))?;
    let new = unsealed(&mut device)?;
    let old = device.run("echo another | nemosctl keys recovery acknowledge -")?;
    assert!(old.status == 1 && old.stderr.contains("that is not the recovery key"), "{old:?}");
    device.reboots()?;
    let health = device.says("nemosctl health || true")?;
    assert!(
        health.contains("nobody else has the recovery key") && health.contains("a recovery key was used"),
        "{health}"
    );
    device.says(
        "nemosctl keys recovery show > /home/escrow.age && nemosctl keys recovery acknowledge /home/escrow.age",
    )?;
    device.reboots()?;
    device.waits_until(&there_are(1))?;
    let health = device.says("nemosctl health || true")?;
    assert!(!health.contains("recovery key"), "{health}");
    let unlocks = |key: &str| format!("printf %s {key} | nemosctl keys enroll recovery-key --unlock-file -");
    let old = device.run(&unlocks(&key))?;
    assert!(old.stderr.contains("opens none of its key slots"), "{old:?}");
    device.says(&unlocks(&new))?;
    Ok(())
}

/// An image of a profile, made of an archive with nothing to ask a mirror for; its storage must be that of the default one.
/// The folder is what the device's disk is in.
fn built_from_an_archive(profile: &str) -> Result<(Device, TempDir), Failed> {
    let folder = tempfile::tempdir()?;
    let output = in_folder(&folder, "out");
    let made = nemos_image(&[
        "bootstrap",
        "--profile",
        profile,
        "--output",
        &output,
        "--cache",
        &in_folder(&folder, "cache"),
    ])?;
    assert_eq!(made.status, Some(0), "{made:?}");
    let disk = build(&folder, profile, &[&["--profile", profile], &NO_MIRROR[..]].concat())?;
    let mut device = disk.boots_by_firmware()?;
    assert_eq!(layers(&mut device)?, layers(&mut Device::running()?)?);
    Ok((device, folder))
}

/// Builds an image with the package that is in the image under test, and gives a new device's disk of it.
pub fn build(folder: &TempDir, name: &str, arguments: &[&str]) -> Result<Disk, Failed> {
    let (output, cache) = (in_folder(folder, "out"), in_folder(folder, "cache"));
    let package = package()?.to_string_lossy().into_owned();
    let common = ["build", "--output", &output, "--cache", &cache, "--package", &package];
    let made = nemos_image(&[&common[..], arguments].concat())?;
    assert_eq!(made.status, Some(0), "{made:?}");
    Disk::of(&folder.path().join(format!("out/nemos-{name}.raw")))
}

/// Where `build_image` of image-builder/host.sh leaves the package.
fn package() -> Result<PathBuf, Failed> {
    let package = image()?.ancestors().nth(2).map(|folder| folder.join("nemos.deb")).filter(|file| file.is_file());
    package.ok_or_else(|| "there is no nemos.deb next to the image's folder: use tests/run.sh".into())
}

/// The path of a file in the folder.
pub fn in_folder(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).to_string_lossy().into_owned()
}

/// Name, type, place and state of each layer that `nemosctl status` draws.
fn layers(device: &mut Device) -> Result<Vec<[Value; 4]>, Failed> {
    let status = device.tells("nemosctl status --json")?;
    let layers = status["storage"].as_array().ok_or("status tells of no storage")?;
    Ok(layers.iter().map(|layer| ["name", "kind", "on", "state"].map(|word| layer[word].clone())).collect())
}

/// An OCI archive with a layer packed with zstd, as podman on a device writes it, and its SHA-256.
fn container_archive(to: &Path) -> Result<String, Failed> {
    let mut device = Device::running()?;
    device.says("podman push --compression-format zstd localhost/busybox:latest oci-archive:/tmp/app.tar:app")?;
    let packed = device
        .says("tar --extract --to-stdout --file /tmp/app.tar --wildcards 'blobs/*' | grep --count --text 'tar+zstd'")?;
    assert_ne!(packed, "0");
    let encoded = to.with_extension("base64");
    std::fs::write(&encoded, device.says("base64 /tmp/app.tar")?)?;
    let decoded =
        Command::new("base64").arg("--decode").arg(&encoded).stdout(Stdio::from(File::create(to)?)).status()?;
    assert!(decoded.success());
    let sum = device.says("sha256sum /tmp/app.tar")?;
    Ok(sum.split_whitespace().next().unwrap_or_default().to_owned())
}
