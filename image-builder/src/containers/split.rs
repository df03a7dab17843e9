//! What is left of a tar archive when its files are taken out: headers and padding. With it and the files, the archive can be
//! put together again byte for byte, which is how podman saves and pushes an image whose layers it holds unpacked.
//!
//! Source: `tar/asm/disassemble.go` and `tar/storage/entry.go` of github.com/vbatts/tar-split: lines of JSON, `type` 2 a piece
//! of the archive in Base64, `type` 1 a file by name, with the CRC-64 (ISO) of its content.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc::{CRC_64_GO_ISO, Crc};
use serde_json::{Value, json};

/// Padding may be long, and is told in pieces.
const PIECE: u64 = 1 << 20;

/// Writes what is left of an archive, not compressed.
pub fn write(tar: &mut File, mut to: impl Write) -> io::Result<()> {
    let files = files(tar)?;
    let whole = tar.seek(SeekFrom::End(0))?;
    let mut position = 0;
    let mut line = |mut entry: Value| {
        entry["position"] = position.into();
        position += 1;
        writeln!(to, "{entry}")
    };
    let mut at = 0;
    for (name, start, size) in files {
        piece(tar, at, start, &mut line)?;
        let payload = if size == 0 { Value::Null } else { STANDARD.encode(checksum(tar, start, size)?).into() };
        line(json!({ "type": 1, "name": name, "size": size, "payload": payload }))?;
        at = start + size;
    }
    piece(tar, at, whole, &mut line)
}

/// Name, begin and size of what each entry holds.
fn files(tar: &mut File) -> io::Result<Vec<(String, u64, u64)>> {
    tar.rewind()?;
    let mut archive = tar::Archive::new(tar);
    let entry = |entry: io::Result<tar::Entry<'_, _>>| {
        let entry = entry?;
        let name = String::from_utf8(entry.path_bytes().into_owned()).map_err(io::Error::other)?;
        Ok((name, entry.raw_file_position(), entry.size()))
    };
    archive.entries_with_seek()?.map(entry).collect()
}

fn piece(tar: &mut File, from: u64, to: u64, line: &mut impl FnMut(Value) -> io::Result<()>) -> io::Result<()> {
    tar.seek(SeekFrom::Start(from))?;
    let mut left = to.saturating_sub(from);
    while left > 0 {
        let mut bytes = Vec::new();
        tar.take(left.min(PIECE)).read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= bytes.len() as u64;
        line(json!({ "type": 2, "payload": STANDARD.encode(&bytes) }))?;
    }
    Ok(())
}

fn checksum(tar: &mut File, start: u64, size: u64) -> io::Result<[u8; 8]> {
    const ISO: Crc<u64> = Crc::<u64>::new(&CRC_64_GO_ISO);
    tar.seek(SeekFrom::Start(start))?;
    let mut content = tar.take(size);
    let mut digest = ISO.digest();
    let mut chunk = vec![0; 64 << 10];
    while let read @ 1.. = content.read(&mut chunk)? {
        digest.update(&chunk[..read]);
    }
    Ok(digest.finalize().to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn archive(files: &[(String, Vec<u8>)]) -> File {
        let mut archive = tar::Builder::new(tempfile::tempfile().expect("a temporary file"));
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, content.as_slice()).expect("a file in the archive");
        }
        archive.into_inner().expect("the archive")
    }

    /// As `tar/asm/assemble.go` does it.
    fn assembled(split: &[u8], files: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut whole = Vec::new();
        for (position, line) in split.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
            let entry: Value = serde_json::from_slice(line).expect("a line of JSON");
            assert_eq!(entry["position"], position);
            let payload = entry["payload"].as_str().map(|text| STANDARD.decode(text).expect("Base64"));
            if entry["type"] == 2 {
                whole.extend(payload.expect("a piece has a content"));
            } else {
                let (_, content) = files.iter().find(|(name, _)| entry["name"] == **name).expect("a known file");
                assert_eq!(entry["size"], content.len());
                whole.extend_from_slice(content);
            }
        }
        whole
    }

    #[test]
    fn a_checksum_is_that_of_go() {
        // crc64.Checksum([]byte("123456789"), crc64.MakeTable(crc64.ISO)), from hash/crc64's catalogue of checks.
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(b"123456789").expect("its content");
        assert_eq!(checksum(&mut file, 0, 9).expect("a checksum"), 0xb909_56c7_75a4_1001_u64.to_be_bytes());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn an_archive_can_be_put_together_again(
            sizes in prop::collection::vec(0_usize..2000, 0..8),
            long in 0_usize..200,
        ) {
            let name = |number: usize| format!("folder/{number}{}", "x".repeat(long));
            let files: Vec<_> =
                sizes.iter().enumerate().map(|(number, size)| (name(number), vec![7; *size])).collect();
            let mut tar = archive(&files);
            let mut split = Vec::new();
            write(&mut tar, &mut split).expect("a split");
            let mut whole = Vec::new();
            tar.rewind().and_then(|()| tar.read_to_end(&mut whole)).expect("the archive");
            prop_assert_eq!(assembled(&split, &files), whole);
        }
    }
}
