//! What the firmware measured of Secure Boot at this boot, and whether the next one measures the same.
//!
//! A key of the TPM is given out as long as PCR 7 is what it was. The firmware extends PCR 7 with the variables that Secure Boot
//! decides by (`SecureBoot`, `PK`, `KEK`, `db`, `dbx`), and logs their values. A running system can change them, with an update
//! that is signed: the next boot then measures something else.
//!
//! ```text
//!     log of this boot: name, vendor, value --is it still the value?--> no: the next boot gets no key of the TPM
//! ```
//!
//! PCR 7 also holds which certificate of `db` the kernel's image was signed with. Whether another image is on the disk by now,
//! and what it is signed with, is not looked at.
//!
//! Sources: TCG PC Client Platform Firmware Profile Specification 1.05, 3.3.4 (what PCR 7 holds) and 10 (the log); UEFI 2.10, 8.2.

use thiserror::Error;
use uuid::Uuid;

/// Where the kernel shows the log.
pub const LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
/// Where it shows the variables, each in a file of its own.
pub const VARIABLES: &str = "/sys/firmware/efi/efivars";

/// The PCR that is about Secure Boot.
const SECURE_BOOT_PCR: u32 = 7;
/// `EV_NO_ACTION`, of which the first event says how the others are written, and `EV_EFI_VARIABLE_DRIVER_CONFIG`.
const NO_ACTION: u32 = 3;
const VARIABLE: u32 = 0x8000_0001;
/// Bytes of a digest of SHA-1, which the first event has for the programs of old.
const SHA1: usize = 20;
const SIGNATURE: &[u8] = b"Spec ID Event03\0";
/// Before the value in a file of efivarfs.
const ATTRIBUTES: usize = 4;

/// A variable of the firmware, as it was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Its name: ASCII letters and digits.
    pub name: String,
    vendor: Uuid,
    value: Vec<u8>,
}

/// A log that does not tell what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadLog {
    /// A firmware of the time of TPM 1.2, or no log.
    #[error("it is not in the format of TPM 2.0")]
    Format,
    /// An event goes on behind the end, or has a digest that the beginning does not announce.
    #[error("it is cut off or damaged")]
    Damaged,
    /// No variable has such a name.
    #[error("it has a variable with a strange name")]
    Name,
}

/// What of PCR 7 the next boot measures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextBoot {
    /// What this one did, as far as variables go.
    Same,
    /// These variables have another value now.
    Differs(Vec<String>),
    /// That cannot be told, and why.
    Unknown(String),
}

impl Variable {
    /// The name of its file in [`VARIABLES`].
    pub fn file_name(&self) -> String {
        format!("{}-{}", self.name, self.vendor)
    }

    /// Whether it is still what was measured: this is what is in its file, nothing if there is none.
    pub fn is_still(&self, file: &[u8]) -> bool {
        file.get(ATTRIBUTES..).unwrap_or_default() == self.value
    }
}

/// The variables of Secure Boot, as they were measured.
pub fn variables(log: &[u8]) -> Result<Vec<Variable>, BadLog> {
    let mut log = Reader(log);
    let digests = announced(&mut log).ok_or(BadLog::Format)?;
    let mut variables = Vec::new();
    while !log.0.is_empty() {
        let (pcr, kind, event) = event(&mut log, &digests).ok_or(BadLog::Damaged)?;
        if (pcr, kind) == (SECURE_BOOT_PCR, VARIABLE) {
            variables.push(variable(&mut Reader(event))?);
        }
    }
    Ok(variables)
}

/// The algorithms of the digests, and their lengths: `TCG_EfiSpecIdEvent`, in a `TCG_PCR_EVENT`.
fn announced(log: &mut Reader<'_>) -> Option<Vec<(u16, usize)>> {
    let (_pcr, kind, _digest, size) = (log.u32()?, log.u32()?, log.bytes(SHA1)?, log.u32()?);
    let mut event = Reader(log.bytes(size.try_into().ok()?)?);
    let signature = event.bytes(SIGNATURE.len())?;
    if kind != NO_ACTION || signature != SIGNATURE {
        return None;
    }
    // The platform's class, and the versions of the specification.
    event.bytes(8)?;
    (0..event.u32()?).map(|_| Some((event.u16()?, event.u16()?.into()))).collect()
}

/// The PCR, the type and the data of a `TCG_PCR_EVENT2`.
fn event<'a>(log: &mut Reader<'a>, digests: &[(u16, usize)]) -> Option<(u32, u32, &'a [u8])> {
    let (pcr, kind) = (log.u32()?, log.u32()?);
    for _ in 0..log.u32()? {
        let algorithm = log.u16()?;
        let (_, length) = digests.iter().find(|(known, _)| *known == algorithm)?;
        log.bytes(*length)?;
    }
    let size = log.u32()?;
    Some((pcr, kind, log.bytes(size.try_into().ok()?)?))
}

/// A `UEFI_VARIABLE_DATA`. The name becomes that of a file.
fn variable(event: &mut Reader<'_>) -> Result<Variable, BadLog> {
    let mut parts = || {
        let vendor = Uuid::from_slice_le(event.bytes(16)?).ok()?;
        let (name, value) = (event.u64()?, event.u64()?);
        let name = event.bytes(usize::try_from(name).ok()?.checked_mul(2)?)?;
        Some((vendor, name, event.bytes(value.try_into().ok()?)?.to_vec()))
    };
    let (vendor, name, value) = parts().ok_or(BadLog::Damaged)?;
    let letter = |pair: &[u8]| match pair {
        [letter, 0] if letter.is_ascii_alphanumeric() => Ok(char::from(*letter)),
        _ => Err(BadLog::Name),
    };
    let name: String = name.chunks(2).map(letter).collect::<Result<_, _>>()?;
    if name.is_empty() { Err(BadLog::Name) } else { Ok(Variable { name, vendor, value }) }
}

/// Bytes that are read from their beginning, numbers with their lowest byte first.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHA256: (u16, usize) = (0x0b, 32);
    const VENDOR: Uuid = Uuid::from_u128(0xd719_b2cb_3d3a_4596_a3bc_dad0_0e67_656f);

    fn number(number: usize) -> [u8; 4] {
        u32::try_from(number).unwrap().to_le_bytes()
    }

    /// The beginning of a log with digests of these algorithms.
    fn beginning(digests: &[(u16, usize)]) -> Vec<u8> {
        let mut event = [SIGNATURE, &[0; 8], &number(digests.len())].concat();
        for (algorithm, length) in digests {
            event.extend([algorithm.to_le_bytes(), u16::try_from(*length).unwrap().to_le_bytes()].concat());
        }
        event.push(0);
        [&number(0)[..], &NO_ACTION.to_le_bytes(), &[0; SHA1], &number(event.len()), &event].concat()
    }

    fn logged(pcr: u32, kind: u32, event: &[u8]) -> Vec<u8> {
        let (algorithm, length) = SHA256;
        let digest = [&algorithm.to_le_bytes()[..], &vec![7; length]].concat();
        [&pcr.to_le_bytes()[..], &kind.to_le_bytes(), &number(1), &digest, &number(event.len()), event].concat()
    }

    fn measured(name: &str, value: &[u8]) -> Vec<u8> {
        let wide: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let lengths = [wide.len() as u64 / 2, value.len() as u64].map(u64::to_le_bytes).concat();
        [&VENDOR.to_bytes_le()[..], &lengths, &wide, value].concat()
    }

    #[test]
    fn what_secure_boot_decides_by_is_read_and_a_change_of_it_is_seen() {
        let log = [
            beginning(&[(4, SHA1), SHA256]),
            logged(0, 8, b"a version"),
            logged(SECURE_BOOT_PCR, VARIABLE, &measured("db", b"keys")),
            logged(SECURE_BOOT_PCR, VARIABLE, &measured("dbx", b"")),
            logged(SECURE_BOOT_PCR, 0x8000_00e0, &measured("db", b"the one that was used")),
            logged(1, VARIABLE, &measured("BootOrder", b"\0\0")),
        ];
        let found = variables(&log.concat()).unwrap();
        let names: Vec<_> = found.iter().map(Variable::file_name).collect();
        assert_eq!(names, ["db", "dbx"].map(|name| format!("{name}-d719b2cb-3d3a-4596-a3bc-dad00e67656f")));
        assert!(found[0].is_still(b"\x27\0\0\0keys"));
        assert!(!found[0].is_still(b"\x27\0\0\0keys and one more"));
        assert!(!found[0].is_still(b""), "it was deleted");
        assert!(found[1].is_still(b"") && !found[1].is_still(b"\x27\0\0\0revoked"));
    }

    #[test]
    fn a_log_that_cannot_be_read_says_so() {
        assert_eq!(variables(b""), Err(BadLog::Format));
        assert_eq!(variables(&logged(0, NO_ACTION, SIGNATURE)), Err(BadLog::Format), "a log of TPM 1.2");
        let strange = |event: Vec<u8>| variables(&[beginning(&[SHA256]), event].concat());
        assert_eq!(strange(b"\0".to_vec()), Err(BadLog::Damaged));
        let unannounced = [beginning(&[(4, SHA1)]), logged(0, 8, b"")].concat();
        assert_eq!(variables(&unannounced), Err(BadLog::Damaged));
        assert_eq!(strange(logged(7, VARIABLE, b"short")), Err(BadLog::Damaged));
        for name in ["../shadow", "", "d\u{e4}"] {
            assert_eq!(strange(logged(7, VARIABLE, &measured(name, b""))), Err(BadLog::Name), "{name}");
        }
        let endless = [&VENDOR.to_bytes_le()[..], &[0xff; 16]].concat();
        assert_eq!(strange(logged(7, VARIABLE, &endless)), Err(BadLog::Damaged));
    }

    proptest! {
        #[test]
        fn whatever_was_measured_is_found(
            values in prop::collection::vec(("[A-Za-z0-9]{1,12}", prop::collection::vec(any::<u8>(), 0..200)), 0..8),
        ) {
            let events = values.iter().map(|(name, value)| logged(7, VARIABLE, &measured(name, value)));
            let found = variables(&[vec![beginning(&[SHA256])], events.collect()].concat().concat()).unwrap();
            prop_assert_eq!(found.len(), values.len());
            for (variable, (name, value)) in found.iter().zip(&values) {
                prop_assert_eq!(&variable.name, name);
                prop_assert!(variable.is_still(&[&[7, 0, 0, 0], value.as_slice()].concat()));
            }
        }

        /// Firmware has written stranger things.
        #[test]
        fn no_log_is_too_strange(noise: Vec<u8>, at in 0..200usize, byte: u8) {
            let mut log = [beginning(&[SHA256]), logged(7, VARIABLE, &measured("db", b"keys"))].concat();
            let _ = variables(&[log.as_slice(), &noise].concat());
            let at = at % log.len();
            log[at] = byte;
            let _ = variables(&log);
            prop_assert!(variables(&log[..at]).is_err() || at == beginning(&[SHA256]).len());
            let _ = variables(&noise);
        }
    }
}
