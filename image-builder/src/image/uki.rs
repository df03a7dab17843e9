//! The sections of a unified kernel image.

use std::fmt;
use std::io::Read;

use nemos_model::integrity::ROOT_SIGNATURE;
use nemos_model::uki::{NotProgram, Program, pcr};
use thiserror::Error;

use super::authenticode;
use crate::architecture::Architecture;
use crate::build::Digest;
use crate::keys::pkcs7::{BadSignature, SignedProgram};

/// Has the kernel refuse a root hash without a signature that it trusts.
pub const REQUIRE_SIGNATURES: &str = "dm_verity.require_signatures=1";

/// More than the archive with the signature takes.
const TAIL: usize = 64 << 10;

/// A unified kernel image.
#[derive(Clone, PartialEq, Eq)]
pub struct Uki {
    bytes: Vec<u8>,
    /// What it runs on.
    pub architecture: Architecture,
    /// Its command line.
    pub command_line: String,
    /// The os-release of what it boots.
    pub os_release: String,
    /// Version of its kernel.
    pub kernel: Option<String>,
    /// Signatures for a TPM.
    pub pcr_signatures: Option<String>,
}

/// Bytes that are not a unified kernel image.
#[derive(Debug, Error)]
pub enum NotUki {
    /// Not a program for EFI.
    #[error(transparent)]
    Program(#[from] NotProgram),
    /// Something else.
    #[error("it has no section {0}")]
    Section(&'static str),
    /// Of a processor that no image is built for.
    #[error("it is for a processor of the kind {0:#06x}")]
    Machine(u16),
}

/// Why firmware will not believe a signature.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unsigned {
    /// There is none.
    #[error("it is not signed")]
    None,
    /// It cannot be read.
    #[error(transparent)]
    Program(#[from] NotProgram),
    /// The signature itself.
    #[error("its signature: {0}")]
    Signature(#[from] BadSignature),
    /// It was changed since.
    #[error("it was changed after it was signed")]
    Changed,
}

impl Uki {
    /// Reads the sections.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, NotUki> {
        let program = authenticode::program(&bytes)?;
        let known = Architecture::ALL.into_iter().find(|known| known.pe_machine().0 == program.machine);
        let architecture = known.ok_or(NotUki::Machine(program.machine))?;
        let section = |name: &'static str| -> Result<String, NotUki> {
            let text = String::from_utf8_lossy(content(&bytes, &program, name)?.ok_or(NotUki::Section(name))?);
            Ok(text.trim_end_matches('\0').trim().to_owned())
        };
        let (command_line, os_release) = (section(".cmdline")?, section(".osrel")?);
        let (kernel, pcr_signatures) = (section(".uname").ok(), section(".pcrsig").ok());
        Ok(Uki { bytes, architecture, command_line, os_release, kernel, pcr_signatures })
    }

    /// A section's content.
    pub fn section(&self, name: &'static str) -> Result<&[u8], NotUki> {
        content(&self.bytes, &authenticode::program(&self.bytes)?, name)?.ok_or(NotUki::Section(name))
    }

    /// The digests of the sections that systemd-stub measures.
    pub fn measured(&self) -> Result<Vec<(&'static str, pcr::Digest)>, NotUki> {
        let program = authenticode::program(&self.bytes)?;
        let digest = |content| pcr::Digest::from_bytes(Digest::of_bytes(content).0);
        let found = pcr::MEASURED.into_iter().map(|name| {
            let content = content(&self.bytes, &program, name)?;
            Ok(content.map(|content| (name, digest(content))))
        });
        found.filter_map(Result::transpose).collect()
    }

    /// Whose signature the firmware will find, if it fits.
    pub fn signed(&self) -> Result<SignedProgram, Unsigned> {
        let signed = SignedProgram::parse(authenticode::signature(&self.bytes)?.ok_or(Unsigned::None)?)?;
        let fits = signed.digest == authenticode::digest(&self.bytes)?.0;
        if fits { Ok(signed) } else { Err(Unsigned::Changed) }
    }

    /// The signature over the root hash, from the end of the initrd.
    pub fn root_signature(&self) -> Result<Option<Vec<u8>>, NotUki> {
        Ok(content(&self.bytes, &authenticode::program(&self.bytes)?, ".initrd")?.and_then(root_signature))
    }

    /// Whether its kernel opens nothing that is not signed.
    pub fn requires_signatures(&self) -> bool {
        self.command_line.split_whitespace().any(|word| word == REQUIRE_SIGNATURES)
    }

    /// The value of a word of the command line.
    pub fn word(&self, name: &str) -> Option<&str> {
        self.command_line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    /// The value of a field of the os-release.
    pub fn field(&self, name: &str) -> Option<&str> {
        let value = self.os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(value.trim_matches('"'))
    }
}

fn content<'file>(file: &'file [u8], program: &Program, name: &str) -> Result<Option<&'file [u8]>, NotProgram> {
    program.section(name).map(|place| authenticode::part(file, place)).transpose()
}

/// The file that the builder leaves in the last archive of an initrd, which is not compressed.
fn root_signature(initrd: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 110;
    let name = ROOT_SIGNATURE.trim_start_matches('/').as_bytes();
    let tail = &initrd[initrd.len().saturating_sub(TAIL)..];
    let at = tail.windows(name.len()).rposition(|window| window == name)?.checked_sub(HEADER)?;
    let mut entry = cpio::NewcReader::new(&tail[at..]).ok()?;
    let mut content = Vec::new();
    (entry.entry().name().as_bytes() == name).then(|| entry.read_to_end(&mut content).ok())??;
    Some(content)
}

impl fmt::Debug for Uki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Uki { bytes, command_line, os_release, .. } = self;
        write!(f, "Uki({} bytes, {command_line:?}, {os_release:?})", bytes.len())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A PE file with nothing but sections.
    pub(in crate::image) fn program(sections: &[(&str, &str)]) -> Vec<u8> {
        let mut file = vec![0; 0x200 * (1 + sections.len())];
        file[..2].copy_from_slice(b"MZ");
        file[0x3c] = 0x40;
        file[0x40..0x46].copy_from_slice(b"PE\0\0\x64\x86");
        file[0x46] = u8::try_from(sections.len()).expect("few sections");
        file[0x54] = 240;
        file[0x58..0x5a].copy_from_slice(&[0x0b, 0x02]);
        // Bytes of the headers, and the number of directories.
        file[0x58 + 61] = 2;
        file[0x58 + 108] = 16;
        for (at, (name, text)) in sections.iter().enumerate() {
            let number = |value: usize| u32::try_from(value).expect("a small file").to_le_bytes();
            let header = 0x58 + 240 + 40 * at;
            let offset = 0x200 * (1 + at);
            file[header..header + name.len()].copy_from_slice(name.as_bytes());
            file[header + 8..header + 12].copy_from_slice(&number(text.len()));
            file[header + 12..header + 16].copy_from_slice(&number(0x1000 * (1 + at)));
            file[header + 16..header + 20].copy_from_slice(&number(0x200));
            file[header + 20..header + 24].copy_from_slice(&number(offset));
            file[offset..offset + text.len()].copy_from_slice(text.as_bytes());
        }
        file
    }

    const SECTIONS: [(&str, &str); 2] =
        [(".cmdline", "roothash=ab console=ttyS0"), (".osrel", "ID=nemos\nIMAGE_ID=\"nemos-default\"\n")];

    #[test]
    fn the_command_line_and_the_os_release_are_read() {
        let uki = Uki::parse(program(&SECTIONS)).expect("a unified kernel image");
        assert_eq!(uki.word("roothash"), Some("ab"));
        assert_eq!(uki.word("root"), None);
        assert_eq!(uki.field("IMAGE_ID"), Some("nemos-default"));
        assert_eq!(uki.field("IMAGE"), None);
        assert_eq!(uki.kernel, None);
        assert_eq!(uki.architecture, Architecture::Amd64);
    }

    #[test]
    fn the_processor_is_told_by_the_header() {
        let with_machine = |machine: u16| {
            let mut file = program(&SECTIONS);
            file[0x44..0x46].copy_from_slice(&machine.to_le_bytes());
            Uki::parse(file)
        };
        assert_eq!(with_machine(0xaa64).expect("an image").architecture, Architecture::Arm64);
        let refused = with_machine(0x5064).expect_err("a program for RISC-V");
        assert_eq!(refused.to_string(), "it is for a processor of the kind 0x5064");
    }

    #[test]
    fn another_program_is_told_from_a_unified_kernel_image() {
        let refused = Uki::parse(program(&[(".text", "")])).expect_err("a program of another kind");
        assert_eq!(refused.to_string(), "it has no section .cmdline");
        assert!(matches!(Uki::parse(b"#!/bin/sh".to_vec()), Err(NotUki::Program(_))));
    }

    proptest! {
        #[test]
        fn no_damage_makes_the_parser_panic(at in 0_usize..0x600, byte: u8, cut in 0_usize..0x600) {
            let mut file = program(&SECTIONS);
            file[at] = byte;
            let _ = Uki::parse(file[..cut].to_vec());
            let _ = Uki::parse(file);
        }
    }
}
