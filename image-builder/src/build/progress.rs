//! Tells what the build does, and how long each step took.

use std::io::{IsTerminal, Write, stderr};
use std::time::Instant;

use super::error::BuildError;

/// The steps of a build, told on stderr.
pub struct Progress {
    begun: Instant,
    live: bool,
}

impl Progress {
    /// The clock starts.
    pub fn new() -> Self {
        Progress { begun: Instant::now(), live: stderr().is_terminal() }
    }

    /// Carries out a step; what it did is told with its result.
    pub fn step<T>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> Result<(T, String), BuildError>,
    ) -> Result<T, BuildError> {
        if self.live {
            eprint!("  {name} ...");
            let _ = stderr().flush();
        }
        let begun = Instant::now();
        let result = work();
        if self.live {
            eprint!("\r\x1b[K");
        }
        let (made, told) = result.map_err(|source| BuildError::Step { step: name, source: Box::new(source) })?;
        eprintln!("  {name:<18} {:>6.1} s  {told}", begun.elapsed().as_secs_f32());
        Ok(made)
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
