//! Debian's part of the image: the root that its packages make, and what boots it.

use std::path::PathBuf;

use super::Context;
use super::bootstrap::Bootstrap;
use super::cache::Digest;
use super::chroot::Chroot;
use super::error::BuildError;
use super::source::{Online, Source, blame};
use crate::architecture::Architecture;

/// Changes whenever the code below makes something else of the same inputs.
const FORMAT: &[u8] = b"3";

/// Fetched and unpacked, never installed: ukify and the EFI stub are for the builder, not for the device.
const UNPACKED: [&str; 2] = ["systemd-ukify", "systemd-boot-efi"];

/// What it consists of.
pub const fn files(architecture: Architecture) -> [&'static str; 5] {
    ["root.tar", "vmlinuz", "kernel-version", architecture.stub(), "ukify"]
}

/// Debian's part, in the cache.
#[derive(Debug)]
pub struct Distribution {
    /// Where all but the root is.
    pub folder: PathBuf,
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
    pub fn make(context: &Context, source: &Source) -> Result<Self, BuildError> {
        match source {
            Source::Mirror(online) => from_mirror(context, online),
            Source::Archive(archive) => {
                let key = Digest::of([FORMAT, archive.digest.as_bytes()]);
                let root = archive.folder.join("root.tar");
                Distribution::in_folder(context, archive.folder.clone(), root, archive.epoch(), key, true)
            }
            Source::Both(archive, online, packages) => with_more(context, archive, online, packages),
        }
    }

    fn in_folder(
        context: &Context,
        folder: PathBuf,
        root: PathBuf,
        epoch: u64,
        key: Digest,
        found: bool,
    ) -> Result<Self, BuildError> {
        let kernel_version = super::read(&folder.join("kernel-version"))?.trim().to_owned();
        if kernel_version.lines().count() != 1 {
            return Err(BuildError::Kernels(kernel_version.lines().collect::<Vec<_>>().join(", ")));
        }
        Ok(Distribution {
            root,
            kernel: folder.join("vmlinuz"),
            kernel_version,
            stub: folder.join(context.recipe.architecture.stub()),
            ukify: folder.join("ukify"),
            epoch,
            key,
            found,
            folder,
        })
    }
}

fn from_mirror(context: &Context, online: &Online) -> Result<Distribution, BuildError> {
    let debian = &context.recipe.debian;
    let mirror = online.key();
    let architecture = context.recipe.architecture;
    let stub = architecture.stub();
    let inputs = [&debian.packages, &debian.exclude].into_iter().flatten().map(String::as_bytes);
    let key = Digest::of(
        [FORMAT, architecture.name().as_bytes()].into_iter().chain(inputs).chain(mirror.iter().map(Vec::as_slice)),
    );
    let entry = context.cache.get("distribution", &key, |folder| {
        let chroot = Chroot::installed(architecture, online.epoch).arg("--variant=essential");
        installing(chroot, context, online, &debian.packages)
            .shell(&format!(
                r#"set -e; cd "$1/tmp"
                APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --quiet download {unpacked}
                for package in *.deb; do dpkg-deb --extract "$package" unpacked; done
                cp -L unpacked/usr/bin/ukify unpacked/usr/lib/systemd/boot/efi/{stub} "$1"/boot/vmlinuz-* .
                ls "$1/lib/modules" > kernel-version
                mv vmlinuz-* vmlinuz"#,
                unpacked = UNPACKED.join(" ")
            ))
            .download("/tmp/vmlinuz", &folder.join("vmlinuz"))
            .download("/tmp/kernel-version", &folder.join("kernel-version"))
            .download(&format!("/tmp/{stub}"), &folder.join(stub))
            .download("/tmp/ukify", &folder.join("ukify"))
            .shell(LEFT_OUT)
            .installed_from(&debian.suite, &folder.join("root.tar"), online.lines())
            .run()
            .map_err(|error| blame(context, error))
    })?;
    let root = entry.folder.join("root.tar");
    Distribution::in_folder(context, entry.folder, root, online.epoch, key, entry.found)
}

/// The root of an archive, with more packages installed in it.
fn with_more(
    context: &Context,
    archive: &Bootstrap,
    online: &Online,
    packages: &[String],
) -> Result<Distribution, BuildError> {
    let epoch = archive.epoch().max(online.epoch);
    let mirror = online.key();
    let inputs = [FORMAT, archive.digest.as_bytes()].into_iter().chain(packages.iter().map(String::as_bytes));
    let key = Digest::of(inputs.chain(mirror.iter().map(Vec::as_slice)));
    if packages.is_empty() {
        // The mirror has what a container is made of.
        return Distribution::in_folder(
            context,
            archive.folder.clone(),
            archive.folder.join("root.tar"),
            epoch,
            key,
            true,
        );
    }
    let entry = context.cache.get("distribution", &key, |folder| {
        installing(
            Chroot::extended(context.recipe.architecture, &archive.folder.join("root.tar"), epoch)?,
            context,
            online,
            packages,
        )
        .shell(LEFT_OUT)
        .installed_from(&context.recipe.debian.suite, &folder.join("root.tar"), online.lines())
        .run()
        .map_err(|error| blame(context, error))
    })?;
    Distribution::in_folder(context, archive.folder.clone(), entry.folder.join("root.tar"), epoch, key, entry.found)
}

fn installing(chroot: Chroot, context: &Context, online: &Online, packages: &[String]) -> Chroot {
    let chroot = chroot.arg(format!("--include={}", packages.join(",")));
    let exclude = context.recipe.debian.exclude.iter().map(|pattern| format!("--dpkgopt=path-exclude={pattern}"));
    online.options().chain(exclude).fold(chroot, Chroot::arg)
}

/// The kernel boots from the ESP, and the keys of an ssh server are the device's own. systemd-resolved keeps what it finds in
/// its place: the builder's.
const LEFT_OUT: &str = r#"rm -rf "$1"/boot/* "$1"/vmlinuz* "$1"/initrd.img* "$1"/etc/ssh/ssh_host_* \
    "$1"/etc/.resolv.conf.systemd-resolved.bak"#;
