//! Whether a TPM refuses what is tried with a secret, because there were too many wrong ones.
//!
//! A key of ours has no secret that could be tried, and a TPM that is locked out still gives it out for the right PCRs. So this
//! tells why something failed, and not that something will.
//!
//! Sources: TPM 2.0 Library, part 1, 19.8 (protection against a dictionary attack); part 2, 6.13 and 8.6; part 3, 30.2
//! (`TPM2_GetCapability`).

use std::fmt;

/// Asks a TPM for its properties that change: `TPM2_GetCapability`, without a session. Numbers have their highest byte first.
pub const QUESTION: [u8; 22] = [
    0x80, 0x01, 0, 0, 0, 22, 0, 0, 0x01, 0x7a, // no sessions, 22 bytes, the command
    0, 0, 0, 6, // properties of the TPM,
    0, 0, 0x02, 0, // from `TPM_PT_PERMANENT` on,
    0, 0, 0, 32, // as many as there can be.
];

/// Of these: what it is like, and in it the bit that it is locked out; wrong tries; how many there may be; after how many
/// seconds it forgets one.
const PERMANENT: u32 = 0x200;
const IN_LOCKOUT: u32 = 1 << 9;
const COUNTER: u32 = 0x20e;
const INTERVAL: u32 = 0x210;

/// Before the properties in an answer: tag, size, code; whether there is more; which capability; how many.
const HEADER: usize = 19;
const CODE: std::ops::Range<usize> = 6..10;

/// A TPM that is locked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lockout {
    wrong_tries: u32,
    interval: u32,
}

/// What a TPM answered to [`QUESTION`]: `None` if it is not locked out, or says nothing of it.
pub fn lockout(answer: &[u8]) -> Option<Lockout> {
    let succeeded = answer.get(CODE)? == [0; 4];
    let properties = answer.get(HEADER..)?.chunks_exact(8);
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number: u32, byte| number << 8 | u32::from(*byte));
    let property = |wanted| {
        let mut properties = properties.clone().map(|pair| (number(&pair[..4]), number(&pair[4..])));
        properties.find(|(property, _)| *property == wanted).map(|(_, value)| value)
    };
    let is_locked_out = succeeded && property(PERMANENT)? & IN_LOCKOUT != 0;
    is_locked_out.then_some(Lockout { wrong_tries: property(COUNTER)?, interval: property(INTERVAL)? })
}

impl fmt::Display for Lockout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lockout { wrong_tries, interval } = self;
        write!(f, "the TPM is locked out after {wrong_tries} wrong tries")?;
        match interval {
            0 => write!(f, ", until its owner unlocks it (`tpm2_dictionarylockout --clear-lockout`)"),
            _ => write!(f, ", and forgets one of them every {interval} s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(code: u8, properties: &[(u32, u32)]) -> Vec<u8> {
        let mut answer = vec![0x80, 0x01, 0, 0, 0, 0, 0, 0, 0, code, 0, 0, 0, 0, 6, 0, 0, 0, 0];
        answer
            .extend(properties.iter().flat_map(|(property, value)| [*property, *value].map(u32::to_be_bytes).concat()));
        answer
    }

    #[test]
    fn it_says_after_what_and_for_how_long() {
        let of = |permanent, interval| [(PERMANENT, permanent), (COUNTER, 3), (0x20f, 3), (INTERVAL, interval)];
        let told = |code, permanent, interval| {
            lockout(&answer(code, &of(permanent, interval))).map(|lockout| lockout.to_string())
        };
        assert_eq!(told(0, 0x400, 600), None);
        let told_so = "the TPM is locked out after 3 wrong tries, and forgets one of them every 600 s";
        assert_eq!(told(0, 0x600, 600).as_deref(), Some(told_so));
        assert!(told(0, 0x600, 0).unwrap().contains("--clear-lockout"));
        assert_eq!(told(1, 0x600, 600), None, "the command failed");
    }

    proptest! {
        #[test]
        fn no_answer_is_too_strange(noise: Vec<u8>) {
            lockout(&noise);
            lockout(&[answer(0, &[(PERMANENT, IN_LOCKOUT)]), noise].concat());
        }
    }
}
