//! Certificates of resets, checked where the device is not.

use std::fs;
use std::path::{Path, PathBuf};

use nemos_tests::{Case, Device, Disk, Failed, Said, nemosctl_elsewhere};
use serde_json::Value;
use tempfile::TempDir;

use crate::factory::{RESET, last_reset};

pub fn the_key_in_a_file_outlives_a_reset_and_certifies_it() -> Case {
    let mut device = Device::running()?;
    Certificates::of_a_reset(&mut device, "file")?;
    assert_eq!(device.says("stat --format '%a %U' /var/lib/nemos/certificate.key")?, "600 root");
    Ok(())
}

pub fn the_key_outlives_two_resets_and_tells_them_apart() -> Case {
    let mut device = Device::running()?;
    let certificates = Certificates::of_a_reset(&mut device, "file")?;
    let again = reset(&mut device)?;
    let second = certificates.file("second");
    fs::write(&second, device.says(&format!("nemosctl reset certificate {again}"))?)?;
    assert_eq!(holds(&second, &certificates.file("key"))?["job"], again.as_str());
    is_refused(&certificates.file("first"), &second, &certificates.file("key"))
}

pub fn the_key_in_a_tpm_outlives_a_reset_and_certifies_it() -> Case {
    let mut device = Disk::fresh()?.with_tpm().boots()?;
    Certificates::of_a_reset(&mut device, "tpm")?;
    device.says("test ! -e /var/lib/nemos/certificate.key")?;
    let verdict = device.says("nemosctl status")?;
    assert!(!verdict.contains("critical"), "{verdict}");
    Ok(())
}

/// What a device has given out, elsewhere: its `key`, and the certificate of its `first` reset.
struct Certificates(TempDir);

impl Certificates {
    /// Takes the key before anything is reset, by whoever asks, and verifies with it what the device says of a reset.
    fn of_a_reset(device: &mut Device, kept_in: &str) -> Result<Self, Failed> {
        let certificates = Certificates(tempfile::tempdir()?);
        let [key, first] = ["key", "first"].map(|name| certificates.file(name));
        fs::write(&key, device.says("runuser -u nobody -- nemosctl reset certificate-key")?)?;

        let job = reset(device)?;
        fs::write(&first, device.says(&format!("nemosctl reset certificate {job}"))?)?;
        let claims = holds(&first, &key)?;
        assert_eq!((&claims["job"], &claims["key_kept_in"]), (&job.clone().into(), &kept_in.into()), "{claims}");
        assert_eq!(claims["requested_by"]["user"], "root", "{claims}");
        let passed = |check: &Value| check["passed"] == true;
        let checks = claims["audit"].as_array().cloned().unwrap_or_default();
        assert!(!checks.is_empty() && checks.iter().all(passed), "{claims}");
        let volume = device.says("cryptsetup luksUUID /dev/disk/by-partlabel/p.lxroot")?;
        assert_eq!(claims["new_volume"], volume, "{claims}");
        Ok(certificates)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
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
