//! All that is on the overlay's file system, taken to a new volume as it is: not file by file, but block by block. So nothing can
//! be lost of it that a copy of files may not know of, and what files share they share afterwards.
//!
//! ```text
//! old volume --blocks in use--> stage: contents, one behind the other; map.json, where each belongs --> new volume
//! ```
//!
//! In the new volume the superblock comes last. Without it there is no file system to be mounted, and with it there is all of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nemos_model::partitions::Partition;
use nemos_model::reset::header::{file_system_uuid, xfs_size};
use nemos_model::reset::keep::Usage;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use super::areas::AreaError;
use super::keep::KeepError;
use super::stage::{self, Stage, StageError, io as failed};
use super::{APPEAR, Work};
use crate::integrity::fsmap::{self, Extent, Owner};
use crate::integrity::scrub::Buffer;
use crate::mounts::unmount;
use crate::overlay;

/// The blocks.
const CONTENTS: &str = "contents";
/// Where they belong.
const MAP: &str = "map.json";
/// Bytes of the map that a piece takes, at most.
const PIECE: u64 = 64;
/// Bytes read at once.
const CHUNK: usize = 1 << 20;
/// Bytes that are written last: a sector of the volume, with the superblock in it.
const FIRST: usize = 4096;

/// A stretch of the volume that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Piece {
    start: u64,
    length: u64,
}

/// What is in the contents.
#[derive(Debug, Serialize, Deserialize)]
struct Map {
    /// In order; the first begins with the superblock.
    pieces: Vec<Piece>,
    /// SHA-256 of the contents.
    sha256: Vec<u8>,
}

/// How much is in use on the overlay's volume on that partition, whose file system is mounted there.
pub fn measure(partition: &Path, mount: &Path) -> Result<Usage, KeepError> {
    let look = |source| KeepError::Io { path: mount.to_owned(), source };
    match overlay::is_like_a_new_one(partition) {
        Ok(true) => {}
        Ok(false) => return Err(KeepError::OtherVolume),
        Err(error) => return Err(look(io::Error::other(error))),
    }
    // What is only in memory yet has no place to be counted.
    File::open(mount).and_then(|folder| Ok(rustix::fs::syncfs(folder)?)).map_err(look)?;
    Ok(usage(&pieces(mount).map_err(look)?))
}

/// Copies the blocks that are in use on the old volume into a new stage. When this returns, all of them are on the disk.
pub(super) fn fill(on: Partition, work: &Work<'_>, progress: &mut dyn FnMut(u64, u64)) -> Result<(), StageError> {
    let partition = work.disk.partition(Partition::Root, APPEAR).map_err(AreaError::from)?;
    if !overlay::is_like_a_new_one(&partition)? {
        return Err(KeepError::OtherVolume.into());
    }
    let (key, slot) = work.unlock.ok_or(StageError::NoKey)?;
    stage::at(on, work, |file| {
        stage::destroy(file)?;
        overlay::close(&partition)?;
        overlay::open_slot(&partition, key, slot)?;
        let staged = settled_pieces(work.scratch).and_then(|pieces| {
            let usage = usage(&pieces);
            info!("all of the overlay is kept, {} KiB in {} pieces", usage.bytes >> 10, pieces.len());
            let stage = Stage::make(file, on, work, usage)?;
            copy_out(pieces, &stage.place(Partition::Root), progress)?;
            stage.close()
        });
        overlay::close(&partition)?;
        staged
    })
}

/// Copies the blocks to their places in the new volume, unless they are there.
pub(super) fn restore(on: Partition, work: &Work<'_>, progress: &mut dyn FnMut(u64, u64)) -> Result<(), StageError> {
    let partition = work.disk.partition(Partition::Root, APPEAR).map_err(AreaError::from)?;
    stage::at(on, work, |file| {
        let stage = Stage::open(file, work, None)?;
        overlay::close(&partition)?;
        overlay::open(&partition, work.secret)?;
        let restored = copy_in(on, &stage.place(Partition::Root), progress);
        if restored.is_ok()
            && let Err(error) = overlay::fill_volume(&work.scratch.join("everything"))
        {
            warn!("what the new volume has more than the old one had is not used: {error}");
        }
        overlay::close(&partition)?;
        restored?;
        stage.close()
    })
}

/// The pieces of the file system in the open volume, once nothing of it is in its log alone.
fn settled_pieces(scratch: &Path) -> Result<Vec<Piece>, StageError> {
    let place = scratch.join("everything");
    overlay::mount_file_system(&place)?;
    unmount(&place).map_err(failed("settle", &place))?;
    overlay::mount_saved(&place)?;
    let pieces = pieces(&place);
    unmount(&place).map_err(failed("leave", &place))?;
    pieces.map_err(failed("ask for the blocks of", &place))
}

/// What is in use on the device of the file system that is mounted there, in order; and of that, what was ever written.
fn pieces(mount: &Path) -> io::Result<Vec<Piece>> {
    let is_used = |extent: &Extent| extent.owner != Owner::Free && !extent.unwritten;
    let mut pieces: Vec<Piece> = Vec::new();
    for Extent { start, length, .. } in fsmap::extents(mount)?.into_iter().filter(is_used) {
        match pieces.last_mut() {
            // Those of several files may share blocks.
            Some(last) if start <= last.start + last.length => {
                last.length = last.length.max(start + length - last.start);
            }
            _ => pieces.push(Piece { start, length }),
        }
    }
    Ok(pieces)
}

fn usage(pieces: &[Piece]) -> Usage {
    let bytes: u64 = pieces.iter().map(|piece| piece.length).sum();
    Usage { entries: 3, bytes: bytes + pieces.len() as u64 * PIECE }
}

fn copy_out(pieces: Vec<Piece>, folder: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<(), StageError> {
    let (volume, path, map) = (overlay::mapping(), folder.join(CONTENTS), folder.join(MAP));
    let past_the_cache = OFlags::DIRECT.bits().cast_signed();
    let device = File::options().read(true).custom_flags(past_the_cache).open(&volume);
    let device = device.map_err(failed("open", &volume))?;
    fs::create_dir(folder).map_err(failed("make", folder))?;
    let mut contents = File::create_new(&path).map_err(failed("make", &path))?;
    let (mut buffer, mut hash) = (Buffer::new(CHUNK), Sha256::new());
    for_each_chunk(&pieces, progress, |at, length| {
        let bytes = buffer.first(length);
        device.read_exact_at(bytes, at).map_err(|source| StageError::Unreadable { at, source })?;
        hash.update(&*bytes);
        contents.write_all(bytes).map_err(failed("write", &path))
    })?;
    let mut file = BufWriter::new(File::create_new(&map).map_err(failed("make", &map))?);
    let written = serde_json::to_writer(&mut file, &Map { pieces, sha256: hash.finalize().to_vec() });
    written.map_err(io::Error::from).and_then(|()| file.flush()).map_err(failed("write", &map))
}

fn copy_in(on: Partition, folder: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<(), StageError> {
    let (volume, path, map) = (overlay::mapping(), folder.join(CONTENTS), folder.join(MAP));
    let file = BufReader::new(File::open(&map).map_err(failed("open", &map))?);
    let Map { pieces, sha256 } = serde_json::from_reader(file).map_err(|error| failed("read", &map)(error.into()))?;
    let mut contents = File::open(&path).map_err(failed("open", &path))?;
    let mut device = OpenOptions::new().read(true).write(true).open(&volume).map_err(failed("open", &volume))?;

    let mut superblock = [0; FIRST];
    contents.read_exact_at(&mut superblock, 0).map_err(failed("read", &path))?;
    let mut there = [0; FIRST];
    device.read_exact_at(&mut there, 0).map_err(failed("read", &volume))?;
    if file_system_uuid(&there).is_some() && file_system_uuid(&there) == file_system_uuid(&superblock) {
        return Ok(());
    }
    let size = device.seek(SeekFrom::End(0)).map_err(failed("measure", &volume))?;
    let needed = xfs_size(&superblock).ok_or(StageError::Changed(on))?.bytes();
    if size < needed {
        return Err(StageError::Smaller { size, needed });
    }

    let (mut buffer, mut hash) = (vec![0; CHUNK], Sha256::new());
    for_each_chunk(&pieces, progress, |at, length| {
        let bytes = &mut buffer[..length];
        contents.read_exact(bytes).map_err(failed("read", &path))?;
        hash.update(&*bytes);
        if at == 0 {
            bytes[..FIRST].fill(0);
        }
        device.write_all_at(bytes, at).map_err(failed("write", &volume))
    })?;
    if hash.finalize()[..] != sha256 {
        return Err(StageError::Changed(on));
    }
    device.sync_all().map_err(failed("sync", &volume))?;
    device.write_all_at(&superblock, 0).and_then(|()| device.sync_all()).map_err(failed("write", &volume))
}

/// Goes through pieces, no more than so much at once.
fn for_each_chunk(
    pieces: &[Piece],
    progress: &mut dyn FnMut(u64, u64),
    mut act: impl FnMut(u64, usize) -> Result<(), StageError>,
) -> Result<(), StageError> {
    let all = pieces.iter().map(|piece| piece.length).sum();
    let mut done = 0;
    for Piece { start, length } in pieces {
        for at in (*start..start + length).step_by(CHUNK) {
            let length = usize::try_from(start + length - at).unwrap_or(CHUNK).min(CHUNK);
            act(at, length)?;
            done += length as u64;
            progress(done, all);
        }
    }
    Ok(())
}
