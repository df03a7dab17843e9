//! Where a key is that is kept on another device: a file there.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most bytes of a path in a place.
const LONGEST: usize = 200;

/// Where a key is: `LABEL=KEYS:/nemos.key`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Place {
    device: Device,
    path: String,
}

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
    /// The file at that path on that device.
    pub fn new(device: &str, path: &str) -> Result<Self, InvalidPlace> {
        let text = || format!("{device}:{path}").chars().filter(|letter| !letter.is_control()).take(240).collect();
        let invalid = |why| InvalidPlace { text: text(), why };
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
        Ok(Place { device: named, path: path.to_owned() })
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
        Place::new(&self.device(), &path)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device(), self.path)
    }
}

impl FromStr for Place {
    type Err = InvalidPlace;

    fn from_str(text: &str) -> Result<Self, InvalidPlace> {
        let (device, path) = text.split_once(':').unwrap_or((text, ""));
        Place::new(device, path)
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

    #[test]
    fn a_place_is_a_file_on_a_device_that_udev_names() {
        let place: Place = "LABEL=KEYS:/a:b/nemos.key".parse().unwrap();
        assert_eq!((place.link().as_str(), place.path()), ("/dev/disk/by-label/KEYS", "/a:b/nemos.key"));
        let uuid: Place = "UUID=ABCD-1234:/k".parse().unwrap();
        assert_eq!(uuid.link(), "/dev/disk/by-uuid/ABCD-1234");
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
    fn two_files_take_turns() {
        let first: Place = "LABEL=KEYS:/nemos.key".parse().unwrap();
        let second = first.beside().unwrap();
        assert_eq!(second.to_string(), "LABEL=KEYS:/nemos.key.new");
        assert_eq!(second.beside().unwrap(), first);
        let odd: Place = "LABEL=KEYS:/.new".parse().unwrap();
        assert_eq!(odd.beside().unwrap().path(), "/.new.new");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_and_stays_below_its_folder(text: String, device in "[A-Z]{1,8}=.{0,40}", path in ".{0,40}") {
            for place in [text.parse::<Place>(), Place::new(&device, &path)].into_iter().flatten() {
                prop_assert_eq!(place.to_string().parse::<Place>().unwrap(), place.clone());
                prop_assert_eq!(place.link().matches('/').count(), 4);
            }
        }
    }
}
