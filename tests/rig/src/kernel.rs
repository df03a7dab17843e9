//! What the kernel is told and what it says.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use tempfile::NamedTempFile;

const COMMAND_LINE: &str = "/proc/cmdline";

/// Another command line in `/proc/cmdline`, until it is dropped.
#[derive(Debug)]
pub struct CommandLine {
    _file: NamedTempFile,
}

impl CommandLine {
    /// Whoever reads the kernel's command line reads this.
    pub fn says(words: &str) -> Self {
        let file = NamedTempFile::new_in("/run").expect("a file in /run");
        fs::write(file.path(), format!("{words}\n")).expect("the file takes a line");
        mount_bind(file.path(), COMMAND_LINE).expect("a file can be mounted over /proc/cmdline");
        CommandLine { _file: file }
    }
}

impl Drop for CommandLine {
    fn drop(&mut self) {
        let _ = unmount(COMMAND_LINE, UnmountFlags::DETACH);
    }
}

/// The kernel's log from a moment on.
#[derive(Debug)]
pub struct KernelLog {
    device: File,
}

impl KernelLog {
    /// Listens from now on.
    pub fn from_now() -> Self {
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).expect("a flag");
        let mut device =
            File::options().read(true).custom_flags(flags).open("/dev/kmsg").expect("the kernel's log opens");
        device.seek(SeekFrom::End(0)).expect("the kernel's log has an end");
        KernelLog { device }
    }

    /// What was said since, one message a line.
    pub fn messages(&mut self) -> String {
        let mut text = String::new();
        let mut record = [0; 8192];
        loop {
            match self.device.read(&mut record) {
                Ok(length) => {
                    // `priority,sequence,time,-;message`, and then fields that each begin with a space.
                    let record = String::from_utf8_lossy(&record[..length]);
                    let message = record.split_once(';').map_or(&*record, |(_, message)| message);
                    text.push_str(message.lines().next().unwrap_or_default());
                    text.push('\n');
                }
                // Records that were overwritten before they were read.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return text,
                Err(error) => panic!("the kernel's log cannot be read: {error}"),
            }
        }
    }
}
