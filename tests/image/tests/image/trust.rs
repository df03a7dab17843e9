//! A signed image, on a firmware that trusts its keys: what is not signed as it should be is refused, by whom it concerns.

use std::fs;
use std::process::Command;

use nemos_model::partitions::Partition;
use nemos_tests::{Case, Disk, Failed, Signed, nemos_image};

/// Size of a block of dm-verity.
const BLOCK: u64 = 4096;

pub fn a_signed_image_boots_with_secure_boot_and_its_root_is_verified_with_its_signature() -> Case {
    let signed = Signed::find()?;
    let mut device = signed.disk()?.boots_secured(&signed)?;
    // Four bytes of attributes, and whether it is on.
    assert!(device.says("od -An -tu1 /sys/firmware/efi/efivars/SecureBoot-*")?.ends_with(" 1"));
    let status = device.tells("nemosctl status --json")?;
    let layers = status["storage"].as_array().into_iter().flatten();
    let root = layers.into_iter().find(|layer| layer["name"] == "verityRoot");
    assert_eq!(root.map(|root| &root["detail"]), Some(&"verified (with signature)".into()), "{status}");
    Ok(())
}

pub fn an_unsigned_kernel_image_is_refused_by_the_firmware() -> Case {
    let why = Disk::fresh()?.starts_secured(&Signed::find()?)?.fails_to_boot()?;
    assert!(why.contains("the firmware trusts no key"), "{why}");
    Ok(())
}

pub fn a_root_hash_signed_by_another_key_is_refused_by_the_kernel() -> Case {
    let signed = Signed::find()?;
    let mut device = signed.disk_with_another_root_key()?.starts_secured(&signed)?;
    device.prints("verity: Root hash verification failed")?;
    let reason = device.refuses_to_boot()?;
    assert!(reason.contains("by no key that the firmware trusts"), "{reason}");
    Ok(())
}

pub fn a_swapped_root_is_refused_by_its_hash() -> Case {
    let signed = Signed::find()?;
    let mut disk = signed.disk()?;
    disk.write(Partition::Readonly, 0, &another_root()?)?;
    let reason = disk.starts_secured(&signed)?.refuses_to_boot()?;
    assert!(reason.contains("is not what the root hash"), "{reason}");
    Ok(())
}

pub fn a_disk_is_verified_against_the_keys_it_should_be_signed_with() -> Case {
    let signed = Signed::find()?;
    let mut disk = signed.disk()?;
    let path = disk.bytes()?.to_string_lossy().into_owned();
    let verify = |path: &str, keys: &str| nemos_image(&["verify", path, "--keys", &signed.path(keys)]);
    let said = verify(&path, "keys")?;
    assert_eq!(said.status, Some(0), "{said:?}");

    let said = verify(&path, "other")?;
    let failed: Vec<_> = said.stdout.lines().filter(|line| line.starts_with("FAIL")).collect();
    assert_eq!((said.status, failed.len()), (Some(1), 4), "{said:?}");

    let mut unsigned = Disk::fresh()?;
    assert!(verify(&unsigned.bytes()?.to_string_lossy(), "keys")?.stdout.contains("it is not signed, and should be"));

    // The last byte of what is on the ESP is behind the signature; the middle is of the initrd.
    disk.corrupt(Partition::Esp, 12 << 20, 1)?;
    assert!(verify(&path, "keys")?.stdout.contains("it was changed after it was signed"));
    Ok(())
}

/// A root that is sound in itself: a file system with its own hash tree.
fn another_root() -> Result<Vec<u8>, Failed> {
    let folder = tempfile::tempdir()?;
    let (content, root) = (folder.path().join("content"), folder.path().join("root"));
    fs::create_dir_all(content.join("sbin"))?;
    fs::write(content.join("sbin/init"), "#!/bin/sh\n".repeat(100_000))?;
    let made = Command::new("mksquashfs").args([&content, &root]).args(["-noD", "-noF", "-quiet"]).output()?;
    assert!(made.status.success(), "{made:?}");
    let size = fs::metadata(&root)?.len().next_multiple_of(BLOCK);
    fs::File::options().write(true).open(&root)?.set_len(size)?;
    let made = Command::new("/usr/sbin/veritysetup")
        .args(["format", &format!("--data-blocks={}", size / BLOCK), &format!("--hash-offset={size}")])
        .args([&root, &root])
        .output()?;
    assert!(made.status.success(), "{made:?}");
    Ok(fs::read(&root)?)
}
