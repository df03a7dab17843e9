//! `nemosctl integrity`.

use clap::Subcommand;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nemosctl integrity                           each volume: how it is, what it was compared with, its last scrub
  nemosctl integrity events                    what was damaged, where, how often, and of which file
  nemosctl integrity acknowledge 7             event 7 is known of: health does not tell of it any more
  nemosctl integrity scrub                     read the root and the overlay through, and show how far it is
  nemosctl integrity scrub luks --rate 8M --no-wait

Exit status: 0 done; 1 refused, or a scrub failed or found damage; 2 wrong usage, or something is damaged (without a command);
3 nemosd cannot be reached.")]
pub struct Integrity {
    #[command(subcommand)]
    pub command: Option<IntegrityCommand>,
}

#[derive(Debug, Subcommand)]
pub enum IntegrityCommand {
    /// List the events that the device remembers, the one that was seen last at the end
    Events {
        /// Only those that nobody has acknowledged
        #[arg(long)]
        open: bool,
    },
    /// Say that events are known of, until they are seen again
    Acknowledge {
        /// Their numbers
        #[arg(required_unless_present = "all", value_name = "EVENT")]
        ids: Vec<u64>,
        /// All that there are
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Read volumes through, to find what is damaged
    Scrub {
        /// `verityRoot` or `luks`; both if not given
        #[arg(value_name = "VOLUME")]
        volumes: Vec<String>,
        /// Bytes a second to read at most, as 500K, 8M or 1G; as many as nobody else wants if not given
        #[arg(long, value_parser = bytes)]
        rate: Option<u64>,
        /// Do not wait for its end
        #[arg(long)]
        no_wait: bool,
        /// Stop scrubs instead
        #[arg(long, conflicts_with_all = ["rate", "no_wait"])]
        cancel: bool,
    },
}

/// A number of bytes, with or without a unit.
fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.chars().last() {
        Some('K') => (&text[..text.len() - 1], 10),
        Some('M') => (&text[..text.len() - 1], 20),
        Some('G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    number.filter(|number| *number > 0).ok_or_else(|| "a number of bytes from 1 on, as 500K, 8M or 1G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_a_unit_and_is_not_nothing() {
        assert_eq!(["7", "500K", "8M", "1G"].map(bytes), [Ok(7), Ok(500 << 10), Ok(8 << 20), Ok(1 << 30)]);
        for wrong in ["", "0", "M", "0K", "-1", "1T", "99999999999999G"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
