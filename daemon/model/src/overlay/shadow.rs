//! Which changes hide something that a newer image has changed.
//!
//! A change is made on what an image has at its path: its base. It is shadowed as long as the running image has something else
//! there. What was changed anew on the running image is not, even if it is the same path: whoever did that has seen it. So what is
//! noted of a shadowed path is its base, and a mark by which the change itself is known again.
//!
//! ```text
//!     image A                            image B
//!     change of /etc/x, on A's /etc/x -> B has another /etc/x: shadowed -+-> changed anew, or taken back: not any more
//!                                                                        +-> image A again: not any more
//!                                                                        +-> image C, with B's /etc/x: still shadowed
//! ```

use crate::health::{Finding, Health};
use crate::overlay::index::Fingerprint;

/// The folder on the overlay's volume with what is known of images.
pub const IMAGES_FOLDER: &str = "images";

/// Decides of a change whether it is shadowed, and gives its base if it is.
///
/// `noted` is the base that was noted of the same change before; `older` is what the image had before this one. `own` is what the
/// running image has at the path, and `all` that at and below it: of what hides a whole folder, all of that is the base.
pub fn judge<E>(
    noted: Option<Fingerprint>,
    older: Fingerprint,
    own: Fingerprint,
    all: impl FnOnce() -> Result<Fingerprint, E>,
) -> Result<Option<Fingerprint>, E> {
    let base = noted.unwrap_or(older);
    Ok((base != own && base != all()?).then_some(base))
}

/// What somebody should know of so many changes that are shadowed.
pub fn finding(count: Result<usize, String>) -> Option<Finding> {
    let message = match count {
        Ok(0) => return None,
        Ok(count) => format!(
            "{count} changes to the root hide what this image has changed; `nemosctl overlay diff --shadowed` lists them, `nemosctl overlay revert` takes one back"
        ),
        Err(error) => format!("which changes to the root hide what this image has changed is not known: {error}"),
    };
    Some(Finding { health: Health::Warning, message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever images follow each other, a change that nobody touches is shadowed exactly by those that differ from its base.
        #[test]
        fn a_change_is_shadowed_by_what_is_not_its_base(images in prop::collection::vec(0..3u8, 1..8)) {
            let of = |image: u8| Fingerprint([image + 1; 16]);
            let base = of(images[0]);
            let mut noted = None;
            for pair in images.windows(2) {
                let (older, now) = (of(pair[0]), of(pair[1]));
                noted = judge(noted, older, now, || Ok::<_, ()>(now)).unwrap();
                prop_assert_eq!(noted, (now != base).then_some(base));
            }
        }
    }
}
