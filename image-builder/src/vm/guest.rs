//! The way into a running system: a unit that systemd takes from the firmware, and the words it exchanges with us.
//!
//! A machine's SMBIOS strings may carry credentials, and systemd makes units of those that are named so
//! (`systemd-debug-generator(8)`). So an image needs nothing in it to be driven from outside.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// Names of the virtio-serial ports: commands and their exit status, their stdout, their stderr.
pub(super) const PORTS: [(Port, &str); 3] =
    [(Port::Control, "nemos.run"), (Port::Stdout, "nemos.run.out"), (Port::Stderr, "nemos.run.err")];

/// One of the ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Port {
    Control,
    Stdout,
    Stderr,
}

/// The credentials that make the unit: name and contents.
pub(super) const CREDENTIALS: [(&str, &str); 3] = [
    ("systemd.extra-unit.nemos-run.service", include_str!("guest/nemos-run.service")),
    ("systemd.unit-dropin.multi-user.target", include_str!("guest/wants.conf")),
    ("nemos-run.sh", include_str!("guest/nemos-run.sh")),
];

/// What begins the SMBIOS string (type 11) with words for the kernel's command line; see systemd-stub(7).
pub(super) const APPEND: &str = "io.systemd.stub.kernel-cmdline-extra=";

/// The SMBIOS string (type 11) that carries a credential.
pub(super) fn smbios_string(name: &str, contents: &[u8]) -> String {
    format!("io.systemd.credential.binary:{name}={}", BASE64.encode(contents))
}

/// The line that asks for a command.
pub(super) fn request(number: u32, command: &str) -> String {
    format!("{number} {}\n", BASE64.encode(command))
}

/// What the control port says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The system is up, and takes commands.
    Up,
    /// The command of that number ended with that status.
    Done { number: u32, status: u8 },
}

impl Answer {
    /// Reads a line; `None` if it is not one of ours.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let answer = match words.next()? {
            "up" => Answer::Up,
            "done" => Answer::Done { number: words.next()?.parse().ok()?, status: words.next()?.parse().ok()? },
            _ => return None,
        };
        words.next().is_none().then_some(answer)
    }
}

/// Splits what comes out of a port at the mark that ends the command's output.
#[derive(Debug)]
pub(super) struct UntilMark {
    mark: Vec<u8>,
    /// What might be the beginning of the mark.
    held: Vec<u8>,
    ended: bool,
}

impl UntilMark {
    pub(super) fn new(number: u32) -> Self {
        UntilMark { mark: format!("\0end {number}\0").into_bytes(), held: Vec::new(), ended: false }
    }

    /// Takes bytes and gives back those that are certainly the command's.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.ended {
            return Vec::new();
        }
        self.held.extend_from_slice(bytes);
        if let Some(at) = self.held.windows(self.mark.len()).position(|window| window == self.mark) {
            self.ended = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let longest = self.held.len().min(self.mark.len() - 1);
        let keep = (0..=longest).rev().find(|&len| self.held.ends_with(&self.mark[..len])).unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether the mark was there.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }
}

/// Words as one command line for a shell that takes them as they are.
pub fn quoted(words: &[String]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
    quoted.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_are_understood_and_noise_is_not() {
        assert_eq!(Answer::parse("up"), Some(Answer::Up));
        assert_eq!(Answer::parse("done 7 127"), Some(Answer::Done { number: 7, status: 127 }));
        for noise in ["", "up 1", "done", "done 7", "done 7 256", "done x 1", "done 7 1 1", "else"] {
            assert_eq!(Answer::parse(noise), None, "{noise}");
        }
    }

    #[test]
    fn a_shell_takes_quoted_words_as_they_are() {
        let words = ["printf", "%s|", "it's", "$HOME", "", "a b", "\n", "*"].map(str::to_owned);
        let said = std::process::Command::new("sh").arg("-c").arg(quoted(&words)).output().unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), "it's|$HOME||a b|\n|*|");
    }

    proptest! {
        #[test]
        fn output_ends_exactly_at_the_mark_however_it_is_cut(
            output in proptest::collection::vec(prop_oneof![Just(0), Just(b'e'), Just(b'n'), any::<u8>()], 0..64),
            after in any::<Vec<u8>>(),
            cut in 1_usize..9,
        ) {
            let mark = b"\0end 3\0";
            prop_assume!(!output.windows(mark.len()).any(|window| window == mark));
            let stream = [output.as_slice(), mark, &after].concat();
            let mut until = UntilMark::new(3);
            let seen: Vec<u8> = stream.chunks(cut).flat_map(|chunk| until.push(chunk)).collect();
            prop_assert!(until.ended());
            prop_assert!(output.starts_with(&seen) && output.len() - seen.len() < mark.len());
            // Only an output that ends like a mark begins can lose bytes to it.
            if seen != output {
                prop_assert!(stream.windows(mark.len()).position(|window| window == mark).unwrap() < output.len());
            }
        }
    }
}
