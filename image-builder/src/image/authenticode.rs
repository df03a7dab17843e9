//! A program for EFI and its signature: what of the file is signed, and where the signature stands.
//!
//! Source: "Windows Authenticode Portable Executable Signature Format", "Calculating the PE Image Hash"; for PE32+ only.

use std::ops::Range;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::build::Digest;

/// `WIN_CERTIFICATE`: its length, revision 2.0, PKCS#7.
const ENTRY_HEADER: usize = 8;
const REVISION_AND_KIND: [u8; 4] = [0x00, 0x02, 0x02, 0x00];
/// What signatures are aligned to.
const ALIGNMENT: usize = 8;

/// Bytes that are not such a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotPe {
    /// Something is behind the end of the file.
    #[error("it is cut off")]
    Truncated,
    /// Another format.
    #[error("it is not a 64-bit EFI program")]
    Format,
}

/// Where in the file is what matters.
struct Places {
    checksum: usize,
    /// The entry of the signature in the table of directories.
    directory: usize,
    headers: usize,
    /// Sections, in the order of the file.
    sections: Vec<Range<usize>>,
    signature: Option<Range<usize>>,
}

/// SHA-256 of a program without its signature and what changes with it.
pub fn digest(file: &[u8]) -> Result<Digest, NotPe> {
    let places = Places::find(file)?;
    let end = places.signature.as_ref().map_or(file.len(), |signature| signature.start);
    let mut hash = Sha256::new();
    let mut add = |range: Range<usize>| file.get(range).map(|bytes| hash.update(bytes)).ok_or(NotPe::Truncated);
    add(0..places.checksum)?;
    add(places.checksum + 4..places.directory)?;
    add(places.directory + 8..places.headers)?;
    let mut hashed = places.headers;
    for section in places.sections {
        hashed += section.len();
        add(section)?;
    }
    if hashed < end {
        add(hashed..end)?;
    }
    Ok(Digest(hash.finalize().into()))
}

/// Makes a program ready to be signed: its digest is of a file that ends where a signature can begin.
pub fn pad(file: &mut Vec<u8>) {
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
}

/// Puts a signature behind a program that has none, and was padded.
pub fn attach(file: &mut Vec<u8>, pkcs7: &[u8]) -> Result<(), NotPe> {
    let places = Places::find(file)?;
    let start = file.len();
    let length = (ENTRY_HEADER + pkcs7.len()).next_multiple_of(ALIGNMENT);
    let word = |number: usize| u32::try_from(number).map(u32::to_le_bytes).map_err(|_| NotPe::Format);
    file.extend(word(length)?);
    file.extend(REVISION_AND_KIND);
    file.extend(pkcs7);
    file.resize(start + length, 0);
    file[places.directory..places.directory + 4].copy_from_slice(&word(start)?);
    file[places.directory + 4..places.directory + 8].copy_from_slice(&word(length)?);
    Ok(())
}

/// The signature of a program, if it has one.
pub fn signature(file: &[u8]) -> Result<Option<&[u8]>, NotPe> {
    let Some(entry) = Places::find(file)?.signature.and_then(|place| file.get(place)) else { return Ok(None) };
    if entry.get(4..ENTRY_HEADER) != Some(&REVISION_AND_KIND) {
        return Err(NotPe::Format);
    }
    let pkcs7 = &entry[ENTRY_HEADER..];
    // Padded; its own length, at its beginning, is the last word on where it ends.
    let length = match pkcs7 {
        [0x30, 0x82, high, low, ..] => 4 + usize::from(u16::from_be_bytes([*high, *low])),
        _ => return Err(NotPe::Format),
    };
    pkcs7.get(..length).map(Some).ok_or(NotPe::Truncated)
}

impl Places {
    fn find(file: &[u8]) -> Result<Places, NotPe> {
        let bytes =
            |at: usize, length: usize| at.checked_add(length).and_then(|end| file.get(at..end)).ok_or(NotPe::Truncated);
        let number = |at: usize, length: usize| -> Result<usize, NotPe> {
            Ok(bytes(at, length)?.iter().rev().fold(0, |all, byte| all << 8 | usize::from(*byte)))
        };
        if bytes(0, 2)? != b"MZ" {
            return Err(NotPe::Format);
        }
        let header = number(0x3c, 4)?;
        let optional = header + 24;
        if bytes(header, 4)? != b"PE\0\0" || number(optional, 2)? != 0x20b || number(optional + 108, 4)? < 5 {
            return Err(NotPe::Format);
        }
        let table = optional + number(header + 20, 2)?;
        let mut sections = Vec::new();
        for section in (0..number(header + 6, 2)?).map(|index| table + 40 * index) {
            let (start, length) = (number(section + 20, 4)?, number(section + 16, 4)?);
            if length > 0 {
                sections.push(start..start + length);
            }
        }
        sections.sort_by_key(|section| section.start);
        let directory = optional + 144;
        let (start, length) = (number(directory, 4)?, number(directory + 4, 4)?);
        let signature = (length >= ENTRY_HEADER).then_some(start..start + length);
        if signature.as_ref().is_some_and(|place| place.end != file.len()) {
            return Err(NotPe::Truncated);
        }
        Ok(Places { checksum: optional + 64, directory, headers: number(optional + 60, 4)?, sections, signature })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::uki::tests::program;
    use proptest::prelude::*;

    fn padded() -> Vec<u8> {
        let mut file = program(&[(".osrel", "ID=nemos"), (".cmdline", "quiet")]);
        pad(&mut file);
        file
    }

    /// Shaped like PKCS#7 is.
    fn pkcs7() -> Vec<u8> {
        let mut pkcs7 = vec![0x30, 0x82, 0x01, 0x05];
        pkcs7.resize(4 + 0x105, 7);
        pkcs7
    }

    #[test]
    fn a_signature_does_not_change_what_is_signed_and_is_found_again() {
        let mut file = padded();
        let before = digest(&file).expect("a program");
        assert_eq!(signature(&file), Ok(None));
        attach(&mut file, &pkcs7()).expect("a program");
        assert_eq!(digest(&file), Ok(before));
        assert_eq!(signature(&file), Ok(Some(pkcs7().as_slice())));
    }

    #[test]
    fn a_changed_byte_of_the_program_is_another_digest() {
        let file = padded();
        let before = digest(&file).expect("a program");
        for at in [0x44, 0x200, 0x400, file.len() - 1] {
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert_ne!(digest(&changed), Ok(before), "{at:#x}");
        }
    }

    proptest! {
        #[test]
        fn no_change_makes_the_reader_panic(at in 0_usize..0x300, byte: u8, end in 0_usize..0x800) {
            let mut file = padded();
            attach(&mut file, &pkcs7()).expect("a program");
            file[at] = byte;
            file.truncate(end.max(at));
            let _ = digest(&file);
            let _ = signature(&file);
        }
    }
}
