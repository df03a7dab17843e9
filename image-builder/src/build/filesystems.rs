//! The small file systems that an image is shipped with. The large ones are made on the device.

use std::fs::{self, File};
use std::path::PathBuf;

use nemos_model::state::{DeviceState, FILE_NAME};

use super::Context;
use super::error::BuildError;
use super::ids::Ids;
use super::tool::Tool;
use super::verity::Verified;

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

/// `p.lxoci-preloaded`: a squashfs of the containers that are shipped; none, so far.
pub fn preloaded(context: &Context, ids: &Ids) -> Result<Verified, BuildError> {
    let folder = context.scratch.join("preloaded");
    fs::create_dir(&folder).map_err(BuildError::io("making", &folder))?;
    let image = context.scratch.join("preloaded.squashfs");
    // Not by options: mksquashfs refuses them if the variable is set, and a user may have set it.
    Tool::new("mksquashfs")
        .env("SOURCE_DATE_EPOCH", context.epoch.to_string())
        .arg(&folder)
        .arg(&image)
        .args(["-quiet", "-no-progress", "-comp", "zstd", "-all-root", "-root-mode", "0755"])
        .run()?;
    Verified::make(context, image, "preloaded", 0, ids)
}
