//! The read-only root: Debian's part, our package and the recipe's files, as a squashfs with its hash tree behind it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use nemos_model::keys::policy::{self, Policy};
use nemos_model::manifest::FILE;
use nemos_model::overlay::archive::signature::{self, Policy as ImportPolicy};
use nemos_model::overlay::policy as overlay;
use nemos_model::partitions::Partition;
use serde_json::json;

use super::Context;
use super::chroot::Chroot;
use super::configurations;
use super::distribution::Distribution;
use super::error::BuildError;
use super::host::is_root;
use super::ids::Ids;
use super::index;
use super::manifest;
use super::tool::Tool;
use super::verity::Verified;
use crate::image::metadata::{self, Metadata};
use crate::image::verity;
use crate::keys::{Keys, Purpose, Scheme};
use crate::layout::Slot;
use crate::recipe::{OwnPartition, Recipe};

/// The root.
#[derive(Debug)]
pub struct Root {
    /// What the kernel opens.
    pub verified: Verified,
    /// Its os-release.
    pub os_release: String,
    /// Its own manifest.
    pub manifest: PathBuf,
}

impl Root {
    /// Makes it.
    pub fn make(context: &Context, distribution: &Distribution, deb: &Path, ids: &Ids) -> Result<Self, BuildError> {
        let os_release = os_release(context, ids);
        let file = context.scratch.join("root.squashfs");
        // A file, and not an argument: what is in the recipe is nobody's business who lists processes.
        let script = context.scratch.join("customize.sh");
        super::write(&script, &customization(context, &os_release, &manifest::line(context, ids)))?;
        let manifest = context.scratch.join("manifest.json");
        let epoch = context.epoch.to_string();
        let level = context.recipe.squashfs.zstd_level.to_string();
        let squashfs = mksquashfs()
            .env("SOURCE_DATE_EPOCH", &epoch)
            .arg("-")
            .arg(&file)
            .args(["-root-mode", "0755", "-root-time", &epoch])
            .args(["-tar", "-quiet", "-no-progress", "-exit-on-error", "-comp", "zstd", "-Xcompression-level", &level]);
        configurations::upload(
            &context.recipe,
            Chroot::unpacked(context.recipe.architecture, &distribution.root, context.epoch)?,
        )
        .upload(deb, "/tmp/nemos.deb")
        .upload(&script, "/tmp/customize.sh")
        .shell(r#"sh "$1/tmp/customize.sh" "$1""#)
        .download(FILE, &manifest)
        .kept()
        .pipe_through(|archive, squashfs| index::add(archive, squashfs, context.epoch), squashfs)?;
        let verified = Verified::make(context, file, "verity", context.recipe.verity.fec_roots, ids)?;
        Ok(Root { verified, os_release, manifest })
    }

    /// The block at the end of its partition, signed if there are keys.
    pub fn metadata(&self, keys: Option<&Keys>) -> Result<[u8; metadata::BLOCK], BuildError> {
        let data_blocks = self.verified.data / verity::BLOCK;
        let metadata = Metadata {
            file_system: "squashfs".to_owned(),
            data_blocks,
            hash_start: data_blocks,
            root_hash: self.verified.hash,
            salt: verity::hex(&self.verified.salt),
        };
        let sign = |keys: &Keys| keys.sign(Purpose::Root, Scheme::Pss, &metadata.message());
        let signature = keys.map(sign).transpose()?.unwrap_or_default();
        metadata.block(&signature).ok_or(BuildError::Metadata)
    }
}

/// mksquashfs, as somebody that it takes for root: it ignores the archive's entry for the root folder itself, and gives that
/// to whoever runs it.
pub fn mksquashfs() -> Tool {
    if is_root() { Tool::new("mksquashfs") } else { Tool::new("unshare").args(["--map-root-user", "mksquashfs"]) }
}

fn os_release(context: &Context, ids: &Ids) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "NAME=\"nemos\"\nPRETTY_NAME=\"nemos {version} ({profile})\"\nID=nemos\nID_LIKE=debian\nVARIANT_ID=nemos\n\
         VERSION_ID={version}\nVERSION_CODENAME={suite}\nIMAGE_ID=nemos-{profile}\nIMAGE_VERSION={version}\nBUILD_ID={build}\n",
        profile = context.profile,
        suite = context.recipe.debian.suite,
        build = ids.build_id(),
    )
}

/// What is done to the unpacked root, `$1`.
fn customization(context: &Context, os_release: &str, manifest: &str) -> String {
    let recipe = &context.recipe;
    let mut script = String::from(
        "set -eu\nroot=$1\ninside() { chroot \"$root\" \"$@\"; }\nrm \"$root/tmp/customize.sh\"\n\
         inside dpkg --install /tmp/nemos.deb\nrm \"$root/tmp/nemos.deb\"\n",
    );
    let mut line = |line: String| {
        let _ = writeln!(script, "{line}");
    };
    for (name, user) in &recipe.users {
        let groups = user.groups.join(",");
        line(format!(
            "inside useradd --uid {} --user-group --groups '{groups}' --no-create-home --home-dir /home/{name} \
             --shell /bin/bash {name}",
            user.uid
        ));
        if let Some(hash) = &user.password_hash {
            line(format!("printf '%s\\n' {} | inside chpasswd --encrypted", quoted(&format!("{name}:{hash}"))));
        }
    }
    for (path, content) in &recipe.files {
        line(file(path, content));
    }
    if recipe.keys != Policy::default() {
        line(file(&format!("/{}", policy::FILE), &format!("{}\n", json!(recipe.keys))));
    }
    if recipe.overlay != overlay::Policy::default() {
        line(file(&format!("/{}", overlay::FILE), &format!("{}\n", json!(recipe.overlay))));
    }
    if recipe.configurations.policy() != ImportPolicy::default() {
        let policy = json!(recipe.configurations.policy());
        line(file(&format!("/{}", signature::FILE), &format!("{policy}\n")));
    }
    configurations::script(recipe).into_iter().for_each(&mut line);
    line(file("/usr/lib/os-release", os_release));
    line(file("/etc/machine-id", "uninitialized\n"));
    line(file("/etc/fstab", &fstab(recipe)));
    // What systemd makes anew for another /usr (caches of the linker, of the journal's catalog) was made with this one.
    line(file("/etc/.updated", ""));
    line(file("/var/.updated", ""));
    for unit in &recipe.units.disable {
        line(format!("inside systemctl --quiet disable {unit}"));
    }
    for unit in &recipe.units.enable {
        line(format!("inside systemctl --quiet enable {unit}"));
    }
    for name in &recipe.units.mask {
        // A generator is masked in its own folder.
        let folder = if name.contains('.') { "system" } else { "system-generators" };
        line(format!(
            "mkdir -p \"$root/etc/systemd/{folder}\"\nln -sf /dev/null \"$root/etc/systemd/{folder}/{name}\""
        ));
    }
    let added = recipe.partitions.values().map(|added| added.mount_point.clone());
    let ours = Partition::ALL.into_iter().filter_map(Partition::mount_point).map(str::to_owned);
    for folder in added.chain(ours) {
        line(format!("mkdir -p \"$root{folder}\""));
    }
    line(manifest.to_owned());
    // Keys are the device's own, logs and caches of the installation nobody's.
    line(
        "rm -rf \"$root\"/etc/ssh/ssh_host_* \"$root\"/etc/resolv.conf \"$root\"/var/lib/dbus/machine-id \
         \"$root\"/var/cache/* \"$root\"/var/log/*.log \"$root\"/var/log/apt \"$root\"/var/lib/apt/lists/* \
         \"$root\"/var/lib/systemd/random-seed \"$root\"/etc/.pwd.lock \"$root\"/etc/*- \
         \"$root\"/var/lib/dpkg/*-old \"$root\"/boot/*"
            .to_owned(),
    );
    script
}

/// The partitions that the recipe adds: the device makes their file systems when it finds none, as it does for its own.
fn fstab(recipe: &Recipe) -> String {
    let mut text = String::new();
    for (name, added) in &recipe.partitions {
        let label = Slot::Added(name.clone()).label();
        let OwnPartition { mount_point, file_system, .. } = added;
        let _ = writeln!(text, "PARTLABEL={label} {mount_point} {file_system} nofail,x-systemd.makefs 0 2");
    }
    text
}

fn file(path: &str, content: &str) -> String {
    format!(
        "mkdir -p \"$(dirname \"$root{path}\")\"\nrm -f \"$root{path}\"\nprintf %s {} > \"$root{path}\"\nchmod 644 \"$root{path}\"",
        quoted(content)
    )
}

/// For a shell.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::build::Tool;

    #[test]
    fn a_file_of_a_recipe_arrives_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let content = "it's \"quoted\", $HOME stays, 100 %s\n\n";
        let script = format!("root=$1\n{}\n", file("/etc/deep/down.conf", content));
        Tool::new("sh").args(["-eu", "-c", &script, "sh"]).arg(folder.path()).run().expect("the script works");
        let written = fs::read_to_string(folder.path().join("etc/deep/down.conf")).expect("the file");
        assert_eq!(written, content);
    }
}
