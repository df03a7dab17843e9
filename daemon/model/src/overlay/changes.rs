//! What differs from the factory image, told by what is in the overlay's upper folder and what the image has in the same place.
//!
//! Source of what the kernel writes there: `Documentation/filesystems/overlayfs.rst`. A whiteout is a character device 0:0;
//! a folder with the extended attribute `trusted.overlay.opaque` = `y` hides all that the image has in it; one with
//! `trusted.overlay.redirect` was renamed, and has what the image has elsewhere; a file with `trusted.overlay.metacopy` has the
//! content of the image's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

use crate::words::words;

words! {
    /// What became of a path.
    What {
        /// The image has nothing there.
        Added = "added",
        /// Another content: of a file, or the target of a link.
        Changed = "changed",
        /// The same content; another owner, mode, time or extended attribute.
        Metadata = "metadata",
        /// The image has it, and it is hidden.
        Deleted = "deleted",
        /// A folder in place of the image's, whose contents are all hidden.
        Replaced = "replaced",
        /// A folder of the image's that was somewhere else.
        Renamed = "renamed",
        /// Something else than what the image has: a folder in place of a file, a link in place of a folder.
        Type = "type",
    }
}

words! {
    /// What there is at a path.
    Kind {
        /// A file.
        File = "file",
        /// A folder.
        Folder = "folder",
        /// A symbolic link.
        Link = "link",
        /// A device, pipe or socket.
        Special = "special",
    }
}

/// What was seen at a path, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What there is.
    pub kind: Kind,
    /// Mode, with the bits of the kind.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Bytes of a file.
    pub size: u64,
    /// When it was modified: seconds and nanoseconds since the epoch.
    pub modified: (i64, i64),
    /// Target of a link.
    pub target: Option<PathBuf>,
    /// Number of a device.
    pub device: u64,
    /// Extended attributes, without the overlay's own.
    pub attributes: BTreeMap<OsString, Vec<u8>>,
}

/// What the overlay has at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upper {
    /// Nothing is to be seen there.
    Whiteout,
    /// This is.
    There {
        /// What was seen.
        seen: Seen,
        /// It hides all that the image has in the folder.
        opaque: bool,
        /// Where the image has the folder.
        redirect: Option<PathBuf>,
        /// Its content is the image's.
        metacopy: bool,
    },
}

/// Decides what became of a path; `None` if it is as the image has it. `same_content` compares files of the same size, which is
/// only asked where nothing else tells.
pub fn judge<E>(
    upper: &Upper,
    factory: Option<&Seen>,
    same_content: impl FnOnce() -> Result<bool, E>,
) -> Result<Option<What>, E> {
    let (seen, opaque, redirect, metacopy) = match upper {
        // One that hides nothing is left over from a path that came and went.
        Upper::Whiteout => return Ok(factory.map(|_| What::Deleted)),
        Upper::There { seen, opaque, redirect, metacopy } => (seen, *opaque, redirect, *metacopy),
    };
    if redirect.is_some() && seen.kind == Kind::Folder {
        return Ok(Some(What::Renamed));
    }
    let Some(factory) = factory else { return Ok(Some(What::Added)) };
    if seen.kind != factory.kind || seen.device != factory.device {
        return Ok(Some(What::Type));
    }
    let same_metadata = seen.mode == factory.mode
        && seen.owner == factory.owner
        && seen.attributes == factory.attributes
        // The time of a folder changes with what is in it.
        && (seen.kind == Kind::Folder || seen.modified == factory.modified);
    let differs = match seen.kind {
        Kind::Folder if opaque => return Ok(Some(What::Replaced)),
        Kind::File => seen.size != factory.size || !metacopy && !same_content()?,
        Kind::Link => seen.target != factory.target,
        Kind::Folder | Kind::Special => false,
    };
    Ok(match (differs, same_metadata) {
        (true, _) => Some(What::Changed),
        (false, false) => Some(What::Metadata),
        (false, true) => None,
    })
}

/// A path that differs from the factory image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// From the root on, without a slash at its beginning.
    pub path: PathBuf,
    /// What became of it.
    pub what: What,
    /// What there is now; of something that was deleted, what there was.
    pub kind: Kind,
    /// Bytes of the file that there is.
    pub size: u64,
    /// Bytes of the image's, if it has a file there.
    pub factory_size: Option<u64>,
    /// Where a folder that was renamed had been.
    pub from: Option<PathBuf>,
}

/// A path as text, from the root on: what is no UTF-8 or no letter is escaped as `\xNN`, and so is the backslash.
pub fn to_text(path: &Path) -> String {
    let mut text = String::from("/");
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for letter in chunk.valid().chars() {
            if letter.is_control() || letter == '\\' {
                let mut bytes = [0; 4];
                escape(&mut text, letter.encode_utf8(&mut bytes).as_bytes());
            } else {
                text.push(letter);
            }
        }
        escape(&mut text, chunk.invalid());
    }
    text
}

fn escape(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // A String takes everything.
        let _ = write!(text, "\\x{byte:02x}");
    }
}

/// Text that is not a path from the root on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is not an absolute path without `..`; other bytes than text are written as \\xNN, a backslash as \\x5c")]
pub struct InvalidPath(pub String);

/// The path of that text, without the slash at its beginning.
pub fn from_text(text: &str) -> Result<PathBuf, InvalidPath> {
    let invalid = || InvalidPath(text.chars().filter(|letter| !letter.is_control()).take(80).collect());
    let mut parts = text.strip_prefix('/').ok_or_else(invalid)?.split("\\x");
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).ok_or_else(invalid)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| invalid())?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    let path = PathBuf::from(OsString::from_vec(bytes));
    let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    let has_nul = path.as_os_str().as_bytes().contains(&0);
    if is_plain && !has_nul { Ok(path.components().collect()) } else { Err(invalid()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_path_survives_as_text(bytes in prop::collection::vec(1..=255u8, 0..40)) {
            let path = PathBuf::from(OsString::from_vec(bytes));
            let text = to_text(&path);
            prop_assert!(!text.contains(char::is_control));
            if let Ok(read) = from_text(&text) {
                prop_assert_eq!(read, path.components().collect::<PathBuf>());
            }
        }

        #[test]
        fn no_text_leads_out_of_the_root(text: String) {
            if let Ok(path) = from_text(&text) {
                prop_assert!(path.components().all(|part| matches!(part, Component::Normal(_))));
            }
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in ["", "etc", "/etc/../home", "/a\\x0", "/a\\xzz", "/a\\x00"] {
            assert!(from_text(text).is_err(), "{text}");
        }
        assert_eq!(from_text("/").unwrap(), PathBuf::new());
        assert_eq!(to_text(&from_text("/a\\xff\\x5c/b").unwrap()), "/a\\xff\\x5c/b");
    }

    fn seen(kind: Kind) -> Seen {
        Seen {
            kind,
            mode: 0o644,
            owner: (0, 0),
            size: 3,
            modified: (7, 0),
            target: None,
            device: 0,
            attributes: BTreeMap::new(),
        }
    }

    fn there(seen: Seen) -> Upper {
        Upper::There { seen, opaque: false, redirect: None, metacopy: false }
    }

    fn judged(upper: &Upper, factory: Option<&Seen>, same: bool) -> Option<What> {
        judge(upper, factory, || Ok::<_, ()>(same)).unwrap()
    }

    #[test]
    fn each_change_is_called_what_it_is() {
        let file = seen(Kind::File);
        let grown = Seen { size: 4, ..file.clone() };
        let touched = Seen { modified: (8, 0), ..file.clone() };
        let owned = Seen { owner: (1000, 1000), ..file.clone() };
        assert_eq!(judged(&there(file.clone()), None, true), Some(What::Added));
        assert_eq!(judged(&there(file.clone()), Some(&file), false), Some(What::Changed));
        assert_eq!(judged(&there(grown), Some(&file), true), Some(What::Changed));
        assert_eq!(judged(&there(touched), Some(&file), true), Some(What::Metadata));
        assert_eq!(judged(&there(owned), Some(&file), true), Some(What::Metadata));
        assert_eq!(judged(&Upper::Whiteout, Some(&file), true), Some(What::Deleted));
        assert_eq!(judged(&there(seen(Kind::Folder)), Some(&file), true), Some(What::Type));
        let link = |target: &str| Seen { target: Some(target.into()), ..seen(Kind::Link) };
        assert_eq!(judged(&there(link("a")), Some(&link("b")), true), Some(What::Changed));
    }

    #[test]
    fn what_was_only_copied_up_is_no_change() {
        let file = seen(Kind::File);
        assert_eq!(judged(&there(file.clone()), Some(&file), true), None);
        assert_eq!(judged(&Upper::Whiteout, None, true), None, "it hides nothing");
        // Something was made in it.
        let folder = Seen { modified: (9, 9), ..seen(Kind::Folder) };
        assert_eq!(judged(&there(folder), Some(&seen(Kind::Folder)), true), None);
        // Its content is not in the overlay, so nobody may compare it.
        let bare = Upper::There { seen: file.clone(), opaque: false, redirect: None, metacopy: true };
        assert_eq!(judged(&bare, Some(&file), false), None);
    }

    #[test]
    fn a_folder_says_what_became_of_the_images_own() {
        let folder = seen(Kind::Folder);
        let upper = |opaque, redirect: Option<&str>| Upper::There {
            seen: folder.clone(),
            opaque,
            redirect: redirect.map(PathBuf::from),
            metacopy: false,
        };
        assert_eq!(judged(&upper(true, None), Some(&folder), true), Some(What::Replaced));
        assert_eq!(judged(&upper(true, None), None, true), Some(What::Added), "there was nothing to hide");
        assert_eq!(judged(&upper(false, Some("/etc/before")), None, true), Some(What::Renamed));
    }
}
