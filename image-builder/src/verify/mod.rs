//! `nemos-image verify`: whether a disk is what was built, told without booting it.

mod manifest;
mod trust;

use std::path::PathBuf;

use clap::Args;
use gptman::GPTPartitionEntry;
use nemos_model::boot::PRELOADED_HASH_OPTION;
use nemos_model::integrity::{InvalidRootHash, RootHash};
use nemos_model::partitions::Partition;
use thiserror::Error;
use uuid::Uuid;

use self::trust::Expected;
use crate::image::metadata::NotMetadata;
use crate::image::pcr::BadPolicy;
use crate::image::squashfs::{self, NotSquashfs};
use crate::image::uki::{NotUki, Uki, Unsigned};
use crate::image::verity::{self, Corrupted, NotVerity};
use crate::image::{Image, ImageError, Table};
use crate::keys::pkcs7::BadSignature;
use crate::keys::{KeyError, Purpose};
use crate::layout::{ALIGNMENT, Layout, SECTOR, Slot};
use crate::mbr;

/// Check a disk image, without booting it and without root
///
/// The partition table and its backup, the partitions, every block of the root against the root hash that the kernel
/// image will ask for, and all signatures.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// Disk image to check
    pub disk: PathBuf,

    /// It must be signed with the keys whose certificates are in DIR
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,
}

/// What is wrong with a disk.
#[derive(Debug, Error)]
enum Fault {
    #[error("{0}")]
    Table(String),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("the command line of the kernel image has no roothash=")]
    NoRootHash,
    #[error("the command line of the kernel image: {0}")]
    RootHash(#[from] InvalidRootHash),
    #[error(transparent)]
    Squashfs(#[from] NotSquashfs),
    #[error(transparent)]
    Verity(#[from] NotVerity),
    #[error(transparent)]
    Corrupted(#[from] Corrupted),
    #[error("{0}")]
    Size(String),
    #[error("it is not signed, and should be")]
    Unsigned,
    #[error("it is signed with another key than {0}.crt")]
    Key(Purpose),
    #[error(transparent)]
    KernelImage(#[from] Unsigned),
    #[error(transparent)]
    Uki(#[from] NotUki),
    #[error("the signature over the root hash: {0}")]
    Signature(#[from] BadSignature),
    #[error(transparent)]
    Policy(#[from] BadPolicy),
    #[error(transparent)]
    NoMetadata(#[from] NotMetadata),
    #[error("the metadata is of another root")]
    Metadata,
    #[error(transparent)]
    Manifest(#[from] manifest::Untrue),
}

/// Why nothing could be checked.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// The disk.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The certificates.
    #[error(transparent)]
    Keys(#[from] KeyError),
}

/// Checks a disk, and tells about it line by line; `true` if all is well.
pub fn verify(args: &VerifyArgs, mut tell: impl FnMut(String)) -> Result<bool, VerifyError> {
    let image = Image::open(&args.disk)?;
    let expected = Expected::of(args.keys.as_deref())?;
    let mut sound = true;
    let mut told = |what: &str, result: Result<String, Fault>| match result {
        Ok(fact) => tell(format!("ok    {what:<23} {fact}")),
        Err(fault) => {
            sound = false;
            tell(format!("FAIL  {what:<23} {fault}"));
        }
    };
    told("partition table", copy(&image.primary));
    told("backup partition table", copy(&image.backup).and_then(|fact| same(&image).map(|()| fact)));
    told("partitions", partitions(&image));
    told("hybrid MBR", hybrid_mbr(&image));
    match image.uki() {
        Ok(uki) => {
            let root_hash = root_hash(&uki);
            let known = root_hash.as_ref().ok().copied();
            told("kernel image", root_hash.map(|hash| format!("for {}, asks for root hash {hash}", uki.architecture)));
            told("kernel image signature", trust::kernel_image(&uki, &expected));
            told("PCR 11", trust::measurement(&uki, &expected));
            told("preloaded containers", preloaded(&image, &uki));
            told("manifest", manifest::check(&image, &uki, &args.disk).map_err(Fault::from));
            if let Some(root_hash) = known {
                told("root hash signature", trust::root_hash(&uki, &root_hash, &expected));
                told("root", verified(&image, Partition::Readonly, &root_hash));
                told("metadata", trust::metadata(&image, &root_hash, &expected));
            }
        }
        Err(error) => told("kernel image", Err(error.into())),
    }
    told("state", state(&image));
    Ok(sound)
}

fn copy(copy: &Result<Table, gptman::Error>) -> Result<String, Fault> {
    match copy {
        Ok(table) => Ok(format!("{} partitions, checksums right", table.entries.len())),
        Err(error) => Err(Fault::Table(error.to_string())),
    }
}

/// Both copies must say the same.
fn same(image: &Image) -> Result<(), Fault> {
    let (Ok(primary), Ok(backup)) = (&image.primary, &image.backup) else { return Ok(()) };
    let facts = |entry: &GPTPartitionEntry| {
        let GPTPartitionEntry { partition_type_guid, unique_partition_guid, starting_lba, ending_lba, .. } = *entry;
        (partition_type_guid, unique_partition_guid, starting_lba, ending_lba, entry.partition_name.as_str().to_owned())
    };
    let is_same = primary.entries.iter().map(facts).eq(backup.entries.iter().map(facts))
        && primary.header.disk_guid == backup.header.disk_guid
        && primary.header.backup_lba == backup.header.primary_lba;
    if is_same { Ok(()) } else { Err(Fault::Table("it differs from the primary one".into())) }
}

fn partitions(image: &Image) -> Result<String, Fault> {
    let entries = image.table().map_or(&[][..], |table| &table.entries);
    let labels: Vec<_> = entries.iter().map(|entry| entry.partition_name.as_str()).collect();
    let added = labels.iter().filter_map(|label| Slot::added(label)).map(|name| (name, 0));
    let slots: Vec<_> = Layout::new(|_| 0, added).extents.into_iter().map(|extent| extent.slot).collect();
    let expected: Vec<_> = slots.iter().map(Slot::label).collect();
    if labels != expected {
        return Err(Fault::Table(format!("they are {}, and should be {}", labels.join(" "), expected.join(" "))));
    }
    let mut free = 0;
    for (entry, slot) in entries.iter().zip(slots) {
        let fault = |what: &str| Err(Fault::Table(format!("{} {what}", slot.label())));
        if Uuid::from_bytes_le(entry.partition_type_guid) != slot.type_guid() {
            return fault("has another type");
        }
        if entry.starting_lba < free || entry.ending_lba < entry.starting_lba {
            return fault("overlaps the one before it, or has no size");
        }
        if !entry.starting_lba.is_multiple_of(ALIGNMENT / SECTOR) {
            return fault("does not begin at a multiple of 1 MiB");
        }
        if (entry.ending_lba + 1).saturating_mul(SECTOR) > image.size() {
            return fault("ends behind the end of the disk");
        }
        free = entry.ending_lba + 1;
    }
    Ok("labels, types, order and alignment right".into())
}

fn hybrid_mbr(image: &Image) -> Result<String, Fault> {
    let found = mbr::parse(&image.read(0)?).ok_or_else(|| Fault::Table("there is none".into()))?;
    let expected = mbr::hybrid(image.partitions().iter().map(|found| (found.start, found.start + found.size)));
    if found != expected {
        let told = |entries: &[mbr::Entry]| entries.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        return Err(Fault::Table(format!("it is [{}], and should be [{}]", told(&found), told(&expected))));
    }
    Ok(format!("covers the partition table, shows the first {} partitions", found.len() - 1))
}

fn root_hash(uki: &Uki) -> Result<RootHash, Fault> {
    Ok(uki.word("roothash").ok_or(Fault::NoRootHash)?.parse()?)
}

fn verified(image: &Image, partition: Partition, root_hash: &RootHash) -> Result<String, Fault> {
    let found = image.require(partition)?;
    let superblock = squashfs::Superblock::parse(&image.read(found.start)?)?;
    let data = superblock.bytes_used.next_multiple_of(verity::BLOCK);
    if data + verity::SUPERBLOCK as u64 > found.size {
        return Err(Fault::Size(format!("the squashfs says that it has {data} bytes, more than its partition")));
    }
    let tree = verity::Superblock::parse(&image.read(found.start + data)?)?;
    if tree.data_blocks * verity::BLOCK != data {
        return Err(Fault::Size(format!(
            "the hash tree covers {} blocks, the squashfs has {}",
            tree.data_blocks,
            data / verity::BLOCK
        )));
    }
    if data + tree.size() > found.size {
        return Err(Fault::Size("the hash tree is longer than its partition".into()));
    }
    verity::check(image.file(), found.start, found.start + data, &tree, root_hash)?;
    Ok(format!("{} blocks, hash tree and root hash right", tree.data_blocks))
}

/// The containers that are shipped: under dm-verity as the root is, unless the kernel image has no hash of them.
fn preloaded(image: &Image, uki: &Uki) -> Result<String, Fault> {
    if let Some(hash) = uki.word(PRELOADED_HASH_OPTION) {
        return verified(image, Partition::OciPreloaded, &hash.parse()?);
    }
    let found = image.require(Partition::OciPreloaded)?;
    let superblock = squashfs::Superblock::parse(&image.read(found.start)?)?;
    if superblock.bytes_used > found.size {
        return Err(Fault::Size("the squashfs is longer than its partition".into()));
    }
    Ok("a squashfs that fits, not under dm-verity".into())
}

fn state(image: &Image) -> Result<String, Fault> {
    let found = image.require(Partition::State)?;
    let magic = image.read::<2>(found.start + 0x438)?;
    if magic == [0x53, 0xef] { Ok("ext4".into()) } else { Err(Fault::Size("there is no ext4".into())) }
}

#[cfg(test)]
mod tests {
    use gptman::GPT;

    use super::*;

    /// A disk with the partitions of every image, changed by `change`.
    fn disk(change: impl Fn(&mut GPT)) -> (tempfile::NamedTempFile, Image) {
        let layout = Layout::new(|_| 1 << 20, [("data", 1 << 20)]);
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(layout.disk_size).expect("its size");
        let mut gpt = GPT::new_from(file.as_file_mut(), SECTOR, [7; 16]).expect("a table");
        for (number, extent) in (1..).zip(&layout.extents) {
            gpt[number] = GPTPartitionEntry {
                partition_type_guid: extent.slot.type_guid().to_bytes_le(),
                unique_partition_guid: [u8::try_from(number).expect("few partitions"); 16],
                starting_lba: extent.first_sector(),
                ending_lba: extent.last_sector(),
                attribute_bits: 0,
                partition_name: extent.slot.label().as_str().into(),
            };
        }
        change(&mut gpt);
        gpt.write_into(file.as_file_mut()).expect("a disk");
        let image = Image::open(file.path()).expect("an image");
        (file, image)
    }

    #[test]
    fn partitions_that_lie_one_behind_the_other_are_right() {
        let (_file, image) = disk(|_| ());
        partitions(&image).expect("they are as they should be");
    }

    #[test]
    fn partitions_that_overlap_are_named() {
        // No writer of tables writes that, and a reader is told whatever a disk has.
        let (_file, mut image) = disk(|_| ());
        let entries = &mut image.primary.as_mut().expect("a table").entries;
        entries[2].starting_lba = entries[1].starting_lba;
        let told = partitions(&image).expect_err("they overlap").to_string();
        assert!(told.contains("p.lxoci-storage overlaps the one before it"), "{told}");
    }

    #[test]
    fn partitions_of_another_type_or_in_another_order_are_told() {
        let (_file, image) = disk(|gpt| gpt[2].partition_type_guid = [9; 16]);
        let told = partitions(&image).expect_err("another type").to_string();
        assert!(told.contains("p.lxhome has another type"), "{told}");
        let (_file, image) = disk(|gpt| {
            let name = gpt[2].partition_name.clone();
            gpt[2].partition_name = gpt[3].partition_name.clone();
            gpt[3].partition_name = name;
        });
        let told = partitions(&image).expect_err("another order").to_string();
        assert!(told.contains("they are p.UEFI p.lxoci-storage p.lxhome"), "{told}");
    }
}
