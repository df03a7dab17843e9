//! The device's clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nemos_model::Timestamp;

/// Now. A clock before 1970 reads as 1970.
pub fn now() -> Timestamp {
    Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Asks again and again until there is an answer; `None` if there was none within the limit.
pub fn wait_for<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let begin = Instant::now();
    loop {
        match ask() {
            Some(answer) => return Some(answer),
            None if begin.elapsed() >= limit => return None,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
