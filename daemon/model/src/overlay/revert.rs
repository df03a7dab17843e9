//! Which changes are taken back, path by path.

use std::path::Path;

use thiserror::Error;

use crate::overlay::changes::from_text;
use crate::partitions::Partition;
use crate::reset::KeptPath;
use crate::reset::keep::{BadKeep, MAX_PATHS, NEVER_RESET, is_at_or_below};

/// Paths that cannot be taken back.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadRevert {
    /// It is not a path as it must be.
    #[error("`{path}` cannot be reverted: {reason}")]
    Path {
        /// The path, its unprintable characters escaped, shortened.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The image has nothing there to go back to.
    #[error("`{0}` cannot be reverted: it is not on the overlay")]
    NotOnOverlay(KeptPath),
    /// None, or too many.
    #[error("one job reverts 1 to {MAX_PATHS} paths, not {0}: name the folders that they are in")]
    Count(usize),
}

/// Reads paths: each once, and none that another one takes with it.
pub fn decide(texts: &[String]) -> Result<Vec<KeptPath>, BadRevert> {
    let mut paths = texts.iter().map(|text| read(text)).collect::<Result<Vec<KeptPath>, _>>()?;
    // By their components: what is in a folder comes right after it.
    paths.sort_by(|one, other| Path::new(one.as_str()).cmp(Path::new(other.as_str())));
    paths.dedup_by(|path, before| is_at_or_below(path.as_str(), before.as_str()));
    if (1..=MAX_PATHS).contains(&paths.len()) { Ok(paths) } else { Err(BadRevert::Count(paths.len())) }
}

fn read(text: &str) -> Result<KeptPath, BadRevert> {
    let invalid = |reason| BadRevert::Path {
        path: text.chars().filter(|letter| !letter.is_control()).take(80).collect(),
        reason,
    };
    // Written as changes are told.
    let path = from_text(text).map_err(|_| invalid("it is not an absolute path without `.` and `..`"))?;
    let path = path.to_str().ok_or_else(|| invalid("it is not UTF-8; name the folder that it is in"))?;
    let path: KeptPath = format!("/{path}").parse().map_err(|error| match error {
        BadKeep::Path { path, reason } => BadRevert::Path { path, reason },
        // A path alone is refused for nothing else.
        other => BadRevert::Path { path: other.to_string(), reason: "it is no path" },
    })?;
    let is_elsewhere = NEVER_RESET.iter().any(|folder| is_at_or_below(path.as_str(), folder));
    if is_elsewhere || path.partition() != Partition::Root { Err(BadRevert::NotOnOverlay(path)) } else { Ok(path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(paths: &[&str]) -> Result<Vec<String>, BadRevert> {
        let texts: Vec<String> = paths.iter().map(ToString::to_string).collect();
        decide(&texts).map(|paths| paths.iter().map(|path| path.as_str().to_owned()).collect())
    }

    #[test]
    fn a_folder_takes_what_is_in_it() {
        assert_eq!(decided(&["/etc/ssh/config", "/etc/ssh", "/etc/ssh", "/opt"]).unwrap(), ["/etc/ssh", "/opt"]);
        assert_eq!(decided(&["/etc/a", "/etc/a-b", "/etc/a/c"]).unwrap(), ["/etc/a", "/etc/a-b"]);
    }

    #[test]
    fn what_is_not_on_the_overlay_is_refused() {
        for path in ["/home/admin", "/var/lib/containers/storage/x", "/var/lib/nemos/state.json", "/run/x", "/tmp"] {
            assert!(matches!(decided(&[path]), Err(BadRevert::NotOnOverlay(_))), "{path}");
        }
        for path in ["etc", "/", "/etc/../home", ""] {
            assert!(matches!(decided(&[path]), Err(BadRevert::Path { .. })), "{path}");
        }
        assert_eq!(decided(&[]), Err(BadRevert::Count(0)));
    }
}
