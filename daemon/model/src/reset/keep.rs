//! What a reset keeps: paths that survive it, or the overlay's file system as a whole; and the room for it while it waits.
//!
//! ```text
//!     old overlay, home, containers --copied--> p.lxstate: kept.luks (encrypted) --copied--> the new ones
//!     old overlay, block by block --> p.lxstate, p.lxoci-storage or p.lxhome: the same --> the new volume
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::overlay::Mode;
use crate::partitions::Partition;
use crate::reset::{Keeping, Scope, Wish};
use crate::stack::Observed;

/// Most paths that one reset keeps.
pub const MAX_PATHS: usize = 64;
/// Longest path, in bytes.
pub const MAX_PATH: usize = 1024;

/// Where keep sets are in the root: a file `NAME.conf` each, a path a line, `#` before a comment. They ship with the image;
/// read them below [`LOWER_MOUNT`](crate::overlay::LOWER_MOUNT), which is verified.
pub const SETS_FOLDER: &str = "usr/share/nemos/keep.d";

/// The file on `p.lxstate` that kept data waits in: a LUKS2 volume.
pub const STAGE_FILE: &str = "kept.luks";
/// Its name on a partition that is other people's.
const STAGE_FILE_ELSEWHERE: &str = ".nemos-kept.luks";
/// Where all of an overlay can wait: partitions that its reset leaves alone. The first is the device's own.
pub const WAITING_PLACES: [Partition; 3] = [Partition::State, Partition::OciStorage, Partition::Home];
/// Room that is left where it waits: on `p.lxstate`, for what has to be written down during the reset.
pub const RESERVE: u64 = 4 << 20;
/// What the volume of the [`STAGE_FILE`] takes for itself: its header, and the tables of an ext4 file system.
const STAGE_OVERHEAD: u64 = 4 << 20;
/// What each file or folder takes besides its contents: an inode, its name, extended attributes in a block of their own.
const ENTRY_OVERHEAD: u64 = 8 << 10;

/// Paths below which nothing belongs to a reset, ever.
pub(crate) const NEVER_RESET: [&str; 8] =
    ["/boot", "/dev", "/proc", "/run", "/sys", "/tmp", "/var/lib/containers/loaded", "/var/lib/nemos"];

/// A path that a reset may keep, or that may be taken back by itself: absolute, without `.` and `..`, and not `/` itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeptPath(String);

/// A path that cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadKeep {
    /// It is not a path as it must be.
    #[error("`{path}` cannot be kept: {reason}")]
    Path {
        /// The path, its unprintable characters escaped, shortened.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No reset touches it.
    #[error("`{path}` cannot be kept: nothing below {folder} belongs to a reset")]
    NeverReset {
        /// The path.
        path: KeptPath,
        /// The folder.
        folder: &'static str,
    },
    /// This reset does not touch it.
    #[error("`{path}` is on {partition}, which this reset leaves as it is: it stays without being kept")]
    StaysAnyway {
        /// The path.
        path: KeptPath,
        /// Where it is.
        partition: Partition,
    },
    /// What it is on is not there, so that nothing can be kept of it.
    #[error("`{path}` cannot be kept: {partition} is not in use at this boot (see `nemosctl status`)")]
    NotOpen {
        /// The path.
        path: KeptPath,
        /// Where it would be.
        partition: Partition,
    },
    /// They are too many.
    #[error("a reset keeps {MAX_PATHS} paths at most, not {0}: name the folders that they are in")]
    TooMany(usize),
    /// All is kept, or some of it.
    #[error("everything is kept, or what is named: not both")]
    EverythingAndMore,
    /// That much is not kept.
    #[error("only a reset of scope overlay keeps everything: it makes a new volume key for the same contents")]
    EverythingOfFactory,
    /// There is no overlay to keep.
    #[error("nothing can be kept of {}: it is not open at this boot (see `nemosctl status`)", Partition::Root)]
    NoOverlay,
    /// A set with a name that no set has.
    #[error("`{0}` is not the name of a keep set: those are lower-case letters, digits and hyphens")]
    SetName(String),
}

impl KeptPath {
    /// The path, absolute.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The partition whose contents it belongs to: the innermost that is mounted above it.
    pub fn partition(&self) -> Partition {
        let holds = |partition: &Partition| partition.mount_point().is_some_and(|place| self.is_at_or_below(place));
        RESETTABLE.into_iter().find(holds).unwrap_or(Partition::Root)
    }

    /// The path on its partition's file system, without a slash before it; empty for all of it.
    pub fn within(&self) -> &str {
        let place = self.partition().mount_point().unwrap_or_default();
        self.0.strip_prefix(place).unwrap_or(&self.0).trim_start_matches('/')
    }

    fn is_at_or_below(&self, folder: &str) -> bool {
        is_at_or_below(&self.0, folder)
    }

    /// Whether it is part of what keeping the other one keeps.
    fn is_kept_with(&self, other: &KeptPath) -> bool {
        self != other && self.partition() == other.partition() && self.is_at_or_below(&other.0)
    }
}

/// Whether a path is that folder, or in it.
pub(crate) fn is_at_or_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What may be below `/` and is reset by itself.
const RESETTABLE: [Partition; 2] = [Partition::Home, Partition::OciStorage];

impl FromStr for KeptPath {
    type Err = BadKeep;

    fn from_str(text: &str) -> Result<Self, BadKeep> {
        let refuse = |reason| Err(BadKeep::Path { path: text.escape_debug().take(80).collect(), reason });
        let text = text.strip_suffix('/').filter(|rest| !rest.is_empty()).unwrap_or(text);
        if text.len() > MAX_PATH {
            return refuse("it is longer than 1024 bytes");
        }
        if text.chars().any(char::is_control) {
            return refuse("it has unprintable characters in it");
        }
        match text.strip_prefix('/') {
            None => refuse("it does not begin with a slash"),
            Some("") => refuse("that would be everything; name what is to stay"),
            Some(rest) if rest.split('/').any(|name| matches!(name, "" | "." | "..")) => {
                refuse("it has `.`, `..` or an empty name in it")
            }
            Some(_) => Ok(KeptPath(text.to_owned())),
        }
    }
}

impl TryFrom<String> for KeptPath {
    type Error = BadKeep;

    fn try_from(text: String) -> Result<Self, BadKeep> {
        text.parse()
    }
}

impl From<KeptPath> for String {
    fn from(path: KeptPath) -> String {
        path.0
    }
}

impl fmt::Display for KeptPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Decides what a reset of that scope keeps, of the paths that were named: each once, and none that comes with another.
pub fn decide(scope: Scope, mut paths: Vec<KeptPath>) -> Result<Vec<KeptPath>, BadKeep> {
    for path in &paths {
        if let Some(folder) = NEVER_RESET.into_iter().find(|folder| path.is_at_or_below(folder)) {
            return Err(BadKeep::NeverReset { path: path.clone(), folder });
        }
        if !scope.erases(path.partition()) {
            return Err(BadKeep::StaysAnyway { path: path.clone(), partition: path.partition() });
        }
    }
    paths.sort();
    paths.dedup();
    let named = paths.clone();
    paths.retain(|path| !named.iter().any(|other| path.is_kept_with(other)));
    if paths.len() > MAX_PATHS { Err(BadKeep::TooMany(paths.len())) } else { Ok(paths) }
}

/// Refuses what cannot be kept since what it is on was not opened at this boot.
pub fn check_open(paths: &[KeptPath], seen: &Observed) -> Result<(), BadKeep> {
    let is_open = |partition: Partition| match partition.mount_point() {
        None => seen.report.as_ref().is_some_and(|report| report.mode == Mode::Persistent),
        Some(place) => seen.mounts.iter().any(|mount| mount.target == place),
    };
    match paths.iter().find(|path| !is_open(path.partition())) {
        Some(path) => Err(BadKeep::NotOpen { path: path.clone(), partition: path.partition() }),
        None => Ok(()),
    }
}

/// Refuses to keep everything where that means nothing.
pub fn check_everything(wish: &Wish) -> Result<(), BadKeep> {
    match wish {
        Wish { everything: false, .. } => Ok(()),
        Wish { keep, sets, .. } if !keep.is_empty() || !sets.is_empty() => Err(BadKeep::EverythingAndMore),
        Wish { scope: Scope::Factory, .. } => Err(BadKeep::EverythingOfFactory),
        Wish { scope: Scope::Overlay, .. } => Ok(()),
    }
}

/// Name of a keep set that ships with the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetName(String);

impl FromStr for SetName {
    type Err = BadKeep;

    fn from_str(text: &str) -> Result<Self, BadKeep> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=64).contains(&text.len()) && text.bytes().all(is_plain) {
            Ok(SetName(text.to_owned()))
        } else {
            Err(BadKeep::SetName(text.escape_debug().take(80).collect()))
        }
    }
}

impl SetName {
    /// The set of what makes a device itself to others.
    pub fn identity() -> Self {
        SetName("identity".into())
    }

    /// Where the set is, in a root.
    pub fn file(&self) -> String {
        format!("{SETS_FOLDER}/{}.conf", self.0)
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads a keep set.
pub fn parse_set(text: &str) -> Result<Vec<KeptPath>, BadKeep> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::parse).collect()
}

/// How much there is below a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of their contents, in whole blocks.
    pub bytes: u64,
}

/// A path that a reset keeps, and how much that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The path.
    pub path: KeptPath,
    /// How much there is. A path of a keep set need not exist: then it is nothing.
    pub usage: Usage,
}

/// What a reset keeps, as its request has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// These paths, as [`decide`] decided.
    Paths(Vec<KeptPath>),
    /// All that is on the overlay's file system; it waits on this partition.
    Everything(Partition),
}

impl Keep {
    /// How much that is.
    pub const fn keeping(&self) -> Keeping {
        match self {
            Keep::Paths(paths) if paths.is_empty() => Keeping::Nothing,
            Keep::Paths(_) => Keeping::Paths,
            Keep::Everything(_) => Keeping::Everything,
        }
    }
}

/// All that is on the overlay's file system, and where it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Everything {
    /// Bytes of its blocks that are in use.
    pub bytes: u64,
    /// The partition that it waits on.
    pub on: Partition,
    /// The room there.
    pub room: Room,
}

impl Everything {
    /// Decides where it waits, of the partitions that there are and the bytes free on each: the first of [`WAITING_PLACES`] if
    /// it fits there, or else where most is free. `None` if there are none.
    pub fn on_one_of(free: &[(Partition, u64)], usage: Usage) -> Option<Self> {
        let place =
            |&(on, free): &(Partition, u64)| Everything { bytes: usage.bytes, on, room: Room::new(usage, free) };
        let own = free.iter().map(place).find(|place| place.on == WAITING_PLACES[0] && place.room.fits());
        own.or_else(|| free.iter().map(place).max_by_key(|place| place.room.available))
    }
}

/// The name of the file that kept data waits in, on that partition.
pub const fn stage_file(partition: Partition) -> &'static str {
    if matches!(partition, Partition::State) { STAGE_FILE } else { STAGE_FILE_ELSEWHERE }
}

/// The room that kept data needs where it waits, and the room there is; in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// What is needed.
    pub needed: u64,
    /// What there is for it.
    pub available: u64,
}

impl Room {
    /// The room for what is kept, on a partition with so many free bytes. What waits in a stage of before goes first.
    pub fn new(usage: Usage, free: u64) -> Self {
        Room { needed: stage_size(usage), available: free.saturating_sub(RESERVE) }
    }

    /// Whether it fits.
    pub fn fits(self) -> bool {
        self.needed <= self.available
    }
}

/// Size of the [`STAGE_FILE`] that holds so much, in bytes.
pub fn stage_size(usage: Usage) -> u64 {
    let contents = usage.bytes.saturating_add(usage.entries.saturating_mul(ENTRY_OVERHEAD));
    // ext4 maps blocks in groups: a part in sixteen is more than it takes for that.
    contents.saturating_add(contents / 16).saturating_add(STAGE_OVERHEAD).div_ceil(1 << 20).saturating_mul(1 << 20)
}

impl std::ops::Add for Usage {
    type Output = Usage;

    fn add(self, other: Usage) -> Usage {
        Usage { entries: self.entries.saturating_add(other.entries), bytes: self.bytes.saturating_add(other.bytes) }
    }
}

impl std::iter::Sum for Usage {
    fn sum<I: Iterator<Item = Usage>>(all: I) -> Usage {
        all.fold(Usage::default(), std::ops::Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(text: &str) -> KeptPath {
        text.parse().unwrap()
    }

    #[test]
    fn a_path_leads_to_its_partition() {
        let places = [
            ("/etc/hostname", Partition::Root, "etc/hostname"),
            ("/home", Partition::Home, ""),
            ("/home/admin/.ssh", Partition::Home, "admin/.ssh"),
            ("/homes", Partition::Root, "homes"),
            ("/var/lib/containers/storage/overlay", Partition::OciStorage, "overlay"),
            ("/var/lib/containers", Partition::Root, "var/lib/containers"),
        ];
        for (text, partition, within) in places {
            assert_eq!((path(text).partition(), path(text).within()), (partition, within), "{text}");
        }
    }

    #[test]
    fn what_is_no_plain_absolute_path_is_refused() {
        for text in ["", "/", "//", "etc", "/etc/../home", "/etc/./x", "/etc//x", "/..", "/a\nb", "/\0"] {
            assert!(matches!(text.parse::<KeptPath>(), Err(BadKeep::Path { .. })), "{text:?}");
        }
        assert_eq!(path("/etc/ssh/").as_str(), "/etc/ssh");
    }

    #[test]
    fn what_no_reset_touches_cannot_be_kept() {
        for text in ["/run/x", "/var/lib/nemos", "/var/lib/nemos/state.json", "/tmp/x"] {
            assert!(matches!(decide(Scope::Factory, vec![path(text)]), Err(BadKeep::NeverReset { .. })), "{text}");
        }
        assert!(decide(Scope::Factory, vec![path("/var/lib/nemos-other")]).is_ok());
    }

    #[test]
    fn what_this_reset_leaves_alone_need_not_be_kept() {
        let refused = decide(Scope::Overlay, vec![path("/home/x")]);
        assert_eq!(refused, Err(BadKeep::StaysAnyway { path: path("/home/x"), partition: Partition::Home }));
        assert!(decide(Scope::Factory, vec![path("/home/x")]).is_ok());
    }

    #[test]
    fn a_path_inside_another_comes_with_it() {
        let named = ["/etc/ssh", "/etc", "/etc", "/var", "/var/lib/containers/storage/x"].map(path);
        let kept = decide(Scope::Factory, named.to_vec()).unwrap();
        assert_eq!(
            kept,
            ["/etc", "/var", "/var/lib/containers/storage/x"].map(path),
            "/var does not hold another disk"
        );
    }

    #[test]
    fn a_set_is_a_path_a_line() {
        let set = parse_set("# who it is\n/etc/machine-id\n\n  /etc/ssh/ssh_host_ed25519_key\n").unwrap();
        assert_eq!(set, ["/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key"].map(path));
        assert!(parse_set("etc/passwd").is_err());
        for name in ["", "..", "../x", "a/b", "Identity", "a.conf"] {
            assert!(name.parse::<SetName>().is_err(), "{name}");
        }
    }

    #[test]
    fn what_does_not_fit_is_known_before() {
        let usage = Usage { entries: 1, bytes: 10 << 20 };
        assert!(Room::new(usage, 64 << 20).fits());
        assert!(!Room::new(usage, 16 << 20).fits());
        assert!(!Room::new(Usage { entries: u64::MAX, bytes: u64::MAX / 2 }, 1 << 40).fits());
    }

    #[test]
    fn everything_waits_on_the_devices_own_partition_or_where_there_is_most_room() {
        let usage = Usage { entries: 2, bytes: 40 << 20 };
        let on = |free: &[u64]| {
            let free: Vec<_> = WAITING_PLACES.into_iter().zip(free.iter().map(|mib| mib << 20)).collect();
            Everything::on_one_of(&free, usage).map(|place| (place.on, place.room.fits()))
        };
        assert_eq!(on(&[64, 900, 500]), Some((Partition::State, true)));
        assert_eq!(on(&[40, 900, 500]), Some((Partition::OciStorage, true)));
        assert_eq!(on(&[40, 500, 900]), Some((Partition::Home, true)));
        assert_eq!(on(&[40, 20, 41]), Some((Partition::Home, false)), "the figures are those of the most room");
        assert_eq!(on(&[]), None);
        assert!(
            WAITING_PLACES.iter().all(|place| !Scope::Overlay.erases(*place)),
            "what waits is not erased meanwhile"
        );
    }

    #[test]
    fn everything_is_kept_by_itself_and_of_an_overlay() {
        let wish = |scope| Wish { everything: true, ..Wish::all(scope) };
        assert_eq!(check_everything(&wish(Scope::Overlay)), Ok(()));
        assert_eq!(check_everything(&wish(Scope::Factory)), Err(BadKeep::EverythingOfFactory));
        let more = Wish { keep: vec![path("/etc/x")], ..wish(Scope::Overlay) };
        assert_eq!(check_everything(&more), Err(BadKeep::EverythingAndMore));
        assert_eq!(check_everything(&Wish { everything: false, ..more }), Ok(()));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            if let Ok(path) = text.parse::<KeptPath>() {
                let _ = (path.partition(), path.within().len(), decide(Scope::Factory, vec![path]));
            }
            let _ = parse_set(&text);
        }

        /// Whatever is kept is named by somebody, and whatever is named is kept, by itself or with a folder above it.
        #[test]
        fn everything_that_was_named_is_kept_once(names in prop::collection::vec("(/[ab]{1,2}){1,3}", 0..8)) {
            let named: Vec<KeptPath> = names.iter().map(|name| path(name)).collect();
            let kept = decide(Scope::Factory, named.clone()).unwrap();
            for path in &named {
                let holders = kept.iter().filter(|other| path == *other || path.is_kept_with(other));
                prop_assert_eq!(holders.count(), 1);
            }
            prop_assert!(kept.iter().all(|path| named.contains(path)));
        }
    }
}
