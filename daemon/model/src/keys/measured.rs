//! What the firmware measured at this boot: the variables that Secure Boot decides by, and the programs that it started.
//!
//! A key of the TPM is given out as long as PCR 7 is what it was. The firmware extends it with those variables (`SecureBoot`, `PK`,
//! `KEK`, `db`, `dbx`), and with the certificate of `db` that a program was signed with which it started; PCR 4 with the programs.
//! All of that is in its log.
//!
//! Sources: TCG PC Client Platform Firmware Profile Specification 1.05, 3.3.4 (what the PCRs hold) and 10 (the log); UEFI 2.10, 8.2
//! and 32.4.1 (signature lists).

use thiserror::Error;
use uuid::{Uuid, uuid};

use crate::uki::pcr::Digest;

/// Where the kernel shows the log.
pub const LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
/// Where it shows the variables, each in a file of its own.
pub const VARIABLES: &str = "/sys/firmware/efi/efivars";

/// The PCR that is about Secure Boot; the last that the firmware extends.
pub const SECURE_BOOT_PCR: u8 = 7;
/// The PCR that is about programs.
pub const PROGRAMS_PCR: u8 = 4;
/// `EV_NO_ACTION`, of which the first event says how the others are written.
const NO_ACTION: u32 = 3;
/// `EV_EFI_VARIABLE_DRIVER_CONFIG`, `EV_EFI_VARIABLE_AUTHORITY` and `EV_EFI_BOOT_SERVICES_APPLICATION`.
const VARIABLE: u32 = 0x8000_0001;
const AUTHORITY: u32 = 0x8000_00e0;
const PROGRAM: u32 = 0x8000_0003;
/// Bytes of a digest of SHA-1, which the first event has for the programs of old.
const SHA1: usize = 20;
/// `TPM_ALG_SHA256`.
const SHA256: u16 = 0x0b;
/// `EFI_CERT_X509_GUID`, the type of a list of certificates; before each of them stands who put it there.
const X509: Uuid = uuid!("a5c059a1-94e4-4aa7-87b5-ab155c2bf072");
const OWNER: usize = 16;
const SIGNATURE: &[u8] = b"Spec ID Event03\0";
/// Before the value in a file of efivarfs.
const ATTRIBUTES: usize = 4;

/// What the firmware measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// The variables of Secure Boot.
    pub variables: Vec<Variable>,
    /// Certificates of `db`, in DER, that a program was signed with which it started.
    pub authorities: Vec<Vec<u8>>,
    /// Those programs.
    pub programs: Vec<Digest>,
}

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

impl Measured {
    /// Reads the log.
    pub fn parse(log: &[u8]) -> Result<Self, BadLog> {
        let mut log = Reader(log);
        let digests = announced(&mut log).ok_or(BadLog::Format)?;
        let mut measured = Measured { variables: Vec::new(), authorities: Vec::new(), programs: Vec::new() };
        while !log.0.is_empty() {
            let Event { pcr, kind, sha256, data } = event(&mut log, &digests).ok_or(BadLog::Damaged)?;
            match (u8::try_from(pcr), kind) {
                (Ok(SECURE_BOOT_PCR), VARIABLE) => measured.variables.push(variable(&mut Reader(data))?),
                (Ok(SECURE_BOOT_PCR), AUTHORITY) => {
                    let Variable { value, .. } = variable(&mut Reader(data))?;
                    measured.authorities.extend(value.get(OWNER..).map(<[u8]>::to_vec));
                }
                (Ok(PROGRAMS_PCR), PROGRAM) => measured.programs.extend(sha256),
                _ => {}
            }
        }
        Ok(measured)
    }

    /// Whether the firmware starts only what it trusts.
    pub fn is_secured(&self) -> bool {
        self.variables.iter().any(|variable| variable.name == "SecureBoot" && variable.value == [1])
    }

    /// The variable of the certificates that it trusts.
    pub fn trusted(&self) -> Option<&Variable> {
        self.variables.iter().find(|variable| variable.name == "db")
    }
}

/// The certificates in a file of `db`, in DER, as far as it can be read.
pub fn certificates(file: &[u8]) -> Vec<&[u8]> {
    let mut lists = Reader(file.get(ATTRIBUTES..).unwrap_or_default());
    let mut found = Vec::new();
    while let Some(list) = signature_list(&mut lists) {
        found.extend(list);
    }
    found
}

/// The certificates of an `EFI_SIGNATURE_LIST`; none if it is of something else.
fn signature_list<'a>(lists: &mut Reader<'a>) -> Option<Vec<&'a [u8]>> {
    /// Bytes of its type and its three sizes.
    const HEADER: usize = 28;
    let kind = Uuid::from_slice_le(lists.bytes(16)?).ok()?;
    let [size, header, each] = [lists.u32()?, lists.u32()?, lists.u32()?].map(|size| size as usize);
    let mut list = Reader(lists.bytes(size.checked_sub(HEADER)?)?);
    list.bytes(header)?;
    if kind != X509 || each <= OWNER {
        return Some(Vec::new());
    }
    Some(list.0.chunks_exact(each).map(|signature| &signature[OWNER..]).collect())
}

/// A `TCG_PCR_EVENT2`.
struct Event<'a> {
    pcr: u32,
    kind: u32,
    /// What the bank of SHA-256 was extended with.
    sha256: Option<Digest>,
    data: &'a [u8],
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

fn event<'a>(log: &mut Reader<'a>, digests: &[(u16, usize)]) -> Option<Event<'a>> {
    let (pcr, kind) = (log.u32()?, log.u32()?);
    let mut sha256 = None;
    for _ in 0..log.u32()? {
        let algorithm = log.u16()?;
        let (_, length) = digests.iter().find(|(known, _)| *known == algorithm)?;
        let digest = log.bytes(*length)?;
        if algorithm == SHA256 {
            sha256 = digest.try_into().ok().map(Digest::from_bytes);
        }
    }
    let size = log.u32()?;
    Some(Event { pcr, kind, sha256, data: log.bytes(size.try_into().ok()?)? })
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
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHA256: (u16, usize) = (super::SHA256, 32);
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

    fn logged(pcr: u8, kind: u32, event: &[u8]) -> Vec<u8> {
        let (algorithm, length) = SHA256;
        let digest = [&algorithm.to_le_bytes()[..], &vec![7; length]].concat();
        [&u32::from(pcr).to_le_bytes()[..], &kind.to_le_bytes(), &number(1), &digest, &number(event.len()), event]
            .concat()
    }

    fn measured(name: &str, value: &[u8]) -> Vec<u8> {
        let wide: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let lengths = [wide.len() as u64 / 2, value.len() as u64].map(u64::to_le_bytes).concat();
        [&VENDOR.to_bytes_le()[..], &lengths, &wide, value].concat()
    }

    fn list(kind: Uuid, each: usize, content: &[u8]) -> Vec<u8> {
        [&kind.to_bytes_le()[..], &number(28 + content.len()), &number(0), &number(each), content].concat()
    }

    /// A file of `db` with these certificates.
    pub fn db(certificates: &[&[u8]]) -> Vec<u8> {
        let lists = certificates
            .iter()
            .map(|certificate| list(X509, OWNER + certificate.len(), &[&[0; OWNER][..], certificate].concat()));
        [vec![vec![0; ATTRIBUTES]], lists.collect()].concat().concat()
    }

    /// A log of a boot that started one program, which was signed with a certificate.
    pub fn log(secured: bool, certificate: &[u8], program: Digest) -> Vec<u8> {
        let mut started = logged(PROGRAMS_PCR, PROGRAM, b"where it was");
        started[14..46].copy_from_slice(program.as_bytes());
        let authority = logged(7, AUTHORITY, &measured("db", &[&[0; OWNER][..], certificate].concat()));
        let secure_boot = logged(7, VARIABLE, &measured("SecureBoot", &[secured.into()]));
        [beginning(&[SHA256]), secure_boot, authority, started].concat()
    }

    #[test]
    fn what_secure_boot_decides_by_is_read_and_a_change_of_it_is_seen() {
        let log = [
            beginning(&[(4, SHA1), SHA256]),
            logged(0, 8, b"a version"),
            logged(SECURE_BOOT_PCR, VARIABLE, &measured("db", b"keys")),
            logged(SECURE_BOOT_PCR, VARIABLE, &measured("dbx", b"")),
            logged(SECURE_BOOT_PCR, AUTHORITY, &measured("db", b"sixteen of owner; the certificate")),
            logged(1, VARIABLE, &measured("BootOrder", b"\0\0")),
            logged(PROGRAMS_PCR, PROGRAM, b"where it was"),
        ];
        let Measured { variables: found, authorities, programs } = Measured::parse(&log.concat()).unwrap();
        let names: Vec<_> = found.iter().map(Variable::file_name).collect();
        assert_eq!(names, ["db", "dbx"].map(|name| format!("{name}-d719b2cb-3d3a-4596-a3bc-dad00e67656f")));
        assert!(found[0].is_still(b"\x27\0\0\0keys"));
        assert!(!found[0].is_still(b"\x27\0\0\0keys and one more"));
        assert!(!found[0].is_still(b""), "it was deleted");
        assert!(found[1].is_still(b"") && !found[1].is_still(b"\x27\0\0\0revoked"));
        assert_eq!(authorities, [b"; the certificate"]);
        assert_eq!(programs, [Digest::from_bytes([7; 32])]);
    }

    #[test]
    fn secure_boot_is_on_when_its_variable_says_so() {
        let of = |value: &[u8]| [beginning(&[SHA256]), logged(7, VARIABLE, &measured("SecureBoot", value))].concat();
        let is_secured = |value| Measured::parse(&of(value)).unwrap().is_secured();
        assert!(is_secured(&[1]));
        assert!(!is_secured(&[0]) && !is_secured(&[]));
    }

    #[test]
    fn certificates_are_found_among_what_else_is_trusted() {
        let two = list(X509, 18, b"sixteen of owneraasixteen of ownerbb");
        let hashes = list(Uuid::nil(), 48, &[9; 48]);
        let file = [b"\x27\0\0\0".as_slice(), &hashes, &two, &list(X509, 17, b"sixteen of ownerc")].concat();
        assert_eq!(certificates(&file), [b"aa".as_slice(), b"bb", b"c"]);
        assert_eq!(certificates(&file[..file.len() - 1]).len(), 2, "the last is cut off");
        assert_eq!(certificates(b""), Vec::<&[u8]>::new());
    }

    #[test]
    fn a_log_that_cannot_be_read_says_so() {
        assert_eq!(Measured::parse(b""), Err(BadLog::Format));
        assert_eq!(Measured::parse(&logged(0, NO_ACTION, SIGNATURE)), Err(BadLog::Format), "a log of TPM 1.2");
        let strange = |event: Vec<u8>| Measured::parse(&[beginning(&[SHA256]), event].concat());
        assert_eq!(strange(b"\0".to_vec()), Err(BadLog::Damaged));
        let unannounced = [beginning(&[(4, SHA1)]), logged(0, 8, b"")].concat();
        assert_eq!(Measured::parse(&unannounced), Err(BadLog::Damaged));
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
            let found = Measured::parse(&[vec![beginning(&[SHA256])], events.collect()].concat().concat()).unwrap().variables;
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
            let _ = Measured::parse(&[log.as_slice(), &noise].concat());
            let at = at % log.len();
            log[at] = byte;
            let _ = Measured::parse(&log);
            prop_assert!(Measured::parse(&log[..at]).is_err() || at == beginning(&[SHA256]).len());
            let _ = Measured::parse(&noise);
            let _ = certificates(&noise);
        }
    }
}
