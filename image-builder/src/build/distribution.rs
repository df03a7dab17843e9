//! Debian's part of the image: the root that its packages make, and what boots it.

use std::path::PathBuf;

use super::Context;
use super::cache::Digest;
use super::chroot::Chroot;
use super::error::BuildError;
use super::mirror::Mirror;
use super::tool::Tool;

/// Changes whenever the code below makes something else of the same inputs.
const FORMAT: &[u8] = b"3";

/// Fetched and unpacked, never installed: ukify and the EFI stub are for the builder, not for the device.
const UNPACKED: [&str; 2] = ["systemd-ukify", "systemd-boot-efi"];

/// Debian's part, in the cache.
#[derive(Debug)]
pub struct Distribution {
    /// The root, as a tar archive.
    pub root: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// Its version, as `uname -r` has it.
    pub kernel_version: String,
    /// systemd's EFI stub.
    pub stub: PathBuf,
    /// The program that puts kernel, initrd and stub together.
    pub ukify: PathBuf,
    /// Seconds since 1970 when the newest of its archives was released: what is made here is dated with that, and not
    /// with our own last commit, so that it need not be made again for each of them.
    pub epoch: u64,
    /// What it all depends on.
    pub key: Digest,
    /// It was there before.
    pub found: bool,
}

impl Distribution {
    /// Finds it in the cache, or installs it.
    pub fn make(context: &Context, mirror: &Mirror, releases: &[Vec<u8>]) -> Result<Self, BuildError> {
        let debian = &context.recipe.debian;
        let lines: Vec<_> = mirror.archives.iter().map(super::mirror::Archive::line).collect();
        let epoch = released(releases)?;
        let inputs = [&debian.packages, &debian.exclude, &lines].into_iter().flatten().map(String::as_bytes);
        let key = Digest::of([FORMAT].into_iter().chain(inputs).chain(releases.iter().map(Vec::as_slice)));
        let entry = context.cache.get("distribution", &key, |folder| {
            let mut chroot = Chroot::installed(epoch)
                .arg("--variant=essential")
                .arg(format!("--include={}", debian.packages.join(",")))
                .arg("--aptopt=APT::Install-Recommends \"false\";");
            for setting in &mirror.settings {
                chroot = chroot.arg(format!("--aptopt={setting}"));
            }
            for pattern in &debian.exclude {
                chroot = chroot.arg(format!("--dpkgopt=path-exclude={pattern}"));
            }
            chroot
                .shell(&format!(
                    r#"set -e; cd "$1/tmp"
                    APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --quiet download {}
                    for package in *.deb; do dpkg-deb --extract "$package" unpacked; done
                    cp -L unpacked/usr/bin/ukify unpacked/usr/lib/systemd/boot/efi/linuxx64.efi.stub "$1"/boot/vmlinuz-* .
                    ls "$1/lib/modules" > kernel-version
                    mv vmlinuz-* vmlinuz"#,
                    UNPACKED.join(" ")
                ))
                .download("/tmp/vmlinuz", &folder.join("vmlinuz"))
                .download("/tmp/kernel-version", &folder.join("kernel-version"))
                .download("/tmp/linuxx64.efi.stub", &folder.join("linuxx64.efi.stub"))
                .download("/tmp/ukify", &folder.join("ukify"))
                // The kernel boots from the ESP, and the keys of an ssh server are the device's own. systemd-resolved keeps
                // what it finds in its place: the builder's.
                .shell(
                    r#"rm -rf "$1"/boot/* "$1"/vmlinuz* "$1"/initrd.img* "$1"/etc/ssh/ssh_host_* \
                    "$1"/etc/.resolv.conf.systemd-resolved.bak"#,
                )
                .installed_from(&debian.suite, &folder.join("root.tar"), lines)
                .run()?;
            Ok::<_, BuildError>(())
        })?;
        let kernel_version = super::read(&entry.folder.join("kernel-version"))?.trim().to_owned();
        if kernel_version.lines().count() != 1 {
            return Err(BuildError::Kernels(kernel_version.lines().collect::<Vec<_>>().join(", ")));
        }
        Ok(Distribution {
            root: entry.folder.join("root.tar"),
            kernel: entry.folder.join("vmlinuz"),
            kernel_version,
            stub: entry.folder.join("linuxx64.efi.stub"),
            ukify: entry.folder.join("ukify"),
            epoch,
            key,
            found: entry.found,
        })
    }
}

/// When the newest release was made, by its own word.
pub fn released(releases: &[Vec<u8>]) -> Result<u64, BuildError> {
    let mut newest = 0;
    for release in releases {
        let text = String::from_utf8_lossy(release);
        let date = text.lines().find_map(|line| line.strip_prefix("Date: ")).unwrap_or_default();
        let seconds = Tool::new("date").args(["--utc", "+%s", "--date", date]).output()?;
        newest = newest.max(String::from_utf8_lossy(&seconds).trim().parse().unwrap_or(0));
    }
    Ok(newest)
}
