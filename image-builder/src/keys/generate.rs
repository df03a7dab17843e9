//! `nemos-image keys`: a set for development.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use getrandom::SysRng;
use rsa::PrivateKey;
use rsa::pkcs1v15::SigningKey;
use rsa::pkcs8::{EncodePrivateKey, LineEnding};
use rsa::rand_core::TryRng;
use sha2::Sha256;
use x509_cert::TbsCertificate;
use x509_cert::builder::profile::BuilderProfile;
use x509_cert::builder::{self, Builder, CertificateBuilder};
use x509_cert::der::EncodePem;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, KeyUsages, SubjectKeyIdentifier};
use x509_cert::ext::{Extension, ToExtension};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{SubjectPublicKeyInfo, SubjectPublicKeyInfoRef};
use x509_cert::time::Validity;

use super::{DEVELOPMENT, KeyError, Purpose, encoding};

/// What every TPM can check.
const BITS: usize = 2048;
const YEARS: u64 = 10;

const README: &str = "\
These keys are for DEVELOPMENT ONLY: made by `nemos-image keys`, unencrypted, and known to whoever has this folder.
A device that trusts them trusts everybody who does. Never sign with them what leaves the laboratory.

    secure-boot   signs the unified kernel image, for the firmware
    root          signs the root hash, for the kernel, and the metadata behind the root
    pcr           signs what a TPM must have measured

    NAME.key      private key   (keep it away from the build machine: nemos-image build --sign-with COMMAND)
    NAME.crt      certificate
";

/// Make a set of keys for development
///
/// Three RSA keys with certificates of their own: for the firmware, the kernel and a TPM. They are unencrypted, and say in
/// their subjects that they are for development only.
#[derive(Debug, Clone, Args)]
pub struct KeysArgs {
    /// Folder for the keys; it must not exist yet
    #[arg(long, value_name = "DIR", default_value = "keys")]
    pub output: PathBuf,
}

/// Makes the set; the folder appears when all of it is there.
pub fn generate(args: &KeysArgs) -> Result<PathBuf, KeyError> {
    let folder = &args.output;
    if folder.symlink_metadata().is_ok() {
        return Err(KeyError::Exists(folder.clone()));
    }
    let unwritable = |source| KeyError::Unwritable { path: folder.clone(), source };
    let parent = folder.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(unwritable)?;
    let new = tempfile::Builder::new().prefix(".keys-").tempdir_in(parent).map_err(unwritable)?;
    let set = new.path().join("set");
    fs::DirBuilder::new().mode(0o700).create(&set).map_err(unwritable)?;
    for purpose in Purpose::ALL {
        let key = PrivateKey::new(&mut SysRng, BITS).map_err(encoding("the private key"))?;
        let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(encoding("the private key"))?;
        write(&set.join(format!("{purpose}.key")), 0o600, pem.as_bytes())?;
        let certificate = certify(&key, purpose).map_err(encoding("the certificate"))?;
        write(&set.join(format!("{purpose}.crt")), 0o644, certificate.as_bytes())?;
    }
    write(&set.join("README"), 0o644, README.as_bytes())?;
    fs::rename(&set, folder).map_err(unwritable)?;
    Ok(folder.clone())
}

fn write(path: &Path, mode: u32, content: &[u8]) -> Result<(), KeyError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = file.and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()));
    written.map_err(|source| KeyError::Unwritable { path: path.to_owned(), source })
}

/// A certificate in PEM, signed by its own key.
fn certify(key: &PrivateKey, purpose: Purpose) -> Result<String, builder::Error> {
    let mut serial = [0; 16];
    SysRng.try_fill_bytes(&mut serial).map_err(|_| x509_cert::der::Error::from(x509_cert::der::ErrorKind::Failed))?;
    let subject = Name::from_str(&format!("CN=nemos {purpose} key - {DEVELOPMENT}"))?;
    let validity = Validity::from_now(Duration::from_secs(YEARS * 365 * 86400))?;
    let public = SubjectPublicKeyInfo::from_key(key.as_public_key())?;
    let builder = CertificateBuilder::new(SelfSigned { subject }, SerialNumber::new(&serial)?, validity, public)?;
    let signer = SigningKey::<Sha256>::new(key.clone());
    let certificate = builder.build::<_, rsa::pkcs1v15::Signature>(&signer)?;
    Ok(certificate.to_pem(LineEnding::LF)?)
}

/// Signs data, and no other certificate.
struct SelfSigned {
    subject: Name,
}

impl BuilderProfile for SelfSigned {
    fn get_issuer(&self, subject: &Name) -> Name {
        subject.clone()
    }

    fn get_subject(&self) -> Name {
        self.subject.clone()
    }

    fn build_extensions(
        &self,
        public: SubjectPublicKeyInfoRef<'_>,
        _issuer: SubjectPublicKeyInfoRef<'_>,
        certificate: &TbsCertificate,
    ) -> builder::Result<Vec<Extension>> {
        let subject = certificate.subject();
        let constraints = BasicConstraints { ca: false, path_len_constraint: None }.to_extension(subject, &[])?;
        let usage = KeyUsage(KeyUsages::DigitalSignature.into()).to_extension(subject, &[])?;
        let identifier = SubjectKeyIdentifier::try_from(public)?.to_extension(subject, &[])?;
        Ok(vec![constraints, usage, identifier])
    }
}
