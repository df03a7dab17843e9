//! Roots of Debian that live as long as one run of mmdebstrap: unpacked, changed, read out, gone.
//!
//! An ordinary user has them in a user namespace of their own range of user ids, root in a mount namespace only. Files go in and out by
//! mmdebstrap's own hooks, because programs in the namespace cannot read what only the user may.

use std::fs::File;
use std::path::Path;

use super::error::BuildError;
use super::host;
use super::tool::Tool;
use crate::architecture::Architecture;

/// A root to be.
pub struct Chroot {
    tool: Tool,
}

impl Chroot {
    /// A root that is installed from a mirror.
    pub fn installed(architecture: Architecture, epoch: u64) -> Self {
        // No initrd of Debian's: it would take a third of the time, and nothing would ever boot it.
        Chroot { tool: mmdebstrap(architecture, epoch).env("INITRD", "No") }
    }

    /// A root that was made before, unpacked again.
    pub fn unpacked(architecture: Architecture, root: &Path, epoch: u64) -> Result<Self, BuildError> {
        Ok(Chroot {
            tool: unpack(
                root,
                mmdebstrap(architecture, epoch).args(["--variant=custom", "--skip=setup,update,cleanup"]),
            )?,
        })
    }

    /// A root that was made before, for more to be installed in it from a mirror.
    pub fn extended(architecture: Architecture, root: &Path, epoch: u64) -> Result<Self, BuildError> {
        Ok(Chroot { tool: unpack(root, mmdebstrap(architecture, epoch).env("INITRD", "No").arg("--variant=custom"))? })
    }

    /// One more argument for mmdebstrap.
    pub fn arg(self, arg: impl AsRef<str>) -> Self {
        Chroot { tool: self.tool.arg(arg.as_ref()) }
    }

    /// Unpacks a tar archive over it.
    pub fn tar_in(self, archive: &Path) -> Self {
        self.arg(format!("--customize-hook=tar-in {} /", quoted(archive)))
    }

    /// Copies a file into it.
    pub fn upload(self, from: &Path, to: &str) -> Self {
        self.arg(format!("--customize-hook=upload {} {to}", quoted(from)))
    }

    /// Copies a file out of it.
    pub fn download(self, from: &str, to: &Path) -> Self {
        self.arg(format!("--customize-hook=download {from} {}", quoted(to)))
    }

    /// Runs a script of the host's shell, with the root in `$1`.
    pub fn shell(self, script: &str) -> Self {
        self.arg(format!("--customize-hook={script}"))
    }

    /// What to run, with no root left behind but what was read out.
    pub fn nothing_kept(self) -> Tool {
        self.tool.args(["--format=null", "", "/dev/null"])
    }

    /// What to run, with the root as a tar archive on stdout.
    pub fn kept(self) -> Tool {
        self.tool.args(["--format=tar", "", "-"])
    }

    /// What to run, with the root as a tar archive in a file, installed from these archives.
    pub fn installed_from(self, suite: &str, tar: &Path, archives: impl IntoIterator<Item = String>) -> Tool {
        self.tool.arg("--format=tar").arg(suite).arg(tar).args(archives)
    }
}

/// Has a root unpacked. It comes open, and not by a hook of mmdebstrap's own, which takes five times as long for so much.
fn unpack(root: &Path, mmdebstrap: Tool) -> Result<Tool, BuildError> {
    // It is without /dev, and mmdebstrap mounts nothing on what is not there.
    const UNPACK: &str =
        r#"tar --extract --numeric-owner --xattrs "--xattrs-include=*" --directory "$1" && mkdir -p "$1/dev""#;
    let archive = File::open(root).map_err(BuildError::io("reading", root))?;
    Ok(mmdebstrap.stdin(archive).arg(format!("--setup-hook={UNPACK}")))
}

/// mmdebstrap, as it makes every root. Programs of another architecture are run by QEMU, which the kernel calls.
pub fn mmdebstrap(architecture: Architecture, epoch: u64) -> Tool {
    // The same for everybody: root just has no need to unshare its user ids. Device nodes cannot be unpacked by an
    // ordinary user, and devtmpfs brings them anyhow.
    let tool = Tool::new("mmdebstrap").env("SOURCE_DATE_EPOCH", epoch.to_string());
    // dpkg need not wait for the disk after each package: what is not finished is thrown away.
    let tool = tool.env("DPKG_FORCE", "unsafe-io").env("TMPDIR", host::roots_folder());
    tool.args(["--mode=unshare", "--skip=output/dev"]).arg(format!("--architectures={architecture}"))
}

/// The option that makes folders as Debian has them since version 12, for what is unpacked and not installed: packages rely on them.
pub fn merged(architecture: Architecture) -> String {
    let folders = architecture.merged_folders();
    format!(
        r#"--setup-hook=mkdir -p "$1/usr"; for folder in {folders}; do mkdir "$1/usr/$folder"; ln -s "usr/$folder" "$1/$folder"; done"#
    )
}

/// For the words that mmdebstrap splits a special hook into.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_spaces_stays_one_word() {
        assert_eq!(quoted(Path::new("/tmp/my images/it's")), r"'/tmp/my images/it'\''s'");
    }
}
