//! The first boot makes the storage that a device has of its own, and later boots find it.

use nemos_tests::{Case, Device, Disk, Failed};

use crate::kernel_log::has_no_errors;

pub fn the_root_is_verified() -> Case {
    let status = Device::running()?.says("dmsetup status verityRoot")?;
    assert!(status.ends_with(" verity V"), "{status}");
    Ok(())
}

pub fn the_overlay_is_encrypted_and_authenticated() -> Case {
    let mut device = Device::running()?;
    let luks = device.says("cryptsetup status luks")?;
    for (field, value) in
        [("type", "LUKS2"), ("cipher", "aegis128-random"), ("integrity", "aead"), ("sector size", "4096")]
    {
        assert_eq!(self::field(&luks, field), Some(value), "{field} in {luks}");
    }
    let integrity = device.says("integritysetup status luks_dif")?;
    assert_eq!(field(&integrity, "type"), Some("INTEGRITY"), "{integrity}");
    Ok(())
}

pub fn everything_is_mounted_where_it_is_expected() -> Case {
    let mounts = Device::running()?.says("mount")?;
    for mount in [
        "OverlayOS_rootfs on / type overlay (rw",
        " on /home type ext4 (rw",
        " on /var/lib/containers/storage type xfs (rw",
        " on /var/lib/containers/loaded type squashfs (ro",
    ] {
        assert!(mounts.contains(mount), "`{mount}` is not in {mounts}");
    }
    Ok(())
}

pub fn what_is_written_survives_a_reboot_without_an_io_error() -> Case {
    let files = ["/etc/kept", "/home/kept", "/var/lib/containers/storage/kept"];
    let mut device = Device::running()?;
    has_no_errors(&mut device)?;
    for file in files {
        device.says(&format!("echo {file} > {file}"))?;
    }
    device.reboots()?;
    for file in files {
        assert_eq!(device.says(&format!("cat {file}"))?, file);
    }
    has_no_errors(&mut device)
}

pub fn two_devices_have_no_secret_in_common() -> Case {
    let mut one = Device::running()?;
    let mut other = Disk::fresh()?.boots_by_firmware()?;
    for secret in [
        "cryptsetup luksUUID /dev/disk/by-partlabel/p.lxroot",
        "printf insecure | cryptsetup luksDump -q --dump-volume-key --key-file - /dev/disk/by-partlabel/p.lxroot \
            | sed -n '/MK dump:/,$p'",
        "cat /etc/machine-id",
    ] {
        let (one, other) = (told(&mut one, secret)?, told(&mut other, secret)?);
        assert_ne!(one, other, "`{secret}` is the same on two devices");
    }
    Ok(())
}

/// What a command says, which must be something.
fn told(device: &mut Device, command: &str) -> Result<String, Failed> {
    let said = device.says(command)?;
    if said.is_empty() { Err(format!("`{command}` says nothing").into()) } else { Ok(said) }
}

/// The value of `name: value` in what a program printed.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(field, _)| field.trim() == name).map(|(_, value)| value.trim())
}
