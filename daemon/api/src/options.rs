//! Options: dictionaries that a caller sends along. What is not known is refused by name, so that nobody believes that
//! an option was heeded which an older device has never heard of.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use zbus::{OwnedVariant, Type, Variant};

use crate::{Error, ErrorKind};

/// `a{sv}`.
pub type Dictionary = HashMap<String, OwnedVariant>;

/// Takes the known options out of a dictionary, one by one.
#[derive(Debug)]
pub struct Options(Dictionary);

impl Options {
    /// The options as they came.
    pub fn new(dictionary: Dictionary) -> Self {
        Options(dictionary)
    }

    /// The option of that name; `None` if it was not given.
    pub fn take<T: TryFrom<OwnedVariant> + Type>(&mut self, name: &str) -> Result<Option<T>, Error> {
        let Some(value) = self.0.remove(name) else { return Ok(None) };
        let given = value.value_signature().to_string();
        T::try_from(value).map(Some).map_err(|_| {
            let message = format!("option `{name}` must be of type {}, not {given}", T::SIGNATURE);
            Error::new(ErrorKind::InvalidArgument, message)
        })
    }

    /// The file descriptor of that name; `None` if it was not given.
    pub fn take_file_descriptor(&mut self, name: &str) -> Result<Option<OwnedFd>, Error> {
        let Some(value) = self.0.remove(name) else { return Ok(None) };
        match Variant::from(value) {
            Variant::Fd(descriptor) => OwnedFd::try_from(descriptor).map(Some).map_err(Error::from),
            other => {
                let message = format!("option `{name}` must be of type h, not {}", other.value_signature());
                Err(Error::new(ErrorKind::InvalidArgument, message))
            }
        }
    }

    /// Refuses what was not taken.
    pub fn finish(self) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut names: Vec<String> = self.0.into_keys().map(|name| format!("`{}`", name.escape_debug())).collect();
        names.sort();
        Err(Error::new(ErrorKind::InvalidArgument, format!("unknown option {}", names.join(", "))))
    }
}
