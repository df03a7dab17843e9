//! Words that are stored and sent over the bus.

use thiserror::Error;

/// A word that is none of those.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is not a word that this nemos knows")]
pub struct UnknownWord(pub String);

/// An enum each of whose variants is a word.
macro_rules! words {
    ($(#[doc = $doc:literal])+ $name:ident { $($(#[doc = $variant_doc:literal])+ $variant:ident = $word:literal,)+ }) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[doc = $variant_doc])+ #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: &[$name] = &[$($name::$variant),+];

            /// The word that is stored and sent.
            pub const fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::words::UnknownWord;

            fn from_str(word: &str) -> Result<Self, Self::Err> {
                let known = $name::ALL.iter().copied().find(|known| known.name() == word);
                known.ok_or_else(|| $crate::words::UnknownWord(word.chars().take(80).collect()))
            }
        }
    };
}

pub(crate) use words;
