//! What differs inside of a file: as `diff --unified` tells it, read by whoever may read the file.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;
use std::time::Duration;

use nemos_model::overlay::LOWER_MOUNT;
use nemos_model::overlay::changes::from_text;
use similar::{Algorithm, TextDiff};

use crate::Failure;

/// Most bytes of a file that is compared line by line.
const LARGEST: u64 = 1 << 20;
/// How long the shortest difference is looked for; then any will do.
const PATIENCE: Duration = Duration::from_secs(2);

/// The difference between the image's file and the one that there is, at a path as changes have it.
pub fn difference(path: &str) -> Result<String, Failure> {
    let within = from_text(path).map_err(|error| Failure::Usage(error.to_string()))?;
    let read = |place: &Path| text(place).map_err(|source| Failure::Content { path: place.to_owned(), source });
    let (factory, now) = (read(&Path::new(LOWER_MOUNT).join(&within))?, read(&Path::new("/").join(&within))?);
    Ok(match (factory, now) {
        (Some(factory), Some(now)) => unified(path, &factory, &now),
        _ => format!("{path} is no text, or too large to be compared by lines\n"),
    })
}

/// What is in a file; nothing, if there is none, and `None` if it is no text of a size that people read.
fn text(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Some(String::new()));
        }
        opened => opened?,
    };
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    let is_small = bytes.len() as u64 <= LARGEST;
    Ok(String::from_utf8(bytes).ok().filter(|text| is_small && !text.contains('\0')))
}

fn unified(path: &str, factory: &str, now: &str) -> String {
    let mut diff = TextDiff::configure();
    let diff = diff.algorithm(Algorithm::Patience).timeout(PATIENCE).diff_lines(factory, now);
    diff.unified_diff().header(&format!("factory{path}"), &format!("now{path}")).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn lines_that_came_and_went_are_told() {
        let told = unified("/etc/hosts", "a\nb\nc\n", "a\nB\nc\nd");
        let expected = "--- factory/etc/hosts\n+++ now/etc/hosts\n@@ -1,3 +1,4 @@\n a\n-b\n+B\n c\n+d\n\\ No newline at end of file\n";
        assert_eq!(told, expected);
    }

    #[test]
    fn only_text_is_compared_by_lines() {
        let folder = tempfile::tempdir().unwrap();
        let read = |bytes: &[u8]| {
            let path = folder.path().join("file");
            fs::write(&path, bytes).unwrap();
            text(&path).unwrap()
        };
        assert_eq!(read(b"text\n").as_deref(), Some("text\n"));
        for bytes in [&b"\x7fELF\0"[..], b"\xff\xfe", &vec![b'a'; 1 + usize::try_from(LARGEST).unwrap()]] {
            assert_eq!(read(bytes), None);
        }
        assert_eq!(text(&folder.path().join("nothing")).unwrap().as_deref(), Some(""));
    }
}
