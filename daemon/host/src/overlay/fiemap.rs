//! Which blocks of a file other files have, too.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};

/// `struct fiemap_extent` of the kernel's `include/uapi/linux/fiemap.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved_64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap`, without the extents that follow it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Head {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
}

/// Extents that are asked for at once.
const COUNT: usize = 64;

#[repr(C)]
struct Request {
    head: Head,
    extents: [Extent; COUNT],
}

/// `FIEMAP_EXTENT_LAST`, `FIEMAP_EXTENT_SHARED`.
const LAST: u32 = 1;
const SHARED: u32 = 1 << 13;

nix::ioctl_readwrite!(fiemap, b'f', 11, Head);

/// Where on the device blocks of a file are that other files have, too; nowhere, on a file system that cannot share any.
pub fn shared_extents(path: &Path) -> io::Result<Vec<(u64, u64)>> {
    let file =
        File::from(open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?);
    let (mut found, mut start) = (Vec::new(), 0);
    loop {
        let mut request = Request {
            head: Head { start, length: u64::MAX - start, ..Head::default() },
            extents: [Extent::default(); COUNT],
        };
        request.head.count = u32::try_from(COUNT).unwrap_or_default();
        // SAFETY: the head is followed by as many extents as it says, and both live until the call returns.
        match unsafe { fiemap(file.as_raw_fd(), (&raw mut request).cast::<Head>()) } {
            Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOTTY) => return Ok(Vec::new()),
            asked => asked?,
        };
        let mapped = usize::try_from(request.head.mapped).unwrap_or_default();
        let extents = &request.extents[..mapped.min(COUNT)];
        let shared = extents.iter().filter(|extent| extent.flags & SHARED != 0);
        found.extend(shared.map(|extent| (extent.physical, extent.physical.saturating_add(extent.length))));
        match extents.last() {
            Some(last) if last.flags & LAST == 0 && last.length > 0 => start = last.logical + last.length,
            _ => return Ok(found),
        }
    }
}
