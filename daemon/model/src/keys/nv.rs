//! What a TPM is told to keep 32 bytes for us, where nobody who has the disk can change them.
//!
//! ```text
//!     define the place, once --> write --> read, at every boot
//! ```
//!
//! The place belongs to the TPM's owner, and neither has a password: whoever can run a program of theirs on the device may write
//! there, and that nobody can is what Secure Boot is for.
//!
//! Sources: TPM 2.0 Library, part 2, 13 (`TPMA_NV`, `TPM2B_NV_PUBLIC`), part 3, 31 (`TPM2_NV_DefineSpace`, `TPM2_NV_Write`,
//! `TPM2_NV_Read`); TCG Registry of Reserved TPM 2.0 Handles, 2.2 (from 0x01800000 on, the owner's). Numbers have their highest
//! byte first.

use thiserror::Error;

/// How many bytes are kept.
pub const LENGTH: usize = SIZE as usize;
const SIZE: u16 = 32;

/// The place.
const INDEX: u32 = 0x0180_6e6d;
const OWNER: u32 = 0x4000_0001;
const SHA256: u16 = 0x000b;
/// Written and read by its own password, which is empty, and by the owner; wrong tries lock nobody out.
const ATTRIBUTES: u32 = 1 << 1 | 1 << 2 | 1 << 17 | 1 << 18 | 1 << 25;

const SESSIONS: u16 = 0x8002;
const DEFINE: u32 = 0x12a;
const WRITE: u32 = 0x137;
const READ: u32 = 0x14e;
/// An authorization by an empty password: how long it is, `TPM_RS_PW`, no nonce, no attributes, no password.
const BY_EMPTY_PASSWORD: [u8; 13] = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];

/// `TPM_RC_HANDLE` of the first handle, which is the place; that it has not been written; that it has been defined.
const NO_PLACE: u32 = 0x18b;
const NOT_WRITTEN: u32 = 0x14a;
const DEFINED: u32 = 0x14c;

/// What a TPM did not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refused {
    /// It said why.
    #[error("the TPM answers with error {0:#x}")]
    Code(u32),
    /// It gave what is no answer.
    #[error("the TPM gives an answer that cannot be understood")]
    Strange,
}

/// The command that makes the place.
pub fn define() -> Vec<u8> {
    let public =
        [&INDEX.to_be_bytes()[..], &SHA256.to_be_bytes(), &ATTRIBUTES.to_be_bytes(), &[0, 0], &SIZE.to_be_bytes()];
    // No password, and then what it is like.
    command(DEFINE, &[OWNER], &[&[0, 0, 0, 14][..], &public.concat()].concat())
}

/// Whether the place is there after [`define`].
pub fn defined(answer: &[u8]) -> Result<(), Refused> {
    match answered(answer) {
        Err(Refused::Code(DEFINED)) => Ok(()),
        other => other.map(drop),
    }
}

/// The command that writes there.
pub fn write(bytes: &[u8; LENGTH]) -> Vec<u8> {
    command(WRITE, &[INDEX, INDEX], &[&SIZE.to_be_bytes()[..], bytes, &[0, 0]].concat())
}

/// Whether that was done.
pub fn written(answer: &[u8]) -> Result<(), Refused> {
    answered(answer).map(drop)
}

/// The command that reads what is there.
pub fn read() -> Vec<u8> {
    command(READ, &[INDEX, INDEX], &[SIZE.to_be_bytes(), [0, 0]].concat())
}

/// What was there; `None` if nothing ever was.
pub fn found(answer: &[u8]) -> Result<Option<[u8; LENGTH]>, Refused> {
    let parameters = match answered(answer) {
        Err(Refused::Code(NO_PLACE | NOT_WRITTEN)) => return Ok(None),
        other => other?,
    };
    // How long the parameters are, and how long the only one of them is.
    let bytes = parameters.get(6..6 + LENGTH).and_then(|bytes| bytes.try_into().ok());
    bytes.map(Some).ok_or(Refused::Strange)
}

fn command(code: u32, handles: &[u32], parameters: &[u8]) -> Vec<u8> {
    let handles: Vec<u8> = handles.iter().flat_map(|handle| handle.to_be_bytes()).collect();
    let body = [&handles[..], &BY_EMPTY_PASSWORD, parameters].concat();
    let size = u32::try_from(10 + body.len()).unwrap_or(u32::MAX);
    [&SESSIONS.to_be_bytes()[..], &size.to_be_bytes(), &code.to_be_bytes(), &body].concat()
}

/// What follows the header of an answer to a command that was carried out.
fn answered(answer: &[u8]) -> Result<&[u8], Refused> {
    let (header, rest) = answer.split_at_checked(10).ok_or(Refused::Strange)?;
    match u32::from_be_bytes([header[6], header[7], header[8], header[9]]) {
        0 => Ok(rest),
        code => Err(Refused::Code(code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(code: u32, rest: &[u8]) -> Vec<u8> {
        [&[0x80, 2, 0, 0, 0, 0][..], &code.to_be_bytes(), rest].concat()
    }

    #[test]
    fn each_command_says_how_long_it_is() {
        for command in [define(), write(&[7; LENGTH]), read()] {
            assert_eq!(usize::try_from(u32::from_be_bytes(command[2..6].try_into().unwrap())), Ok(command.len()));
        }
    }

    #[test]
    fn what_is_kept_is_told_from_nothing_and_from_trouble() {
        let kept = [&[0, 0, 0, 34, 0, 32][..], &[7; LENGTH], &[0; 5]].concat();
        assert_eq!(found(&answer(0, &kept)), Ok(Some([7; LENGTH])));
        assert_eq!(found(&answer(NO_PLACE, &[])), Ok(None), "the TPM is new, or was cleared");
        assert_eq!(found(&answer(NOT_WRITTEN, &[])), Ok(None), "the power went before it was written");
        assert_eq!(found(&answer(0x101, &[])), Err(Refused::Code(0x101)));
        assert_eq!(found(&answer(0, &kept[..20])), Err(Refused::Strange));
        assert_eq!((defined(&answer(DEFINED, &[])), defined(&answer(0, &[]))), (Ok(()), Ok(())));
        assert_eq!(written(&answer(NO_PLACE, &[])), Err(Refused::Code(NO_PLACE)));
        assert_eq!(written(&[]), Err(Refused::Strange));
    }

    proptest! {
        #[test]
        fn no_answer_is_too_strange(noise: Vec<u8>) {
            let _ = (found(&noise), defined(&noise), written(&noise));
        }
    }
}
