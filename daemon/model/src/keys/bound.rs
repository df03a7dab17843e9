//! Which volume the TPM vouches for.
//!
//! What `p.lxstate` says of the overlay's volume can be rewritten by whoever has the disk, together with the volume: that would
//! have the device run their files as root. So a device with a TPM has it keep a digest of the volume's identity, from the
//! moment that the volume is made, and opens no other, whatever the state says.
//!
//! ```text
//!     the TPM keeps      the volume is
//!     ---------------------------------------------------------------------------------
//!     its identity       opened
//!     another one        not opened, nor taken over: the boot is degraded
//!     none               opened, and told; bound, if somebody typed what opened it
//! ```
//!
//! A TPM keeps none if it was cleared or is another, or if an older nemos made the volume. Who has the disk and clears the TPM
//! can still have their own volume opened: on a device whose TPM has by then forgotten every key and every secret that was worth
//! it, and that says so. It is not vouched for by itself: what the demo key opened is given a key of the TPM, so that this says
//! nothing of who made it, and a key file or a token is plugged in by whoever has the device. Only somebody who types a passphrase
//! or recovery key vouches for it, at the console. Who takes the TPM away has a device that has no TPM. An older copy of the same
//! volume is the same volume here. And what a reset keeps waits on `p.lxstate` under the demo key: who has the disk can have the
//! device begin a reset, with files of theirs in the place of what it kept.
//!
//! A reset makes another volume, whose identity the TPM takes before the state does: if the power goes in between, that step
//! is done again.

use sha2::{Digest as _, Sha256};

use crate::keys::{Identity, Provider};

/// What a TPM keeps of an identity.
pub type Fingerprint = [u8; 32];

/// What the TPM says of the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// There is none to ask.
    NoTpm,
    /// It keeps this.
    To(Fingerprint),
    /// It keeps nothing.
    ToNothing,
    /// It cannot be asked, and why.
    Unknown(String),
}

impl Identity {
    /// What a TPM keeps of it.
    pub fn fingerprint(&self) -> Fingerprint {
        let digest = Sha256::new().chain_update(b"nemos: the overlay's volume\n").chain_update(self.uuid);
        let digest = self.key.map_or(digest.clone(), |key| digest.chain_update(key.as_bytes()));
        digest.finalize().into()
    }
}

impl Bound {
    /// Whether the volume that was found may be opened, as far as the TPM knows.
    pub fn allows(&self, found: &Identity) -> bool {
        !matches!(self, Bound::To(fingerprint) if *fingerprint != found.fingerprint())
    }

    /// Whether the TPM is to keep the identity of the volume that was opened so from now on.
    pub fn begins_with(&self, provider: Provider) -> bool {
        *self == Bound::ToNothing && provider.needs_somebody()
    }

    /// Why nobody vouches for the volume that is open, where there is a TPM that could.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Bound::NoTpm | Bound::To(_) => None,
            Bound::ToNothing => Some("it keeps nothing of it: it was cleared, or is another one".into()),
            Bound::Unknown(why) => Some(why.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyDigest;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn identity(uuid: u128, key: Option<u8>) -> Identity {
        Identity { uuid: Uuid::from_u128(uuid), key: key.map(|byte| KeyDigest::from_bytes([byte; 32])) }
    }

    #[test]
    fn a_tpm_without_a_volume_takes_none_that_opens_without_somebody() {
        assert!(Bound::ToNothing.begins_with(Provider::RecoveryKey));
        for unattended in [Provider::DemoKey, Provider::Tpm2, Provider::KeyFile, Provider::Pkcs11] {
            assert!(!Bound::ToNothing.begins_with(unattended), "everybody can make such a volume: {unattended}");
        }
        let bound = Bound::To(identity(1, Some(1)).fingerprint());
        for other in [Bound::NoTpm, Bound::Unknown("it hangs".into()), bound.clone()] {
            assert!(!other.begins_with(Provider::RecoveryKey), "{other:?}");
        }
        let told =
            [Bound::NoTpm, bound, Bound::ToNothing, Bound::Unknown("it hangs".into())].map(|bound| bound.trouble());
        assert!(matches!(told, [None, None, Some(_), Some(_)]), "{told:?}");
    }

    proptest! {
        /// Whatever they are: the same UUID and the same volume key, or not.
        #[test]
        fn only_the_volume_that_it_keeps_is_allowed(
            ours in (0..3u128, prop::option::of(0..3u8)), found in (0..3u128, prop::option::of(0..3u8)),
        ) {
            let allowed = Bound::To(identity(ours.0, ours.1).fingerprint()).allows(&identity(found.0, found.1));
            prop_assert_eq!(allowed, ours == found);
            prop_assert!(Bound::ToNothing.allows(&identity(found.0, found.1)));
        }
    }
}
