//! nemos-image and nemosctl as a user types them.

use std::path::PathBuf;
use std::process::{Command, Output};

use libtest_mimic::Failed;

/// What a program said, and how it ended.
#[derive(Debug)]
pub struct Said {
    /// On stdout.
    pub stdout: String,
    /// On stderr.
    pub stderr: String,
    /// Its exit status; `None` if a signal ended it.
    pub status: Option<i32>,
}

impl Said {
    /// The one sentence at the end of stderr with which the program failed.
    pub fn complaint(&self) -> Result<&str, Failed> {
        let complaints: Vec<_> = self.stderr.lines().filter(|line| line.starts_with("nemos-image: ")).collect();
        match (self.status, complaints.as_slice()) {
            (Some(1..), [complaint]) if self.stderr.trim_end().ends_with(complaint) => Ok(complaint),
            _ => Err(format!("it did not fail with one sentence: {self:?}").into()),
        }
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said { stdout: text(output.stdout), stderr: text(output.stderr), status: output.status.code() }
    }
}

/// Runs nemos-image with these arguments.
pub fn nemos_image(arguments: &[&str]) -> Result<Said, Failed> {
    Ok(Command::new(program()?).args(arguments).output()?.into())
}

/// Runs nemosctl with these arguments, here, where there is no device and no bus to ask.
pub fn nemosctl_elsewhere(arguments: &[&str]) -> Result<Said, Failed> {
    let mut nemosctl = Command::new(built("nemosctl")?);
    Ok(nemosctl.args(arguments).env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus").output()?.into())
}

/// nemos-image.
pub fn program() -> Result<PathBuf, Failed> {
    built("nemos-image")
}

/// A program of ours; Cargo puts it next to the folder of the test binary.
fn built(name: &str) -> Result<PathBuf, Failed> {
    let test = std::env::current_exe()?;
    let program = test.ancestors().nth(2).map(|folder| folder.join(name));
    program
        .filter(|program| program.is_file())
        .ok_or_else(|| format!("{name} is not built: run `cargo build -p {name}`").into())
}
