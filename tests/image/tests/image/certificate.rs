//! Certificates of resets, checked where the device is not.

use std::fs;
use std::path::Path;

use nemos_tests::{Case, Device, Disk, Failed, Said, nemosctl_elsewhere};
use serde_json::Value;

use crate::factory::{RESET, last_reset};

pub fn the_key_in_a_file_outlives_resets_and_certifies_them() -> Case {
    let mut device = Device::running()?;
    outlives_resets_and_certifies_them(&mut device, "file")?;
    assert_eq!(device.says("stat --format '%a %U' /var/lib/nemos/certificate.key")?, "600 root");
    Ok(())
}

pub fn the_key_in_a_tpm_outlives_resets_and_certifies_them() -> Case {
    let mut device = Disk::fresh()?.with_tpm().boots()?;
    // The TPM is there since the initrd; whose it is in the end, udev's rules say.
    device.says("udevadm trigger --action add --settle /dev/tpmrm0")?;
    outlives_resets_and_certifies_them(&mut device, "tpm")?;
    device.says("test ! -e /var/lib/nemos/certificate.key")?;
    let verdict = device.says("nemosctl status")?;
    assert!(!verdict.contains("critical"), "{verdict}");
    Ok(())
}

fn outlives_resets_and_certifies_them(device: &mut Device, kept_in: &str) -> Case {
    let folder = tempfile::tempdir()?;
    let file = |name: &str| folder.path().join(name);
    // The key is taken before anything is reset, by whoever asks, and everything is verified with it.
    fs::write(file("key"), device.says("runuser -u nobody -- nemosctl reset certificate-key")?)?;

    let job = reset(device)?;
    fs::write(file("first"), device.says(&format!("nemosctl reset certificate {job}"))?)?;
    let claims = holds(&file("first"), &file("key"))?;
    assert_eq!((&claims["job"], &claims["key_kept_in"]), (&job.clone().into(), &kept_in.into()), "{claims}");
    assert_eq!(claims["requested_by"]["user"], "root", "{claims}");
    let passed = |check: &Value| check["passed"] == true;
    assert!(
        claims["audit"].as_array().is_some_and(|checks| !checks.is_empty() && checks.iter().all(passed)),
        "{claims}"
    );
    assert_eq!(claims["new_volume"], device.says("cryptsetup luksUUID /dev/disk/by-partlabel/p.lxroot")?, "{claims}");

    let again = reset(device)?;
    fs::write(file("second"), device.says(&format!("nemosctl reset certificate {again}"))?)?;
    assert_eq!(holds(&file("second"), &file("key"))?["job"], again.as_str());

    is_refused(&file("first"), &file("second"), &file("key"))
}

/// Resets the device, and gives the job.
fn reset(device: &mut Device) -> Result<String, Failed> {
    device.reboots_by(RESET)?;
    let job = last_reset(device)?;
    assert_eq!(job["State"], "done", "{job}");
    Ok(job["Id"].as_str().ok_or("the job has no name")?.to_owned())
}

/// What a certificate says, which must be valid.
fn holds(certificate: &Path, key: &Path) -> Result<Value, Failed> {
    let said = verify(certificate, key, &["--json"])?;
    let json = serde_json::from_str::<Value>(&said.stdout).map_err(|error| format!("{error}: {said:?}"))?;
    match said.status {
        Some(0) => Ok(json["claims"].clone()),
        _ => Err(format!("{said:?}").into()),
    }
}

/// What one certificate says, with the signature of another.
fn is_refused(content: &Path, signature: &Path, key: &Path) -> Case {
    let (content, signature) = (fs::read_to_string(content)?, fs::read_to_string(signature)?);
    let mixed = content.split('.').take(2).chain(signature.split('.').skip(2)).collect::<Vec<_>>().join(".");
    let file = key.with_extension("mixed");
    fs::write(&file, mixed)?;
    let said = verify(&file, key, &[])?;
    assert_eq!(said.status, Some(1), "{said:?}");
    assert!(said.stdout.is_empty() && said.stderr.contains("its signature does not match"), "{said:?}");
    Ok(())
}

fn verify(certificate: &Path, key: &Path, more: &[&str]) -> Result<Said, Failed> {
    let (certificate, key) = (certificate.to_string_lossy(), key.to_string_lossy());
    nemosctl_elsewhere(&[&["reset", "verify-certificate", &certificate, "--key", &key], more].concat())
}
