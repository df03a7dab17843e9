//! The description for Kiwi says what the default recipe says: otherwise it would be another image.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "panicking is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use nemos_image::recipe::Recipe;
use nemos_model::keys::{OVERLAY_CIPHER, OVERLAY_SECTOR_BYTES, Policy, policy};
use nemos_model::partitions::Partition;
use nemos_model::state::{DeviceState, FILE_NAME};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kiwi/x86")
}

fn text(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn recipe() -> Recipe {
    Recipe::shipped("default", None).expect("the default recipe")
}

/// The values of an attribute of all elements of that name.
fn values(description: &str, element: &str, attribute: &str) -> Vec<String> {
    let (tag, begin) = (format!("<{element} "), format!("{attribute}=\""));
    let elements = description.split(&tag).skip(1);
    let value = |element: &str| {
        let (_, value) = element.split_once('>')?.0.split_once(&begin)?;
        Some(value.split_once('"')?.0.to_owned())
    };
    elements.filter_map(value).collect()
}

/// The part for all profiles.
fn packages(description: &str) -> &str {
    let (_, rest) = description.split_once("<packages type=\"image\">").expect("packages of every profile");
    rest.split_once("</packages>").expect("their end").0
}

#[test]
fn the_packages_are_the_same() {
    let description = text("appliance.kiwi");
    let named: BTreeSet<_> = values(packages(&description), "package", "name").into_iter().collect();
    let wanted: BTreeSet<_> = recipe().debian.packages.into_iter().collect();
    assert_eq!(named, wanted, "kiwi/x86/appliance.kiwi, and recipes/default.toml");
    assert_eq!(values(&description, "repository", "distribution"), [recipe().debian.suite]);
}

#[test]
fn the_files_are_the_same() {
    fn collect(folder: &Path, root: &Path, files: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                collect(&entry, root, files);
            } else {
                let path = format!("/{}", entry.strip_prefix(root).unwrap().display());
                files.insert(path, fs::read_to_string(&entry).unwrap());
            }
        }
    }
    let mut files = BTreeMap::new();
    let root = folder().join("root");
    collect(&root, &root, &mut files);
    let state = format!("{}/{FILE_NAME}", Partition::State.mount_point().unwrap());
    let state = files.remove(&state).expect("the state that the device begins with");
    assert_eq!(DeviceState::parse(state.as_bytes()).unwrap(), DeviceState::shipped_with_volume());
    let keys = files.remove(&format!("/{}", policy::FILE)).expect("the policy of keys");
    assert_eq!(serde_json::from_str::<Policy>(&keys).unwrap(), recipe().keys);
    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
    let wanted = recipe().files;
    assert_eq!(names(&files), names(&wanted), "kiwi/x86/root, and [files] of recipes/default.toml");
    for (path, content) in &wanted {
        assert_eq!(&files[path], content, "{path}");
    }
}

#[test]
fn units_and_accounts_are_the_same() {
    let script = text("config.sh");
    let Recipe { units, users, .. } = recipe();
    let has = |what: &str| script.split_whitespace().any(|word| word.trim_end_matches(';') == what);
    for unit in units.enable.iter().chain(&units.disable).chain(&units.mask) {
        assert!(has(unit), "kiwi/x86/config.sh says nothing of {unit}");
    }
    for (name, user) in users {
        assert!(script.contains(&format!("useradd --uid {}", user.uid)), "{name}");
        assert!(script.contains(&format!("--groups {} ", user.groups.join(","))), "{name}");
        assert!(script.contains(&format!("{name}:{}", user.password_hash.unwrap())), "{name}");
    }
}

#[test]
fn the_disk_is_the_same() {
    let description = text("appliance.kiwi");
    let sizes = recipe().partitions_mib;
    let names = values(&description, "partition", "name");
    let places = values(&description, "partition", "mountpoint");
    let mib = values(&description, "partition", "size");
    assert_eq!(names.len(), 4);
    for ((name, place), mib) in names.iter().zip(places).zip(mib) {
        let partition: Partition = format!("p.lx{name}").parse().expect("a partition of nemos");
        assert_eq!(partition.mount_point(), Some(place.as_str()));
        assert!(sizes.of(partition).is_none_or(|size| size.to_string() == mib), "{partition}");
    }
    let esp = sizes.of(Partition::Esp).unwrap();
    assert!(description.contains(&format!("efipartsize=\"{esp}\"")));
    let line = recipe().kernel.command_line.join(" ");
    assert_eq!(values(&description, "type", "kernelcmdline"), [line]);
}

#[test]
fn the_overlay_is_encrypted_as_a_device_does_it() {
    let description = text("appliance.kiwi");
    let (names, values) = (values(&description, "option", "name"), values(&description, "option", "value"));
    let option = |name: &str| values[names.iter().position(|known| known == name).expect(name)].clone();
    assert_eq!(option("--cipher"), format!("{}-{}", OVERLAY_CIPHER.name, OVERLAY_CIPHER.mode));
    assert_eq!(option("--key-size"), (OVERLAY_CIPHER.volume_key_bytes * 8).to_string());
    assert_eq!(option("--integrity"), OVERLAY_CIPHER.integrity);
    assert_eq!(option("--sector-size"), OVERLAY_SECTOR_BYTES.to_string());
}
