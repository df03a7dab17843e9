//! The two headers of a LUKS2 volume. libcryptsetup opens a volume as long as one of them is whole, and says nothing.
//!
//! Source: LUKS2 On-Disk Format Specification 1.1, 2.1: a binary header of 4096 bytes and a JSON area behind it, `hdr_size` bytes
//! together; a checksum over both, with its own field zeroed. The second copy is right behind the first.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

const MAGIC_FIRST: [u8; 6] = *b"LUKS\xba\xbe";
const MAGIC_SECOND: [u8; 6] = *b"SKUL\xba\xbe";
/// Bytes of a header that can be: 16 KiB, doubled up to 4 MiB. That is also where the second one can be.
const SIZES: [u64; 9] = [16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];
/// Bytes before the JSON area.
const BINARY_HEADER: usize = 4096;
const CHECKSUM: std::ops::Range<usize> = 448..512;

/// Where the copies begin that are damaged, in bytes; none on a sound volume.
pub fn damaged(partition: &Path) -> io::Result<Vec<u64>> {
    let file = File::open(partition)?;
    let first = size_of_sound_header(&file, 0, MAGIC_FIRST)?;
    let second = SIZES.into_iter().find_map(|at| match size_of_sound_header(&file, at, MAGIC_SECOND) {
        Ok(Some(size)) if size == at => Some(Ok(at)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    });
    let second = second.transpose()?;
    // Nothing says where the second one was if both are gone.
    let where_second = first.or(second).unwrap_or(SIZES[0]);
    let copies = [(0, first.is_some()), (where_second, second.is_some())];
    Ok(copies.into_iter().filter(|(_, sound)| !sound).map(|(at, _)| at).collect())
}

/// What the first sound copy says of key slots, tokens and segments; `None` if both are damaged. Nothing is repaired by that.
pub fn metadata(partition: &Path) -> io::Result<Option<Value>> {
    let file = File::open(partition)?;
    let places = [(0, MAGIC_FIRST)].into_iter().chain(SIZES.map(|at| (at, MAGIC_SECOND)));
    for (at, magic) in places {
        if let Some(header) = sound_header(&file, at, magic)? {
            let json = header[BINARY_HEADER..].split(|byte| *byte == 0).next().unwrap_or_default();
            return serde_json::from_slice(json).map(Some).map_err(io::Error::from);
        }
    }
    Ok(None)
}

/// The size of the header at a place, if it is one and its checksum is right.
fn size_of_sound_header(file: &File, at: u64, magic: [u8; 6]) -> io::Result<Option<u64>> {
    Ok(sound_header(file, at, magic)?.map(|header| header.len() as u64))
}

/// The header at a place, without its checksum, if it is one and the checksum is right.
fn sound_header(file: &File, at: u64, magic: [u8; 6]) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; 512];
    match file.read_exact_at(&mut head, at) {
        Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof) => return Ok(None),
        read => read?,
    }
    let size = head[8..16].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    if head[..6] != magic || !SIZES.contains(&size) || !head[72..].starts_with(b"sha256\0") {
        return Ok(None);
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, at)?;
    bytes[CHECKSUM].fill(0);
    let stored = &head[CHECKSUM][..32];
    Ok((Sha256::digest(&bytes)[..] == *stored).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    fn volume() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(32 << 20).unwrap();
        let key = tempfile::NamedTempFile::new().unwrap();
        fs::write(key.path(), "insecure").unwrap();
        let made = Command::new("cryptsetup")
            .args(["luksFormat", "--batch-mode", "--type=luks2", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"])
            .arg(file.path())
            .arg(key.path())
            .output()
            .expect("cryptsetup runs");
        assert!(made.status.success(), "{made:?}");
        file
    }

    fn flip(file: &tempfile::NamedTempFile, at: u64) {
        let mut byte = [0];
        file.as_file().read_exact_at(&mut byte, at).unwrap();
        file.as_file().write_all_at(&[!byte[0]], at).unwrap();
    }

    #[test]
    fn each_damaged_copy_is_told() {
        let file = volume();
        assert_eq!(damaged(file.path()).unwrap(), Vec::<u64>::new());
        flip(&file, 5000);
        assert_eq!(damaged(file.path()).unwrap(), [0], "in the JSON of the first");
        flip(&file, (16 << 10) + 20);
        assert_eq!(damaged(file.path()).unwrap(), [0, 16 << 10]);
        flip(&file, 5000);
        assert_eq!(damaged(file.path()).unwrap(), [16 << 10]);
    }

    #[test]
    fn what_is_no_volume_has_no_sound_header() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(damaged(file.path()).unwrap(), [0, 16 << 10]);
    }
}
