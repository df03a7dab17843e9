//! The small file systems that an image is shipped with. The large ones are made on the device.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::PathBuf;

use jiff::Timestamp;
use nemos_model::state::{DeviceState, FILE_NAME};

use super::Context;
use super::error::BuildError;
use super::ids::Ids;
use super::root::mksquashfs;
use super::tool::Tool;
use super::verity::Verified;
use crate::containers::{Image, store};

/// `p.lxstate`: ext4 with the state of a device that was never booted.
pub fn state(context: &Context, size: u64, ids: &Ids) -> Result<PathBuf, BuildError> {
    let image = context.scratch.join("state.ext4");
    let made = File::create(&image).and_then(|file| file.set_len(size));
    made.map_err(BuildError::io("writing", &image))?;
    let document = context.scratch.join(FILE_NAME);
    super::write(&document, &DeviceState::shipped().to_text())?;
    let epoch = context.epoch.to_string();
    let fixed = |program: &str| Tool::new(program).env("E2FSPROGS_FAKE_TIME", &epoch).env("SOURCE_DATE_EPOCH", &epoch);
    fixed("mke2fs")
        .args(["-q", "-t", "ext4", "-b", "4096", "-L", "lxstate", "-m", "0"])
        .arg("-U")
        .arg(ids.uuid("p.lxstate file system").to_string())
        .arg("-E")
        .arg(format!(
            "hash_seed={},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0",
            ids.uuid("p.lxstate hashes")
        ))
        .arg(&image)
        .run()?;
    // Not `mke2fs -d`: it would make whoever builds the owner.
    let commands = format!(
        "write {} {FILE_NAME}\nset_inode_field {FILE_NAME} mode 0100600\nset_inode_field {FILE_NAME} mtime @{epoch}\n\
         set_inode_field {FILE_NAME} atime @{epoch}\nset_inode_field {FILE_NAME} ctime @{epoch}\n\
         set_inode_field {FILE_NAME} crtime @{epoch}\nset_inode_field {FILE_NAME} uid 0\nset_inode_field {FILE_NAME} gid 0\n",
        document.display()
    );
    fixed("debugfs").arg("-w").arg("-f").arg("-").arg(&image).run_with_input(commands.as_bytes())?;
    Ok(image)
}

/// `p.lxoci-preloaded`: a squashfs of the containers that are shipped.
pub fn preloaded(context: &Context, images: &[Image], ids: &Ids) -> Result<Verified, BuildError> {
    let store = context.scratch.join("preloaded.tar");
    let failed = BuildError::io("writing", &store);
    let created = i64::try_from(context.epoch).ok().and_then(|epoch| Timestamp::from_second(epoch).ok());
    let file = File::create(&store).map_err(&failed)?;
    store::write(images, created.unwrap_or_default(), BufWriter::new(file)).map_err(&failed)?;
    let image = context.scratch.join("preloaded.squashfs");
    let epoch = context.epoch.to_string();
    let level = context.recipe.squashfs.zstd_level.to_string();
    mksquashfs()
        .env("SOURCE_DATE_EPOCH", &epoch)
        .arg("-")
        .arg(&image)
        .args(["-root-mode", "0755", "-root-time", &epoch])
        .args(["-tar", "-quiet", "-no-progress", "-exit-on-error", "-comp", "zstd", "-Xcompression-level", &level])
        .stdin(File::open(&store).map_err(&failed)?)
        .run()?;
    fs::remove_file(&store).map_err(BuildError::io("removing", &store))?;
    Verified::make(context, image, "preloaded", 0, ids)
}
