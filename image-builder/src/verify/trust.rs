//! Who signed a disk, and whether that fits what is on it.

use std::path::Path;

use nemos_model::integrity::RootHash;
use nemos_model::partitions::Partition;
use nemos_model::uki::pcr::{INITRD, expected as register};

use super::Fault;
use crate::image::metadata::{self, Metadata};
use crate::image::pcr;
use crate::image::uki::{Uki, Unsigned};
use crate::image::{Image, verity};
use crate::keys::{KeyError, Purpose, Scheme, Trusted, pkcs7};

/// What a disk without signatures is told with.
const NONE: &str = "none: the image is not signed";

/// The certificates that the disk should be signed for; none, if nobody said.
pub(super) struct Expected {
    trusted: Option<[Trusted; 3]>,
}

impl Expected {
    /// Those of a folder.
    pub(super) fn of(folder: Option<&Path>) -> Result<Self, KeyError> {
        let Some(folder) = folder else { return Ok(Expected { trusted: None }) };
        let [secure_boot, root, pcr] = Purpose::ALL.map(|purpose| Trusted::of(folder, purpose));
        Ok(Expected { trusted: Some([secure_boot?, root?, pcr?]) })
    }

    fn key(&self, purpose: Purpose) -> Option<&Trusted> {
        self.trusted.as_ref().map(|trusted| &trusted[purpose as usize])
    }

    /// What to say of something that is not signed.
    fn unsigned(&self, uki: &Uki) -> Result<String, Fault> {
        if self.trusted.is_some() || uki.requires_signatures() { Err(Fault::Unsigned) } else { Ok(NONE.to_owned()) }
    }

    /// By whom something that fits is signed.
    fn signer(&self, purpose: Purpose) -> String {
        match self.key(purpose) {
            Some(trusted) => format!("by {}", trusted.subject()),
            None => "by whom, --keys DIR would tell".to_owned(),
        }
    }
}

/// The signature that the firmware checks.
pub(super) fn kernel_image(uki: &Uki, expected: &Expected) -> Result<String, Fault> {
    let signed = match uki.signed() {
        Err(Unsigned::None) => return expected.unsigned(uki),
        signed => signed?,
    };
    match expected.key(Purpose::SecureBoot) {
        Some(trusted) if *trusted.certificate() != signed.certificate => Err(Fault::Key(Purpose::SecureBoot)),
        _ => Ok(format!("by {}", signed.certificate.tbs_certificate().subject())),
    }
}

/// The signature that the kernel checks.
pub(super) fn root_hash(uki: &Uki, root_hash: &RootHash, expected: &Expected) -> Result<String, Fault> {
    let Some(signature) = uki.root_signature()? else { return expected.unsigned(uki) };
    if let Some(trusted) = expected.key(Purpose::Root) {
        pkcs7::check_detached(&signature, root_hash.to_string().as_bytes(), trusted)?;
    }
    Ok(expected.signer(Purpose::Root))
}

/// What a TPM will find.
pub(super) fn measurement(uki: &Uki, expected: &Expected) -> Result<String, Fault> {
    let measured = uki.measured()?;
    let value = register(&measured, INITRD).to_string();
    let Some(signatures) = &uki.pcr_signatures else { return Ok(format!("{value}, signed by nobody")) };
    pcr::check(signatures, &measured, expected.key(Purpose::Pcr))?;
    Ok(format!("{value}, signed {}", expected.signer(Purpose::Pcr)))
}

/// The metadata behind the root, as Kiwi's tools read it.
pub(super) fn metadata(image: &Image, root_hash: &RootHash, expected: &Expected) -> Result<String, Fault> {
    let found = image.require(Partition::Readonly)?;
    let block: [u8; metadata::BLOCK] = image.read(found.start + found.size - metadata::BLOCK as u64)?;
    let (metadata, message, rest) = Metadata::parse(&block)?;
    let superblock_at = metadata.hash_start.saturating_mul(verity::BLOCK);
    if superblock_at + verity::BLOCK > found.size {
        return Err(Fault::Size("the metadata says that the hash tree begins behind the partition".into()));
    }
    let at_hash_start = image.read(found.start + superblock_at)?;
    let tree = verity::Superblock::parse(&at_hash_start)?;
    if (metadata.data_blocks, metadata.root_hash, &metadata.salt) != (tree.data_blocks, *root_hash, &tree.salt_hex()) {
        return Err(Fault::Metadata);
    }
    let tree_at = metadata.tree_start(&at_hash_start) / verity::BLOCK;
    let fact = format!("fits the root; hash tree at block {tree_at}");
    if rest.iter().all(|byte| *byte == 0) {
        return match expected.key(Purpose::Root) {
            Some(_) => Err(Fault::Unsigned),
            None => Ok(format!("{fact}; signed by nobody")),
        };
    }
    if let Some(trusted) = expected.key(Purpose::Root) {
        let signature = rest.get(..trusted.signature_size()).unwrap_or_default();
        if !trusted.confirms(Scheme::Pss, message, signature) {
            return Err(Fault::Key(Purpose::Root));
        }
    }
    Ok(format!("{fact}; signed {}", expected.signer(Purpose::Root)))
}
