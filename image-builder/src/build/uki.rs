//! The unified kernel image, and the EFI system partition that it is the only file of.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nemos_model::boot::PRELOADED_HASH_OPTION;
use nemos_model::integrity::protection::{OnCorruption, PROTECTION_OPTION, Protection};
use nemos_model::integrity::{PRELOADED_SIGNATURE, ROOT_SIGNATURE};

use super::Context;
use super::distribution::Distribution;
use super::error::BuildError;
use super::host::PYTHON;
use super::ids::Ids;
use super::initrd::{self, Initrd};
use super::package::Packed;
use super::root::Root;
use super::tool::Tool;
use super::verity::Verified;
use crate::image::uki::{REQUIRE_SIGNATURES, Uki};
use crate::image::{authenticode, pcr};
use crate::keys::{Keys, Purpose, pkcs7};

/// The command line: what is compared with what, how that is protected, what a signed image asks of the kernel, and the
/// recipe's words.
fn command_line(root: &Verified, preloaded: &Verified, policy: OnCorruption, signed: bool, words: &[String]) -> String {
    let protection = Protection { on_corruption: policy, hash_offset: Some(root.data), fec: root.fec };
    let mut line = vec![format!("roothash={}", root.hash), format!("{PRELOADED_HASH_OPTION}={}", preloaded.hash)];
    line.push(format!("{PROTECTION_OPTION}={protection}"));
    line.extend(signed.then(|| REQUIRE_SIGNATURES.to_owned()));
    line.extend_from_slice(words);
    line.join(" ")
}

/// Puts it together, and signs it if there are keys.
pub fn make(
    context: &Context,
    distribution: &Distribution,
    initrd: &Initrd,
    root: &Root,
    preloaded: &Verified,
) -> Result<PathBuf, BuildError> {
    let uki = context.scratch.join("uki.efi");
    let (policy, words) = (context.recipe.verity.on_corruption, &context.recipe.kernel.command_line);
    let line = command_line(&root.verified, preloaded, policy, context.keys.is_some(), words);
    let ukify = |more: &[String]| ukify(context, distribution, initrd, &root.os_release, &line, &uki, more);
    let Some(keys) = &context.keys else {
        ukify(&[])?;
        return Ok(uki);
    };
    let signatures = [("roothash", ROOT_SIGNATURE, &root.verified), ("preloadedhash", PRELOADED_SIGNATURE, preloaded)];
    let signatures = signatures.map(|(name, path, verified)| {
        let archive = context.scratch.join(format!("{name}.cpio"));
        initrd::archive(context, &hash_signature(keys, path, verified)?, &archive)?;
        Ok::<_, BuildError>(format!("--initrd={}", archive.display()))
    });
    let public = context.scratch.join("pcr.pem");
    super::write(&public, &keys.trusted(Purpose::Pcr).public_key_pem()?)?;
    let mut signed = signatures.into_iter().collect::<Result<Vec<_>, _>>()?;
    signed.push(format!("--pcrpkey={}", public.display()));
    // Twice: what a TPM will measure is told from the first one, and the signature over that, in the second, is not measured.
    ukify(&signed)?;
    let made = fs::read(&uki).map_err(BuildError::io("reading", &uki))?;
    let policy = context.scratch.join("pcrsig.json");
    super::write(&policy, &pcr::sign(keys, &Uki::parse(made)?.measured()?)?)?;
    let section = format!("--section=.pcrsig:@{}", policy.display());
    ukify(&[signed.as_slice(), &[section]].concat())?;
    let mut made = fs::read(&uki).map_err(BuildError::io("reading", &uki))?;
    authenticode::pad(&mut made);
    let signature = pkcs7::program(keys, authenticode::digest(&made)?)?;
    authenticode::attach(&mut made, &signature)?;
    fs::write(&uki, made).map_err(BuildError::io("writing", &uki))?;
    Ok(uki)
}

/// The signature over a root hash, where nemos-initrd looks for it.
fn hash_signature(keys: &Keys, path: &str, verified: &Verified) -> Result<Packed, BuildError> {
    let content = pkcs7::detached(keys, verified.hash.to_string().as_bytes())?;
    Ok(Packed { path: path.trim_start_matches('/').to_owned(), mode: 0o644, content })
}

fn ukify(
    context: &Context,
    distribution: &Distribution,
    initrd: &Initrd,
    os_release_text: &str,
    command_line: &str,
    to: &Path,
    more: &[String],
) -> Result<(), BuildError> {
    let os_release = context.scratch.join("os-release");
    super::write(&os_release, os_release_text)?;
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
    context.recipe.check_esp(fs::metadata(uki).map_err(BuildError::io("reading", uki))?.len())?;
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
    mtools("mcopy")
        .args(["-m", "-i"])
        .arg(&esp)
        .arg(uki)
        .arg(format!("::/{}", context.recipe.architecture.removable_path()))
        .run()?;
    Ok(esp)
}

#[cfg(test)]
mod tests {
    use nemos_model::boot::CommandLine;
    use nemos_model::integrity::protection::Fec;

    use super::*;

    #[test]
    fn the_root_hash_comes_first_and_the_recipes_words_stay_in_their_order() {
        let verified = |digit: &str, fec| Verified {
            file: PathBuf::new(),
            hash: digit.repeat(64).parse().expect("a root hash"),
            salt: Vec::new(),
            data: 8192,
            fec,
        };
        let words = ["console=tty0", "console=ttyS0"].map(str::to_owned);
        let (root, preloaded) = (verified("a", None), verified("b", None));
        let hashes = format!("roothash={} nemos.preloadedhash={}", root.hash, preloaded.hash);
        let options = "systemd.verity_root_options=hash-offset=8192";
        let line = command_line(&root, &preloaded, OnCorruption::Report, false, &words);
        assert_eq!(line, format!("{hashes} {options} console=tty0 console=ttyS0"));
        let root = verified("a", Some(Fec { roots: 2, offset: 16384 }));
        let line = command_line(&root, &preloaded, OnCorruption::Panic, true, &words);
        let options = "systemd.verity_root_options=panic-on-corruption,hash-offset=8192,fec-offset=16384,fec-roots=2";
        assert_eq!(line, format!("{hashes} {options} dm_verity.require_signatures=1 console=tty0 console=ttyS0"));
        CommandLine::parse(&line).expect("what nemos-initrd reads");
    }
}
