//! Images that are signed, and the keys that a firmware trusts.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Failed;
use nemos_image::vm::{self, Config, Format};

use crate::device::Device;
use crate::disk::{Disk, PASSPHRASE};
use crate::image::config;

/// The environment variable that names the folder with signed images, as `build_signed_images` of image-builder/host.sh
/// makes it.
pub const NEMOS_SIGNED: &str = "NEMOS_SIGNED";

/// The folder with signed images and their keys.
pub struct Signed {
    folder: PathBuf,
}

impl Signed {
    /// The folder, from the environment.
    pub fn find() -> Result<Self, Failed> {
        let folder = std::env::var_os(NEMOS_SIGNED).map(PathBuf::from);
        let missing = || format!("set {NEMOS_SIGNED} to the folder with signed images, or use tests/run.sh");
        folder.map(|folder| Signed { folder }).ok_or_else(|| missing().into())
    }

    /// Something in it: `keys` are those that the firmware trusts, `other` are others.
    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// The image under test, signed.
    pub fn disk(&self) -> Result<Disk, Failed> {
        fresh(&self.folder.join("image/nemos-default.raw"))
    }

    /// The image under test, signed, but its root hash with a key that the firmware does not trust, and what a TPM measures of it
    /// with another one, too.
    pub fn disk_with_another_root_key(&self) -> Result<Disk, Failed> {
        fresh(&self.folder.join("another-root-key/nemos-default.raw"))
    }

    /// What, written to the variable `db`, has the firmware trust the `other` key too: signed by the key that may say so.
    ///
    /// Source: UEFI 2.10, 8.2.2 (`EFI_VARIABLE_AUTHENTICATION_2`), and 32.4.1 (signature lists).
    pub fn trusts_the_other_key(&self) -> Result<Vec<u8>, Failed> {
        let scratch = tempfile::tempdir()?;
        let [certificate, data, signature] = ["certificate", "data", "signature"].map(|name| scratch.path().join(name));
        let openssl = |arguments: &[&str], files: &[(&str, &Path)]| -> Result<(), Failed> {
            let files = files.iter().flat_map(|(option, path)| [OsStr::new(option), path.as_os_str()]);
            let made = Command::new("openssl").args(arguments).args(files).output()?;
            if made.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&made.stderr).into_owned().into()) }
        };
        let other = self.folder.join("other/secure-boot.crt");
        openssl(&["x509", "-outform", "DER"], &[("-in", &*other), ("-out", &*certificate)])?;
        let certificate = fs::read(certificate)?;
        let size = 16 + certificate.len();
        let sizes = [28 + size, 0, size].map(|number| u32::try_from(number).unwrap_or_default().to_le_bytes()).concat();
        let list = [&X509[..], &sizes, &OWNER, &certificate].concat();

        let name: Vec<u8> = "db".encode_utf16().flat_map(u16::to_le_bytes).collect();
        fs::write(&data, [&name[..], &DATABASE, &APPENDED.to_le_bytes(), &TIME, &list].concat())?;
        let (signer, key) = (self.folder.join("keys/secure-boot.crt"), self.folder.join("keys/secure-boot.key"));
        let files = [("-signer", &*signer), ("-inkey", &*key), ("-in", &*data), ("-out", &*signature)];
        openssl(&["smime", "-sign", "-binary", "-noattr", "-outform", "DER", "-md", "sha256"], &files)?;
        // What is signed, without the `ContentInfo` around it.
        let signature = fs::read(signature)?.split_off(19);
        let length = u32::try_from(24 + signature.len())?.to_le_bytes();
        let authentication = [&TIME[..], &length, &[0, 2, 0xf1, 0x0e], &PKCS7, &signature].concat();
        Ok([&APPENDED.to_le_bytes()[..], &authentication, &list].concat())
    }
}

/// `EFI_IMAGE_SECURITY_DATABASE_GUID`, `EFI_CERT_X509_GUID`, `EFI_CERT_TYPE_PKCS7_GUID`, and who says that he enrolled it.
const DATABASE: [u8; 16] = *b"\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f";
const X509: [u8; 16] = *b"\xa1\x59\xc0\xa5\xe4\x94\xa7\x4a\x87\xb5\xab\x15\x5c\x2b\xf0\x72";
const PKCS7: [u8; 16] = *b"\x9d\xd2\xaf\x4a\xdf\x68\xee\x49\x8a\xa9\x34\x7d\x37\x56\x65\xa7";
const OWNER: [u8; 16] = [7; 16];
/// Kept over a reset, visible to the firmware and the system, changed by who may, and appended to.
const APPENDED: u32 = 0x67;
/// The first of January 2026.
const TIME: [u8; 16] = [0xea, 0x07, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn fresh(path: &Path) -> Result<Disk, Failed> {
    Disk::on(&vm::Disk { path: path.to_owned(), format: Format::Raw })
}

impl Disk {
    /// Switches on a device with this disk, whose firmware has Secure Boot on and trusts the keys.
    pub fn starts_secured(self, signed: &Signed) -> Result<Device, Failed> {
        self.starts_secured_given(signed, Vec::new())
    }

    fn starts_secured_given(self, signed: &Signed, credentials: Vec<(String, Vec<u8>)>) -> Result<Device, Failed> {
        let config = Config { tpm: self.tpm(), credentials, ..config(self.vm_disk()) };
        let variables = self.folder().join("variables");
        let config = config.secure_boot(&signed.folder.join("keys"), variables)?;
        Device::start(self, &config)
    }

    /// Switches on a device with this disk, whose firmware has Secure Boot on, gives it a passphrase for its overlay, in case
    /// that it asks, and waits until it is up.
    pub fn boots_secured_given(self, signed: &Signed, passphrase: &str) -> Result<Device, Failed> {
        let credentials = vec![(PASSPHRASE.to_owned(), passphrase.as_bytes().to_vec())];
        let mut device = self.starts_secured_given(signed, credentials)?;
        device.comes_up()?;
        Ok(device)
    }

    /// Switches on a device with this disk, whose firmware has Secure Boot on, and waits until it is up.
    pub fn boots_secured(self, signed: &Signed) -> Result<Device, Failed> {
        let mut device = self.starts_secured(signed)?;
        device.comes_up()?;
        Ok(device)
    }
}
