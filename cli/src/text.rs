//! Numbers and times, for people.

use jiff::Timestamp;

/// Bytes in the largest unit of which there is at least one: `512 MiB`, `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut tenths = u128::from(count) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} {}", UNITS[unit]),
        (whole, _) if whole >= 100 => format!("{whole} {}", UNITS[unit]),
        (whole, tenth) => format!("{whole}.{tenth} {}", UNITS[unit]),
    }
}

/// Seconds since the epoch as ISO 8601 in UTC; `None` for 0, which stands for a time that is not known.
pub fn time(seconds: u64) -> Option<String> {
    let seconds = i64::try_from(seconds).ok().filter(|seconds| *seconds > 0)?;
    Timestamp::from_second(seconds).ok().map(|time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        let shown = [0, 1023, 1024, 1536, 512 << 20, (512 << 20) + 1000, u64::MAX].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1 KiB", "1.5 KiB", "512 MiB", "512 MiB", "16383 PiB"]);
    }

    #[test]
    fn times_are_utc_and_iso_8601() {
        assert_eq!(time(1_795_442_786).as_deref(), Some("2026-11-23T14:06:26Z"));
        assert_eq!(time(0), None);
        assert_eq!(time(u64::MAX), None);
    }
}
