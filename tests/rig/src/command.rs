//! Programs that tests use. They fail the test if they do not do what is expected, in their own words.

use std::ffi::OsStr;
use std::process::{Command, Output};

fn output<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> (String, Output) {
    let mut command = Command::new(program);
    command.args(arguments);
    let line = format!("{command:?}");
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    (line, output)
}

/// Runs a program that must succeed, and returns what it printed.
#[track_caller]
pub fn run<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> String {
    let (line, output) = output(program, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {}\n{stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a program that must fail, and returns what it complained of.
#[track_caller]
pub fn refused<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> String {
    let (line, output) = output(program, arguments);
    assert!(!output.status.success(), "{line} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}
