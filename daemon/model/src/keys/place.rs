//! Where a key is that is kept elsewhere: a file on another device, or a PKCS#11 token.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most bytes of a path in a place.
const LONGEST: usize = 200;
/// How the name of a token begins.
const SCHEME: &str = "pkcs11:";

/// Where a key is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Place {
    /// In a file: `LABEL=KEYS:/nemos.key`.
    File(FilePlace),
    /// On a token: `pkcs11:token=...;object=...`.
    Token(TokenUri),
}

/// A file on another device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePlace {
    device: Device,
    path: String,
}

/// A key on a PKCS#11 token. Source: RFC 7512.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenUri(String);

/// Text that is no place of a key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is no place of a key: {why}")]
pub struct InvalidPlace {
    text: String,
    why: &'static str,
}

/// A device, by what udev(7) calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Device {
    tag: &'static str,
    value: String,
}

impl Device {
    /// By the name of the tag: udev's folder of links.
    const TAGS: [(&str, &str); 3] = [("PARTUUID", "by-partuuid"), ("UUID", "by-uuid"), ("LABEL", "by-label")];

    fn parse(text: &str) -> Option<Self> {
        let (tag, value) = text.split_once('=')?;
        let (tag, _) = Device::TAGS.into_iter().find(|(known, _)| *known == tag)?;
        // What udev does not escape, and no way out of its folder.
        let fits = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.' | '+');
        let is_name = (1..=36).contains(&value.len()) && value.chars().all(fits) && !value.starts_with('.');
        is_name.then(|| Device { tag, value: value.to_owned() })
    }
}

impl Place {
    fn invalid(text: &str, why: &'static str) -> InvalidPlace {
        InvalidPlace { text: text.chars().filter(|letter| !letter.is_control()).take(240).collect(), why }
    }
}

impl TokenUri {
    /// As RFC 7512 has it; without a PIN, which would be for everybody to read, or a command that gives one.
    pub fn new(text: &str) -> Result<Self, InvalidPlace> {
        const SECRET: [&str; 2] = ["pin-value", "pin-source"];
        let invalid = |why| Err(Place::invalid(text, why));
        let fits = |letter: char| letter.is_ascii_alphanumeric() || "-._~%:;[]@!$&'()*+,=?/".contains(letter);
        match text.strip_prefix(SCHEME) {
            Some(rest) if (1..=512).contains(&rest.len()) && rest.chars().all(fits) => {
                let mut names = rest.split([';', '?', '&']).filter_map(|part| part.split('=').next());
                if names.any(|name| SECRET.contains(&name)) {
                    return invalid("a PIN is not part of it");
                }
                Ok(TokenUri(text.to_owned()))
            }
            _ => invalid("a token is named as `pkcs11:token=...;object=...`, percent-encoded, of at most 512 letters"),
        }
    }
}

impl fmt::Display for TokenUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FilePlace {
    /// The file at that path on that device.
    pub fn new(device: &str, path: &str) -> Result<Self, InvalidPlace> {
        let invalid = |why| Place::invalid(&format!("{device}:{path}"), why);
        let named = Device::parse(device).ok_or_else(|| {
            invalid(
                "a device is PARTUUID=..., UUID=... or LABEL=..., of at most 36 letters, digits, `-`, `_`, `.` and `+`",
            )
        })?;
        let is_path = path.strip_prefix('/').is_some_and(|rest| {
            path.len() <= LONGEST
                && !path.contains(char::is_control)
                && rest.split('/').all(|part| !matches!(part, "" | "." | ".."))
        });
        if !is_path {
            return Err(invalid("a path begins with `/` and has no `.` or `..` in it, nor more than 200 bytes"));
        }
        Ok(FilePlace { device: named, path: path.to_owned() })
    }

    /// The device, as people name it.
    pub fn device(&self) -> String {
        format!("{}={}", self.device.tag, self.device.value)
    }

    /// udev's link to it.
    pub fn link(&self) -> String {
        let folder = Device::TAGS.iter().find(|(tag, _)| *tag == self.device.tag).map_or("", |(_, folder)| folder);
        format!("/dev/disk/{folder}/{}", self.device.value)
    }

    /// The path on it, from its root.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where the key goes that takes this one's place: next to it, and the one after that where this one was.
    pub fn beside(&self) -> Result<Self, InvalidPlace> {
        const NEW: &str = ".new";
        let path = match self.path.strip_suffix(NEW).filter(|path| !path.ends_with('/')) {
            Some(path) => path.to_owned(),
            None => format!("{}{NEW}", self.path),
        };
        FilePlace::new(&self.device(), &path)
    }
}

impl fmt::Display for FilePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device(), self.path)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(file) => file.fmt(f),
            Place::Token(uri) => uri.fmt(f),
        }
    }
}

impl FromStr for Place {
    type Err = InvalidPlace;

    fn from_str(text: &str) -> Result<Self, InvalidPlace> {
        if text.starts_with(SCHEME) {
            return TokenUri::new(text).map(Place::Token);
        }
        let (device, path) = text.split_once(':').unwrap_or((text, ""));
        FilePlace::new(device, path).map(Place::File)
    }
}

impl TryFrom<String> for Place {
    type Error = InvalidPlace;

    fn try_from(text: String) -> Result<Self, InvalidPlace> {
        text.parse()
    }
}

impl From<Place> for String {
    fn from(place: Place) -> String {
        place.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(text: &str) -> FilePlace {
        match text.parse() {
            Ok(Place::File(file)) => file,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_is_on_a_device_that_udev_names() {
        let place = file("LABEL=KEYS:/a:b/nemos.key");
        assert_eq!((place.link().as_str(), place.path()), ("/dev/disk/by-label/KEYS", "/a:b/nemos.key"));
        assert_eq!(file("UUID=ABCD-1234:/k").link(), "/dev/disk/by-uuid/ABCD-1234");
        for strange in [
            "",
            "LABEL=KEYS",
            "LABEL=:/k",
            "LABEL=../x:/k",
            "LABEL=..:/k",
            "SERIAL=1:/k",
            "/dev/sda1:/k",
            "LABEL=a b:/k",
            "LABEL=KEYS:k",
            "LABEL=KEYS:/",
            "LABEL=KEYS:/../k",
            "LABEL=KEYS:/a//k",
            "LABEL=KEYS:/a\n",
        ] {
            assert!(strange.parse::<Place>().is_err(), "{strange}");
        }
    }

    #[test]
    fn a_token_is_named_without_its_pin() {
        let uri = "pkcs11:token=my%20card;object=disk";
        assert_eq!(uri.parse::<Place>().unwrap(), Place::Token(TokenUri(uri.to_owned())));
        for strange in ["pkcs11:", "pkcs11:a b", "pkcs11:token=a?pin-value=1234", "pkcs11:token=a?x=y&pin-source=|cat"]
        {
            assert!(strange.parse::<Place>().is_err(), "{strange}");
        }
    }

    #[test]
    fn two_files_take_turns() {
        let first = file("LABEL=KEYS:/nemos.key");
        let second = first.beside().unwrap();
        assert_eq!(second.to_string(), "LABEL=KEYS:/nemos.key.new");
        assert_eq!(second.beside().unwrap(), first);
        assert_eq!(file("LABEL=KEYS:/.new").beside().unwrap().path(), "/.new.new");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(text: String, device in "[A-Z]{1,8}=.{0,40}", path in ".{0,40}", uri in "pkcs11:.{0,40}") {
            let file = FilePlace::new(&device, &path).map(Place::File);
            for place in [text.parse::<Place>(), file, uri.parse()].into_iter().flatten() {
                prop_assert_eq!(place.to_string().parse::<Place>().unwrap(), place.clone());
                if let Place::File(file) = place {
                    prop_assert_eq!(file.link().matches('/').count(), 4, "it stays in udev's folder");
                }
            }
        }
    }
}
