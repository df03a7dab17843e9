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
use crate::keys::{Key, Secret, Token};

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
        Key::Token(token) => try_token(partition, token, only),
    }
}

fn try_token(partition: &Path, token: &Token, only: Option<KeyslotId>) -> Result<KeyslotId, CryptError> {
    let none = io::Error::new(io::ErrorKind::NotFound, "the header has no token that it may be");
    let mut refusal = CryptError::strange("ask a token for a key of", partition, &none);
    for (number, slot) in tokens(partition, token.kind) {
        if only.is_some_and(|only| only != slot) {
            continue;
        }
        match activate("ask a token for a key of", partition, (number, token), None) {
            Ok(slot) => return keyslot(partition, slot),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

/// Opens the volume as that mapping, with the key of a token for that slot.
pub(crate) fn open_by_token(partition: &Path, token: &Token, slot: KeyslotId, mapping: &str) -> Result<(), CryptError> {
    let action = "open the encrypted volume on";
    let number = number_of(action, partition, token, slot)?;
    activate(action, partition, (number, token), Some(mapping)).map(drop)
}

fn activate(
    action: &'static str,
    partition: &Path,
    (number, token): (u32, &Token),
    mapping: Option<&str>,
) -> Result<u32, CryptError> {
    with(action, partition, |device| {
        let (mut handle, flags) = (device.token_handle(), CryptActivate::empty());
        match &token.pin {
            None => handle.activate_by_token::<()>(mapping, Some(number), None, flags),
            Some(pin) => {
                let (kind, pin) = (Some(token.kind), pin.expose());
                handle.activate_by_token_pin::<()>(mapping, kind, Some(number), pin, None, flags)
            }
        }
    })
}

fn tokens(partition: &Path, kind: &str) -> Vec<(u32, KeyslotId)> {
    metadata(partition).ok().flatten().map(|metadata| slot::tokens_of(&metadata, kind)).unwrap_or_default()
}

/// The number of the token for a slot.
fn number_of(action: &'static str, partition: &Path, token: &Token, slot: KeyslotId) -> Result<u32, CryptError> {
    let gone = io::Error::new(io::ErrorKind::NotFound, "its token has gone in the meantime");
    let number = tokens(partition, token.kind).into_iter().find(|(_, of)| *of == slot).map(|(number, _)| number);
    number.ok_or_else(|| CryptError::strange(action, partition, &gone))
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
        Key::Token(token) => {
            let action = "add a key to";
            let number = number_of(action, partition, token, try_token(partition, token, None)?)?;
            let added = add_by_token(partition, (number, token), slot, provider, new);
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

/// Records in the header what is known of a key slot now, in place of what was recorded of it.
pub(super) fn record_again(partition: &Path, slot: KeyslotId, record: &Record) -> Result<(), CryptError> {
    let action = "record the use of a key of";
    let ours = Token { kind: slot::TOKEN_TYPE, pin: None };
    let number = number_of(action, partition, &ours, slot)?;
    let token = record.token(slot);
    with(action, partition, |device| device.token_handle().json_set(TokenInput::ReplaceToken(number, &token)).map(drop))
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
