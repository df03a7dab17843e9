//! Runs external programs: with a limit in time, and their own words in the error.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::time::wait_for;

/// A program that did not do what it was run for.
#[derive(Debug, Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("cannot run {program}: {source}")]
    NotStarted {
        /// Its name.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// It took too long, and was killed.
    #[error("{program} did not end within {seconds} s")]
    TooLong {
        /// Its name.
        program: String,
        /// The limit.
        seconds: u64,
    },
    /// It said that it failed.
    #[error("{program} failed ({status}): {words}")]
    Failed {
        /// Its name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote.
        words: String,
    },
}

/// Runs a program to its end; what it writes is kept for the error.
///
/// Arguments are seen by every process on the device: never a secret among them.
pub fn run(program: &str, arguments: &[&str], limit: Duration) -> Result<(), CommandError> {
    run_with_input(program, arguments, Stdio::null(), limit)
}

/// The same, and it can read that.
pub fn run_with_input(program: &str, arguments: &[&str], input: Stdio, limit: Duration) -> Result<(), CommandError> {
    run_command(program, Command::new(program).args(arguments).stdin(input), limit)
}

/// The same, and it finds its credentials in that folder, as systemd would give them to it.
pub fn run_with_credentials(
    program: &str,
    arguments: &[&str],
    input: Stdio,
    credentials: &Path,
    limit: Duration,
) -> Result<(), CommandError> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(input).env("CREDENTIALS_DIRECTORY", credentials);
    run_command(program, &mut command, limit)
}

fn run_command(program: &str, command: &mut Command, limit: Duration) -> Result<(), CommandError> {
    let name = || program.to_owned();
    let not_started = |source| CommandError::NotStarted { program: name(), source };
    let (mut reader, writer) = io::pipe().map_err(not_started)?;
    let both = writer.try_clone().map_err(not_started)?;
    let spawned = command.stdout(both).stderr(writer).spawn();
    // The ends of the pipe that the command holds would keep it open.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = spawned.map_err(not_started)?;
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = reader.read_to_end(&mut text);
        String::from_utf8_lossy(&text).trim().to_owned()
    });
    let status = wait(&mut child, limit).map_err(not_started)?;
    let words = reader.join().unwrap_or_default();
    match status {
        None => Err(CommandError::TooLong { program: name(), seconds: limit.as_secs() }),
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(CommandError::Failed { program: name(), status, words }),
    }
}

/// Waits for the end of a child; kills it at the limit and gives `None`.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let begin = Instant::now();
    let ended = wait_for(limit, || child.try_wait().transpose());
    if let Some(status) = ended {
        return status.map(Some);
    }
    tracing::warn!(seconds = begin.elapsed().as_secs(), "killing a program that takes too long");
    child.kill()?;
    child.wait()?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_has_the_programs_own_words() {
        let error = run("sh", &["-c", "echo no such; echo disk >&2; exit 3"], Duration::from_secs(10)).unwrap_err();
        assert!(error.to_string().ends_with("no such\ndisk"), "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let error = run("sleep", &["60"], Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, CommandError::TooLong { .. }));
    }
}
