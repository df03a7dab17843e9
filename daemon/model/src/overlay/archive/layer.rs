//! The layer of an archive: which entries it may have, and in which order.
//!
//! A folder comes before what is in it, names in a folder come in the order of their bytes, and each once:
//!
//! ```text
//! ./            ./etc/           ./etc/.wh..wh..opq    ./etc/a    ./etc/.wh.b    ./etc/c/    ./etc/c/d    ./opt/
//! ```
//!
//! So every entry is in a folder that this very archive has made and that is still open: there is no path to be followed, no
//! link to be followed on the way, and nothing that is there already to be replaced.
//!
//! Source for whiteouts: the OCI image specification 1.1, `layer.md`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// What is deleted is a file with this before its name.
pub const WHITEOUT: &[u8] = b".wh.";
/// A folder that hides the image's has a file of this name.
pub const OPAQUE: &[u8] = b".wh..wh..opq";

/// Longest path, in bytes, and longest name in it: Linux's own limits.
const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;
/// Most folders around a file: each is open while its contents come.
pub const MAX_DEPTH: usize = 128;

/// What an entry is of, as its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// Another name of a file.
    HardLink,
    /// Something else: a device, a pipe, or what an extension of tar has made up.
    Other,
}

/// What is to be made of an entry, in the folder that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The folder that all is in.
    Root,
    /// A file.
    File,
    /// A folder, which is open from now on.
    Folder,
    /// A symbolic link; where it leads is never looked at.
    Link(PathBuf),
    /// Another name of the file at this path, which came before.
    HardLink(PathBuf),
    /// What the image has there is deleted.
    Whiteout,
    /// The open folder hides the image's.
    Opaque,
}

/// An entry that may be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// So many folders are complete before it: the open one, the one around it, and so on.
    pub leaves: usize,
    /// Its path, from the root of the layer.
    pub path: PathBuf,
    /// Its name in the folder that is open then.
    pub name: OsString,
    /// What it is.
    pub what: What,
}

/// An entry that no configuration has.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("its entry `{path}` {reason}")]
pub struct BadEntry {
    /// The path, as far as it can be shown.
    pub path: String,
    /// Why not.
    pub reason: Reason,
}

/// What is wrong with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Reason {
    /// It leads out of the folder, or nowhere.
    #[error("has no path that stays in its folder")]
    Path,
    /// It is longer than Linux lets a path be, or deeper than is sensible.
    #[error("is too long, or too deep")]
    Long,
    /// Its folder did not come before it, or it is not its turn.
    #[error("is not where nemos puts it: after its folder, in the order of names, once")]
    Order,
    /// It is no file, folder or link.
    #[error("is a device, a pipe, or something that nemos does not know")]
    Kind,
    /// It has contents where there are none.
    #[error("has contents, and nothing of its kind has")]
    Contents,
    /// It is a link to nowhere.
    #[error("is a link to something that cannot be")]
    Target,
    /// It cannot be told from a mark.
    #[error("has a name that marks what is deleted")]
    Mark,
    /// It has an attribute that is the overlay's own, or the kernel's.
    #[error("has an extended attribute that a configuration cannot carry")]
    Attribute,
}

/// Where a layer has come to.
#[derive(Debug, Default)]
pub struct Walk {
    /// The open folders: their names, and the last name that came in each. The first is the root.
    open: Vec<(OsString, Option<OsString>)>,
    /// Whether the folder that is open is marked already.
    is_marked: bool,
}

impl Walk {
    /// The next entry, if it may be there.
    pub fn next(&mut self, path: &[u8], kind: Kind, link: &[u8], size: u64) -> Result<Step, BadEntry> {
        self.step(path, kind, link, size).map_err(|reason| BadEntry { path: shown(path), reason })
    }

    fn step(&mut self, path: &[u8], kind: Kind, link: &[u8], size: u64) -> Result<Step, Reason> {
        if kind == Kind::Other {
            return Err(Reason::Kind);
        }
        if kind != Kind::File && size != 0 {
            return Err(Reason::Contents);
        }
        let parts = parts(path, kind == Kind::Folder)?;
        let Some((last, around)) = parts.split_last() else { return self.root(kind) };
        let (name, mark) = marked(last, kind, size)?;
        let at = around.iter().zip(self.open.iter().skip(1)).take_while(|(part, (name, _))| **part == name.as_bytes());
        if self.open.is_empty() || at.count() != around.len() {
            return Err(Reason::Order);
        }
        let leaves = self.open.len() - 1 - around.len();
        let path: PathBuf = around.iter().copied().chain(name).map(OsStr::from_bytes).collect();
        let (_, before) = &self.open[around.len()];
        let Some(name) = name else {
            // The mark of a folder comes right after it.
            let is_first = leaves == 0 && before.is_none() && !self.is_marked;
            self.is_marked = true;
            let opaque = Step { leaves, path, name: OsString::new(), what: What::Opaque };
            return if is_first { Ok(opaque) } else { Err(Reason::Order) };
        };
        if before.as_ref().is_some_and(|before| name <= before.as_bytes()) {
            return Err(Reason::Order);
        }
        let what = match kind {
            _ if mark => What::Whiteout,
            Kind::Folder => What::Folder,
            Kind::Link => What::Link(symbolic(link)?),
            Kind::HardLink => What::HardLink(earlier(link, &path)?),
            Kind::File | Kind::Other => What::File,
        };
        if what == What::Folder && self.open.len() - leaves > MAX_DEPTH {
            return Err(Reason::Long);
        }
        self.open.truncate(around.len() + 1);
        let name = OsString::from_vec(name.to_vec());
        if let Some((_, before)) = self.open.last_mut() {
            *before = Some(name.clone());
        }
        if what == What::Folder {
            self.open.push((name.clone(), None));
            self.is_marked = false;
        }
        Ok(Step { leaves, path, name, what })
    }

    fn root(&mut self, kind: Kind) -> Result<Step, Reason> {
        if kind != Kind::Folder {
            return Err(Reason::Path);
        }
        if !self.open.is_empty() {
            return Err(Reason::Order);
        }
        self.open.push((OsString::new(), None));
        Ok(Step { leaves: 0, path: PathBuf::new(), name: OsString::new(), what: What::Root })
    }
}

/// The target of a hard link: something that came before, and so is no folder that is open.
fn earlier(link: &[u8], path: &Path) -> Result<PathBuf, Reason> {
    let parts = parts(link, false).map_err(|_| Reason::Target)?;
    let target: PathBuf = parts.iter().copied().map(OsStr::from_bytes).collect();
    let is_name = !parts.is_empty() && parts.iter().all(|part| !part.starts_with(WHITEOUT));
    if is_name && target.as_path() < path && !path.starts_with(&target) { Ok(target) } else { Err(Reason::Target) }
}

/// The names in a path; none for the root.
fn parts(path: &[u8], is_folder: bool) -> Result<Vec<&[u8]>, Reason> {
    if path.len() > MAX_PATH {
        return Err(Reason::Long);
    }
    let path = if is_folder { path.strip_suffix(b"/").unwrap_or(path) } else { path };
    let path = if path == b"." { b"" } else { path.strip_prefix(b"./").unwrap_or(path) };
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|_| !path.is_empty()).collect();
    if parts.iter().any(|part| matches!(*part, b"" | b"." | b"..") || part.contains(&0)) {
        return Err(Reason::Path);
    }
    if parts.iter().any(|part| part.len() > MAX_NAME) { Err(Reason::Long) } else { Ok(parts) }
}

/// The name of what a name marks, or it itself; `None` if it marks the folder that it is in. And whether it is a mark.
fn marked(name: &[u8], kind: Kind, size: u64) -> Result<(Option<&[u8]>, bool), Reason> {
    let Some(deleted) = name.strip_prefix(WHITEOUT) else { return Ok((Some(name), false)) };
    if kind != Kind::File {
        return Err(Reason::Mark);
    }
    if size != 0 {
        return Err(Reason::Contents);
    }
    match deleted {
        _ if name == OPAQUE => Ok((None, true)),
        b"" | b"." | b".." => Err(Reason::Mark),
        _ if deleted.starts_with(WHITEOUT) => Err(Reason::Mark),
        _ => Ok((Some(deleted), true)),
    }
}

/// A symbolic link leads anywhere: it is followed by whoever uses it, in the root that it is for.
fn symbolic(link: &[u8]) -> Result<PathBuf, Reason> {
    let is_target = (1..=MAX_PATH).contains(&link.len()) && !link.contains(&0);
    if is_target { Ok(PathBuf::from(OsString::from_vec(link.to_vec()))) } else { Err(Reason::Target) }
}

fn shown(path: &[u8]) -> String {
    let path = String::from_utf8_lossy(path);
    path.chars().map(|letter| if letter.is_control() { '?' } else { letter }).take(120).collect()
}

/// Attributes of the overlay begin so, and those of nemos.
const OVERLAY: &str = "trusted.overlay.";
const OURS: &str = "trusted.nemos.";

/// What becomes of an extended attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// It is the file's, and goes with it.
    Carried,
    /// It is of the place that the overlay has here, and stays.
    Left,
    /// It marks a folder that hides the image's.
    Opaque,
    /// Without it the file is another, and it cannot go along.
    Refused,
}

impl Attribute {
    /// What becomes of the attribute of that name and value when it is exported.
    pub fn of(name: &str, value: &[u8]) -> Self {
        if name.starts_with(OURS) {
            return Attribute::Left;
        }
        match name.strip_prefix(OVERLAY) {
            Some("opaque") if value == b"y" => Attribute::Opaque,
            Some("origin" | "impure" | "uuid" | "nlink") => Attribute::Left,
            None if is_carried(name) => Attribute::Carried,
            _ => Attribute::Refused,
        }
    }
}

/// Whether an attribute of that name may be in an archive.
pub fn is_carried(name: &str) -> bool {
    let of_a_file = ["user.", "security.", "trusted.", "system.posix_acl_"];
    of_a_file.iter().any(|space| name.starts_with(space))
        && ![OVERLAY, OURS].iter().any(|space| name.starts_with(space))
}

/// An archive that has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("it needs more room than the {bytes} bytes that the overlay's volume can spare")]
pub struct NoRoom {
    /// What there was.
    pub bytes: u64,
}

/// What may still be unpacked: files as large as they say that they are, and as many.
#[derive(Debug)]
pub struct Budget {
    spare: u64,
    left: u64,
}

/// Bytes that an entry takes besides its contents: an inode, and its name in a folder.
const ENTRY: u64 = 1024;
/// Contents take whole blocks.
const BLOCK: u64 = 4096;

impl Budget {
    /// All that is free but for a sixteenth of the file system: the overlay goes on being used.
    pub const fn new(free: u64, size: u64) -> Self {
        let spare = free.saturating_sub(size / 16);
        Budget { spare, left: spare }
    }

    /// Takes the room of an entry with contents and attributes of so many bytes.
    pub fn take(&mut self, contents: u64, attributes: u64) -> Result<(), NoRoom> {
        let blocks = contents.checked_next_multiple_of(BLOCK).and_then(|blocks| blocks.checked_add(ENTRY));
        let needed = blocks.and_then(|needed| needed.checked_add(attributes));
        let left = needed.and_then(|needed| self.left.checked_sub(needed));
        self.left = left.ok_or(NoRoom { bytes: self.spare })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn walked(entries: &[(&str, Kind)]) -> Result<Vec<Step>, Reason> {
        let mut walk = Walk::default();
        let steps = entries.iter().map(|(path, kind)| {
            let (path, link) = path.split_once(" -> ").unwrap_or((path, ""));
            walk.next(path.as_bytes(), *kind, link.as_bytes(), 0).map_err(|error| error.reason)
        });
        steps.collect()
    }

    fn after_etc(path: &str, kind: Kind) -> Result<Step, Reason> {
        let before = [("./", Kind::Folder), ("./etc/", Kind::Folder), ("./etc/b", Kind::File), (path, kind)];
        walked(&before).map(|mut steps| steps.pop().unwrap())
    }

    #[test]
    fn what_nemos_writes_is_taken() {
        use Kind::{File, Folder, HardLink, Link};
        let steps = walked(&[
            ("./", Folder),
            ("./etc/", Folder),
            ("./etc/.wh..wh..opq", File),
            ("./etc/a", File),
            ("./etc/.wh.b", File),
            ("./etc/c/", Folder),
            ("./etc/c/d -> ./etc/a", HardLink),
            ("./etc/c.d -> /etc/shadow", Link),
            ("./opt/", Folder),
        ]);
        let steps: Vec<(usize, String, What)> =
            steps.unwrap().into_iter().map(|step| (step.leaves, step.path.display().to_string(), step.what)).collect();
        let expected = [
            (0, "", What::Root),
            (0, "etc", What::Folder),
            (0, "etc", What::Opaque),
            (0, "etc/a", What::File),
            (0, "etc/b", What::Whiteout),
            (0, "etc/c", What::Folder),
            (0, "etc/c/d", What::HardLink("etc/a".into())),
            (1, "etc/c.d", What::Link("/etc/shadow".into())),
            (1, "opt", What::Folder),
        ];
        assert_eq!(steps, expected.map(|(leaves, path, what)| (leaves, path.to_owned(), what)));
    }

    #[test]
    fn no_path_leads_out() {
        for path in
            ["/etc/c", "../c", "./../c", "./etc/../c", "./etc/./c", "./etc//c", "etc/c/", "./etc/c\0", "..", "/"]
        {
            assert_eq!(after_etc(path, Kind::File), Err(Reason::Path), "{path:?}");
        }
        assert_eq!(after_etc(&format!("./etc/{}", "c".repeat(256)), Kind::File), Err(Reason::Long));
        assert_eq!(after_etc(&format!("./etc/{}", "c/".repeat(2100)), Kind::Folder), Err(Reason::Long));
    }

    #[test]
    fn nothing_comes_twice_or_before_its_folder() {
        for path in ["./etc/b", "./etc/a", "./opt/a", "./etc/b/c", "./etc/.wh.b", "./etc/.wh..wh..opq", "./a"] {
            assert_eq!(after_etc(path, Kind::File), Err(Reason::Order), "{path}");
        }
        assert_eq!(after_etc("./", Kind::Folder), Err(Reason::Order));
        assert_eq!(walked(&[("./etc/", Kind::Folder)]), Err(Reason::Order));
        let marked_twice = [("./", Kind::Folder), ("./.wh..wh..opq", Kind::File), ("./.wh..wh..opq", Kind::File)];
        assert_eq!(walked(&marked_twice), Err(Reason::Order));
        // A link in a folder's place is no folder.
        let through = [("./", Kind::Folder), ("./a -> /etc", Kind::Link), ("./a/b", Kind::File)];
        assert_eq!(walked(&through), Err(Reason::Order));
    }

    #[test]
    fn what_is_no_file_folder_or_link_is_refused() {
        assert_eq!(after_etc("./etc/c", Kind::Other), Err(Reason::Kind));
        for name in ["./etc/.wh.", "./etc/.wh..", "./etc/.wh...", "./etc/.wh..wh.c"] {
            assert_eq!(after_etc(name, Kind::File), Err(Reason::Mark), "{name}");
        }
        assert_eq!(after_etc("./etc/.wh.c", Kind::Folder), Err(Reason::Mark));
        let mut walk = Walk::default();
        let refused = walk.next(b"./", Kind::Folder, b"", 1).unwrap_err();
        assert_eq!(refused.reason, Reason::Contents);
    }

    #[test]
    fn a_hard_link_is_to_what_came_before() {
        for target in ["./etc/c", "./etc/d", "/etc/b", "../b", "./etc", "./", "", "./etc/.wh.b"] {
            assert_eq!(after_etc(&format!("./etc/c -> {target}"), Kind::HardLink), Err(Reason::Target), "{target}");
        }
        assert_eq!(after_etc("./etc/c -> etc/b", Kind::HardLink).unwrap().what, What::HardLink("etc/b".into()));
        assert_eq!(after_etc("./etc/c", Kind::Link), Err(Reason::Target));
    }

    #[test]
    fn no_folder_is_too_deep() {
        let mut walk = Walk::default();
        let mut path = "./".to_owned();
        for _ in 0..=MAX_DEPTH {
            walk.next(path.as_bytes(), Kind::Folder, b"", 0).unwrap();
            path.push_str("d/");
        }
        assert_eq!(walk.next(path.as_bytes(), Kind::Folder, b"", 0).unwrap_err().reason, Reason::Long);
    }

    #[test]
    fn the_overlays_own_attributes_stay() {
        for (name, value, becomes) in [
            ("user.mine", "y", Attribute::Carried),
            ("security.capability", "", Attribute::Carried),
            ("system.posix_acl_access", "", Attribute::Carried),
            ("trusted.overlay.opaque", "y", Attribute::Opaque),
            ("trusted.overlay.opaque", "x", Attribute::Refused),
            ("trusted.overlay.origin", "", Attribute::Left),
            ("trusted.nemos.job", "7", Attribute::Left),
            ("trusted.overlay.redirect", "/a", Attribute::Refused),
            ("trusted.overlay.metacopy", "", Attribute::Refused),
            ("system.nfs4_acl", "", Attribute::Refused),
        ] {
            assert_eq!(Attribute::of(name, value.as_bytes()), becomes, "{name}={value}");
        }
        for name in ["trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.nemos.job", "btrfs.compression"] {
            assert!(!is_carried(name), "{name}");
        }
    }

    #[test]
    fn a_bomb_is_seen_before_it_goes_off() {
        let mut budget = Budget::new(64 << 20, 512 << 20);
        budget.take(31 << 20, 0).unwrap();
        assert_eq!(budget.take(2 << 20, 0), Err(NoRoom { bytes: 32 << 20 }));
        for enormous in [(u64::MAX, 0), (0, u64::MAX), (u64::MAX - 4095, 4096)] {
            Budget::new(u64::MAX, 0).take(enormous.0, enormous.1).unwrap_err();
        }
        let mut many = Budget::new(1 << 20, 0);
        assert_eq!((0..2000).take_while(|_| many.take(0, 0).is_ok()).count(), 1024);
    }

    fn kinds() -> impl Strategy<Value = Kind> {
        prop::sample::select(vec![Kind::File, Kind::Folder, Kind::Link, Kind::HardLink, Kind::Other])
    }

    proptest! {
        /// Whatever an archive says, what is made of it is made in a folder that was made of it, under one name, once.
        #[test]
        fn nothing_is_ever_made_elsewhere(
            entries in prop::collection::vec(("[./ab\\x00wh]{0,8}", kinds(), "[./ab]{0,6}"), 0..40),
        ) {
            let mut walk = Walk::default();
            let (mut open, mut made): (Vec<PathBuf>, Vec<PathBuf>) = (Vec::new(), Vec::new());
            let rooted = std::iter::once(("./".to_owned(), Kind::Folder, String::new())).chain(entries);
            for (path, kind, link) in rooted {
                let Ok(step) = walk.next(path.as_bytes(), kind, link.as_bytes(), 0) else { continue };
                prop_assert!(step.leaves == 0 || step.leaves < open.len());
                open.truncate(open.len() - step.leaves);
                if step.what == What::Opaque {
                    prop_assert_eq!(open.last(), Some(&step.path));
                    continue;
                }
                if let Some(folder) = open.last() {
                    prop_assert_eq!(&folder.join(&step.name), &step.path);
                    let name = step.name.as_bytes();
                    prop_assert!(!name.is_empty() && name != b"." && name != b"..");
                    prop_assert!(!name.contains(&b'/') && !name.contains(&0));
                    prop_assert!(made.last() < Some(&step.path));
                }
                if let What::HardLink(target) = &step.what {
                    prop_assert!(target.is_relative() && target < &step.path);
                }
                if matches!(step.what, What::Root | What::Folder) {
                    open.push(step.path.clone());
                }
                made.push(step.path);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(entries in prop::collection::vec((any::<Vec<u8>>(), kinds(), any::<Vec<u8>>(), 0..2u64), 0..9)) {
            let mut walk = Walk::default();
            for (path, kind, link, size) in entries {
                let _ = walk.next(&path, kind, &link, size);
            }
        }
    }
}
