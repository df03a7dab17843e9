//! Reads volumes through, past the page cache, to find what is damaged.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nemos_model::integrity::event::Place;
use nemos_model::integrity::scrub::{NotScrubbed, Step};
use nemos_model::integrity::{Scrub, Volume};
use nemos_model::stack::Observed;
use rustix::fs::OFlags;
use thiserror::Error;

pub mod header;
pub mod overlay;
mod priority;
pub mod verity;

/// A scrub that cannot go on, for another reason than damage.
#[derive(Debug, Error)]
pub enum ScrubError {
    /// A device or file system cannot be read at all.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which device or file system.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is nothing to read, or nothing to compare it with.
    #[error("{0} is not open")]
    NotOpen(Volume),
    /// It has no checksums.
    #[error(transparent)]
    NotSupported(#[from] NotScrubbed),
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ScrubError {
    move |source| ScrubError::Io { action, path: path.to_owned(), source }
}

/// Reads a volume on from where the scrub is, step by step, until a step is answered with false. Yields to whoever else
/// reads: run it on a thread of its own.
pub fn run(scrub: &Scrub, seen: &Observed, step: &mut dyn FnMut(Step) -> bool) -> Result<(), ScrubError> {
    priority::yield_to_others();
    let partition = seen.partitions.iter().find(|seen| seen.partition == scrub.volume.partition());
    let device = partition.map(|partition| PathBuf::from(&partition.device));
    let not_open = || ScrubError::NotOpen(scrub.volume);
    let device = device.ok_or_else(not_open)?;
    match scrub.volume {
        Volume::Root | Volume::Preloaded => {
            let mapping = scrub.volume.verity_mapping().and_then(|name| seen.mapping_named(name));
            let mapping = mapping.ok_or_else(not_open)?;
            let table = mapping.table.as_ref().ok_or_else(not_open)?;
            verity::read_through(&device, Path::new(&mapping.device), table, scrub.position, step)
        }
        Volume::Overlay => {
            let mapping = seen.mapping_named(scrub.volume.name());
            let mapping = mapping.ok_or_else(not_open)?;
            let mount = seen.volume_mount().ok_or_else(not_open)?;
            overlay::read_through(&device, Path::new(&mapping.device), Path::new(&mount.target), scrub.position, step)
        }
        other => Err(NotScrubbed::NotSupported(other).into()),
    }
}

/// The damaged blocks of a code word that the kernel has mended. The kernel tells how often it mended something, and not what.
pub fn blocks_of(code_word: &Place, seen: &Observed) -> Result<Vec<Place>, ScrubError> {
    let volume = code_word.volume;
    let partition = seen.partitions.iter().find(|seen| seen.partition == volume.partition());
    let table = volume.verity_mapping().and_then(|name| seen.mapping_named(name)?.table.as_ref());
    let (Some(partition), Some(table), Some(start)) = (partition, table, code_word.start) else {
        return Err(ScrubError::NotOpen(volume));
    };
    let damaged = verity::damaged_in(Path::new(&partition.device), table, start)?;
    let place = |(area, start)| Place { area, start: Some(start), ..code_word.clone() };
    Ok(damaged.into_iter().map(place).collect())
}

/// Opens a device past the page cache: what is in memory hides what is on the disk.
fn open_direct(device: &Path) -> Result<File, ScrubError> {
    let flags = OFlags::DIRECT.bits().cast_signed();
    File::options().read(true).custom_flags(flags).open(device).map_err(failed("open", device))
}

/// Memory that a device can write to without a copy: it begins at a multiple of a page.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    offset: usize,
}

impl Buffer {
    const ALIGNMENT: usize = 4096;

    pub(crate) fn new(size: usize) -> Self {
        let bytes = vec![0; size + Buffer::ALIGNMENT];
        let offset = bytes.as_ptr().align_offset(Buffer::ALIGNMENT);
        Buffer { bytes, offset }
    }

    pub(crate) fn first(&mut self, size: usize) -> &mut [u8] {
        &mut self.bytes[self.offset..self.offset + size]
    }
}

/// What a disk says of sectors that it has lost, and dm-crypt of those whose tags are not theirs.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    use nix::libc::{EBADMSG, EILSEQ, EIO};
    matches!(error.raw_os_error(), Some(EIO | EILSEQ | EBADMSG))
}
