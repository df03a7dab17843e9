//! A new key in a file on another device: nemosd only reads such files.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nemos_model::keys::FilePlace;
use zeroize::Zeroizing;

use crate::Failure;

/// Bytes of a key.
const BYTES: usize = 64;

/// A file with a new key.
pub struct KeyFile {
    /// What is in it.
    pub secret: Zeroizing<Vec<u8>>,
    path: PathBuf,
}

impl KeyFile {
    /// Makes it where nothing is; or where `spent` says that only a key is that opens nothing any more.
    pub fn make(place: &FilePlace, spent: bool) -> Result<Self, Failure> {
        let path = mount_point(place)?.join(place.path().trim_start_matches('/'));
        let failed = |error: io::Error| unusable(place, &error);
        if spent && fs::symlink_metadata(&path).is_ok_and(|found| found.is_file() && found.len() == BYTES as u64) {
            fs::remove_file(&path).map_err(failed)?;
        }
        let mut secret = Zeroizing::new(vec![0; BYTES]);
        File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut secret)).map_err(failed)?;
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        let made = KeyFile { secret, path };
        let written =
            file.write_all(&made.secret).and_then(|()| file.sync_all()).and_then(|()| sync_folder(&made.path));
        match written {
            Ok(()) => Ok(made),
            Err(error) => {
                made.discard();
                Err(unusable(place, &error))
            }
        }
    }

    /// Deletes it: nobody has taken its key.
    pub fn discard(self) {
        // Whoever reads the message of what failed is told nothing new by this.
        let _ = fs::remove_file(self.path);
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn unusable(place: &FilePlace, error: &dyn std::fmt::Display) -> Failure {
    Failure::Usage(format!("cannot make the key file {place}: {error}"))
}

/// Where the file system of the device is mounted.
fn mount_point(place: &FilePlace) -> Result<PathBuf, Failure> {
    let device = fs::canonicalize(place.link());
    let device = device.map_err(|_| unusable(place, &format!("the device with {} is not there", place.device())))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let found = mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let source = file_system.split(' ').nth(1)?;
        let mut fields = mount.split(' ').skip(3);
        let (root, target) = (fields.next()?, fields.next()?);
        (root == "/" && Path::new(source) == device).then(|| PathBuf::from(target.replace("\\040", " ")))
    });
    found.ok_or_else(|| {
        let advice =
            format!("{} is not mounted: mount it, or give a key that is there with --secret-file", device.display());
        unusable(place, &advice)
    })
}
