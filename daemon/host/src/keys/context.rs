//! Adds a key slot with a key that only a token can get at, as one that a TPM or a security key keeps.
//!
//! libcryptsetup-rs does not wrap key slot contexts, which do this since libcryptsetup 2.6.

use std::ffi::{CString, c_char, c_int};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;

use libcryptsetup_rs::CryptPbkdfType;
use libcryptsetup_rs::consts::vals::CryptKdf;
use libcryptsetup_rs_sys as sys;
use nemos_model::keys::{KeyslotId, Provider};

use crate::keys::{Secret, Token, pbkdf};

/// A device of libcryptsetup, freed on drop.
struct Device(*mut sys::crypt_device);

/// A key slot context, freed on drop.
struct Context(*mut sys::crypt_keyslot_context);

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: it is from crypt_init, and nobody uses it any more.
        unsafe { sys::crypt_free(self.0) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it is from crypt_keyslot_context_init_by_*, and nobody uses it any more.
        unsafe { sys::crypt_keyslot_context_free(self.0) }
    }
}

fn check(status: c_int) -> io::Result<()> {
    if status < 0 { Err(io::Error::from_raw_os_error(-status)) } else { Ok(()) }
}

/// Adds a key slot that `new` opens. The token opens another slot.
pub(super) fn add_by_token(
    partition: &Path,
    (number, token): (u32, &Token),
    slot: KeyslotId,
    provider: Provider,
    new: &Secret,
) -> io::Result<()> {
    let path = CString::new(partition.as_os_str().as_bytes())?;
    let number = c_int::try_from(number).map_err(io::Error::other)?;
    let slot = c_int::try_from(u32::from(slot)).map_err(io::Error::other)?;
    let mut device = ptr::null_mut();
    // SAFETY: a C string that outlives the call, and a place for the device.
    check(unsafe { sys::crypt_init(&raw mut device, path.as_ptr()) })?;
    let device = Device(device);
    // SAFETY: the device is there; LUKS2 takes no parameters.
    check(unsafe { sys::crypt_load(device.0, c"LUKS2".as_ptr(), ptr::null_mut()) })?;
    let CryptPbkdfType { time_ms, iterations, max_memory_kb, parallel_threads, flags, type_, .. } = pbkdf(provider);
    let type_ = if type_ == CryptKdf::Argon2Id { c"argon2id" } else { c"pbkdf2" };
    let stretching = sys::crypt_pbkdf_type {
        type_: type_.as_ptr(),
        hash: c"sha256".as_ptr(),
        time_ms,
        iterations,
        max_memory_kb,
        parallel_threads,
        flags: flags.bits(),
    };
    // SAFETY: the device is there, and so is what is copied into it.
    check(unsafe { sys::crypt_set_pbkdf_type(device.0, &raw const stretching) })?;

    let (mut by_token, mut by_secret) = (ptr::null_mut(), ptr::null_mut());
    let (any_type, nothing) = (ptr::null(), ptr::null_mut());
    let (pin, length) = token.pin.as_ref().map_or((ptr::null(), 0), |pin| (pin.expose().as_ptr(), pin.expose().len()));
    // SAFETY: the device is there; the PIN, of that length, outlives the context, or there is none; a token needs no type or
    // pointer of ours; a place for the context.
    check(unsafe {
        let pin = pin.cast::<c_char>();
        sys::crypt_keyslot_context_init_by_token(device.0, number, any_type, pin, length, nothing, &raw mut by_token)
    })?;
    let by_token = Context(by_token);
    let secret = new.expose();
    // SAFETY: the device is there; the secret, of that length, outlives the context; a place for the context.
    check(unsafe {
        let bytes = secret.as_ptr().cast::<c_char>();
        sys::crypt_keyslot_context_init_by_passphrase(device.0, bytes, secret.len(), &raw mut by_secret)
    })?;
    let by_secret = Context(by_secret);
    // SAFETY: the device and both of its contexts are there.
    check(unsafe {
        let any = sys::CRYPT_ANY_SLOT;
        sys::crypt_keyslot_add_by_keyslot_context(device.0, any, by_token.0, slot, by_secret.0, 0)
    })
}
