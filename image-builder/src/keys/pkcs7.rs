//! PKCS#7 signed data with one RSA signer (RFC 2315), as the kernel reads it for a root hash and firmware for a program.

use der::asn1::{Any, ObjectIdentifier, OctetString, SetOfVec};
use der::{Decode, Encode, Sequence, ValueOrd};
use thiserror::Error;
use x509_cert::Certificate;
use x509_cert::attr::{Attribute, Attributes};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::AlgorithmIdentifierOwned;

use super::{KeyError, Keys, Purpose, Scheme, Trusted, confirms, encoding, public_key};
use crate::build::Digest;

const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const SHA_256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");
/// "Windows Authenticode Portable Executable Signature Format", `SPC_INDIRECT_DATA_OBJID` and `SPC_PE_IMAGE_DATAOBJ`.
const INDIRECT_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.1.4");
const PE_IMAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.1.15");
/// `SpcPeImageData` with no flags, and an empty link to a file.
const PE_IMAGE_DATA: [u8; 11] = [0x30, 0x09, 0x03, 0x01, 0x00, 0xa0, 0x04, 0xa2, 0x02, 0x80, 0x00];

#[derive(Debug, Clone, PartialEq, Eq, Sequence)]
struct ContentInfo {
    kind: ObjectIdentifier,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    content: Option<Any>,
}

#[derive(Debug, Clone, PartialEq, Eq, Sequence)]
struct SignedData {
    version: u8,
    digests: SetOfVec<AlgorithmIdentifierOwned>,
    content: ContentInfo,
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT", constructed = "true", optional = "true")]
    certificates: Option<SetOfVec<Certificate>>,
    signers: SetOfVec<SignerInfo>,
}

#[derive(Debug, Clone, PartialEq, Eq, Sequence, ValueOrd)]
struct SignerInfo {
    version: u8,
    certificate: IssuerAndSerial,
    digest: AlgorithmIdentifierOwned,
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT", constructed = "true", optional = "true")]
    attributes: Option<Attributes>,
    scheme: AlgorithmIdentifierOwned,
    signature: OctetString,
}

#[derive(Debug, Clone, PartialEq, Eq, Sequence, ValueOrd)]
struct IssuerAndSerial {
    issuer: Name,
    serial: SerialNumber,
}

#[derive(Debug, Clone, PartialEq, Eq, Sequence)]
struct IndirectData {
    data: Typed,
    digest: DigestInfo,
}

#[derive(Debug, Clone, PartialEq, Eq, Sequence)]
struct Typed {
    kind: ObjectIdentifier,
    value: Any,
}

#[derive(Debug, Clone, PartialEq, Eq, Sequence)]
struct DigestInfo {
    algorithm: AlgorithmIdentifierOwned,
    digest: OctetString,
}

/// Why a signature is none, or not of what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadSignature {
    /// Not PKCS#7.
    #[error("it is not PKCS#7: {0}")]
    Malformed(#[from] der::Error),
    /// Something that nemos-image does not make.
    #[error("it has {0}, which nemos-image does not make")]
    Foreign(&'static str),
    /// Of something else.
    #[error("it signs something else")]
    Content,
    /// By another key.
    #[error("it was made by another key")]
    Key,
}

/// The digest of a program, signed for firmware.
#[derive(Debug, Clone)]
pub struct SignedProgram {
    /// SHA-256 of the program, without what changes when it is signed.
    pub digest: Vec<u8>,
    /// Whose key signed it.
    pub certificate: Certificate,
}

/// Signs bytes that travel apart from it, with the key for roots and without its certificate: the kernel knows it, or
/// does not trust it.
pub fn detached(keys: &Keys, message: &[u8]) -> Result<Vec<u8>, KeyError> {
    let signature = keys.sign(Purpose::Root, Scheme::Pkcs1, message)?;
    let content = ContentInfo { kind: DATA, content: None };
    assemble(content, None, None, keys.trusted(Purpose::Root), signature).map_err(encoding("the signature"))
}

/// Whether a detached signature is of that message and by that key.
pub fn check_detached(bytes: &[u8], message: &[u8], trusted: &Trusted) -> Result<(), BadSignature> {
    let (_, signer) = parse(bytes)?;
    if signer.attributes.is_some() {
        return Err(BadSignature::Foreign("signed attributes"));
    }
    let confirmed = trusted.confirms(Scheme::Pkcs1, message, signer.signature.as_bytes());
    if confirmed { Ok(()) } else { Err(BadSignature::Key) }
}

/// Signs the digest of a program, for firmware.
pub fn program(keys: &Keys, digest: Digest) -> Result<Vec<u8>, KeyError> {
    let (content, attributes) = indirect(digest).map_err(encoding("the signature"))?;
    // What is signed is the set itself, though it stands in the message under another tag.
    let message = attributes.to_der().map_err(encoding("the signature"))?;
    let signature = keys.sign(Purpose::SecureBoot, Scheme::Pkcs1, &message)?;
    let trusted = keys.trusted(Purpose::SecureBoot);
    let certificate = Some(trusted.certificate().clone());
    assemble(content, certificate, Some(attributes), trusted, signature).map_err(encoding("the signature"))
}

fn indirect(digest: Digest) -> der::Result<(ContentInfo, Attributes)> {
    let data = IndirectData {
        data: Typed { kind: PE_IMAGE, value: Any::from_der(&PE_IMAGE_DATA)? },
        digest: DigestInfo { algorithm: algorithm(SHA_256), digest: OctetString::new(digest.0.as_slice())? },
    };
    let content = Any::encode_from(&data)?;
    let attribute = |oid, value| Ok(Attribute { oid, values: SetOfVec::try_from(vec![value])? });
    // Of what is inside of the sequence, without its own tag and length.
    let inner = OctetString::new(Digest::of_bytes(content.value()).0.as_slice())?;
    let attributes: Vec<der::Result<Attribute>> = vec![
        attribute(CONTENT_TYPE, Any::encode_from(&INDIRECT_DATA)?),
        attribute(MESSAGE_DIGEST, Any::encode_from(&inner)?),
    ];
    let attributes = attributes.into_iter().collect::<der::Result<Vec<_>>>()?;
    Ok((ContentInfo { kind: INDIRECT_DATA, content: Some(content) }, SetOfVec::try_from(attributes)?))
}

fn algorithm(oid: ObjectIdentifier) -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid, parameters: Some(Any::null()) }
}

fn assemble(
    content: ContentInfo,
    certificate: Option<Certificate>,
    attributes: Option<Attributes>,
    trusted: &Trusted,
    signature: Vec<u8>,
) -> der::Result<Vec<u8>> {
    let own = trusted.certificate().tbs_certificate();
    let signer = SignerInfo {
        version: 1,
        certificate: IssuerAndSerial { issuer: own.issuer().clone(), serial: own.serial_number().clone() },
        digest: algorithm(SHA_256),
        attributes,
        scheme: algorithm(RSA),
        signature: OctetString::new(signature)?,
    };
    let data = SignedData {
        version: 1,
        digests: SetOfVec::try_from(vec![algorithm(SHA_256)])?,
        content,
        certificates: certificate.map(|certificate| SetOfVec::try_from(vec![certificate])).transpose()?,
        signers: SetOfVec::try_from(vec![signer])?,
    };
    ContentInfo { kind: SIGNED_DATA, content: Some(Any::encode_from(&data)?) }.to_der()
}

fn parse(bytes: &[u8]) -> Result<(SignedData, SignerInfo), BadSignature> {
    let outer = ContentInfo::from_der(bytes)?;
    let data: SignedData = match (outer.kind, outer.content) {
        (SIGNED_DATA, Some(content)) => content.decode_as()?,
        _ => return Err(BadSignature::Foreign("no signed data")),
    };
    match data.signers.as_slice() {
        [signer] if signer.digest.oid == SHA_256 => Ok((data.clone(), signer.clone())),
        _ => Err(BadSignature::Foreign("other than one signer with SHA-256")),
    }
}

impl SignedProgram {
    /// Reads the signature of a program, and checks it in itself: which program it is of and whether the key is to be trusted,
    /// the caller knows.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadSignature> {
        let (data, signer) = parse(bytes)?;
        let content = data.content.content.filter(|_| data.content.kind == INDIRECT_DATA);
        let content = content.ok_or(BadSignature::Foreign("no digest of a program"))?;
        let attributes = signer.attributes.ok_or(BadSignature::Foreign("no signed attributes"))?;
        let named = attributes.iter().find(|attribute| attribute.oid == MESSAGE_DIGEST);
        let named = named.and_then(|attribute| attribute.values.get(0)).ok_or(BadSignature::Content)?;
        if named.decode_as::<OctetString>()?.as_bytes() != Digest::of_bytes(content.value()).0 {
            return Err(BadSignature::Content);
        }
        let certificates = data.certificates.unwrap_or_default();
        let is_signers = |certificate: &&Certificate| {
            let own = certificate.tbs_certificate();
            *own.issuer() == signer.certificate.issuer && *own.serial_number() == signer.certificate.serial
        };
        let certificate = certificates.iter().find(is_signers).ok_or(BadSignature::Key)?.clone();
        let key = public_key(&certificate).ok_or(BadSignature::Foreign("a key that is not RSA"))?;
        if !confirms(&key, Scheme::Pkcs1, &attributes.to_der()?, signer.signature.as_bytes()) {
            return Err(BadSignature::Key);
        }
        let indirect: IndirectData = content.decode_as()?;
        Ok(SignedProgram { digest: indirect.digest.digest.into_bytes().to_vec(), certificate })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::Tool;
    use crate::keys::tests::folder;
    use proptest::prelude::*;
    use std::fs;

    fn keys() -> Keys {
        Keys::open(folder(), None).expect("keys")
    }

    #[test]
    fn openssl_confirms_a_detached_signature() {
        let scratch = tempfile::tempdir().expect("a temporary folder");
        let (message, signature) = (scratch.path().join("message"), scratch.path().join("signature"));
        fs::write(&message, "root hash").expect("the message");
        fs::write(&signature, detached(&keys(), b"root hash").expect("a signature")).expect("the signature");
        let check = || {
            let own = folder().join("root.crt");
            let tool = Tool::new("openssl").args(["smime", "-verify", "-binary", "-inform", "DER", "-noverify", "-in"]);
            tool.arg(&signature).arg("-content").arg(&message).arg("-certfile").arg(&own).output()
        };
        check().expect("openssl confirms it");
        fs::write(&message, "another").expect("another message");
        assert!(check().is_err());
    }

    #[test]
    fn a_detached_signature_is_of_one_message_and_by_one_key() {
        let (keys, scratch) = (keys(), Trusted::of(folder(), Purpose::Pcr).expect("another key"));
        let signature = detached(&keys, b"root hash").expect("a signature");
        assert_eq!(check_detached(&signature, b"root hash", keys.trusted(Purpose::Root)), Ok(()));
        assert_eq!(check_detached(&signature, b"another", keys.trusted(Purpose::Root)), Err(BadSignature::Key));
        assert_eq!(check_detached(&signature, b"root hash", &scratch), Err(BadSignature::Key));
    }

    #[test]
    fn a_signed_program_tells_its_digest_and_its_certificate() {
        let digest = Digest::of_bytes(b"program");
        let keys = keys();
        let signature = program(&keys, digest).expect("a signature");
        let read = SignedProgram::parse(&signature).expect("our own signature");
        assert_eq!(read.digest, digest.0);
        assert_eq!(read.certificate, *keys.trusted(Purpose::SecureBoot).certificate());
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_makes_another_program_of_it(at in 0_usize..1200, bit in 0_u32..8) {
            let digest = Digest::of_bytes(b"program");
            let mut signature = program(&keys(), digest).expect("a signature");
            let at = at % signature.len();
            signature[at] ^= 1 << bit;
            if let Ok(read) = SignedProgram::parse(&signature) {
                // A certificate whose own signature is changed is another certificate, and not the trusted one.
                prop_assert_eq!(read.digest, digest.0);
            }
        }
    }
}
