//! The initrd: what dracut makes of the distribution, and behind it, in an archive of its own, our program.
//!
//! dracut takes a third of a minute and its part hardly ever changes; the program changes with every build of ours.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::Context;
use super::cache::Digest;
use super::chroot::Chroot;
use super::distribution::Distribution;
use super::error::BuildError;
use super::package::{self, Packed};
use super::tool::Tool;

/// Changes whenever the code below makes something else of the same inputs.
const FORMAT: &[u8] = b"1";

/// The two parts, in the order that the kernel unpacks them.
#[derive(Debug)]
pub struct Initrd {
    /// dracut's.
    pub base: PathBuf,
    /// Ours.
    pub program: PathBuf,
    /// dracut's part was there before.
    pub found: bool,
}

impl Initrd {
    /// Finds dracut's part in the cache or makes it, and puts the program of the package behind it.
    pub fn make(context: &Context, distribution: &Distribution, deb: &Path) -> Result<Self, BuildError> {
        let parts = package::files(deb, |path| package::DRACUT_PARTS.iter().any(|part| path.starts_with(part)))?;
        if parts.is_empty() {
            return Err(BuildError::NotOurPackage(deb.to_owned()));
        }
        let inputs = parts.iter().flat_map(|part| [part.path.as_bytes(), part.content.as_slice()]);
        let key = Digest::of([FORMAT, &distribution.key.0].into_iter().chain(inputs));
        let entry = context.cache.get("initrd", &key, |folder| {
            let added = context.scratch.join("dracut.tar");
            write_tar(&parts, &added).map_err(BuildError::io("writing", &added))?;
            let plain = context.scratch.join("initrd");
            let dracut = "dracut --quiet --confdir /usr/share/nemos/dracut --no-compress --reproducible";
            Chroot::unpacked(context.recipe.architecture, &distribution.root, distribution.epoch)?
                .tar_in(&added)
                .shell(&format!(r#"chroot "$1" {dracut} /tmp/initrd {}"#, distribution.kernel_version))
                .download("/tmp/initrd", &plain)
                .nothing_kept()
                .run()?;
            compress(&plain, &folder.join("initrd.zst"))
        })?;
        let program = context.scratch.join("program.cpio.zst");
        write_program(context, deb, &program)?;
        Ok(Initrd { base: entry.folder.join("initrd.zst"), program, found: entry.found })
    }
}

fn write_program(context: &Context, deb: &Path, to: &Path) -> Result<(), BuildError> {
    let mut files = package::files(deb, |path| path == package::INITRD_PROGRAM)?;
    let program = files.pop().ok_or_else(|| BuildError::NotOurPackage(deb.to_owned()))?;
    let plain = context.scratch.join("program.cpio");
    archive(context, &program, &plain)?;
    compress(&plain, to)
}

/// An archive of its own with one file, for the end of an initrd.
pub fn archive(context: &Context, file: &Packed, to: &Path) -> Result<(), BuildError> {
    let written = File::create(to).and_then(|archive| write_cpio(file, context.epoch, archive));
    written.map_err(BuildError::io("writing", to))
}

/// An archive with the folders above the file and the file.
fn write_cpio(file: &Packed, epoch: u64, archive: File) -> io::Result<()> {
    let time = u32::try_from(epoch).unwrap_or(u32::MAX);
    let entry = |name: &str, mode: u32, ino: u32| {
        cpio::NewcBuilder::new(name).mode(mode).ino(ino).nlink(1).mtime(time).uid(0).gid(0)
    };
    let mut archive = archive;
    let mut ino = 0;
    for folder in
        Path::new(&file.path).ancestors().skip(1).filter(|path| *path != Path::new("")).collect::<Vec<_>>().iter().rev()
    {
        ino += 1;
        archive = entry(&folder.to_string_lossy(), 0o040_755, ino).write(archive, 0).finish()?;
    }
    let size = u32::try_from(file.content.len()).map_err(io::Error::other)?;
    let mut writer = entry(&file.path, 0o100_000 | file.mode & 0o7777, ino + 1).write(archive, size);
    io::Write::write_all(&mut writer, &file.content)?;
    cpio::newc::trailer(writer.finish()?).map(drop)
}

fn write_tar(files: &[Packed], to: &Path) -> io::Result<()> {
    let mut archive = tar::Builder::new(File::create(to)?);
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(file.content.len() as u64);
        header.set_mode(file.mode);
        archive.append_data(&mut header, &file.path, file.content.as_slice())?;
    }
    archive.into_inner()?.sync_all()
}

fn compress(plain: &Path, to: &Path) -> Result<(), BuildError> {
    Tool::new("zstd").args(["--quiet", "-T0", "-12", "--force"]).arg(plain).arg("-o").arg(to).run()?;
    fs::remove_file(plain).map_err(BuildError::io("removing", plain))
}
