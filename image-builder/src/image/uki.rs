//! The sections of a unified kernel image.

use object::read::pe::PeFile64;
use object::{Object, ObjectSection};
use thiserror::Error;

/// What a unified kernel image says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uki {
    /// Its command line.
    pub command_line: String,
    /// The os-release of what it boots.
    pub os_release: String,
    /// Version of its kernel.
    pub kernel: Option<String>,
}

/// Bytes that are not a unified kernel image.
#[derive(Debug, Error)]
pub enum NotUki {
    /// Not a program for EFI.
    #[error("it is not an EFI program: {0}")]
    Pe(#[from] object::Error),
    /// Something else.
    #[error("it has no section {0}")]
    Section(&'static str),
}

impl Uki {
    /// Reads the sections.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotUki> {
        let file = PeFile64::parse(bytes)?;
        let section = |name: &'static str| -> Result<String, NotUki> {
            let section = file.section_by_name(name).ok_or(NotUki::Section(name))?;
            let data = section.data()?;
            // Padded to the file's alignment, beyond its own size.
            let size = usize::try_from(section.size()).unwrap_or(usize::MAX);
            let text = String::from_utf8_lossy(&data[..data.len().min(size)]);
            Ok(text.trim_end_matches('\0').trim().to_owned())
        };
        Ok(Uki { command_line: section(".cmdline")?, os_release: section(".osrel")?, kernel: section(".uname").ok() })
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A PE file with nothing but sections.
    fn program(sections: &[(&str, &str)]) -> Vec<u8> {
        let mut file = vec![0; 0x200 * (1 + sections.len())];
        file[..2].copy_from_slice(b"MZ");
        file[0x3c] = 0x40;
        file[0x40..0x46].copy_from_slice(b"PE\0\0\x64\x86");
        file[0x46] = u8::try_from(sections.len()).expect("few sections");
        file[0x54] = 112;
        file[0x58..0x5a].copy_from_slice(&[0x0b, 0x02]);
        for (at, (name, text)) in sections.iter().enumerate() {
            let number = |value: usize| u32::try_from(value).expect("a small file").to_le_bytes();
            let header = 0x58 + 112 + 40 * at;
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
        let uki = Uki::parse(&program(&SECTIONS)).expect("a unified kernel image");
        assert_eq!(uki.word("roothash"), Some("ab"));
        assert_eq!(uki.word("root"), None);
        assert_eq!(uki.field("IMAGE_ID"), Some("nemos-default"));
        assert_eq!(uki.field("IMAGE"), None);
        assert_eq!(uki.kernel, None);
    }

    #[test]
    fn another_program_is_told_from_a_unified_kernel_image() {
        let refused = Uki::parse(&program(&[(".text", "")])).expect_err("a program of another kind");
        assert_eq!(refused.to_string(), "it has no section .cmdline");
        assert!(matches!(Uki::parse(b"#!/bin/sh"), Err(NotUki::Pe(_))));
    }

    proptest! {
        #[test]
        fn no_damage_makes_the_parser_panic(at in 0_usize..0x600, byte: u8, cut in 0_usize..0x600) {
            let mut file = program(&SECTIONS);
            file[at] = byte;
            let _ = Uki::parse(&file);
            let _ = Uki::parse(&file[..cut]);
        }
    }
}
