//! The image a device runs: its name and version, as its os-release says.

use serde::{Deserialize, Serialize};

/// Where a root has os-release. Read it below [`LOWER_MOUNT`](crate::overlay::LOWER_MOUNT), which is verified: what the
/// running system sees lies on the overlay, where it can be changed.
pub const OS_RELEASE: &str = "usr/lib/os-release";

/// An image, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Image {
    /// `IMAGE_ID`; empty if it has none.
    pub id: String,
    /// `IMAGE_VERSION`; empty if it has none.
    pub version: String,
}

impl Image {
    /// Reads os-release(5). What it does not say stays empty.
    pub fn parse(os_release: &str) -> Self {
        Image { id: value(os_release, "IMAGE_ID"), version: value(os_release, "IMAGE_VERSION") }
    }
}

/// A value of os-release(5); empty if it has none of that name.
pub(crate) fn value(os_release: &str, name: &str) -> String {
    let assigned = |line: &str| line.trim().strip_prefix(name)?.strip_prefix('=').map(unquote);
    os_release.lines().filter_map(assigned).next_back().unwrap_or_default()
}

/// Image names and versions have no characters that need an escape; quotes are all there is to undo.
fn unquote(value: &str) -> String {
    let inner = |quote| value.strip_prefix(quote)?.strip_suffix(quote);
    inner('"').or_else(|| inner('\'')).unwrap_or(value).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_images_name_and_version_are_found() {
        let image = Image::parse("NAME=\"Debian\"\nIMAGE_ID=nemos-image\nIMAGE_VERSION='1.2.3'\n");
        assert_eq!(image, Image { id: "nemos-image".into(), version: "1.2.3".into() });
    }

    #[test]
    fn an_os_release_without_an_image_says_nothing() {
        assert_eq!(Image::parse("NAME=Debian\nMY_IMAGE_ID=7\nIMAGE_IDENTITY=8"), Image::default());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = Image::parse(&text);
        }
    }
}
