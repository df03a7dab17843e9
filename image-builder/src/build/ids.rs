//! The numbers that other builders draw at random: here they follow from what went into the image, so that the same inputs
//! make the same bytes, and two different images never share an identity.

use uuid::Uuid;

use super::cache::Digest;

/// The source of all numbers of one image.
#[derive(Debug, Clone, Copy)]
pub struct Ids(Digest);

impl Ids {
    /// From everything that went into the image.
    pub fn new(inputs: Digest) -> Self {
        Ids(inputs)
    }

    /// A digest for one purpose.
    pub fn digest(&self, purpose: &str) -> Digest {
        Digest::of([self.0.0.as_slice(), purpose.as_bytes()])
    }

    /// A UUID for one purpose.
    pub fn uuid(&self, purpose: &str) -> Uuid {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.digest(purpose).0[..16]);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }

    /// The volume id of a FAT file system, in hexadecimal.
    pub fn volume_id(&self, purpose: &str) -> String {
        self.digest(purpose).hex()[..8].to_owned()
    }

    /// Names this very image.
    pub fn build_id(&self) -> String {
        self.0.hex()[..16].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_purpose_of_each_image_has_its_own_number() {
        let ids = Ids::new(Digest::of([b"one".as_slice()]));
        let others = Ids::new(Digest::of([b"other".as_slice()]));
        assert_eq!(ids.uuid("disk"), ids.uuid("disk"));
        assert_ne!(ids.uuid("disk"), ids.uuid("p.lxroot"));
        assert_ne!(ids.uuid("disk"), others.uuid("disk"));
        assert_eq!(ids.volume_id("esp").len(), 8);
    }
}
