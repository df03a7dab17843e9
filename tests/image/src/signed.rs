//! Images that are signed, and the keys that a firmware trusts.

use std::path::{Path, PathBuf};

use libtest_mimic::Failed;
use nemos_image::vm::{self, Format};

use crate::device::Device;
use crate::disk::Disk;
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

    /// The image under test, signed, but its root hash with a key that the firmware does not trust.
    pub fn disk_with_another_root_key(&self) -> Result<Disk, Failed> {
        fresh(&self.folder.join("another-root-key/nemos-default.raw"))
    }
}

fn fresh(path: &Path) -> Result<Disk, Failed> {
    Disk::on(&vm::Disk { path: path.to_owned(), format: Format::Raw })
}

impl Disk {
    /// Switches on a device with this disk, whose firmware has Secure Boot on and trusts the keys.
    pub fn starts_secured(self, signed: &Signed) -> Result<Device, Failed> {
        let config = config(self.vm_disk());
        let variables = self.folder().join("variables");
        let config = config.secure_boot(&signed.folder.join("keys"), variables)?;
        Device::start(self, &config)
    }

    /// Switches on a device with this disk, whose firmware has Secure Boot on, and waits until it is up.
    pub fn boots_secured(self, signed: &Signed) -> Result<Device, Failed> {
        let mut device = self.starts_secured(signed)?;
        device.comes_up()?;
        Ok(device)
    }
}
