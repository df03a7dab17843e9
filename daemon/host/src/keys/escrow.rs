//! Secrets that only their recipients can read: in the format of age, so that `age --decrypt` opens them.

use std::io::{self, Write as _};
use std::str::FromStr as _;

use age::armor::{ArmoredWriter, Format};
use age::x25519;
use thiserror::Error;

use crate::keys::Secret;

/// Most recipients of a secret: what is sealed for them all must fit into a pipe.
const MOST: usize = 32;

/// Somebody that a secret is sealed for: the public half of their age key.
#[derive(Clone)]
pub struct Recipient(x25519::Recipient);

/// A secret that cannot be sealed.
#[derive(Debug, Error)]
pub enum EscrowError {
    /// Not the public half of a key.
    #[error("`{0}` is no recipient: that is the public half of an age key, as age1...")]
    NoRecipient(String),
    /// Too many.
    #[error("a secret is sealed for at most {MOST} recipients")]
    TooMany,
    /// It cannot be encrypted.
    #[error("the secret cannot be sealed: {0}")]
    Failed(String),
}

impl Recipient {
    /// Reads recipients.
    pub fn parse_all(texts: &[String]) -> Result<Vec<Recipient>, EscrowError> {
        if texts.len() > MOST {
            return Err(EscrowError::TooMany);
        }
        let parse = |text: &String| {
            let no_recipient =
                |_| EscrowError::NoRecipient(text.chars().filter(|c| !c.is_control()).take(80).collect());
            x25519::Recipient::from_str(text).map(Recipient).map_err(no_recipient)
        };
        texts.iter().map(parse).collect()
    }
}

impl Secret {
    /// Seals it for all of the recipients, each of whom can open it alone: ASCII armour around age.
    pub fn seal(&self, recipients: &[Recipient]) -> Result<Secret, EscrowError> {
        let failed = |error: &dyn std::fmt::Display| EscrowError::Failed(error.to_string());
        let recipients = recipients.iter().map(|recipient| &recipient.0 as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(|error| failed(&error))?;
        let write = || -> io::Result<Vec<u8>> {
            let armour = ArmoredWriter::wrap_output(Vec::new(), Format::AsciiArmor)?;
            let mut writer = encryptor.wrap_output(armour)?;
            writer.write_all(self.expose())?;
            writer.finish()?.finish()
        };
        write().map(|bytes| Secret::from_bytes(bytes.into())).map_err(|error| failed(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_recipient_opens_it_and_nobody_else_does() {
        let [one, two, other] = [(); 3].map(|()| x25519::Identity::generate());
        let texts = [&one, &two].map(|identity| identity.to_public().to_string());
        let secret = Secret::new_recovery_key().unwrap();
        let sealed = secret.seal(&Recipient::parse_all(&texts).unwrap()).unwrap();
        assert!(sealed.expose().starts_with(b"-----BEGIN AGE ENCRYPTED FILE-----"));
        for identity in [&one, &two] {
            assert_eq!(age::decrypt(identity, sealed.expose()).unwrap(), secret.expose());
        }
        assert!(age::decrypt(&other, sealed.expose()).is_err());
    }

    #[test]
    fn what_is_no_recipient_is_named() {
        let error = Recipient::parse_all(&["age1nobody".to_owned()]).err().unwrap();
        assert!(error.to_string().contains("age1nobody"), "{error}");
        let secret_half = x25519::Identity::generate().to_string();
        let secret_half = age::secrecy::ExposeSecret::expose_secret(&secret_half).to_owned();
        assert!(Recipient::parse_all(&[secret_half]).is_err());
    }
}
