//! `nemos-image inspect`: what is on a disk.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use nemos_model::manifest::{Extent, Package, installed};
use nemos_model::partitions::Partition;
use nemos_model::uki::pcr;
use serde::Serialize;
use uuid::Uuid;

use crate::architecture::Architecture;
use crate::build::mib;
use crate::image::metadata::{self, Metadata};
use crate::image::squashfs::{self, Superblock};
use crate::image::{Image, ImageError, verity};
use crate::layout::SECTOR;
use crate::mbr;

/// Show what is on a disk image
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// Disk image to look into
    pub disk: PathBuf,

    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// What is on a disk.
#[derive(Debug, Serialize)]
pub struct Inventory {
    image: Option<String>,
    version: Option<String>,
    build: Option<String>,
    architecture: Architecture,
    size: u64,
    disk_guid: Option<Uuid>,
    partitions: Vec<Row>,
    /// The hybrid MBR's entries.
    mbr: Vec<MbrEntry>,
    kernel: Kernel,
    root: Root,
    packages: Vec<Package>,
}

#[derive(Debug, Serialize)]
struct Row {
    number: usize,
    label: String,
    guid: Uuid,
    start: u64,
    size: u64,
    /// What its first bytes show.
    content: &'static str,
}

#[derive(Debug, Serialize)]
struct MbrEntry {
    /// As everybody writes it: two hexadecimal digits.
    kind: String,
    start: u64,
    size: u64,
}

#[derive(Debug, Serialize)]
struct Kernel {
    version: Option<String>,
    command_line: String,
    root_hash: Option<String>,
    /// Whose certificate the firmware has to trust.
    signed_by: Option<String>,
    root_hash_signed: bool,
    pcr_signed: bool,
    /// What a TPM has in PCR 11 when the initrd begins.
    pcr_11: String,
}

#[derive(Debug, Serialize)]
struct Root {
    /// What its last block says, as Kiwi's tools read it.
    metadata: Option<String>,
    compression: &'static str,
    inodes: u32,
    size: u64,
    hash_tree_size: u64,
    verity_uuid: Option<Uuid>,
    salt: Option<String>,
}

/// Looks into a disk; the text for the terminal is returned.
pub fn inspect(args: &InspectArgs) -> Result<String, ImageError> {
    let inventory = Inventory::of(&Image::open(&args.disk)?)?;
    if args.json {
        let mut text = serde_json::to_string_pretty(&inventory).unwrap_or_default();
        text.push('\n');
        return Ok(text);
    }
    Ok(inventory.to_string())
}

impl Inventory {
    /// Of a disk.
    pub fn of(image: &Image) -> Result<Self, ImageError> {
        let uki = image.uki()?;
        let field = |name| uki.field(name).map(str::to_owned);
        Ok(Inventory {
            image: field("IMAGE_ID"),
            version: field("IMAGE_VERSION"),
            build: field("BUILD_ID"),
            architecture: uki.architecture,
            size: image.size(),
            disk_guid: image.table().map(|table| Uuid::from_bytes_le(table.header.disk_guid)),
            partitions: (1..)
                .zip(image.extents())
                .map(|(number, found)| row(image, number, found))
                .collect::<Result<_, _>>()?,
            mbr: mbr::parse(&image.read(0)?).unwrap_or_default().into_iter().map(MbrEntry::from).collect(),
            kernel: Kernel {
                version: uki.kernel.clone(),
                root_hash: uki.word("roothash").map(str::to_owned),
                signed_by: uki.signed().ok().map(|signed| signed.certificate.tbs_certificate().subject().to_string()),
                root_hash_signed: uki.root_signature()?.is_some(),
                pcr_signed: uki.pcr_signatures.is_some(),
                pcr_11: pcr::expected(&uki.measured()?, pcr::INITRD).to_string(),
                command_line: uki.command_line,
            },
            root: root(image)?,
            packages: installed(&image.root_file("var/lib/dpkg/status")?),
        })
    }
}

impl From<mbr::Entry> for MbrEntry {
    fn from(mbr::Entry { kind, start, sectors }: mbr::Entry) -> Self {
        let bytes = |sectors| u64::from(sectors) * SECTOR;
        MbrEntry { kind: format!("{kind:02X}"), start: bytes(start), size: bytes(sectors) }
    }
}

fn row(image: &Image, number: usize, Extent { label, guid, start, size }: Extent) -> Result<Row, ImageError> {
    Ok(Row { number, label, guid, start, size, content: content(&image.read(start)?) })
}

fn root(image: &Image) -> Result<Root, ImageError> {
    let found = image.require(Partition::Readonly)?;
    let superblock = image.read::<{ squashfs::SUPERBLOCK }>(found.start)?;
    let Ok(superblock) = Superblock::parse(&superblock) else {
        let metadata = None;
        return Ok(Root {
            metadata,
            compression: "none",
            inodes: 0,
            size: 0,
            hash_tree_size: 0,
            verity_uuid: None,
            salt: None,
        });
    };
    let hashes = found.start + superblock.bytes_used.next_multiple_of(verity::BLOCK);
    let tree = verity::Superblock::parse(&image.read(hashes)?).ok();
    let end: [u8; metadata::BLOCK] = image.read(found.start + found.size - metadata::BLOCK as u64)?;
    Ok(Root {
        metadata: Metadata::parse(&end).ok().map(|(metadata, ..)| metadata.to_string()),
        compression: superblock.compression_name(),
        inodes: superblock.inodes,
        size: superblock.bytes_used,
        hash_tree_size: tree.as_ref().map_or(0, verity::Superblock::size),
        verity_uuid: tree.as_ref().map(|tree| tree.uuid),
        salt: tree.map(|tree| tree.salt_hex()),
    })
}

/// What the first bytes of a partition show.
fn content(start: &[u8; 2048]) -> &'static str {
    match start {
        start if start.starts_with(b"hsqs") => "squashfs",
        start if start.starts_with(b"XFSB") => "xfs",
        start if start.starts_with(b"LUKS\xba\xbe") => "LUKS",
        start if start[0x438..0x43a] == [0x53, 0xef] => "ext4",
        start if start[82..87] == *b"FAT32" => "vfat",
        start if start.iter().all(|byte| *byte == 0) => "empty",
        _ => "unknown",
    }
}

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |value: &Option<String>| value.as_deref().unwrap_or("unknown").to_owned();
        let identity = [&self.image, &self.version, &self.build].map(known);
        writeln!(f, "{} {}, build {}, for {}", identity[0], identity[1], identity[2], self.architecture)?;
        let guid = self.disk_guid.map_or("unknown".into(), |guid| guid.to_string());
        writeln!(f, "disk       {}, GUID {guid}\n", mib(self.size))?;
        for row in &self.partitions {
            let Row { number, label, guid, size, content, .. } = row;
            writeln!(f, "{number}  {label:<17} {:>10}  {content:<8}  {guid}", mib(*size))?;
        }
        let shown = self.mbr.iter().map(|entry| entry.kind.as_str()).collect::<Vec<_>>();
        writeln!(f, "\nhybrid MBR {}", if shown.is_empty() { "none".to_owned() } else { shown.join(" ") })?;
        let Root { compression, inodes, size, hash_tree_size, .. } = self.root;
        writeln!(f, "root       squashfs {compression}, {}, {inodes} inodes", mib(size))?;
        writeln!(f, "hash tree  {}, salt {}", mib(hash_tree_size), known(&self.root.salt))?;
        writeln!(f, "root hash  {}", known(&self.kernel.root_hash))?;
        writeln!(f, "metadata   {}", self.root.metadata.as_deref().unwrap_or("none"))?;
        writeln!(f, "kernel     {}", known(&self.kernel.version))?;
        writeln!(f, "           {}", self.kernel.command_line)?;
        let signed = |signed| if signed { "signed" } else { "not signed" };
        writeln!(f, "signed by  {}", self.kernel.signed_by.as_deref().unwrap_or("nobody"))?;
        writeln!(f, "           root hash {}", signed(self.kernel.root_hash_signed))?;
        writeln!(f, "PCR 11     {}, {}\n", self.kernel.pcr_11, signed(self.kernel.pcr_signed))?;
        writeln!(f, "{} packages", self.packages.len())?;
        for Package { name, version, .. } in &self.packages {
            writeln!(f, "  {name:<32} {version}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_told_by_their_magic() {
        let mut start = [0; 2048];
        assert_eq!(content(&start), "empty");
        start[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(content(&start), "ext4");
        start[..6].copy_from_slice(b"LUKS\xba\xbe");
        assert_eq!(content(&start), "LUKS");
        assert_eq!(content(&[7; 2048]), "unknown");
    }
}
