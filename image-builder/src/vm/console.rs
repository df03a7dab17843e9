//! What a machine printed on its serial console.

use std::fmt;

/// Lines of the console shown when something went wrong.
const TAIL_LINES: usize = 20;
/// In lines that follow every end of a system, and hide what came before them.
const NOISE: &str = " systemd-shutdown[";

/// Lines without the terminal's control sequences.
#[derive(Debug, Default)]
pub(super) struct Console {
    lines: Vec<String>,
    /// Bytes of the line that has not ended.
    partial: Vec<u8>,
    escape: Escape,
}

/// Where in a control sequence the next byte is.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Escape {
    #[default]
    Outside,
    /// After ESC.
    Begun,
    /// In `ESC [ ... letter`.
    Csi,
    /// In `ESC ] ... BEL`, or `ESC P ... ESC \`.
    Text,
}

/// How a boot ended without the system being up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BootEnd {
    /// nemos-initrd refused to go on, for this reason.
    Refused(String),
    /// It failed in another way.
    Failed(String),
}

impl Console {
    /// Takes what was printed.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.escape = match (self.escape, byte) {
                (Escape::Outside | Escape::Begun | Escape::Text, 0x1b) => Escape::Begun,
                (Escape::Begun, b'[') => Escape::Csi,
                (Escape::Begun, b']' | b'P') => Escape::Text,
                (Escape::Begun, _) | (Escape::Csi, 0x40..=0x7e) | (Escape::Text, 0x07) => Escape::Outside,
                (Escape::Outside, _) => {
                    self.put(byte);
                    Escape::Outside
                }
                (within, _) => within,
            };
        }
    }

    fn put(&mut self, byte: u8) {
        match byte {
            b'\n' => self.lines.push(String::from_utf8_lossy(&std::mem::take(&mut self.partial)).into_owned()),
            b'\t' | 0x20.. => self.partial.push(byte),
            _ => {}
        }
    }

    /// Whole lines so far.
    pub(super) fn lines(&self) -> &[String] {
        &self.lines
    }

    /// The first line from the `from`-th on that contains `text`; a question is in one that has not ended.
    pub(super) fn find(&self, from: usize, text: &str) -> Option<usize> {
        let partial = String::from_utf8_lossy(&self.partial).into_owned();
        let found = self.lines.iter().chain([&partial]).skip(from).position(|line| line.contains(text));
        found.map(|at| from + at)
    }

    /// The last lines.
    pub(super) fn tail(&self) -> Tail {
        let partial = String::from_utf8_lossy(&self.partial).into_owned();
        let lines = self.lines.iter().cloned().chain([partial]);
        let lines = lines.filter(|line| !line.trim().is_empty() && !line.contains(NOISE));
        let lines: Vec<_> = lines.collect();
        Tail(lines[lines.len().saturating_sub(TAIL_LINES)..].to_vec())
    }
}

/// Whether these lines say that the system will not come up.
pub(super) fn boot_end(lines: &[String]) -> Option<BootEnd> {
    lines.iter().find_map(|line| {
        let after = |marker: &str| line.split_once(marker).map(|(_, rest)| rest.trim().to_owned());
        if let Some(reason) = after("nemos: boot refused:") {
            return Some(BootEnd::Refused(reason));
        }
        if let Some(words) = after("Kernel panic - not syncing:") {
            return Some(BootEnd::Failed(format!("the kernel panicked: {words}")));
        }
        if line.contains("BdsDxe: failed to") && line.contains("Access Denied") {
            let why = "the firmware trusts no key that the kernel image is signed with, if it is signed at all";
            return Some(BootEnd::Failed(why.to_owned()));
        }
        let failures = [
            ("nemos: the root was not reached", "its initrd did not reach the root"),
            ("You are in emergency mode", "systemd is in emergency mode"),
        ];
        let failure = failures.into_iter().find(|(marker, _)| line.contains(marker));
        failure.map(|(_, why)| BootEnd::Failed(why.to_owned()))
    })
}

/// The end of a console log, to be shown below an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail(Vec<String>);

impl fmt::Display for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("\nIts console is empty.");
        }
        f.write_str("\nIts console ends with:")?;
        self.0.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(bytes: &[u8]) -> Console {
        let mut console = Console::default();
        bytes.chunks(1).for_each(|byte| console.push(byte));
        console
    }

    #[test]
    fn control_sequences_are_not_text() {
        let seen = console(b"\x1b[0;32m  OK  \x1b[0m] Reached\r\n\x1b]0;title\x07\x1b=\x1bP+q\x1b\\done\x1b[?25h\n");
        assert_eq!(seen.lines(), ["  OK  ] Reached", "done"]);
    }

    #[test]
    fn a_line_is_found_before_it_is_whole() {
        let mut seen = console(b"one\ntwo\nthr");
        assert_eq!(seen.find(0, "thr"), Some(2));
        seen.push(b"ee\n");
        assert_eq!(seen.find(0, "three"), Some(2));
        assert_eq!(seen.find(1, "one"), None);
    }

    #[test]
    fn the_tail_has_the_last_words_even_without_a_newline() {
        let many = "line\r\n\r\n".repeat(100);
        let tail = console(format!("{many}login: ").as_bytes()).tail();
        assert_eq!(tail.0.len(), TAIL_LINES);
        assert_eq!(tail.0.last().unwrap(), "login: ");
    }

    #[test]
    fn the_tail_leaves_out_how_systemd_shuts_down() {
        let tail =
            console(b"the reason\n[ 1.0] systemd-shutdown[1]: Rebooting.\n[ 1.1] reboot: machine restart\n").tail();
        assert_eq!(tail.0, ["the reason", "[ 1.1] reboot: machine restart"]);
    }

    #[test]
    fn a_boot_that_ends_early_is_told_with_its_reason() {
        let end = |line: &str| boot_end(&["before".to_owned(), line.to_owned()]);
        assert_eq!(
            end("[  4.2] nemos-initrd[1]: nemos: boot refused: the root is corrupted"),
            Some(BootEnd::Refused("the root is corrupted".into()))
        );
        let failed = |why: &str| Some(BootEnd::Failed(why.into()));
        assert_eq!(end("You are in emergency mode. After logging"), failed("systemd is in emergency mode"));
        assert_eq!(end("Kernel panic - not syncing: VFS: Unable"), failed("the kernel panicked: VFS: Unable"));
        assert_eq!(end("nemos: the root was not reached; restarting"), failed("its initrd did not reach the root"));
        assert_eq!(end("Welcome to Debian"), None);
    }
}
