//! The unified kernel image, as a program for EFI: where its sections and its signature are, and what the firmware measures of it.
//!
//! ```text
//!     headers | .linux | .initrd | .cmdline ... | signature
//!     <------- what is signed, and measured in PCR 4 ------->  (but for a checksum, and for where the signature is)
//! ```
//!
//! Only the headers are read here; what the rest of the file has, and its digests, are for whoever has the file.
//!
//! Source: "Windows Authenticode Portable Executable Signature Format", "Calculating the PE Image Hash"; for PE32+ only.

pub mod pcr;

use std::ops::Range;

use object::LittleEndian as LE;
use object::pe::{IMAGE_DIRECTORY_ENTRY_SECURITY, ImageDosHeader, ImageNtHeaders64};
use object::read::pe::{ImageNtHeaders as _, ImageOptionalHeader as _};
use thiserror::Error;

/// Bytes of the beginning of a file that have its headers, if it is one of ours.
pub const HEADERS: usize = 4096;

/// `WIN_CERTIFICATE`: its length, revision 2.0, PKCS#7.
pub const ENTRY_HEADER: usize = 8;
/// The latter two.
pub const REVISION_AND_KIND: [u8; 4] = [0x00, 0x02, 0x02, 0x00];

/// Where the optional header is, after `PE\0\0` and the file's header.
const OPTIONAL_HEADER: u64 = 24;
/// Where in it the checksum and the directories are, and bytes of each directory.
const CHECKSUM: u64 = 64;
const DIRECTORIES: u64 = 112;
const DIRECTORY: u64 = 8;

/// Bytes that are not such a program.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotProgram {
    /// Another format.
    #[error("it is not a 64-bit EFI program: {0}")]
    Format(#[from] object::Error),
    /// Something is behind the end of the file.
    #[error("it is cut off")]
    Truncated,
    /// A signature that is not PKCS#7.
    #[error("its signature is of a kind that no firmware knows")]
    Signature,
}

/// A program for EFI: what is where in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The kind of processor that it runs on, of `IMAGE_FILE_MACHINE_*`.
    pub machine: u16,
    /// Where its signature is entered.
    pub directory: Range<u64>,
    /// What the firmware's digest is of, one after the other.
    pub hashed: Vec<Range<u64>>,
    /// Its signature, `WIN_CERTIFICATE`, if it has one.
    pub signature: Option<Range<u64>>,
    sections: Vec<(String, Range<u64>)>,
}

impl Program {
    /// Reads the headers of a file of so many bytes. All that is told is within the file.
    pub fn parse(headers: &[u8], length: u64) -> Result<Self, NotProgram> {
        let begin = u64::from(ImageDosHeader::parse(headers)?.nt_headers_offset());
        let mut offset = begin;
        let (header, directories) = ImageNtHeaders64::parse(headers, &mut offset)?;
        let within = |range: Range<u64>| if range.end <= length { Ok(range) } else { Err(NotProgram::Truncated) };
        let (mut sections, mut places) = (Vec::new(), Vec::new());
        for section in header.sections(headers, offset)?.iter() {
            let (start, stored) = section.pe_file_range();
            let (start, stored) = (u64::from(start), u64::from(stored));
            let padded = within(start..start + u64::from(section.size_of_raw_data.get(LE)))?;
            let name = section.name.split(|byte| *byte == 0).next().unwrap_or_default();
            sections.push((String::from_utf8_lossy(name).into_owned(), start..start + stored));
            if !padded.is_empty() {
                places.push(padded);
            }
        }
        places.sort_by_key(|place| place.start);

        let optional = begin + OPTIONAL_HEADER;
        let entry = optional + DIRECTORIES + DIRECTORY * IMAGE_DIRECTORY_ENTRY_SECURITY as u64;
        let signature = match directories.get(IMAGE_DIRECTORY_ENTRY_SECURITY) {
            None if directories.len() <= IMAGE_DIRECTORY_ENTRY_SECURITY => return Err(NotProgram::Truncated),
            None => None,
            Some(found) if (found.size.get(LE) as usize) < ENTRY_HEADER => None,
            Some(found) => {
                let start = u64::from(found.virtual_address.get(LE));
                Some(within(start..start + u64::from(found.size.get(LE)))?)
            }
        };
        // The firmware looks for signatures at the end, and so does whoever hashes what is before them.
        let end = signature.as_ref().map_or(length, |place| place.start);
        if signature.as_ref().is_some_and(|place| place.end != length) {
            return Err(NotProgram::Truncated);
        }
        let headers_end = u64::from(header.optional_header().size_of_headers());
        let mut hashed = vec![
            0..optional + CHECKSUM,
            optional + CHECKSUM + 4..entry,
            within(entry + DIRECTORY..headers_end.max(entry + DIRECTORY))?,
        ];
        let total = headers_end + places.iter().map(|place| place.end - place.start).sum::<u64>();
        hashed.extend(places);
        hashed.extend((total < end).then_some(total..end));
        let machine = header.file_header().machine.get(LE).0;
        Ok(Program { machine, directory: entry..entry + DIRECTORY, hashed, signature, sections })
    }

    /// Where a section's content is, without what pads it.
    pub fn section(&self, name: &str) -> Option<Range<u64>> {
        self.sections.iter().find(|(found, _)| found == name).map(|(_, place)| place.clone())
    }
}

/// What is in a `WIN_CERTIFICATE`: signed data of PKCS#7.
pub fn pkcs7(entry: &[u8]) -> Result<&[u8], NotProgram> {
    let (header, pkcs7) = entry.split_at_checked(ENTRY_HEADER).ok_or(NotProgram::Truncated)?;
    if header[4..] != REVISION_AND_KIND {
        return Err(NotProgram::Signature);
    }
    // Padded; its own length, at its beginning, is the last word on where it ends.
    let length = match pkcs7 {
        [0x30, 0x82, high, low, ..] => 4 + usize::from(u16::from_be_bytes([*high, *low])),
        _ => return Err(NotProgram::Signature),
    };
    pkcs7.get(..length).ok_or(NotProgram::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Where the sections of the test's program begin, bytes of each, and where its end is.
    const SECTIONS: [(&str, u64, u32); 2] = [(".linux", 0x400, 0x150), (".cmdline", 0x200, 5)];
    const END: u64 = 0x600;

    /// The headers of a program with these sections, and a signature of so many bytes behind them.
    fn headers(signature: u32) -> Vec<u8> {
        let mut file = vec![0; 0x200];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"MZ");
        put(0x3c, &[0x40]);
        // For 64-bit PCs, with two sections and 240 bytes of optional header: PE32+, 0x200 bytes of headers, 16 directories.
        put(0x40, b"PE\0\0\x64\x86\x02");
        put(0x54, &[240]);
        put(0x58, &[0x0b, 0x02]);
        put(0x58 + 60, &0x200_u32.to_le_bytes());
        put(0x58 + 108, &[16]);
        if signature > 0 {
            put(0x58 + 144, &[u32::try_from(END).unwrap().to_le_bytes(), signature.to_le_bytes()].concat());
        }
        for (index, (name, start, size)) in SECTIONS.into_iter().enumerate() {
            let header = 0x58 + 240 + 40 * index;
            put(header, name.as_bytes());
            put(header + 8, &size.to_le_bytes());
            put(header + 16, &0x200_u32.to_le_bytes());
            put(header + 20, &u32::try_from(start).unwrap().to_le_bytes());
        }
        file
    }

    #[test]
    fn all_but_the_checksum_and_the_signature_is_measured() {
        let program = Program::parse(&headers(0x100), END + 0x100).unwrap();
        assert_eq!(program.machine, 0x8664);
        assert_eq!(program.section(".linux"), Some(0x400..0x550));
        assert_eq!(program.section(".cmdline"), Some(0x200..0x205));
        assert_eq!(program.section(".osrel"), None);
        assert_eq!(program.signature, Some(END..END + 0x100));
        assert_eq!(program.hashed, [0..0x98, 0x9c..0xe8, 0xf0..0x200, 0x200..0x400, 0x400..0x600]);
        let unsigned = Program::parse(&headers(0), END + 8).unwrap();
        assert_eq!(unsigned.signature, None);
        assert_eq!(unsigned.hashed.last(), Some(&(END..END + 8)), "what is behind the sections is measured, too");
    }

    #[test]
    fn what_is_not_all_there_is_refused() {
        assert!(matches!(Program::parse(b"#!/bin/sh", 100), Err(NotProgram::Format(_))));
        assert!(matches!(Program::parse(&headers(0)[..0x100], END), Err(NotProgram::Format(_))));
        assert_eq!(Program::parse(&headers(0), END - 1), Err(NotProgram::Truncated));
        assert_eq!(Program::parse(&headers(0x100), END + 0xff), Err(NotProgram::Truncated));
        assert_eq!(Program::parse(&headers(0x100), END + 0x101), Err(NotProgram::Truncated), "something follows");
    }

    #[test]
    fn a_signature_is_taken_out_of_what_pads_it() {
        let entry = [&[24, 0, 0, 0, 0, 2, 2, 0][..], &[0x30, 0x82, 0, 5], &[7; 5], &[0; 7]].concat();
        assert_eq!(pkcs7(&entry), Ok(&entry[8..17]));
        assert_eq!(pkcs7(&entry[..16]), Err(NotProgram::Truncated));
        assert_eq!(pkcs7(&[0; 24]), Err(NotProgram::Signature));
        assert_eq!(pkcs7(b"short"), Err(NotProgram::Truncated));
    }

    proptest! {
        #[test]
        fn nothing_that_is_told_is_outside_of_the_file(at in 0_usize..0x200, byte: u8, length in 0_u64..0x800) {
            let mut file = headers(0x100);
            file[at] = byte;
            if let Ok(program) = Program::parse(&file, length) {
                let sections = program.sections.iter().map(|(_, place)| place);
                for place in program.hashed.iter().chain(sections).chain(&program.signature) {
                    prop_assert!(place.start <= place.end && place.end <= length, "{program:?}");
                }
            }
        }
    }
}
