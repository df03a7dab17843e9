//! Listens to the kernel: its log, from what is left of the beginning of this boot, its uevents, and its audit records, where
//! there are any.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nemos_model::Timestamp;
use nemos_model::integrity::event::Source;
use nemos_model::integrity::kernel_log::{Reader, Record, Report};
use nemos_model::integrity::{audit, uevent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recvfrom, socket_with};
use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;

use crate::time::now;

const LOG: &str = "/dev/kmsg";
/// Bytes of the longest record of the log: `PRINTK_MESSAGE_MAX` of Linux 6.12, and twice that of 6.1's.
const LONGEST_RECORD: usize = 8192;
/// Bytes of the longest uevent: `UEVENT_BUFFER_SIZE`, and its head.
const LONGEST_UEVENT: usize = 4096;
/// The multicast group in which the kernel itself sends; udev's is another.
const KERNELS_UEVENTS: u32 = 1;

/// The kernel cannot be listened to.
#[derive(Debug, Error)]
#[error("cannot {action} {what}: {source}")]
pub struct WatchError {
    action: &'static str,
    what: &'static str,
    source: io::Error,
}

/// A report that was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// What was said.
    pub report: Report,
    /// Where.
    pub source: Source,
    /// When, by the device's clock.
    pub at: Timestamp,
    /// Microseconds since the boot.
    pub uptime: u64,
    /// Its place in the log of this boot, for what was heard there.
    pub sequence: Option<u64>,
}

/// Ears.
#[derive(Debug)]
pub struct Watch {
    log: File,
    uevents: OwnedFd,
    audit: Option<OwnedFd>,
    reader: Reader,
    /// Place of the last record that was read, whatever it said.
    sequence: Option<u64>,
}

impl Watch {
    /// Begins to listen, at the oldest record that the kernel still has; and on a socket of audit records.
    pub fn begin(audit: Option<OwnedFd>) -> Result<Self, WatchError> {
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let log = File::options().read(true).custom_flags(nonblocking).open(LOG).map_err(failed("open", LOG))?;
        let listen = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(KOBJECT_UEVENT))?;
            bind(&socket, &SocketAddrNetlink::new(0, KERNELS_UEVENTS))?;
            Ok(socket)
        };
        let uevents = listen().map_err(|error: Errno| failed("listen to", "uevents")(error.into()))?;
        Ok(Watch { log, uevents, audit, reader: Reader::default(), sequence: None })
    }

    /// Place of the last record that was read.
    pub fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// Waits until the kernel says something, whatever it is, or until the limit, and gives what it said of damage.
    pub fn next(&mut self, limit: Duration) -> Result<Vec<Heard>, WatchError> {
        let timeout = Timespec::try_from(limit).ok();
        let ear = |ear| PollFd::from_borrowed_fd(ear, PollFlags::IN);
        let mut ears = vec![ear(self.log.as_fd()), ear(self.uevents.as_fd())];
        ears.extend(self.audit.iter().map(|audit| ear(audit.as_fd())));
        match poll(&mut ears, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(failed("wait for", LOG)(error.into())),
        }
        let mut heard = Vec::new();
        self.read_log(&mut heard)?;
        self.read_uevents(&mut heard)?;
        self.read_audit(&mut heard)?;
        Ok(heard)
    }

    fn read_log(&mut self, heard: &mut Vec<Heard>) -> Result<(), WatchError> {
        let mut bytes = [0; LONGEST_RECORD];
        loop {
            let length = match self.log.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                // Records that were overwritten before they were read: go on with the oldest that is left.
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::Interrupted) => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(failed("read", LOG)(error)),
            };
            let text = String::from_utf8_lossy(&bytes[..length]);
            if let Some(record) = Record::parse(&text) {
                self.sequence = Some(record.sequence);
                let (at, uptime, sequence) = (wall_clock(record.at), record.at, Some(record.sequence));
                let report = self.reader.next(record.message);
                heard.extend(report.map(|report| Heard { report, source: Source::Log, at, uptime, sequence }));
            }
        }
    }

    fn read_audit(&mut self, heard: &mut Vec<Heard>) -> Result<(), WatchError> {
        let mut bytes = [0; LONGEST_RECORD];
        while let Some(socket) = &self.audit {
            let length = match recvfrom(socket, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((length, ..)) => length,
                Err(Errno::INTR | Errno::NOBUFS) => continue,
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(failed("read", "audit records")(error.into())),
            };
            let record = payload(&bytes[..length], audit::DM_EVENT).and_then(|text| std::str::from_utf8(text).ok());
            let (at, uptime) = (now(), uptime());
            let report = record.and_then(|record| audit::report(record.trim_end_matches('\0')));
            heard.extend(report.map(|report| Heard { report, source: Source::Audit, at, uptime, sequence: None }));
        }
        Ok(())
    }

    fn read_uevents(&mut self, heard: &mut Vec<Heard>) -> Result<(), WatchError> {
        let mut bytes = [0; LONGEST_UEVENT];
        loop {
            let (length, sender) = match recvfrom(&self.uevents, &mut bytes, RecvFlags::empty()) {
                Ok((length, _, sender)) => (length, sender),
                // More than the socket takes came at once. The log and the status of the mapping tell as well.
                Err(Errno::INTR | Errno::NOBUFS) => continue,
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(failed("read", "uevents")(error.into())),
            };
            // Any process of root's may send here; the kernel's own port is 0.
            let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
            if sender.is_some_and(|sender| sender.pid() == 0) {
                let (at, uptime) = (now(), uptime());
                let report = uevent::report(&bytes[..length]);
                heard.extend(report.map(|report| Heard { report, source: Source::Uevent, at, uptime, sequence: None }));
            }
        }
    }
}

/// The socket of audit records that systemd gave to this process, if the kernel has any; once.
pub fn audit_records() -> Option<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let given = sd_notify::listen_fds().ok()?.next()?;
    if TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    // SAFETY: systemd opened it for this process, as LISTEN_FDS and LISTEN_PID say, and nobody else takes it: this is done once.
    Some(unsafe { OwnedFd::from_raw_fd(given) })
}

/// The payload of a netlink message, if it is whole and of that type.
///
/// Source: `struct nlmsghdr` in the kernel's `linux/netlink.h`: length and type first, 16 bytes in all, in the processor's order.
fn payload(message: &[u8], wanted: u16) -> Option<&[u8]> {
    let length = u32::from_ne_bytes(*message.first_chunk()?);
    let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    (kind == wanted).then(|| message.get(16..usize::try_from(length).ok()?)).flatten()
}

/// Microseconds since the boot, as the kernel's log counts them.
pub fn uptime() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or_default() * 1_000_000 + u64::try_from(time.tv_nsec).unwrap_or_default() / 1000
}

/// What the device's clock shows, or would have shown, at that time since the boot.
fn wall_clock(at: u64) -> Timestamp {
    Timestamp(now().0.saturating_sub(uptime().saturating_sub(at) / 1_000_000))
}

fn failed(action: &'static str, what: &'static str) -> impl FnOnce(io::Error) -> WatchError {
    move |source| WatchError { action, what, source }
}
