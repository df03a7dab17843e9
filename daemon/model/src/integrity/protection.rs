//! How the kernel protects the root beyond comparing it with its root hash: what it does on damage, and with what it mends it.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use thiserror::Error;

/// The word of the kernel's command line that says it, as systemd-veritysetup-generator(8) has it.
pub const PROTECTION_OPTION: &str = "systemd.verity_root_options";

/// Parity bytes of each code word, of which at most these many are of use.
pub const FEC_ROOTS: std::ops::RangeInclusive<u32> = 2..=24;

/// What the kernel does when it reads a damaged block that it cannot mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnCorruption {
    /// It refuses the read and says so. The device goes on without what is damaged, and can tell.
    #[default]
    Report,
    /// It restarts the machine: right where another copy of the root is booted then.
    Restart,
    /// It panics, and does then what it does on a panic.
    Panic,
}

impl OnCorruption {
    const ALL: [OnCorruption; 3] = [OnCorruption::Report, OnCorruption::Restart, OnCorruption::Panic];

    /// Its name in a recipe.
    pub const fn name(self) -> &'static str {
        match self {
            OnCorruption::Report => "report",
            OnCorruption::Restart => "restart",
            OnCorruption::Panic => "panic",
        }
    }

    const fn option(self) -> Option<&'static str> {
        match self {
            OnCorruption::Report => None,
            OnCorruption::Restart => Some("restart-on-corruption"),
            OnCorruption::Panic => Some("panic-on-corruption"),
        }
    }
}

impl fmt::Display for OnCorruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Forward error correction: Reed-Solomon codes of 255 bytes behind the hash tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fec {
    /// Parity bytes of each code word, in [`FEC_ROOTS`].
    pub roots: u32,
    /// Where the parity begins on the root's partition, in bytes.
    pub offset: u64,
}

/// All of it; as text, the options of veritytab(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Protection {
    /// What happens on damage.
    pub on_corruption: OnCorruption,
    /// Where the superblock of the hash tree is, in bytes; `None` for right behind the squashfs. Said so that a damaged
    /// superblock of the squashfs can be mended, too.
    pub hash_offset: Option<u64>,
    /// What mends it.
    pub fec: Option<Fec>,
}

/// Text that does not say how to protect a root.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidProtection {
    /// An option that nemos does not know, or a number that is none.
    #[error("`{0}` is not an option of the root that nemos knows")]
    Unknown(String),
    /// A place that is not where a block begins.
    #[error("hash-offset= and fec-offset= are in bytes, and multiples of 4096")]
    Offset,
    /// Parity of which the size or the place is not said, or cannot be.
    #[error("error correction takes both fec-offset= and fec-roots= (2 to 24)")]
    Fec,
}

impl FromStr for Protection {
    type Err = InvalidProtection;

    fn from_str(text: &str) -> Result<Self, InvalidProtection> {
        let (mut on_corruption, mut hash_offset, mut roots, mut offset) = (OnCorruption::Report, None, None, None);
        for option in text.split(',').filter(|option| !option.is_empty()) {
            let unknown = || InvalidProtection::Unknown(option.chars().take(80).collect());
            if let Some(policy) = OnCorruption::ALL.into_iter().find(|policy| policy.option() == Some(option)) {
                on_corruption = policy;
            } else if let Some(count) = option.strip_prefix("fec-roots=") {
                roots = Some(count.parse().map_err(|_| unknown())?);
            } else if let Some(bytes) = option.strip_prefix("fec-offset=") {
                offset = Some(block(bytes)?);
            } else if let Some(bytes) = option.strip_prefix("hash-offset=") {
                hash_offset = Some(block(bytes)?);
            } else {
                return Err(unknown());
            }
        }
        let fec = match (roots, offset) {
            (None, None) => None,
            (Some(roots), Some(offset)) if FEC_ROOTS.contains(&roots) => Some(Fec { roots, offset }),
            _ => return Err(InvalidProtection::Fec),
        };
        Ok(Protection { on_corruption, hash_offset, fec })
    }
}

/// Where a block begins, and not the first one.
fn block(text: &str) -> Result<u64, InvalidProtection> {
    let bytes: u64 = text.parse().map_err(|_| InvalidProtection::Offset)?;
    if bytes > 0 && bytes.is_multiple_of(4096) { Ok(bytes) } else { Err(InvalidProtection::Offset) }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = self.on_corruption.option().map(str::to_owned);
        let fec = self.fec.map(|Fec { roots, offset }| format!("fec-offset={offset},fec-roots={roots}"));
        let hash_offset = self.hash_offset.map(|offset| format!("hash-offset={offset}"));
        let options: Vec<String> = policy.into_iter().chain(hash_offset).chain(fec).collect();
        f.write_str(&options.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            policy in 0_usize..3, fec: bool, roots in FEC_ROOTS, block in 1_u64..1 << 40, hash in 0_u64..1 << 40,
        ) {
            let fec = fec.then_some(Fec { roots, offset: block * 4096 });
            let hash_offset = (hash > 0).then_some(hash * 4096);
            let protection = Protection { on_corruption: OnCorruption::ALL[policy], hash_offset, fec };
            prop_assert_eq!(protection.to_string().parse::<Protection>(), Ok(protection));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<Protection>();
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in ["ignore-corruption", "fec-roots=2", "fec-offset=8192", "fec-roots=1,fec-offset=8192"] {
            assert!(text.parse::<Protection>().is_err(), "{text}");
        }
        assert!("fec-roots=2,fec-offset=8191".parse::<Protection>().is_err(), "not a block's beginning");
    }
}
