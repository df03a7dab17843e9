//! The key slots of a LUKS2 header, each operation whole or not at all: libcryptsetup writes one copy of the header after the
//! other.

use std::io;
use std::path::Path;

use libcryptsetup_rs::consts::flags::{CryptActivate, CryptPbkdf};
use libcryptsetup_rs::consts::vals::{CryptKdf, EncryptionFormat};
use libcryptsetup_rs::{CryptDevice, CryptPbkdfType, LibcryptErr, TokenInput};
use nemos_model::keys::{KeyslotId, Provider, Record, Slot, slot};

use crate::cryptsetup::{self, CryptError};
use crate::integrity::scrub::header::metadata;
use crate::keys::context::add_by_token;
use crate::keys::{Key, Secret, tpm2};

/// Milliseconds that a passphrase is stretched for, on this device.
const STRETCH: u32 = 1000;
/// Most KiB of memory for that: the initrd of a small device must have them.
const STRETCH_MEMORY: u32 = 256 << 10;

/// How the secrets of a provider are stretched. What was made at random is not guessed word by word: stretching it would cost
/// time at every boot and protect nothing.
pub(crate) fn pbkdf(provider: Provider) -> CryptPbkdfType {
    if provider.can_be_guessed() {
        CryptPbkdfType {
            type_: CryptKdf::Argon2Id,
            hash: None,
            time_ms: STRETCH,
            iterations: 0,
            max_memory_kb: STRETCH_MEMORY,
            parallel_threads: 2,
            flags: CryptPbkdf::empty(),
        }
    } else {
        CryptPbkdfType {
            type_: CryptKdf::Pbkdf2,
            hash: Some("sha256".to_owned()),
            time_ms: 0,
            iterations: 1000,
            max_memory_kb: 0,
            parallel_threads: 0,
            flags: CryptPbkdf::NO_BENCHMARK,
        }
    }
}

fn with<T>(
    action: &'static str,
    partition: &Path,
    operation: impl FnOnce(&mut CryptDevice) -> Result<T, LibcryptErr>,
) -> Result<T, CryptError> {
    cryptsetup::with(action, partition, |device| {
        device.context_handle().load::<()>(Some(EncryptionFormat::Luks2), None)?;
        operation(device)
    })
}

/// The key slots that are in use. Read without libcryptsetup, which would repair a damaged copy of the header in silence.
pub fn slots(partition: &Path) -> io::Result<Vec<Slot>> {
    let no_header = || io::Error::new(io::ErrorKind::InvalidData, "it has no LUKS2 header: both copies are damaged");
    let metadata = metadata(partition).and_then(|metadata| metadata.ok_or_else(no_header));
    let path = partition.display();
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot read the key slots of {path}: {error}"));
    metadata.map(|metadata| slot::slots(&metadata)).map_err(named)
}

/// The key slot that a key opens: of all, or of that one alone. Nothing is opened.
pub fn try_key(partition: &Path, key: &Key, only: Option<KeyslotId>) -> Result<KeyslotId, CryptError> {
    match key {
        Key::Secret(secret) => try_secret(partition, secret, only),
        Key::Tpm2 => try_tpm2(partition, only),
    }
}

fn try_tpm2(partition: &Path, only: Option<KeyslotId>) -> Result<KeyslotId, CryptError> {
    let none = io::Error::new(io::ErrorKind::NotFound, "it has no token of a TPM");
    let mut refusal = CryptError::strange("ask the TPM for a key of", partition, &none);
    for token in tpm2::tokens(partition) {
        if only.is_some_and(|only| only != token.slot) {
            continue;
        }
        let opened = with("ask the TPM for a key of", partition, |device| {
            device.token_handle().activate_by_token::<()>(None, Some(token.number), None, CryptActivate::empty())
        });
        match opened {
            Ok(slot) => return keyslot(partition, slot),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

/// Opens the volume as that mapping, with the key of a TPM for that slot.
pub(crate) fn open_by_tpm2(partition: &Path, slot: KeyslotId, mapping: &str) -> Result<(), CryptError> {
    let token = tpm2::tokens(partition).into_iter().find(|token| token.slot == slot).map(|token| token.number);
    with("open the encrypted volume on", partition, |device| {
        let flags = CryptActivate::empty();
        device.token_handle().activate_by_token::<()>(Some(mapping), token, None, flags).map(drop)
    })
}

/// The key slot that a secret opens: of all, or of that one alone. Nothing is opened.
pub fn try_secret(partition: &Path, secret: &Secret, only: Option<KeyslotId>) -> Result<KeyslotId, CryptError> {
    let opened = with("try a key on", partition, |device| {
        let (only, flags) = (only.map(u32::from), CryptActivate::empty());
        device.activate_handle().activate_by_passphrase(None, only, secret.expose(), flags)
    })?;
    keyslot(partition, opened)
}

/// A number that libcryptsetup gave.
pub(crate) fn keyslot(partition: &Path, number: u32) -> Result<KeyslotId, CryptError> {
    KeyslotId::try_from(number).map_err(|error| CryptError::strange("read a key slot of", partition, &error))
}

/// Adds a key slot that `new` opens; `unlock` must open another one.
pub(super) fn add(
    partition: &Path,
    slot: KeyslotId,
    provider: Provider,
    unlock: &Key,
    new: &Secret,
) -> Result<(), CryptError> {
    match unlock {
        Key::Secret(unlock) => with("add a key to", partition, |device| {
            device.settings_handle().set_pbkdf_type(&pbkdf(provider))?;
            device.keyslot_handle().add_by_passphrase(Some(slot.into()), unlock.expose(), new.expose())?;
            Ok(())
        }),
        Key::Tpm2 => {
            let action = "add a key to";
            let opens = try_tpm2(partition, None)?;
            let token = tpm2::tokens(partition).into_iter().find(|token| token.slot == opens);
            let gone = io::Error::new(io::ErrorKind::NotFound, "its token of the TPM has gone in the meantime");
            let token = token.ok_or_else(|| CryptError::strange(action, partition, &gone))?;
            let added = add_by_token(partition, token.number, slot, provider, new);
            added.map_err(|error| CryptError::strange(action, partition, &error))
        }
    }
}

/// Records in the header what opens a key slot.
pub(crate) fn record(device: &mut CryptDevice, slot: KeyslotId, record: &Record) -> Result<(), LibcryptErr> {
    let token = record.token(slot);
    device.token_handle().json_set(TokenInput::AddToken(&token)).map(drop)
}

pub(super) fn record_on(partition: &Path, slot: KeyslotId, what: &Record) -> Result<(), CryptError> {
    with("record a key of", partition, |device| record(device, slot, what))
}

/// Destroys a key slot, if it is in use, and what is recorded of it.
pub(super) fn destroy(partition: &Path, slot: KeyslotId) -> Result<(), CryptError> {
    with("destroy a key of", partition, |device| {
        let is_in_use = slot::slots(&device.status_handle().dump_json()?).iter().any(|used| used.id == slot);
        if is_in_use {
            device.keyslot_handle().destroy(slot.into())?;
        }
        for token in slot::stale_tokens(&device.status_handle().dump_json()?) {
            device.token_handle().json_set(TokenInput::RemoveToken(token))?;
        }
        Ok(())
    })
}

/// Copies the header with all its key slots into a new file.
pub(super) fn back_up(partition: &Path, file: &Path) -> Result<(), CryptError> {
    with("back up the header of", partition, |device| {
        device.backup_handle().header_backup(Some(EncryptionFormat::Luks2), file)
    })
}

/// Puts a copy back.
pub(super) fn restore(partition: &Path, file: &Path) -> Result<(), CryptError> {
    cryptsetup::with("restore the header of", partition, |device| {
        device.backup_handle().header_restore(Some(EncryptionFormat::Luks2), file)
    })
}
