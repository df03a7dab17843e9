//! Overwrites what must not be read again.

use std::fs::File;
use std::io::{self, Write as _};

/// Bytes that are written at once.
const CHUNK: u64 = 1 << 20;

/// Writes zeros from where the file or device stands, and waits until they are on the disk.
pub(crate) fn wipe(file: &mut File, length: u64) -> io::Result<()> {
    let zeros = vec![0; usize::try_from(CHUNK.min(length)).map_err(io::Error::other)?];
    let mut left = length;
    while left > 0 {
        let chunk = zeros.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.write_all(&zeros[..chunk])?;
        left -= chunk as u64;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn nothing_is_left_of_what_is_overwritten_and_all_of_the_rest() {
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1] {
            let file = tempfile::NamedTempFile::new().unwrap();
            let size = usize::try_from(CHUNK + 2).unwrap();
            fs::write(file.path(), vec![7; size]).unwrap();
            wipe(&mut File::options().write(true).open(file.path()).unwrap(), length).unwrap();
            let (wiped, rest) = fs::read(file.path())
                .map(|bytes| {
                    let (wiped, rest) = bytes.split_at(usize::try_from(length).unwrap());
                    (wiped.iter().all(|byte| *byte == 0), rest.iter().all(|byte| *byte == 7))
                })
                .unwrap();
            assert!(wiped && rest, "{length}");
        }
    }
}
