//! Runs the programs that a build is made of, and ends them when the build is interrupted.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thiserror::Error;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static VERBOSE: AtomicBool = AtomicBool::new(false);
/// Leaders of the process groups that run now.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Why a program did not do its work.
#[derive(Debug, Error)]
pub enum ToolError {
    /// It did not even start.
    #[error("{program} cannot be started: {source}")]
    NotStarted {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It failed.
    #[error("{program} failed ({status}): {said}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The line of its stderr that says most.
        said: String,
        /// Nobody read what it wrote.
        broken_pipe: bool,
    },
    /// Its input or output broke.
    #[error("talking to {program}: {source}")]
    Pipe {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A signal asked for the end of the build.
    #[error("interrupted; nothing is left behind")]
    Interrupted,
}

/// From now on, SIGINT, SIGTERM and SIGHUP end the running programs, and let every later one fail: the build returns
/// through its own error path, which removes what it made.
pub fn end_with_signals() -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::spawn(move || {
        for _ in signals.forever() {
            let running = lock();
            INTERRUPTED.store(true, Ordering::SeqCst);
            for leader in running.iter() {
                let _ = kill_process_group(*leader, Signal::TERM);
            }
        }
    });
    Ok(())
}

/// Lets what programs say on stderr through to ours.
pub fn be_verbose() {
    VERBOSE.store(true, Ordering::SeqCst);
}

/// Fails if the build was interrupted.
pub fn interruption() -> Result<(), ToolError> {
    if INTERRUPTED.load(Ordering::SeqCst) { Err(ToolError::Interrupted) } else { Ok(()) }
}

fn lock() -> std::sync::MutexGuard<'static, Vec<Pid>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program and its arguments.
pub struct Tool {
    program: String,
    command: Command,
}

impl Tool {
    /// `program` from the PATH, or from the folders that an ordinary user's PATH lacks.
    pub fn new(program: &str) -> Self {
        let path = super::host::find_program(program);
        let mut command = Command::new(path.as_deref().map_or(OsStr::new(program), |path| path.as_os_str()));
        command.env("LC_ALL", "C.UTF-8").env("TZ", "UTC").stdin(Stdio::null()).process_group(0);
        Tool { program: program.to_owned(), command }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// An environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Its input.
    #[must_use]
    pub fn stdin(mut self, input: impl Into<Stdio>) -> Self {
        self.command.stdin(input);
        self
    }

    /// Runs it to its end.
    pub fn run(mut self) -> Result<(), ToolError> {
        self.command.stdout(Stdio::null());
        self.spawn()?.wait()
    }

    /// Runs it with `text` as its input.
    pub fn run_with_input(mut self, text: &[u8]) -> Result<(), ToolError> {
        self.command.stdin(Stdio::piped()).stdout(Stdio::null());
        let program = self.program.clone();
        let mut running = self.spawn()?;
        let written = running.child.stdin.take().map_or(Ok(()), |mut input| input.write_all(text));
        running.wait()?;
        written.map_err(|source| ToolError::Pipe { program, source })
    }

    /// Runs it and returns its stdout.
    pub fn output(mut self) -> Result<Vec<u8>, ToolError> {
        self.command.stdout(Stdio::piped());
        let program = self.program.clone();
        let mut running = self.spawn()?;
        let mut output = Vec::new();
        let read = running.child.stdout.take().map_or(Ok(0), |mut stdout| stdout.read_to_end(&mut output));
        running.wait()?;
        read.map_err(|source| ToolError::Pipe { program, source })?;
        Ok(output)
    }

    /// Runs it with that on its stdin, and returns its stdout. It must read all of it before it writes much.
    pub fn output_with_input(mut self, input: &[u8]) -> Result<Vec<u8>, ToolError> {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let program = self.program.clone();
        let mut running = self.spawn()?;
        // Who does not read it to the end fails, or has an answer anyhow.
        let _ = running.child.stdin.take().map(|mut stdin| stdin.write_all(input));
        let mut output = Vec::new();
        let read = running.child.stdout.take().map_or(Ok(0), |mut stdout| stdout.read_to_end(&mut output));
        running.wait()?;
        read.map_err(|source| ToolError::Pipe { program, source })?;
        Ok(output)
    }

    /// Runs it with its stdout in a file.
    pub fn output_to(mut self, file: File) -> Result<(), ToolError> {
        self.command.stdout(file);
        self.spawn()?.wait()
    }

    /// Runs it and `reader`, which reads what `filter` makes of its stdout.
    pub fn pipe_through(
        mut self,
        filter: impl FnOnce(ChildStdout, ChildStdin) -> io::Result<()>,
        mut reader: Tool,
    ) -> Result<(), ToolError> {
        let program = reader.program.clone();
        self.command.stdout(Stdio::piped());
        reader.command.stdin(Stdio::piped());
        let mut writing = self.spawn()?;
        let from = writing.child.stdout.take();
        let read = reader.spawn().map(|mut reading| {
            let filtered = match (from, reading.child.stdin.take()) {
                (Some(from), Some(to)) => filter(from, to),
                _ => Ok(()),
            };
            (reading.wait(), filtered)
        });
        let written = writing.wait();
        let (read, filtered) = read?;
        match filtered {
            // Whoever reads says itself why it does not.
            Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
                interruption()?;
                Err(ToolError::Pipe { program, source })
            }
            _ => match (read, written) {
                (Err(read), Err(ToolError::Failed { broken_pipe: true, .. })) => Err(read),
                (read, written) => written.and(read),
            },
        }
    }

    fn spawn(mut self) -> Result<Running, ToolError> {
        self.command.stderr(Stdio::piped());
        let mut leaders = lock();
        interruption()?;
        let mut child =
            self.command.spawn().map_err(|source| ToolError::NotStarted { program: self.program.clone(), source })?;
        let leader = Pid::from_child(&child);
        leaders.push(leader);
        drop(leaders);
        let stderr = child.stderr.take().map(|stderr| thread::spawn(move || listen(stderr)));
        Ok(Running { program: self.program, child, leader, stderr })
    }
}

struct Running {
    program: String,
    child: Child,
    leader: Pid,
    stderr: Option<JoinHandle<String>>,
}

impl Running {
    fn wait(mut self) -> Result<(), ToolError> {
        let ended = self.child.wait();
        lock().retain(|leader| *leader != self.leader);
        let said = self.stderr.take().and_then(|listener| listener.join().ok()).unwrap_or_default();
        interruption()?;
        let status = ended.map_err(|source| ToolError::Pipe { program: self.program.clone(), source })?;
        if status.success() {
            return Ok(());
        }
        let broken_pipe = said.contains("Broken pipe");
        Err(ToolError::Failed { program: self.program, status, said: telling_line(&said).to_owned(), broken_pipe })
    }
}

fn listen(stderr: impl Read) -> String {
    let mut said = Vec::new();
    let mut stderr = stderr;
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = stderr.read(&mut chunk) {
        if VERBOSE.load(Ordering::SeqCst) {
            let _ = io::stderr().write_all(&chunk[..read]);
        }
        said.extend_from_slice(&chunk[..read]);
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// The first error that a program of Debian's marks as one, or else the last line; but not that it failed, which is known.
fn telling_line(said: &str) -> &str {
    let tells = |line: &&str| !line.is_empty() && *line != "E: mmdebstrap failed to run";
    let mut lines = said.lines().map(str::trim).filter(tells);
    let marked = |line: &&str| {
        ["E: ", "dracut[E]: ", "dracut[F]: ", "error: ", "error["].iter().any(|mark| line.starts_with(mark))
    };
    lines.clone().find(marked).or_else(|| lines.next_back()).unwrap_or("it did not say why")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_says_most_is_found() {
        let said = "I: running\nE: Unable to locate package tpyo\nE: mmdebstrap failed to run\n";
        assert_eq!(telling_line(said), "E: Unable to locate package tpyo");
        assert_eq!(telling_line("cannot fork\nE: mmdebstrap failed to run\n"), "cannot fork");
        assert_eq!(telling_line("one\nlast words\n\n"), "last words");
        assert_eq!(telling_line(""), "it did not say why");
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let failed = Tool::new("sh").args(["-c", "echo no such luck >&2; exit 3"]).run();
        let told = failed.expect_err("the program fails").to_string();
        assert!(told.contains("no such luck") && told.contains("exit status: 3"), "{told}");
    }

    #[test]
    fn the_failure_of_either_end_of_a_pipe_is_seen() {
        let writes = || Tool::new("echo").arg("text");
        let through = |mut from: ChildStdout, mut to: ChildStdin| io::copy(&mut from, &mut to).map(drop);
        let quiet = || Tool::new("grep").args(["--quiet", "text"]);
        assert!(writes().pipe_through(through, quiet()).is_ok());
        assert!(writes().pipe_through(through, Tool::new("false")).is_err());
        assert!(Tool::new("false").pipe_through(through, Tool::new("cat")).is_err());
        let fails = |_, _| Err(io::ErrorKind::InvalidData.into());
        assert!(matches!(writes().pipe_through(fails, Tool::new("true")), Err(ToolError::Pipe { .. })));
    }
}
