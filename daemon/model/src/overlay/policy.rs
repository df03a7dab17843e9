//! What an image's recipe says of the overlay.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where the policy is in the root; read it below [`LOWER_MOUNT`](crate::overlay::LOWER_MOUNT), which is verified. Without the
/// file, everything is as Linux has it.
pub const FILE: &str = "usr/share/nemos/overlay.json";

/// MiB that changes in memory need at least: a system that boots writes some.
const LEAST_MIB: u64 = 16;
/// Most percent of the memory: the rest is what programs run in.
const MOST_PERCENT: u64 = 90;

/// The policy: also the table `[overlay]` of a recipe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// How much memory changes may take in modes `volatile` and `readonly`; half of it, if the recipe does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volatile_size: Option<MemorySize>,
}

/// An amount of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MemorySize {
    /// So many percent of all that there is.
    Percent(u64),
    /// So many MiB.
    Mib(u64),
}

/// Text that is no amount of memory.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is no amount of memory for changes: write 1% to {MOST_PERCENT}%, or {LEAST_MIB}MiB or more")]
pub struct InvalidMemorySize(String);

impl MemorySize {
    /// As Linux has it where nobody says anything.
    pub const DEFAULT: MemorySize = MemorySize::Percent(50);

    /// Bytes of a memory of that many bytes.
    pub const fn of(self, memory: u64) -> u64 {
        match self {
            MemorySize::Percent(percent) => memory / 100 * percent,
            MemorySize::Mib(mib) => mib << 20,
        }
    }

    /// As the option `size` of tmpfs(5) has it.
    pub fn option(self) -> String {
        match self {
            MemorySize::Percent(percent) => format!("{percent}%"),
            MemorySize::Mib(mib) => format!("{mib}m"),
        }
    }
}

impl FromStr for MemorySize {
    type Err = InvalidMemorySize;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| {
            let is_plain = digits.bytes().all(|digit| digit.is_ascii_digit()) && digits.len() <= 7;
            digits.parse::<u64>().ok().filter(|_| is_plain)
        };
        let percent = text.strip_suffix('%').and_then(number).filter(|percent| (1..=MOST_PERCENT).contains(percent));
        let mib = text.strip_suffix("MiB").and_then(number).filter(|mib| *mib >= LEAST_MIB);
        percent
            .map(MemorySize::Percent)
            .or(mib.map(MemorySize::Mib))
            .ok_or_else(|| InvalidMemorySize(text.chars().filter(|letter| !letter.is_control()).take(80).collect()))
    }
}

impl TryFrom<String> for MemorySize {
    type Error = InvalidMemorySize;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemorySize::Percent(percent) => write!(f, "{percent}%"),
            MemorySize::Mib(mib) => write!(f, "{mib}MiB"),
        }
    }
}

impl From<MemorySize> for String {
    fn from(size: MemorySize) -> Self {
        size.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_amount_is_written_as_percent_or_mib() {
        assert_eq!("25%".parse(), Ok(MemorySize::Percent(25)));
        assert_eq!("256MiB".parse(), Ok(MemorySize::Mib(256)));
        assert_eq!("25%".parse::<MemorySize>().unwrap().of(1000), 250);
        assert_eq!("16MiB".parse::<MemorySize>().unwrap().of(1000), 16 << 20);
        for wrong in ["", "0%", "91%", "15MiB", "+50%", "50 %", "50", "1GiB", "99999999999MiB", "-1%", "%", "MiB"] {
            assert!(wrong.parse::<MemorySize>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_policy_says_only_what_its_recipe_does() {
        assert_eq!(serde_json::to_string(&Policy::default()).unwrap(), "{}");
        let policy: Policy = serde_json::from_str(r#"{"volatile-size": "40%"}"#).unwrap();
        assert_eq!(policy.volatile_size, Some(MemorySize::Percent(40)));
        assert!(serde_json::from_str::<Policy>(r#"{"volatile-size": "much"}"#).is_err());
        assert!(serde_json::from_str::<Policy>(r#"{"size": "40%"}"#).is_err());
    }

    proptest! {
        #[test]
        fn an_amount_that_is_read_is_the_one_that_was_written(text in "[0-9]{0,9}(%|MiB)?") {
            if let Ok(size) = text.parse::<MemorySize>() {
                prop_assert_eq!(size.to_string().parse(), Ok(size));
            }
        }
    }
}
