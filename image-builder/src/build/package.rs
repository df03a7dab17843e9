//! The Debian package: our programs, and everything under `systemd/`.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;

use super::disk;
use super::error::BuildError;
use super::host;
use super::sysroot;
use super::tool::{Tool, ToolError};
use super::{create_parent, epoch, write};
use crate::architecture::Architecture;

/// Programs, the packages of cargo that make them, and where they are installed.
const PROGRAMS: [(&str, &str); 3] = [
    ("nemosd", "usr/libexec/nemosd"),
    ("nemosctl", "usr/bin/nemosctl"),
    ("nemos-initrd", "usr/lib/nemos/nemos-initrd"),
];

/// What cargo makes, in the source.
const TARGET_FOLDER: &str = "target/package";

/// Where the package has the initrd's program.
pub const INITRD_PROGRAM: &str = "usr/lib/nemos/nemos-initrd";
/// What dracut needs of the package.
pub const DRACUT_PARTS: [&str; 2] = ["usr/lib/dracut/", "usr/share/nemos/dracut/"];

const CONTROL: &str = "Package: nemos
Version: @VERSION@
Architecture: @ARCHITECTURE@
Section: admin
Priority: optional
Maintainer: nemos developers <nemos@localhost>
Depends: cryptsetup-bin, dbus, e2fsprogs, libblkid1, libc6 (>= 2.36), libcryptsetup12 (>= 2:2.6), libdevmapper1.02.1, \
libgcc-s1, polkitd, systemd (>= 254), xfsprogs
Recommends: systemd-cryptsetup, tpm2-tools
Suggests: dracut
Installed-Size: @SIZE@
Description: takes care of a read-only, verified Linux device
 Factory reset, overlay reconfiguration, key rotation and integrity status over
 D-Bus (nemosd), a command line (nemosctl), and the program that carries out in
 the initrd what was asked (nemos-initrd, with its dracut module).
";

/// Units are enabled, and started by the next boot: this device's storage is set up in its initrd.
const POSTINST: &str = r#"#!/bin/sh
set -e
if [ "$1" = configure ]; then
    for unit in @UNITS@; do
        deb-systemd-helper enable "$unit" >/dev/null || true
    done
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload || true
    fi
fi
"#;

const PRERM: &str = r#"#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    for unit in @UNITS@; do
        deb-systemd-invoke stop "$unit" || true
    done
fi
"#;

const POSTRM: &str = r#"#!/bin/sh
set -e
if [ "$1" = remove ] || [ "$1" = purge ]; then
    for unit in @UNITS@; do
        deb-systemd-helper "$1" "$unit" >/dev/null || true
    done
fi
"#;

/// Build only the Debian package of nemos
///
/// From the source tree that the current folder is in. `build --package` takes it, and so does apt on any Debian 13.
#[derive(Debug, Clone, Args)]
pub struct PackageArgs {
    /// Folder for the package
    #[arg(long, value_name = "DIR", default_value = "out")]
    pub output: PathBuf,

    /// Architecture to compile for [default: the host's]
    #[arg(long, value_name = "NAME")]
    pub arch: Option<Architecture>,

    /// Debian mirror of what is compiled against for another architecture, instead of the host's
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
}

/// Builds the package by itself; its path is returned.
pub fn build_package(args: &PackageArgs) -> Result<PathBuf, BuildError> {
    super::begin()?;
    let architecture = args.arch.or_else(Architecture::of_host).unwrap_or_default();
    host::check_for_package(architecture)?;
    fs::create_dir_all(&args.output).map_err(BuildError::io("making", &args.output))?;
    let scratch = tempfile::Builder::new().prefix(".nemos-image-").tempdir_in(&args.output);
    let scratch = scratch.map_err(BuildError::io("making a folder in", &args.output))?;
    let package = build(&super::absolute(scratch.path())?, epoch()?, architecture, args.mirror.as_deref())?;
    disk::publish(&package, &args.output)
}

/// Builds the programs of the workspace that the current folder is in, and the package of them.
pub fn build(
    scratch: &Path,
    epoch: u64,
    architecture: Architecture,
    mirror: Option<&str>,
) -> Result<PathBuf, BuildError> {
    let source = source_tree()?;
    let cross = match Architecture::of_host() {
        Some(host) if host == architecture => None,
        _ => Some(Cross::new(&source, scratch, architecture, mirror)?),
    };
    let programs = compile(&source, cross.as_ref())?;
    let version = env!("CARGO_PKG_VERSION");
    let tree = scratch.join("package");
    copy_tree(&source.join("systemd"), &tree)?;
    for (program, path) in PROGRAMS {
        let compiled = programs.get(program).ok_or(BuildError::NoProgram(program))?;
        let to = tree.join(path);
        create_parent(&to)?;
        fs::copy(compiled, &to).map_err(BuildError::io("copying", &to))?;
    }
    write_control(&tree, version, architecture)?;
    date(&tree, SystemTime::UNIX_EPOCH + Duration::from_secs(epoch))?;
    let package = scratch.join(format!("nemos_{version}_{architecture}.deb"));
    // One thread: how many there are decides where zstd cuts.
    Tool::new("dpkg-deb")
        .env("SOURCE_DATE_EPOCH", epoch.to_string())
        .args(["--root-owner-group", "-Zzstd", "--threads-max=1", "--build"])
        .args([&tree, &package])
        .run()?;
    Ok(package)
}

/// The root of the workspace.
pub fn source_tree() -> Result<PathBuf, BuildError> {
    let located = Tool::new("cargo").args(["locate-project", "--workspace", "--message-format=plain"]).output();
    let manifest = match located {
        Ok(output) => PathBuf::from(String::from_utf8_lossy(&output).trim()),
        Err(ToolError::Failed { .. }) => return Err(BuildError::NotInSource),
        Err(other) => return Err(other.into()),
    };
    match manifest.parent() {
        Some(root) if root.join("daemon/initrd").is_dir() => Ok(root.to_owned()),
        _ => Err(BuildError::NotInSource),
    }
}

/// What it takes to compile for another architecture: rustc has its standard library, or so the check of the host said.
struct Cross {
    architecture: Architecture,
    sysroot: PathBuf,
}

impl Cross {
    fn new(
        source: &Path,
        scratch: &Path,
        architecture: Architecture,
        mirror: Option<&str>,
    ) -> Result<Self, BuildError> {
        let sysroot = sysroot::make(&source.join(TARGET_FOLDER), scratch, architecture, mirror)?;
        Ok(Cross { architecture, sysroot })
    }

    /// For rustc.
    fn flag(&self) -> String {
        format!("-Clink-arg=--sysroot={}", self.sysroot.display())
    }

    /// For cargo, and for the build scripts of what we depend on: those that compile C, that ask pkg-config, and that read
    /// headers.
    fn environment(&self) -> Vec<(String, String)> {
        let target = self.architecture.rust_target().replace('-', "_");
        let compiler = host::cross_compiler(self.architecture);
        let sysroot = self.sysroot.display();
        let libraries = format!("{sysroot}/usr/lib/{}/pkgconfig", self.architecture.multiarch());
        vec![
            (format!("CARGO_TARGET_{}_LINKER", target.to_uppercase()), compiler.clone()),
            (format!("CC_{target}"), compiler),
            (format!("CFLAGS_{target}"), format!("--sysroot={sysroot}")),
            (format!("PKG_CONFIG_ALLOW_CROSS_{target}"), "1".to_owned()),
            (format!("PKG_CONFIG_SYSROOT_DIR_{target}"), sysroot.to_string()),
            (format!("PKG_CONFIG_LIBDIR_{target}"), libraries),
            (format!("BINDGEN_EXTRA_CLANG_ARGS_{target}"), format!("--sysroot={sysroot}")),
        ]
    }
}

/// Compiles what is the same wherever the source and cargo's own folder are: programs tell the paths of their source in
/// panics. Flags of the user's own are not taken, for the same reason. Nor are times: a crate that embeds files with theirs takes
/// this one instead, and always the same, for cargo compiles nothing anew when it changes.
fn compile(source: &Path, cross: Option<&Cross>) -> Result<BTreeMap<String, PathBuf>, BuildError> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let home = home.unwrap_or_else(|| PathBuf::from("/nonexistent"));
    let renamed = [(source, "/nemos"), (home.as_path(), "/cargo")].into_iter().flat_map(|(path, name)| {
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        [path.to_owned(), real].map(|path| format!("--remap-path-prefix={}={name}", path.display()))
    });
    let flags: Vec<_> = renamed.chain(cross.map(Cross::flag)).collect();
    let environment = cross.map(Cross::environment).unwrap_or_default();
    let cargo = environment.iter().fold(Tool::new("cargo"), |cargo, (name, value)| cargo.env(name, value));
    let output = cargo
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("SOURCE_DATE_EPOCH", "0")
        .args(["build", "--release", "--locked", "--quiet", "--message-format=json-render-diagnostics"])
        .arg("--manifest-path")
        .arg(source.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(source.join(TARGET_FOLDER))
        .args(cross.map(|cross| format!("--target={}", cross.architecture.rust_target())))
        .args(PROGRAMS.iter().flat_map(|(package, _)| ["--package", package]))
        .output()?;
    let messages =
        output.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok());
    Ok(messages
        .filter_map(|message| {
            let name = message.pointer("/target/name")?.as_str()?.to_owned();
            Some((name, PathBuf::from(message.get("executable")?.as_str()?)))
        })
        .collect())
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), BuildError> {
    fs::create_dir_all(to).map_err(BuildError::io("making", to))?;
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(BuildError::io("giving a mode to", path))
    };
    mode(to, 0o755)?;
    for entry in fs::read_dir(from).map_err(BuildError::io("reading", from))? {
        let entry = entry.map_err(BuildError::io("reading", from))?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        let metadata = entry.metadata().map_err(BuildError::io("reading", &path))?;
        if metadata.is_dir() {
            copy_tree(&path, &to)?;
        } else if metadata.is_symlink() {
            let target = fs::read_link(&path).map_err(BuildError::io("reading", &path))?;
            std::os::unix::fs::symlink(target, &to).map_err(BuildError::io("making", &to))?;
        } else {
            fs::copy(&path, &to).map_err(BuildError::io("copying", &path))?;
            // Whatever the umask was when the source was checked out.
            mode(&to, if metadata.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 })?;
        }
    }
    Ok(())
}

/// Gives everything in a tree the same time.
fn date(path: &Path, time: SystemTime) -> Result<(), BuildError> {
    if path.is_symlink() {
        return Ok(());
    }
    if path.is_dir() {
        for entry in fs::read_dir(path).map_err(BuildError::io("reading", path))? {
            date(&entry.map_err(BuildError::io("reading", path))?.path(), time)?;
        }
    }
    let dated = File::open(path).and_then(|file| file.set_modified(time));
    dated.map_err(BuildError::io("dating", path))
}

fn write_control(tree: &Path, version: &str, architecture: Architecture) -> Result<(), BuildError> {
    let units = units_to_enable(&tree.join("usr/lib/systemd/system"))?.join(" ");
    let size = (super::size_of_tree(tree)? >> 10).to_string();
    let control = CONTROL.replace("@VERSION@", version).replace("@SIZE@", &size);
    let control = control.replace("@ARCHITECTURE@", architecture.name());
    let scripts = [("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)];
    let scripts = scripts.map(|(name, text)| (name, text.replace("@UNITS@", &units), 0o755));
    for (name, text, mode) in [("control", control, 0o644)].into_iter().chain(scripts) {
        let path = tree.join("DEBIAN").join(name);
        write(&path, &text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .map_err(BuildError::io("giving a mode to", &path))?;
    }
    Ok(())
}

/// Units with an `[Install]` section.
fn units_to_enable(folder: &Path) -> Result<Vec<String>, BuildError> {
    let mut units = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return Ok(units) };
    for entry in entries {
        let path = entry.map_err(BuildError::io("reading", folder))?.path();
        if path.is_file() {
            let text = fs::read_to_string(&path).map_err(BuildError::io("reading", &path))?;
            if text.lines().any(|line| line.trim() == "[Install]") {
                units.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
            }
        }
    }
    units.sort();
    Ok(units)
}

/// A package that was given, if it is one of nemos for this architecture.
pub fn given(package: &Path, architecture: Architecture) -> Result<PathBuf, BuildError> {
    let field = |name: &str| match Tool::new("dpkg-deb").arg("--field").arg(package).arg(name).output() {
        Ok(value) => Ok(String::from_utf8_lossy(&value).trim().to_owned()),
        Err(ToolError::Failed { .. }) => Err(BuildError::NotOurPackage(package.to_owned())),
        Err(other) => Err(other.into()),
    };
    if field("Package")? != "nemos" {
        return Err(BuildError::NotOurPackage(package.to_owned()));
    }
    let of = field("Architecture")?;
    if of != architecture.name() {
        return Err(BuildError::OtherArchitecture { package: package.to_owned(), of, architecture });
    }
    super::absolute(package)
}

/// A file of a package.
#[derive(Debug)]
pub struct Packed {
    /// Its path, without a leading slash.
    pub path: String,
    /// Its permissions.
    pub mode: u32,
    /// Its content.
    pub content: Vec<u8>,
}

/// The regular files of a package that `wanted` says yes to, ordered by path.
pub fn files(package: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<Packed>, BuildError> {
    let archive = Tool::new("dpkg-deb").arg("--fsys-tarfile").arg(package).output()?;
    let unreadable = BuildError::io("reading", package);
    let read = || {
        let mut files = Vec::new();
        for entry in tar::Archive::new(archive.as_slice()).entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_string_lossy().trim_start_matches("./").to_owned();
            if entry.header().entry_type().is_file() && wanted(&path) {
                let mut content = Vec::new();
                entry.read_to_end(&mut content)?;
                files.push(Packed { path, mode: entry.header().mode()?, content });
            }
        }
        files.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(files)
    };
    read().map_err(unreadable)
}
