//! Hands a key that the device made to whoever asked for it: what nobody has fetched is no way in.

use std::io::{self, PipeWriter, Write as _};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionread;
use thiserror::Error;

use crate::keys::Secret;

/// How often it is looked whether the pipe is empty, which wakes nobody.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Why nobody has the key.
#[derive(Debug, Error)]
pub enum NotFetched {
    /// Whoever asked has gone, or did not want it.
    #[error("whoever asked for it closed the file descriptor before they had read it")]
    Gone,
    /// They do not read.
    #[error("whoever asked for it did not read it within {} s", .0.as_secs())]
    Late(Duration),
    /// The pipe.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The end of a pipe where a secret was put in. The other end finds its end when this one is dropped.
#[derive(Debug)]
pub struct Handover(PipeWriter);

impl Handover {
    /// A pipe with the secret in it, and the end where it is fetched. The secret fits: a pipe takes 64 KiB.
    pub fn of(secret: &Secret) -> io::Result<(Self, OwnedFd)> {
        let (reader, mut writer) = io::pipe()?;
        writer.write_all(secret.expose())?;
        Ok((Handover(writer), reader.into()))
    }

    /// Waits until it was fetched: until nothing of it is left in the pipe.
    pub fn wait(&self, limit: Duration) -> Result<(), NotFetched> {
        let begin = Instant::now();
        loop {
            let mut end = [PollFd::new(&self.0, PollFlags::empty())];
            poll(&mut end, Some(&PAUSE)).map_err(io::Error::from)?;
            let is_gone = end[0].revents().contains(PollFlags::ERR);
            match ioctl_fionread(&self.0).map_err(io::Error::from)? {
                0 => return Ok(()),
                _ if is_gone => return Err(NotFetched::Gone),
                _ if begin.elapsed() > limit => return Err(NotFetched::Late(limit)),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read as _;
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn who_reads_it_finds_its_end_once_that_is_known() {
        let (handover, reader) = Handover::of(&Secret::typed("correct horse")).unwrap();
        let (say, said) = mpsc::channel();
        let reads = thread::spawn(move || {
            let mut read = String::new();
            File::from(reader).read_to_string(&mut read).unwrap();
            (read, said.try_recv())
        });
        handover.wait(Duration::from_secs(10)).unwrap();
        say.send("it is written down").unwrap();
        drop(handover);
        assert_eq!(reads.join().unwrap(), ("correct horse".to_owned(), Ok("it is written down")));
    }

    #[test]
    fn who_goes_or_does_not_read_does_not_have_it() {
        let (handover, reader) = Handover::of(&Secret::typed("correct horse")).unwrap();
        let late = handover.wait(Duration::from_millis(30));
        assert!(matches!(late, Err(NotFetched::Late(_))), "{late:?}");
        let mut reader = File::from(reader);
        reader.read_exact(&mut [0; 7]).unwrap();
        drop(reader);
        let gone = handover.wait(Duration::from_secs(10));
        assert!(matches!(gone, Err(NotFetched::Gone)), "{gone:?}");
    }
}
