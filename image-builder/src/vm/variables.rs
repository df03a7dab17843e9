//! The variables of a firmware that trusts a set of keys, and has Secure Boot on.
//!
//! Written into an empty store as OVMF has it, since there is nobody to enroll them by hand. Sources: EDK2's
//! `MdeModulePkg/Include/Guid/VariableFormat.h` for the store, UEFI 2.10, 32.4 for the signature lists.

use std::fs;
use std::path::Path;

use uuid::{Uuid, uuid};

use super::error::{VmError, io};
use crate::keys::{KeyError, Purpose, Trusted};

/// `EFI_GLOBAL_VARIABLE`, `EFI_IMAGE_SECURITY_DATABASE_GUID` and EDK2's own.
const GLOBAL: Uuid = uuid!("8be4df61-93ca-11d2-aa0d-00e098032b8c");
const DATABASE: Uuid = uuid!("d719b2cb-3d3a-4596-a3bc-dad00e67656f");
const SECURE_BOOT_ENABLE: Uuid = uuid!("f0a30bc7-af08-4556-99c4-001009c93a44");
const CUSTOM_MODE: Uuid = uuid!("c076ec0c-7028-4399-a072-71ee5c448b9f");
/// `EFI_CERT_X509_GUID`, and who says that he enrolled it.
const X509: Uuid = uuid!("a5c059a1-94e4-4aa7-87b5-ab155c2bf072");
const OWNER: Uuid = uuid!("6e656d6f-7300-4000-8000-000000000001");

/// Kept over a reset and visible to the firmware; and visible to the system, and changed only by who may.
const STORED: u32 = 0x03;
const AUTHENTICATED: u32 = 0x27;

/// Of the store: its volume's magic and where that stands, its own identity, and the length of its header.
const VOLUME_MAGIC: (usize, &[u8]) = (0x28, b"_FVH");
const VOLUME_HEADER_LENGTH: usize = 0x30;
const STORE: Uuid = uuid!("aaf32c78-947b-439a-a180-2e144ec37792");
const STORE_HEADER: usize = 28;
/// What flash holds that was never written.
const ERASED: u8 = 0xff;

/// Writes a copy of an empty store that trusts the certificates of a folder: the one for Secure Boot in every place, the one
/// for roots besides it in `db`, where the kernel looks for it.
pub(super) fn enroll(empty: &Path, keys: &Path, to: &Path) -> Result<(), VmError> {
    let mut store = fs::read(empty).map_err(io("read the firmware's variables"))?;
    let certificate = |purpose| -> Result<Vec<u8>, KeyError> { Trusted::of(keys, purpose)?.der() };
    let (secure_boot, root) = (certificate(Purpose::SecureBoot)?, certificate(Purpose::Root)?);
    let list = signature_list(&secure_boot);
    let database = [list.as_slice(), &signature_list(&root)].concat();
    let variables = [
        variable("PK", GLOBAL, AUTHENTICATED, &list),
        variable("KEK", GLOBAL, AUTHENTICATED, &list),
        variable("db", DATABASE, AUTHENTICATED, &database),
        variable("SecureBootEnable", SECURE_BOOT_ENABLE, STORED, &[1]),
        variable("CustomMode", CUSTOM_MODE, STORED, &[0]),
    ];
    let variables = variables.concat();
    let place = free_place(&store).and_then(|at| store.get_mut(at..at + variables.len()));
    let place = place.filter(|place| place.iter().all(|byte| *byte == ERASED));
    place.ok_or_else(|| VmError::Firmware(empty.to_owned()))?.copy_from_slice(&variables);
    fs::write(to, store).map_err(io("write the firmware's variables"))
}

/// Where the first variable belongs.
fn free_place(store: &[u8]) -> Option<usize> {
    let (at, magic) = VOLUME_MAGIC;
    let header = store.get(VOLUME_HEADER_LENGTH..VOLUME_HEADER_LENGTH + 2)?;
    let header = usize::from(u16::from_le_bytes([header[0], header[1]]));
    let is_empty_store = store.get(at..)?.starts_with(magic) && store.get(header..)?.starts_with(&STORE.to_bytes_le());
    is_empty_store.then_some(header + STORE_HEADER)
}

/// An `EFI_SIGNATURE_LIST` with one certificate.
fn signature_list(certificate: &[u8]) -> Vec<u8> {
    let size = 16 + certificate.len();
    let mut list = X509.to_bytes_le().to_vec();
    for number in [28 + size, 0, size] {
        list.extend(word(number));
    }
    list.extend(OWNER.to_bytes_le());
    list.extend(certificate);
    list
}

/// An `AUTHENTICATED_VARIABLE_HEADER`, and behind it the name and the value; the next one begins at a multiple of 4.
fn variable(name: &str, vendor: Uuid, attributes: u32, value: &[u8]) -> Vec<u8> {
    /// Its beginning, that it was added, and a reserved byte.
    const START: [u8; 4] = [0xaa, 0x55, 0x3f, 0];
    /// Never counted; the first of January 2025; no index of a key.
    const COUNT: [u8; 8] = [0; 8];
    const TIME: [u8; 16] = [0xe9, 0x07, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const KEY: [u8; 4] = [0; 4];
    let name: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    let mut variable = [START.as_slice(), &attributes.to_le_bytes(), &COUNT, &TIME, &KEY].concat();
    variable.extend(word(name.len()));
    variable.extend(word(value.len()));
    variable.extend(vendor.to_bytes_le());
    variable.extend(name);
    variable.extend(value);
    variable.resize(variable.len().next_multiple_of(4), ERASED);
    variable
}

fn word(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::Architecture;
    use crate::keys::tests::folder;
    use crate::vm::host::Host;

    #[test]
    fn the_variables_stand_where_the_firmware_looks() {
        let scratch = tempfile::tempdir().expect("a temporary folder");
        let (empty, enrolled) =
            (Host::find(Architecture::Amd64).expect("firmware").firmware_vars, scratch.path().join("vars"));
        enroll(&empty, folder(), &enrolled).expect("enrolled");
        let (before, after) = (fs::read(&empty).expect("the empty store"), fs::read(&enrolled).expect("the store"));
        assert_eq!(before.len(), after.len());
        let at = free_place(&before).expect("an empty store");
        assert_eq!(before[..at], after[..at]);
        assert_eq!(after[at..at + 4], [0xaa, 0x55, 0x3f, 0]);
        assert_eq!(after[at + 60..at + 66], *b"P\0K\0\0\0");
        let refused = enroll(&enrolled, folder(), &scratch.path().join("again"));
        assert!(matches!(refused, Err(VmError::Firmware(_))), "{refused:?}");
    }
}
