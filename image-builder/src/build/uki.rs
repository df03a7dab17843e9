//! The unified kernel image, and the EFI system partition that it is the only file of.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nemos_model::integrity::{ROOT_SIGNATURE, RootHash};

use super::Context;
use super::distribution::Distribution;
use super::error::BuildError;
use super::host::PYTHON;
use super::ids::Ids;
use super::initrd::{self, Initrd};
use super::package::Packed;
use super::root::Root;
use super::tool::Tool;
use crate::image::uki::{REQUIRE_SIGNATURES, Uki};
use crate::image::{authenticode, pcr};
use crate::keys::{Keys, Purpose, pkcs7};

/// Where firmware looks on a disk that it was told nothing about.
pub const REMOVABLE_PATH: &str = "EFI/BOOT/BOOTX64.EFI";

/// The command line: the root hash, what a signed image asks of the kernel, and the recipe's words.
fn command_line(root_hash: &RootHash, signed: bool, words: &[String]) -> String {
    let mut line = format!("roothash={root_hash}");
    for word in signed.then_some(REQUIRE_SIGNATURES).into_iter().chain(words.iter().map(String::as_str)) {
        line.push(' ');
        line.push_str(word);
    }
    line
}

/// Puts it together, and signs it if there are keys.
pub fn make(
    context: &Context,
    distribution: &Distribution,
    initrd: &Initrd,
    root: &Root,
) -> Result<PathBuf, BuildError> {
    let uki = context.scratch.join("uki.efi");
    let Some(keys) = &context.keys else {
        ukify(context, distribution, initrd, root, &uki, &[])?;
        return Ok(uki);
    };
    let signature = context.scratch.join("roothash.cpio");
    initrd::archive(context, &root_signature(keys, root)?, &signature)?;
    let public = context.scratch.join("pcr.pem");
    super::write(&public, &keys.trusted(Purpose::Pcr).public_key_pem()?)?;
    let signed = [format!("--initrd={}", signature.display()), format!("--pcrpkey={}", public.display())];
    // Twice: what a TPM will measure is told from the first one, and the signature over that, in the second, is not measured.
    ukify(context, distribution, initrd, root, &uki, &signed)?;
    let made = fs::read(&uki).map_err(BuildError::io("reading", &uki))?;
    let policy = context.scratch.join("pcrsig.json");
    super::write(&policy, &pcr::sign(keys, &Uki::parse(made)?.measured()?)?)?;
    let section = format!("--section=.pcrsig:@{}", policy.display());
    ukify(context, distribution, initrd, root, &uki, &[signed.as_slice(), &[section]].concat())?;
    let mut made = fs::read(&uki).map_err(BuildError::io("reading", &uki))?;
    authenticode::pad(&mut made);
    let signature = pkcs7::program(keys, authenticode::digest(&made)?)?;
    authenticode::attach(&mut made, &signature)?;
    fs::write(&uki, made).map_err(BuildError::io("writing", &uki))?;
    Ok(uki)
}

/// The signature over the root hash, where nemos-initrd looks for it.
fn root_signature(keys: &Keys, root: &Root) -> Result<Packed, BuildError> {
    let content = pkcs7::detached(keys, root.hash.to_string().as_bytes())?;
    Ok(Packed { path: ROOT_SIGNATURE.trim_start_matches('/').to_owned(), mode: 0o644, content })
}

fn ukify(
    context: &Context,
    distribution: &Distribution,
    initrd: &Initrd,
    root: &Root,
    to: &Path,
    more: &[String],
) -> Result<(), BuildError> {
    let os_release = context.scratch.join("os-release");
    super::write(&os_release, &root.os_release)?;
    let command_line = command_line(&root.hash, context.keys.is_some(), &context.recipe.kernel.command_line);
    Tool::new(PYTHON)
        .arg(&distribution.ukify)
        .arg("build")
        .arg("--stub")
        .arg(&distribution.stub)
        .arg("--linux")
        .arg(&distribution.kernel)
        .args([&initrd.base, &initrd.program].map(|part| format!("--initrd={}", part.display())))
        .args(more)
        .arg(format!("--cmdline={command_line}"))
        .arg(format!("--os-release=@{}", os_release.display()))
        .arg(format!("--uname={}", distribution.kernel_version))
        .arg("--output")
        .arg(to)
        .run()?;
    Ok(())
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
        let line = command_line(&root_hash, false, &words);
        assert_eq!(line, format!("roothash={root_hash} console=tty0 console=ttyS0"));
        let line = command_line(&root_hash, true, &words);
        assert_eq!(line, format!("roothash={root_hash} dm_verity.require_signatures=1 console=tty0 console=ttyS0"));
    }
}
