//! Numbers and times, for people.

use jiff::civil::{DateTime, Time};
use jiff::{SignedDuration, Span, Timestamp, Zoned};

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

/// A while, in the largest unit that it is a whole number of: `90 s`, `10 min`, `2 h`.
pub fn seconds(count: u32) -> String {
    match (count % 3600, count % 60) {
        (0, _) => format!("{} h", count / 3600),
        (_, 0) => format!("{} min", count / 60),
        _ => format!("{count} s"),
    }
}

/// Seconds since the epoch as ISO 8601 in UTC; `None` for 0, which stands for a time that is not known.
pub fn time(seconds: u64) -> Option<String> {
    let seconds = i64::try_from(seconds).ok().filter(|seconds| *seconds > 0)?;
    Timestamp::from_second(seconds).ok().map(|time| time.to_string())
}

/// A time to come, as one types it: an instant (`2027-01-31T03:00:00Z`), a local time (`2027-01-31 03:00`, `03:00`: the next
/// one) or a while from now (`+2h 30m`). In seconds since the epoch; or what is wrong with it.
pub fn parse_time(text: &str, now: &Zoned) -> Result<u64, String> {
    let zone = now.time_zone();
    let time = if let Some(while_from_now) = text.strip_prefix('+') {
        let span: Span =
            while_from_now.parse().map_err(|error| format!("`{text}` is not a while from now: {error}"))?;
        now.checked_add(span).map_err(|error| format!("`{text}` cannot be: {error}"))?.timestamp()
    } else if let Ok(instant) = text.parse::<Timestamp>() {
        instant
    } else if let Ok(date_time) = text.parse::<DateTime>() {
        local(date_time, zone)?
    } else if let Ok(clock) = text.parse::<Time>() {
        let today = now.date().to_datetime(clock);
        let next = if today > now.datetime() { Ok(today) } else { today.checked_add(Span::new().days(1)) };
        local(next.map_err(|error| error.to_string())?, zone)?
    } else {
        return Err(format!("`{text}` is not a time; write 03:00, `2027-01-31 03:00`, 2027-01-31T03:00:00Z or +2h"));
    };
    match u64::try_from(time.as_second()) {
        Ok(seconds) if time > now.timestamp() => Ok(seconds),
        _ => Err(format!("`{text}` is in the past: it is {} now", now.strftime("%F %T %Z"))),
    }
}

fn local(time: DateTime, zone: &jiff::tz::TimeZone) -> Result<Timestamp, String> {
    zone.to_timestamp(time).map_err(|error| error.to_string())
}

/// A while, as one types it: `90s`, `10m`, `1h 30m`. In seconds; or what is wrong with it.
pub fn parse_seconds(text: &str) -> Result<u32, String> {
    let wrong = |_| format!("`{text}` is no time; write 90s, 10m or 2h");
    let seconds = text.parse::<Span>().and_then(SignedDuration::try_from).map_err(wrong)?.as_secs();
    u32::try_from(seconds).ok().filter(|seconds| *seconds > 0).ok_or_else(|| format!("`{text}` cannot be waited for"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_while_is_read_as_it_is_told() {
        assert_eq!(["90s", "10m", "2h", "1h 30m"].map(|text| parse_seconds(text).unwrap()), [90, 600, 7200, 5400]);
        assert_eq!([90, 600, 7200, 5400].map(seconds), ["90 s", "10 min", "2 h", "90 min"]);
        for wrong in ["", "0s", "-5m", "7", "soon", "99999999h"] {
            assert!(parse_seconds(wrong).is_err(), "{wrong}");
        }
    }

    use super::*;

    #[test]
    fn a_time_is_typed_as_people_and_programs_write_it() {
        let now: Zoned = "2026-11-24T12:00:00[UTC]".parse().unwrap();
        let at = |text: &str| parse_time(text, &now).map(|seconds| time(seconds).unwrap());
        for (typed, meant) in [
            ("13:30", "2026-11-24T13:30:00Z"),
            ("03:00", "2026-11-25T03:00:00Z"),
            ("2027-01-31 03:00", "2027-01-31T03:00:00Z"),
            ("2027-01-31T03:00:00+02:00", "2027-01-31T01:00:00Z"),
            ("+2h", "2026-11-24T14:00:00Z"),
            ("+1d 30m", "2026-11-25T12:30:00Z"),
        ] {
            assert_eq!(at(typed).as_deref(), Ok(meant), "{typed}");
        }
        for typed in ["", "tomorrow", "25:00", "2026-11-24 11:59", "+", "-2h", "1795442786"] {
            assert!(at(typed).is_err(), "{typed}");
        }
    }

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
