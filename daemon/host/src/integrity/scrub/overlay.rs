//! Reads what the overlay's file system has in use: its files and its own structures, each sector against its tag. Sectors that
//! nobody has are left out: they may never have been written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nemos_model::integrity::event::Area;
use nemos_model::integrity::scrub::Step;

use super::{Buffer, ScrubError, failed, header, is_damage, open_direct};
use crate::integrity::fsmap::{self, Extent, Owner};

/// Bytes of a sector of the volume: each has a tag.
const SECTOR: usize = 4096;
/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;
/// Bytes in a step.
const STEP: u64 = 8 << 20;

/// Reads the volume on `partition`, open as `mapping` with its file system on `mount`, on from `position`, a byte of the mapping.
pub fn read_through(
    partition: &Path,
    mapping: &Path,
    mount: &Path,
    position: u64,
    step: &mut dyn FnMut(Step) -> bool,
) -> Result<(), ScrubError> {
    let extents = fsmap::extents(mount).map_err(failed("ask for the extents on", mount))?;
    let used = |extent: &Extent| extent.owner != Owner::Free;
    let total: u64 = extents.iter().filter(|extent| used(extent)).map(|extent| extent.length).sum();
    let headers = header::damaged(partition).map_err(failed("read the headers of", partition))?;
    let damaged = headers.into_iter().map(|start| (Area::Header, start)).collect();
    if !step(Step { position, total, damaged, ..Step::default() }) {
        return Ok(());
    }
    let device = open_direct(mapping)?;
    let mut buffer = Buffer::new(CHUNK);
    let mut done = Step { position, total, ..Step::default() };
    for extent in extents.into_iter().filter(used) {
        let mut at = extent.start.max(position);
        let end = extent.start + extent.length;
        while at < end {
            let length = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let lost = lost(&device, at, buffer.first(length)).map_err(failed("read", mapping))?;
            for sector in lost {
                // It may have been given back since it was asked for.
                let now = fsmap::at(mount, sector).map_err(failed("ask for the extents on", mount))?;
                if now.is_none_or(|extent| extent.owner != Owner::Free) {
                    done.damaged.push((Area::Data, sector));
                }
            }
            at += length as u64;
            done.read += length as u64;
            done.position = at;
            if done.read >= STEP && !step(std::mem::replace(&mut done, Step { position: at, total, ..Step::default() }))
            {
                return Ok(());
            }
        }
    }
    step(done);
    Ok(())
}

/// Reads a stretch; gives the sectors whose tags are not theirs, or that the disk has lost.
fn lost(device: &File, at: u64, bytes: &mut [u8]) -> io::Result<Vec<u64>> {
    match device.read_exact_at(bytes, at) {
        Ok(()) => return Ok(Vec::new()),
        Err(error) if is_damage(&error) => {}
        Err(error) => return Err(error),
    }
    let mut lost = Vec::new();
    for (sector, bytes) in (at..).step_by(SECTOR).zip(bytes.chunks_mut(SECTOR)) {
        match device.read_exact_at(bytes, sector) {
            Ok(()) => {}
            Err(error) if is_damage(&error) => lost.push(sector),
            Err(error) => return Err(error),
        }
    }
    Ok(lost)
}
