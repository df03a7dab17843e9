//! The unified kernel image, and the EFI system partition that it is the only file of.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nemos_model::integrity::RootHash;

use super::Context;
use super::distribution::Distribution;
use super::error::BuildError;
use super::host::PYTHON;
use super::ids::Ids;
use super::initrd::Initrd;
use super::root::Root;
use super::tool::Tool;

/// Where firmware looks on a disk that it was told nothing about.
pub const REMOVABLE_PATH: &str = "EFI/BOOT/BOOTX64.EFI";

/// The command line: the root hash, and the recipe's words.
fn command_line(root_hash: &RootHash, words: &[String]) -> String {
    let mut line = format!("roothash={root_hash}");
    for word in words {
        line.push(' ');
        line.push_str(word);
    }
    line
}

/// Puts it together.
pub fn make(
    context: &Context,
    distribution: &Distribution,
    initrd: &Initrd,
    root: &Root,
) -> Result<PathBuf, BuildError> {
    let uki = context.scratch.join("uki.efi");
    let os_release = context.scratch.join("os-release");
    super::write(&os_release, &root.os_release)?;
    Tool::new(PYTHON)
        .arg(&distribution.ukify)
        .arg("build")
        .arg("--stub")
        .arg(&distribution.stub)
        .arg("--linux")
        .arg(&distribution.kernel)
        .args([&initrd.base, &initrd.program].map(|part| format!("--initrd={}", part.display())))
        .arg(format!("--cmdline={}", command_line(&root.hash, &context.recipe.kernel.command_line)))
        .arg(format!("--os-release=@{}", os_release.display()))
        .arg(format!("--uname={}", distribution.kernel_version))
        .arg("--output")
        .arg(&uki)
        .run()?;
    Ok(uki)
}

/// A FAT file system with the image in it.
pub fn make_esp(context: &Context, uki: &Path, size: u64, ids: &Ids) -> Result<PathBuf, BuildError> {
    let used = fs::metadata(uki).map_err(BuildError::io("reading", uki))?.len();
    if used + (used >> 4) > size {
        return Err(BuildError::EspTooSmall { needed_mib: (used + (used >> 4)).div_ceil(1 << 20) });
    }
    let esp = context.scratch.join("esp.vfat");
    let made = File::create(&esp).and_then(|file| file.set_len(size));
    made.map_err(BuildError::io("writing", &esp))?;
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(context.epoch);
    let dated = File::options().write(true).open(uki).and_then(|file| file.set_modified(time));
    dated.map_err(BuildError::io("dating", uki))?;
    let epoch = context.epoch.to_string();
    let mtools = |program: &str| Tool::new(program).env("SOURCE_DATE_EPOCH", &epoch).env("MTOOLS_SKIP_CHECK", "1");
    mtools("mkfs.vfat").args(["-F", "32", "-n", "UEFI", "--invariant", "-i", &ids.volume_id("esp")]).arg(&esp).run()?;
    mtools("mmd").arg("-i").arg(&esp).args(["::/EFI", "::/EFI/BOOT"]).run()?;
    mtools("mcopy").args(["-m", "-i"]).arg(&esp).arg(uki).arg(format!("::/{REMOVABLE_PATH}")).run()?;
    Ok(esp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_hash_comes_first_and_the_recipes_words_stay_in_their_order() {
        let root_hash: RootHash = "ab".repeat(32).parse().expect("a root hash");
        let words = ["console=tty0", "console=ttyS0"].map(str::to_owned);
        let line = command_line(&root_hash, &words);
        assert_eq!(line, format!("roothash={root_hash} console=tty0 console=ttyS0"));
    }
}
