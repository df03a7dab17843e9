//! The superblock of a squashfs.

use thiserror::Error;

/// Bytes of a superblock.
pub const SUPERBLOCK: usize = 96;

/// What a superblock says.
///
/// Source: `struct squashfs_super_block` in the kernel's `fs/squashfs/squashfs_fs.h`, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Files, folders and whatever else has an inode.
    pub inodes: u32,
    /// When it was made, in seconds since 1970.
    pub made: u32,
    /// How it is compressed, as the kernel numbers it.
    pub compression: u16,
    /// Bytes of the whole file system.
    pub bytes_used: u64,
}

/// Bytes that are not the superblock of a squashfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotSquashfs {
    /// The magic is another one.
    #[error("there is no squashfs")]
    Magic,
    /// Another version of the format.
    #[error("it is a squashfs of version {0}, where Linux reads version 4")]
    Version(u16),
    /// It cannot be that short.
    #[error("its superblock says that it has {0} bytes, which is less than the superblock itself")]
    Size(u64),
}

impl Superblock {
    /// Reads a superblock.
    pub fn parse(bytes: &[u8; SUPERBLOCK]) -> Result<Self, NotSquashfs> {
        if &bytes[..4] != b"hsqs" {
            return Err(NotSquashfs::Magic);
        }
        match half(bytes, 28) {
            4 => {}
            version => return Err(NotSquashfs::Version(version)),
        }
        let bytes_used = u64::from(word(bytes, 40)) | u64::from(word(bytes, 44)) << 32;
        if bytes_used < SUPERBLOCK as u64 {
            return Err(NotSquashfs::Size(bytes_used));
        }
        Ok(Superblock { inodes: word(bytes, 4), made: word(bytes, 8), compression: half(bytes, 20), bytes_used })
    }

    /// The name of the compression.
    pub const fn compression_name(&self) -> &'static str {
        match self.compression {
            1 => "gzip",
            2 => "lzma",
            3 => "lzo",
            4 => "xz",
            5 => "lz4",
            6 => "zstd",
            _ => "unknown",
        }
    }
}

fn half(bytes: &[u8; SUPERBLOCK], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn word(bytes: &[u8; SUPERBLOCK], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::Tool;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(mut bytes in prop::array::uniform32(any::<[u8; 3]>()), magic: bool) {
            if magic {
                bytes[0] = *b"hsq";
                bytes[1][0] = b's';
            }
            let mut flat = [0; SUPERBLOCK];
            flat.copy_from_slice(bytes.as_flattened());
            if let Ok(superblock) = Superblock::parse(&flat) {
                prop_assert!(superblock.bytes_used >= SUPERBLOCK as u64);
            }
        }
    }

    #[test]
    fn what_mksquashfs_makes_is_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (content, image) = (folder.path().join("content"), folder.path().join("image"));
        std::fs::create_dir(&content).expect("a folder");
        std::fs::write(content.join("file"), "text").expect("a file");
        Tool::new("mksquashfs")
            .args([&content, &image])
            .args(["-comp", "zstd", "-mkfs-time", "1234567890"])
            .run()
            .expect("mksquashfs works");
        let made = std::fs::read(&image).expect("the image");
        let superblock = Superblock::parse(made[..SUPERBLOCK].try_into().expect("long enough")).expect("a squashfs");
        assert_eq!((superblock.inodes, superblock.made), (2, 1_234_567_890));
        assert_eq!(superblock.compression_name(), "zstd");
        assert!(superblock.bytes_used <= made.len() as u64 && superblock.bytes_used + 4096 > made.len() as u64);
    }
}
