//! Tells what the build does, and how long each step took.

use std::io::{IsTerminal, Write, stderr};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::error::BuildError;

/// The steps of a build, told on stderr. Several may go on at once.
pub struct Progress {
    begun: Instant,
    live: bool,
    running: Mutex<Vec<&'static str>>,
}

impl Progress {
    /// The clock starts.
    pub fn new() -> Self {
        Progress { begun: Instant::now(), live: stderr().is_terminal(), running: Mutex::default() }
    }

    /// Carries out a step; what it did is told with its result.
    pub fn step<T>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> Result<(T, String), BuildError>,
    ) -> Result<T, BuildError> {
        let begun = Instant::now();
        self.tell(None, |running| running.push(name));
        let result = work();
        let told = result.as_ref().ok().map(|(_, told)| {
            let seconds = begun.elapsed().as_secs_f32();
            format!("  {name:<18} {seconds:>6.1} s  {told}\n")
        });
        self.tell(told, |running| running.retain(|other| *other != name));
        result.map(|(made, _)| made).map_err(|source| BuildError::Step { step: name, source: Box::new(source) })
    }

    /// Prints a line, and on a terminal below it what runs, once that has changed.
    fn tell(&self, line: Option<String>, change: impl FnOnce(&mut Vec<&'static str>)) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut running);
        let line = line.unwrap_or_default();
        if !self.live {
            eprint!("{line}");
        } else if running.is_empty() {
            eprint!("\r\x1b[K{line}");
        } else {
            eprint!("\r\x1b[K{line}  {} ...", running.join(", "));
            let _ = stderr().flush();
        }
    }

    /// Seconds since the beginning.
    pub fn seconds(&self) -> f32 {
        self.begun.elapsed().as_secs_f32()
    }
}

/// A size for people.
pub fn mib(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_down_to_a_tenth() {
        assert_eq!(mib(0), "0.0 MiB");
        assert_eq!(mib((3 << 20) + (1 << 19)), "3.5 MiB");
    }
}
