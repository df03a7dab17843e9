//! What is known of a machine from all that it has said.

use super::console::{BootEnd, Console, boot_end};
use super::guest::{Answer, Port};
use super::qmp::Message;

/// Something that a machine said.
#[derive(Debug)]
pub(super) enum Event {
    Qmp(Message),
    QmpClosed,
    Console(Vec<u8>),
    Port(Port, Vec<u8>),
}

/// QEMU, as its protocol shows it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Qmp {
    /// It has not greeted yet.
    #[default]
    Starting,
    /// It takes commands.
    Open,
    /// It is gone, or about to be; what the machine said before may still come.
    Closed,
}

/// The sum of it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Whether QEMU takes commands.
    pub(super) qmp: Qmp,
    /// The answer to the last QMP command.
    pub(super) reply: Option<Result<(), String>>,
    /// Where the last migration stands.
    pub(super) migration: Option<String>,
    /// Why the machine is off.
    pub(super) shutdown: Option<String>,
    /// Nothing more will come.
    pub(super) ended: bool,
    pub(super) console: Console,
    /// This boot will not come to its end.
    pub(super) boot_end: Option<BootEnd>,
    /// How often the machine began anew.
    pub(super) resets: u32,
    /// Whether the system is up.
    pub(super) up: bool,
    /// The last command that ended: number and exit status.
    pub(super) done: Option<(u32, u8)>,
    /// Output of commands that nobody has taken yet.
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    /// The line on the control port that has not ended.
    control: Vec<u8>,
}

impl Seen {
    /// Takes what was said.
    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::Qmp(Message::Greeting) => self.qmp = Qmp::Open,
            Event::Qmp(Message::Reply(reply)) => self.reply = Some(reply),
            Event::Qmp(Message::Migration(status)) => self.migration = Some(status),
            Event::Qmp(Message::Shutdown(reason)) => self.shutdown = Some(reason),
            Event::Qmp(Message::Reset) => {
                self.resets += 1;
                self.up = false;
                self.boot_end = None;
            }
            Event::Qmp(Message::Other) => {}
            Event::QmpClosed => self.qmp = Qmp::Closed,
            Event::Console(bytes) => {
                let known = self.console.lines().len();
                self.console.push(&bytes);
                let end = boot_end(&self.console.lines()[known..]);
                self.boot_end = self.boot_end.take().or(end);
            }
            Event::Port(Port::Stdout, bytes) => self.stdout.extend(bytes),
            Event::Port(Port::Stderr, bytes) => self.stderr.extend(bytes),
            Event::Port(Port::Control, bytes) => self.control(&bytes),
        }
    }

    fn control(&mut self, bytes: &[u8]) {
        self.control.extend_from_slice(bytes);
        while let Some(end) = self.control.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.control.drain(..=end).collect();
            match Answer::parse(&String::from_utf8_lossy(&line)) {
                Some(Answer::Up) => self.up = true,
                Some(Answer::Done { number, status }) => self.done = Some((number, status)),
                None => {}
            }
        }
    }

    /// How the machine went away, for people.
    pub(super) fn why_off(&self) -> &'static str {
        match self.shutdown.as_deref() {
            Some("guest-shutdown") => "powered off",
            Some("guest-reset") => "rebooted",
            Some("guest-panic") => "panicked",
            Some(_) => "was switched off",
            None => "crashed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(events: impl IntoIterator<Item = Event>) -> Seen {
        let mut seen = Seen::default();
        events.into_iter().for_each(|event| seen.take(event));
        seen
    }

    fn control(text: &str) -> Event {
        Event::Port(Port::Control, text.into())
    }

    fn console(text: &str) -> Event {
        Event::Console(text.into())
    }

    #[test]
    fn an_answer_counts_once_its_line_is_whole() {
        let mut seen = seen([control("up\ndone 1 1")]);
        assert!(seen.up);
        assert_eq!(seen.done, None);
        seen.take(control("7\n"));
        assert_eq!(seen.done, Some((1, 17)));
    }

    #[test]
    fn a_reset_begins_a_boot_that_is_not_up_yet() {
        let seen = seen([control("up\n"), Event::Qmp(Message::Reset)]);
        assert!(!seen.up);
        assert_eq!(seen.resets, 1);
    }

    #[test]
    fn a_refusal_stays_until_the_next_boot() {
        let mut seen = seen([console("nemos: boot refused: no ro"), console("ot\n"), console("more\n")]);
        assert_eq!(seen.boot_end, Some(BootEnd::Refused("no root".into())));
        seen.take(Event::Qmp(Message::Reset));
        assert_eq!(seen.boot_end, None);
    }

    #[test]
    fn how_it_went_away_is_what_qemu_says() {
        assert_eq!(seen([Event::Qmp(Message::Shutdown("guest-reset".into()))]).why_off(), "rebooted");
        assert_eq!(seen([]).why_off(), "crashed");
    }
}
