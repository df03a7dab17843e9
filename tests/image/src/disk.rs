//! The disk of a device that is switched off.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Failed;
use nemos_image::vm::{self, Config, Format};
use nemos_model::partitions::Partition;
use tempfile::TempDir;

use crate::device::Device;
use crate::image::{config, image, kernel};
use crate::partitions::extent;

/// The credential that answers the question for a passphrase.
pub(crate) const PASSPHRASE: &str = "cryptsetup.passphrase";

/// The disk of a device that is switched off.
#[derive(Debug)]
pub struct Disk {
    file: vm::Disk,
    folder: TempDir,
    /// Whether its device has a TPM; what that remembers is in the folder too.
    has_tpm: bool,
}

impl Disk {
    /// The image, as it is written to a new device.
    pub fn fresh() -> Result<Disk, Failed> {
        Disk::of(&image()?)
    }

    /// Another image, as it is written to a new device; that file must not change any more, nor go before the device.
    pub fn of(image: &Path) -> Result<Disk, Failed> {
        Disk::on(&vm::Disk { path: image.to_owned(), format: Format::Raw })
    }

    /// What another disk holds; that one must not change any more.
    pub(crate) fn on(base: &vm::Disk) -> Result<Disk, Failed> {
        let folder = tempfile::tempdir()?;
        let file = base.overlay(&folder.path().join("disk.qcow2"))?;
        Ok(Disk { file, folder, has_tpm: false })
    }

    /// The same, in a device with a TPM.
    #[must_use]
    pub fn with_tpm(self) -> Disk {
        Disk { has_tpm: true, ..self }
    }

    /// The same, in a device whose TPM is another, as one that was cleared is.
    pub fn with_new_tpm(self) -> Result<Disk, Failed> {
        let disk = self.with_tpm();
        match disk.tpm().map(fs::remove_dir_all) {
            Some(Err(error)) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(disk),
        }
    }

    pub(crate) fn vm_disk(&self) -> vm::Disk {
        self.file.clone()
    }

    /// Where its device's TPM keeps what it remembers.
    pub(crate) fn tpm(&self) -> Option<PathBuf> {
        self.has_tpm.then(|| self.folder.path().join("tpm"))
    }

    /// Where files of its device may be, as long as the disk.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Switches a device with this disk on.
    pub fn starts(self) -> Result<Device, Failed> {
        let config = Config { tpm: self.tpm(), boot: kernel()?, ..config(self.vm_disk()) };
        Device::start(self, &config)
    }

    /// Switches a device with this disk on, by its firmware, and waits until it is up.
    pub fn boots_by_firmware(self) -> Result<Device, Failed> {
        let config = Config { tpm: self.tpm(), ..config(self.vm_disk()) };
        let mut device = Device::start(self, &config)?;
        device.comes_up()?;
        Ok(device)
    }

    /// Switches a device with this disk on, by its firmware, with more words on its kernel's command line, and with credentials.
    pub fn starts_by_firmware_given(self, words: &str, credentials: Vec<(String, Vec<u8>)>) -> Result<Device, Failed> {
        let config = Config { append: Some(words.to_owned()), credentials, ..config(self.vm_disk()) };
        Device::start(self, &config)
    }

    /// Switches a device with this disk on, and waits until it is up.
    pub fn boots(self) -> Result<Device, Failed> {
        let mut device = self.starts()?;
        device.comes_up()?;
        Ok(device)
    }

    /// Switches a device with this disk on, with more words on its kernel's command line, and waits until it is up.
    pub fn boots_with(self, words: &str) -> Result<Device, Failed> {
        let append = Some(words.to_owned());
        let config = Config { boot: kernel()?, append, ..config(self.vm_disk()) };
        let mut device = Device::start(self, &config)?;
        device.comes_up()?;
        Ok(device)
    }

    /// Switches a device with this disk on, gives it a passphrase for its overlay, and waits until it is up.
    pub fn boots_given(self, passphrase: &str) -> Result<Device, Failed> {
        let credentials = vec![(PASSPHRASE.to_owned(), passphrase.as_bytes().to_vec())];
        let config = Config { tpm: self.tpm(), boot: kernel()?, credentials, ..config(self.vm_disk()) };
        let mut device = Device::start(self, &config)?;
        device.comes_up()?;
        Ok(device)
    }

    /// The file with the disk, byte for byte.
    pub fn bytes(&mut self) -> Result<&Path, Failed> {
        if self.file.format != Format::Raw {
            let path = self.folder.path().join("disk.raw");
            let format = self.file.format.name();
            let converted = Command::new("qemu-img")
                .args(["convert", "-f", format, "-O", "raw"])
                .args([&self.file.path, &path])
                .output()?;
            if !converted.status.success() {
                return Err(String::from_utf8_lossy(&converted.stderr).into_owned().into());
            }
            fs::remove_file(&self.file.path)?;
            self.file = vm::Disk { path, format: Format::Raw };
        }
        Ok(&self.file.path)
    }

    /// Bytes of a partition.
    pub fn read(&mut self, partition: Partition, offset: u64, length: usize) -> Result<Vec<u8>, Failed> {
        let file = File::open(self.bytes()?)?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, extent(&file, partition)?.start + offset)?;
        Ok(bytes)
    }

    /// All bytes of a partition.
    pub fn read_all(&mut self, partition: Partition) -> Result<Vec<u8>, Failed> {
        let whole = extent(&File::open(self.bytes()?)?, partition)?;
        self.read(partition, 0, usize::try_from(whole.end - whole.start)?)
    }

    /// Gives a partition another name, so that nobody finds it by the one it has.
    pub fn renames(&mut self, partition: &str, name: &str) -> Result<(), Failed> {
        let listed = Command::new("sgdisk").arg("--print").arg(self.bytes()?).output()?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let line = listed.lines().find(|line| line.split_whitespace().last() == Some(partition));
        let number = line.and_then(|line| line.split_whitespace().next()).ok_or("the disk has no such partition")?;
        let renamed =
            Command::new("sgdisk").arg(format!("--change-name={number}:{name}")).arg(self.bytes()?).output()?;
        if renamed.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&renamed.stderr).into_owned().into())
        }
    }

    /// Writes bytes over those of a partition.
    pub fn write(&mut self, partition: Partition, offset: u64, bytes: &[u8]) -> Result<(), Failed> {
        let file = File::options().read(true).write(true).open(self.bytes()?)?;
        file.write_all_at(bytes, extent(&file, partition)?.start + offset)?;
        Ok(())
    }

    /// Copies a file from the EFI system partition of another disk to this one's.
    pub fn takes_from_esp(&mut self, other: &mut Disk, from: &str, to: &str) -> Result<(), Failed> {
        let scratch = tempfile::tempdir()?;
        let file = scratch.path().join("file");
        let esp = |disk: &mut Disk| -> Result<String, Failed> {
            let path = disk.bytes()?.to_owned();
            let start = extent(&File::open(&path)?, Partition::Esp)?.start;
            Ok(format!("{}@@{start}", path.display()))
        };
        for (image, from, to) in [
            (esp(other)?, format!("::{from}"), file.display().to_string()),
            (esp(self)?, file.display().to_string(), format!("::{to}")),
        ] {
            let copied = Command::new("mcopy").args(["-i", &image, &from, &to]).output()?;
            if !copied.status.success() {
                return Err(String::from_utf8_lossy(&copied.stderr).into_owned().into());
            }
        }
        Ok(())
    }

    /// Turns bytes of a partition into others.
    pub fn corrupt(&mut self, partition: Partition, offset: u64, length: usize) -> Result<(), Failed> {
        let inverted: Vec<u8> = self.read(partition, offset, length)?.into_iter().map(|byte| !byte).collect();
        self.write(partition, offset, &inverted)
    }
}
