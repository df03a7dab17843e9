//! What a mounted XFS has on each block of its device.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::fs::MetadataExt;
use std::path::Path;

/// A stretch of a device, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins, in bytes.
    pub start: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// Whose it is.
    pub owner: Owner,
    /// It is taken, and nothing was written to it yet.
    pub unwritten: bool,
}

/// Whose a stretch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Nobody's.
    Free,
    /// A file's: its content, or its extended attributes.
    Inode(u64),
    /// The file system's own.
    Metadata,
    /// In use, and this file system has no records of by whom.
    Unknown,
}

/// `struct fsmap` of the kernel's `include/uapi/linux/fsmap.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Record {
    device: u32,
    flags: u32,
    physical: u64,
    owner: u64,
    offset: u64,
    length: u64,
    reserved: [u64; 3],
}

/// `struct fsmap_head`, without the records that follow it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Head {
    iflags: u32,
    oflags: u32,
    count: u32,
    entries: u32,
    reserved: [u64; 6],
    keys: [Record; 2],
}

/// Records that are asked for at once.
const COUNT: usize = 128;

#[repr(C)]
struct Request {
    head: Head,
    records: [Record; COUNT],
}

const UNWRITTEN: u32 = 1;
const SPECIAL_OWNER: u32 = 1 << 4;
const LAST: u32 = 1 << 5;
/// `FMR_OWN_FREE`, `FMR_OWN_UNKNOWN`: owners that all file systems share.
const OWN_FREE: u64 = 1;
const OWN_UNKNOWN: u64 = 2;

nix::ioctl_readwrite!(getfsmap, b'X', 59, Head);

/// All that is on the device of the file system mounted there, in order.
pub fn extents(mount: &Path) -> io::Result<Vec<Extent>> {
    between(mount, 0, u64::MAX)
}

/// What a byte of the device belongs to; `None` if the file system does not reach there.
pub fn at(mount: &Path, byte: u64) -> io::Result<Option<Extent>> {
    let found = between(mount, byte, byte)?;
    Ok(found.into_iter().find(|extent| (extent.start..extent.start + extent.length).contains(&byte)))
}

fn between(mount: &Path, first: u64, last: u64) -> io::Result<Vec<Extent>> {
    let folder = File::open(mount)?;
    let device = encoded(folder.metadata()?.st_dev());
    let everything = Record { device, flags: u32::MAX, owner: u64::MAX, offset: u64::MAX, ..Record::default() };
    let mut low = Record { device, physical: first, ..Record::default() };
    let mut extents = Vec::new();
    loop {
        let mut request = Request { head: Head::default(), records: [Record::default(); COUNT] };
        request.head.count = u32::try_from(COUNT).unwrap_or_default();
        request.head.keys = [low, Record { physical: last, ..everything }];
        // SAFETY: the head is followed by as many records as it says, and both live until the call returns.
        unsafe { getfsmap(folder.as_raw_fd(), (&raw mut request).cast::<Head>()) }?;
        let entries = usize::try_from(request.head.entries).unwrap_or_default();
        let records = &request.records[..entries.min(COUNT)];
        extents.extend(records.iter().filter(|record| record.device == device).map(extent));
        match records.last() {
            // The kernel goes on behind the record that it is given back.
            Some(last) if last.flags & LAST == 0 => low = *last,
            _ => return Ok(extents),
        }
    }
}

fn extent(record: &Record) -> Extent {
    let owner = match (record.flags & SPECIAL_OWNER != 0, record.owner) {
        (false, inode) => Owner::Inode(inode),
        (true, OWN_FREE) => Owner::Free,
        (true, OWN_UNKNOWN) => Owner::Unknown,
        (true, _) => Owner::Metadata,
    };
    Extent { start: record.physical, length: record.length, owner, unwritten: record.flags & UNWRITTEN != 0 }
}

/// A device number as the kernel writes it in 32 bits: `new_encode_dev()` in `include/linux/kdev_t.h`.
fn encoded(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}
