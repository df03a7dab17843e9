//! Records of pax: what a tar header has no room for. `LENGTH KEY=VALUE\n`, where any byte may be in the value.
//!
//! Source: pax(1) of POSIX.1-2024, "pax Extended Header".

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Most bytes of the records of one entry: a kernel has 64 KiB of attributes for a file, or a few times that.
pub const MAX_RECORDS: u64 = 1 << 20;

/// Names of extended attributes begin so, as keys.
pub const ATTRIBUTE: &str = "SCHILY.xattr.";

/// Records that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadRecords {
    /// They are not records.
    #[error("what precedes an entry are no records of pax")]
    Malformed,
    /// One is of a kind that no configuration has.
    #[error("an entry has a record `{0}`, which no configuration has")]
    Unknown(String),
    /// It is there twice.
    #[error("an entry has two records `{0}`")]
    Twice(String),
}

/// What the records of an entry say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    /// Its path.
    pub path: Option<Vec<u8>>,
    /// What it is a link to.
    pub link: Option<Vec<u8>>,
    /// When it was modified.
    pub modified: Option<Modified>,
    /// Its extended attributes, in the order of their names.
    pub attributes: Vec<(String, Vec<u8>)>,
}

impl Records {
    /// Reads them.
    pub fn parse(mut bytes: &[u8]) -> Result<Self, BadRecords> {
        let mut records = Records::default();
        while !bytes.is_empty() {
            let (key, value, rest) = split(bytes).ok_or(BadRecords::Malformed)?;
            records.take(key, value)?;
            bytes = rest;
        }
        records.attributes.sort();
        let twice = records.attributes.windows(2).find(|pair| pair[0].0 == pair[1].0);
        twice.map_or(Ok(()), |pair| Err(BadRecords::Twice(shown(&pair[0].0))))?;
        Ok(records)
    }

    fn take(&mut self, key: &str, value: &[u8]) -> Result<(), BadRecords> {
        let is_first = match key {
            "path" => self.path.replace(value.to_vec()).is_none(),
            "linkpath" => self.link.replace(value.to_vec()).is_none(),
            "mtime" => {
                let text = std::str::from_utf8(value).map_err(|_| BadRecords::Malformed)?;
                self.modified.replace(text.parse()?).is_none()
            }
            _ => {
                let name = key.strip_prefix(ATTRIBUTE).filter(|name| !name.is_empty() && !name.contains('\0'));
                let name = name.ok_or_else(|| BadRecords::Unknown(shown(key)))?;
                self.attributes.push((name.to_owned(), value.to_vec()));
                true
            }
        };
        if is_first { Ok(()) } else { Err(BadRecords::Twice(shown(key))) }
    }

    /// Them as keys and values.
    pub fn pairs(&self) -> Vec<(String, Vec<u8>)> {
        let path = self.path.iter().map(|path| ("path".to_owned(), path.clone()));
        let link = self.link.iter().map(|link| ("linkpath".to_owned(), link.clone()));
        let modified = self.modified.iter().map(|time| ("mtime".to_owned(), time.to_string().into_bytes()));
        let attributes = self.attributes.iter().map(|(name, value)| (format!("{ATTRIBUTE}{name}"), value.clone()));
        path.chain(link).chain(modified).chain(attributes).collect()
    }
}

fn shown(key: &str) -> String {
    key.escape_debug().take(80).collect()
}

/// The first record, and what comes after it.
fn split(bytes: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let digits = bytes.iter().take(8).position(|byte| *byte == b' ')?;
    let length: usize =
        std::str::from_utf8(&bytes[..digits]).ok().filter(|text| !text.starts_with('+'))?.parse().ok()?;
    let record = bytes.get(digits + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((std::str::from_utf8(&record[..equals]).ok()?, &record[equals + 1..], &bytes[length..]))
}

/// When a file was modified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Modified {
    /// Seconds since the epoch.
    pub seconds: i64,
    /// And nanoseconds, less than 1,000,000,000.
    pub nanoseconds: u32,
}

const NANOSECONDS: u32 = 1_000_000_000;

impl fmt::Display for Modified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Modified { seconds, nanoseconds } = *self;
        match (seconds, nanoseconds) {
            (seconds, 0) => write!(f, "{seconds}"),
            // Half a second before -1 is -1.5, which is seconds -2.
            (..0, _) => write!(f, "-{}.{:09}", (seconds + 1).unsigned_abs(), NANOSECONDS - nanoseconds),
            _ => write!(f, "{seconds}.{nanoseconds:09}"),
        }
    }
}

impl FromStr for Modified {
    type Err = BadRecords;

    fn from_str(text: &str) -> Result<Self, BadRecords> {
        let read = || {
            let (positive, is_negative) = text.strip_prefix('-').map_or((text, false), |rest| (rest, true));
            let (whole, fraction) = positive.split_once('.').unwrap_or((positive, "0"));
            let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            if !is_number(whole) || !is_number(fraction) || fraction.len() > 9 {
                return None;
            }
            let nanoseconds: u32 = format!("{fraction:0<9}").parse().ok()?;
            let seconds: i64 = if is_negative { format!("-{whole}") } else { whole.to_owned() }.parse().ok()?;
            if is_negative && nanoseconds > 0 {
                return Some(Modified { seconds: seconds.checked_sub(1)?, nanoseconds: NANOSECONDS - nanoseconds });
            }
            Some(Modified { seconds, nanoseconds })
        };
        read().ok_or(BadRecords::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(pairs: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (key, value) in pairs {
            let rest = key.len() + value.len() + 3;
            let length = (rest + 1..rest + 9).find(|length| rest + length.to_string().len() == *length).unwrap();
            bytes.extend(format!("{length} {key}=").bytes().chain(value.iter().copied()).chain([b'\n']));
        }
        bytes
    }

    #[test]
    fn any_byte_may_be_in_a_value() {
        let read = Records::parse(&written(&[
            ("SCHILY.xattr.user.b", b"1\n9 x=\n"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
            ("path", b"\xff\n"),
        ]));
        let read = read.unwrap();
        assert_eq!(read.path.as_deref(), Some(&b"\xff\n"[..]));
        let names: Vec<&str> = read.attributes.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["security.capability", "user.b"]);
    }

    #[test]
    fn what_a_configuration_does_not_have_is_refused() {
        for key in ["size", "uid", "GNU.sparse.map", "SCHILY.xattr.", "comment"] {
            assert_eq!(Records::parse(&written(&[(key, b"1")])), Err(BadRecords::Unknown(key.into())));
        }
        for pairs in
            [[("path", &b"a"[..]), ("path", b"b")], [("SCHILY.xattr.user.a", b"a"), ("SCHILY.xattr.user.a", b"b")]]
        {
            assert!(matches!(Records::parse(&written(&pairs)), Err(BadRecords::Twice(_))));
        }
        for bytes in [&b"x"[..], b"9 path=a", b"99 path=a\n", b"3 \n", b"+9 path=a\n", b"0 \n", b"9 path=ab\n\n"] {
            assert_eq!(Records::parse(bytes), Err(BadRecords::Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn times_before_1970_are_times() {
        let time = Modified { seconds: -2, nanoseconds: 500_000_000 };
        assert_eq!(time.to_string(), "-1.500000000");
        assert_eq!("-1.5".parse(), Ok(time));
        for text in ["", "-", "1.", ".5", "1.0000000001", "1e9", "+1", "9223372036854775808", "-9223372036854775808.1"]
        {
            assert_eq!(text.parse::<Modified>(), Err(BadRecords::Malformed), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            path: Option<Vec<u8>>, link: Option<Vec<u8>>, time: Option<(i64, u32)>,
            attributes in prop::collection::btree_map("[a-z.]{1,9}", any::<Vec<u8>>(), 0..4),
        ) {
            let modified = time.map(|(seconds, rest)| Modified { seconds, nanoseconds: rest % NANOSECONDS });
            let records = Records { path, link, modified, attributes: attributes.into_iter().collect() };
            let pairs = records.pairs();
            let pairs: Vec<(&str, &[u8])> = pairs.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
            prop_assert_eq!(Records::parse(&written(&pairs)), Ok(records));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
            let _ = Records::parse(&bytes);
        }
    }
}
