//! Signing a program for EFI.

use std::ops::Range;

use nemos_model::uki::{ENTRY_HEADER, HEADERS, NotProgram, Program, REVISION_AND_KIND, pkcs7};
use sha2::{Digest as _, Sha256};

use crate::build::Digest;

/// What signatures are aligned to.
const ALIGNMENT: usize = 8;

/// Reads the headers of a program that is in memory.
pub fn program(file: &[u8]) -> Result<Program, NotProgram> {
    Program::parse(&file[..file.len().min(HEADERS)], file.len() as u64)
}

/// A part of such a program.
pub fn part(file: &[u8], place: Range<u64>) -> Result<&[u8], NotProgram> {
    let index = |at: u64| usize::try_from(at).map_err(|_| NotProgram::Truncated);
    file.get(index(place.start)?..index(place.end)?).ok_or(NotProgram::Truncated)
}

/// SHA-256 of a program without its signature and what changes with it.
pub fn digest(file: &[u8]) -> Result<Digest, NotProgram> {
    let mut hash = Sha256::new();
    for place in program(file)?.hashed {
        hash.update(part(file, place)?);
    }
    Ok(Digest(hash.finalize().into()))
}

/// Makes a program ready to be signed: its digest is of a file that ends where a signature can begin.
pub fn pad(file: &mut Vec<u8>) {
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
}

/// Puts a signature behind a program that has none, and was padded.
pub fn attach(file: &mut Vec<u8>, pkcs7: &[u8]) -> Result<(), NotProgram> {
    let directory = program(file)?.directory;
    let start = file.len();
    let length = (ENTRY_HEADER + pkcs7.len()).next_multiple_of(ALIGNMENT);
    let word = |number: usize| u32::try_from(number).map(u32::to_le_bytes).map_err(|_| NotProgram::Truncated);
    let entry = [word(start)?, word(length)?].concat();
    file.extend(word(length)?);
    file.extend(REVISION_AND_KIND);
    file.extend(pkcs7);
    file.resize(start + length, 0);
    for (at, byte) in (directory.start..directory.end).zip(entry) {
        file[usize::try_from(at).map_err(|_| NotProgram::Truncated)?] = byte;
    }
    Ok(())
}

/// The signature of a program, if it has one.
pub fn signature(file: &[u8]) -> Result<Option<&[u8]>, NotProgram> {
    program(file)?.signature.map(|place| pkcs7(part(file, place)?)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::uki::tests::program as made_of;
    use proptest::prelude::*;

    fn padded() -> Vec<u8> {
        let mut file = made_of(&[(".osrel", "ID=nemos"), (".cmdline", "quiet")]);
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
