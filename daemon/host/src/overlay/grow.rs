//! Makes the overlay's file system as large as its volume: it came from a smaller one.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nemos_model::reset::header::{XfsSize, xfs_size};

use super::{OverlayError, io_error, mapping, mount_file_system};
use crate::mounts::unmount;

/// `struct xfs_growfs_data` in `fs/xfs/libxfs/xfs_fs.h`.
#[repr(C)]
struct Growth {
    blocks: u64,
    inode_percent: u32,
}

nix::ioctl_write_ptr!(growfs, b'X', 110, Growth);

/// Grows the file system of the open volume, if there is room behind it.
pub fn fill_volume(scratch: &Path) -> Result<(), OverlayError> {
    let volume = mapping();
    let (size, room) = sizes(&volume).map_err(io_error("read the superblock on", &volume))?;
    if room <= size.bytes() {
        return Ok(());
    }
    let XfsSize { block, inode_percent, .. } = size;
    mount_file_system(scratch)?;
    let growth = Growth { blocks: room / u64::from(block), inode_percent: inode_percent.into() };
    let grown = File::open(scratch).and_then(|folder| {
        // SAFETY: the descriptor is open, and the structure is what the kernel reads, until the call returns.
        Ok(unsafe { growfs(folder.as_raw_fd(), &raw const growth) }?)
    });
    let unmounted = unmount(scratch);
    grown.map(drop).and(unmounted).map_err(io_error("grow the file system on", &volume))
}

/// What the superblock says, and the bytes of the volume.
fn sizes(volume: &Path) -> io::Result<(XfsSize, u64)> {
    let mut device = File::open(volume)?;
    let mut first = [0; 4096];
    device.read_exact_at(&mut first, 0)?;
    let size = xfs_size(&first).ok_or_else(|| io::Error::other("it has no XFS"))?;
    Ok((size, device.seek(SeekFrom::End(0))?))
}
