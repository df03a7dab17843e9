//! Configurations that are carried in files, on real XFS and overlayfs.

#![allow(clippy::unwrap_used, reason = "panicking is how a test fails")]

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use nemos_host::mounts::unmount;
use nemos_host::overlay;
use nemos_host::overlay::archive::{
    Caller, ExportError, ImportError, Source, Unpacked, Wanted, export, import, import_shipped, shipped_about,
};
use nemos_model::Timestamp;
use nemos_model::image::Image;
use nemos_model::overlay::ConfigurationName;
use nemos_model::overlay::archive::layer::Reason;
use nemos_model::overlay::archive::signature::Refused;
use nemos_model::overlay::archive::{
    Blob, BlobDigest, Description, Documents, INDEX_FILE, LAYOUT, LAYOUT_FILE, Policy, SHIPPED_FOLDER, Voucher,
};
use nemos_model::overlay::configuration::{ABOUT_FILE, About};
use nemos_rig::{Disk, Rng, WriteLog, run};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, llistxattr, mknodat, setxattr};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;
use zstd::zstd_safe::CParameter;

/// XFS is not made smaller.
const SIZE: u64 = 320 << 20;
const NOW: Timestamp = Timestamp(1_795_442_786);

fn main() -> ExitCode {
    nemos_rig::main(nemos_rig::tests![
        what_was_exported_is_the_same_elsewhere,
        only_what_can_be_carried_is_exported,
        a_configuration_has_the_name_that_is_asked_for,
        an_image_decides_whose_configurations_it_takes,
        the_image_vouches_for_what_it_ships,
        no_archive_writes_outside_its_folder,
        no_archive_takes_all_the_room,
        what_is_not_whole_is_not_imported,
        whatever_comes_nothing_else_is_touched,
        the_power_goes_during_an_import,
    ])
}

/// A volume of an overlay, with its file system mounted.
struct Volume {
    disk: Disk,
    folder: TempDir,
}

impl Volume {
    fn new() -> Self {
        let disk = Disk::new(SIZE);
        run("mkfs.xfs", ["-q".as_ref(), disk.path().as_os_str()]);
        let volume = Volume::on(disk);
        for name in ["upper", "work", "configurations"] {
            fs::create_dir(volume.path(name)).unwrap();
        }
        volume
    }

    fn on(disk: Disk) -> Self {
        let folder = tempfile::tempdir_in("/run").unwrap();
        run("mount", ["-t".as_ref(), "xfs".as_ref(), disk.path().as_os_str(), folder.path().as_os_str()]);
        Volume { disk, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Everything that is saved on it, and what is left of what was not.
    fn saved(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("configurations")).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// All that is on it. The folder of the configurations is written to, and has the time of that.
    fn everything(&self) -> Vec<String> {
        let mut told = everything(self.folder.path());
        told.retain(|line| !line.starts_with("configurations 4"));
        told
    }

    fn export(&self, name: &str) -> Vec<u8> {
        let mut archive = Vec::new();
        export(self.folder.path(), &name.parse().unwrap(), &[], &mut archive).unwrap();
        archive
    }

    fn import(&self, archive: &[u8]) -> Result<Unpacked, ImportError> {
        self.import_as(archive, Wanted::default())
    }

    fn import_as(&self, archive: &[u8], wanted: Wanted<'_>) -> Result<Unpacked, ImportError> {
        let policy = Policy::default();
        import(self.folder.path(), archive, Source::Elsewhere { policy: &policy, signature: None }, wanted, NOW)
    }

    /// Saves these files as a configuration.
    fn saves(&self, name: &str, make: impl FnOnce(&Path)) {
        let folder = self.path("configurations").join(name);
        fs::create_dir_all(folder.join("tree")).unwrap();
        make(&folder.join("tree"));
        fs::write(folder.join(ABOUT_FILE), about().to_text()).unwrap();
    }

    fn leave(self) -> Disk {
        unmount(self.folder.path()).unwrap();
        self.disk
    }
}

fn about() -> About {
    About::new(image(), "ab".repeat(32).parse().unwrap(), NOW, None)
}

fn image() -> Image {
    Image { id: "nemos".into(), version: "1".into() }
}

/// What is at and below a path, with all that can be told of it.
fn everything(root: &Path) -> Vec<String> {
    let mut told = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(path) = folders.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let kind = found.file_type();
        let content = if kind.is_file() { digest(&fs::read(&path).unwrap()) } else { String::new() };
        let target = fs::read_link(&path).unwrap_or_default();
        // What is not there was not modified.
        let modified = if kind.is_char_device() { (0, 0) } else { (found.mtime(), found.mtime_nsec()) };
        told.push(format!(
            "{} {:o} {}:{} {modified:?} {:?} {} {content} {} {:?}",
            path.strip_prefix(root).unwrap().display(),
            found.mode(),
            found.uid(),
            found.gid(),
            (kind.is_char_device(), found.rdev()),
            if kind.is_dir() { 0 } else { found.nlink() },
            target.display(),
            attributes(&path),
        ));
        if kind.is_dir() {
            folders.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    told.sort();
    told
}

fn digest(bytes: &[u8]) -> String {
    BlobDigest::of(bytes).to_string()
}

fn attributes(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = Vec::with_capacity(4096);
    llistxattr(path, rustix::buffer::spare_capacity(&mut names)).unwrap();
    let names = String::from_utf8(names).unwrap();
    let of = |name: &str| {
        let mut value = Vec::with_capacity(65_536);
        lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)).unwrap();
        (name.to_owned(), value)
    };
    let mut told: Vec<_> = names.split('\0').filter(|name| !name.is_empty()).map(of).collect();
    told.sort();
    told
}

fn what_was_exported_is_the_same_elsewhere() {
    let (here, there) = (Volume::new(), Volume::new());
    let lower = tempfile::tempdir_in("/run").unwrap();
    for file in ["etc/a", "etc/gone", "etc/old/shipped", "opt/gone/deep/file"] {
        fs::create_dir_all(lower.path().join(file).parent().unwrap()).unwrap();
        fs::write(lower.path().join(file), "shipped").unwrap();
    }
    let root = tempfile::tempdir_in("/run").unwrap();
    overlay::mount_overlay(lower.path(), here.folder.path(), root.path()).unwrap();
    let at = |path: &str| root.path().join(path);
    fs::write(at("etc/a"), "changed\n").unwrap();
    fs::remove_file(at("etc/gone")).unwrap();
    fs::remove_dir_all(at("etc/old")).unwrap();
    fs::create_dir(at("etc/old")).unwrap();
    fs::remove_dir_all(at("opt/gone")).unwrap();
    let long = format!("etc/{}", "long".repeat(60));
    fs::write(at(&long), "long").unwrap();
    fs::write(at("etc/first"), "of two names").unwrap();
    fs::hard_link(at("etc/first"), at("etc/second")).unwrap();
    fs::write(at("large"), vec![7; 3 << 20]).unwrap();
    File::options().write(true).open(at("large")).unwrap().set_len(5 << 20).unwrap();
    symlink("/etc/shadow", at("etc/link")).unwrap();
    symlink("x".repeat(200), at("etc/long-link")).unwrap();
    fs::write(at("etc/program"), "run").unwrap();
    chown(at("etc/program"), Some(1000), Some(1001)).unwrap();
    fs::set_permissions(at("etc/program"), Permissions::from_mode(0o4751)).unwrap();
    let capability = [1, 0, 0, 2, 0, 4, b'\n', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    setxattr(at("etc/a"), "security.capability", &capability, XattrFlags::empty()).unwrap();
    setxattr(at("etc"), "user.note", b"mine\n", XattrFlags::empty()).unwrap();
    for (path, nanoseconds) in [("etc/a", 123_456_789), ("etc", 5)] {
        let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, nanoseconds);
        File::open(at(path)).unwrap().set_modified(then).unwrap();
    }
    File::open(at("etc/first")).unwrap().set_modified(SystemTime::UNIX_EPOCH - Duration::from_millis(1500)).unwrap();
    let before = everything(root.path());
    unmount(root.path()).unwrap();

    here.saves("site", |tree| fs::rename(here.path("upper"), tree).unwrap());
    let archive = here.export("site");
    assert_eq!(here.export("site"), archive, "the same configuration makes the same bytes");
    let unpacked = there.import(&archive).unwrap();
    assert_eq!(there.saved(), ["site"]);
    assert_eq!(unpacked.about.imported.as_ref().unwrap().voucher, Voucher::Nobody);
    let written = fs::read(there.path("configurations/site/about.json")).unwrap();
    assert_eq!(About::parse(&written).unwrap(), unpacked.about);
    assert_eq!((&unpacked.about.image, unpacked.about.root_hash), (&about().image, about().root_hash));

    fs::remove_dir(there.path("upper")).unwrap();
    fs::rename(there.path("configurations/site/tree"), there.path("upper")).unwrap();
    overlay::mount_overlay(lower.path(), there.folder.path(), root.path()).unwrap();
    let after = everything(root.path());
    unmount(root.path()).unwrap();
    assert_eq!(after, before);
    here.leave();
    there.leave();
}

fn only_what_can_be_carried_is_exported() {
    let volume = Volume::new();
    let exports = |name: &str| {
        let exported = export(volume.folder.path(), &name.parse().unwrap(), &[], &mut io::sink());
        exported.map(|exported| exported.left_out)
    };
    assert!(matches!(exports("none"), Err(ExportError::Configuration(_))));
    volume
        .saves("device", |tree| mknodat(CWD, tree.join("null"), FileType::CharacterDevice, Mode::RUSR, 0x103).unwrap());
    volume.saves("mark", |tree| fs::write(tree.join(".wh.etc"), "").unwrap());
    volume.saves("moved", |tree| setxattr(tree, "trusted.overlay.redirect", b"/opt", XattrFlags::empty()).unwrap());
    for (name, complaint) in [("device", "/null is a device"), ("mark", "/.wh.etc has a name"), ("moved", "redirect")] {
        let error = exports(name).unwrap_err().to_string();
        assert!(error.contains(complaint), "{error}");
    }
    volume.saves("pipe", |tree| mknodat(CWD, tree.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap());
    assert_eq!(exports("pipe").unwrap(), [Path::new("/pipe")]);
    volume.saves("self", |tree| {
        fs::create_dir(tree.join("etc")).unwrap();
        fs::write(tree.join("etc/machine-id"), "this device's").unwrap();
    });
    let belongings = ["/etc/machine-id", "/etc/nowhere"].map(|path| path.parse().unwrap());
    let exported = export(volume.folder.path(), &"self".parse().unwrap(), &belongings, &mut io::sink()).unwrap();
    assert_eq!(exported.left_out, [Path::new("/etc/machine-id")]);
    // A reader that has gone away.
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let error = export(volume.folder.path(), &"pipe".parse().unwrap(), &[], &mut Caller::new(writer.into()).unwrap());
    assert!(matches!(error, Err(ExportError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe));
    volume.leave();
}

fn a_configuration_has_the_name_that_is_asked_for() {
    let volume = Volume::new();
    volume.saves("site", |tree| fs::write(tree.join("a"), "old").unwrap());
    let archive = volume.export("site");
    assert!(matches!(volume.import(&archive), Err(ImportError::Configuration(_))));
    let other: ConfigurationName = "other".parse().unwrap();
    let named = Wanted { name: Some(&other), ..Wanted::default() };
    let would_be = volume.import_as(&archive, Wanted { dry_run: true, ..named }).unwrap();
    assert_eq!(volume.saved(), ["site"], "nothing was written");
    assert_eq!(volume.import_as(&archive, named).unwrap(), would_be);
    assert_eq!((would_be.entries, would_be.bytes), (2, 3));
    assert_eq!(volume.saved(), ["other", "site"]);
    let factory = ConfigurationName::factory();
    let refused = volume.import_as(&archive, Wanted { name: Some(&factory), replace: true, ..Wanted::default() });
    assert!(matches!(refused, Err(ImportError::Name(_))));

    fs::write(volume.path("configurations/site/tree/a"), "new").unwrap();
    volume.import_as(&archive, Wanted { replace: true, ..Wanted::default() }).unwrap();
    assert_eq!(fs::read(volume.path("configurations/site/tree/a")).unwrap(), b"old");
    assert_eq!(volume.saved(), ["other", "site"], "what was there has gone");
    volume.leave();
}

fn an_image_decides_whose_configurations_it_takes() {
    let volume = Volume::new();
    volume.saves("site", |tree| fs::write(tree.join("a"), "a").unwrap());
    let archive = volume.export("site");
    let folder = tempfile::tempdir_in("/run").unwrap();
    let path = |name: &str| folder.path().join(name).into_os_string().into_string().unwrap();
    fs::write(path("site.tar"), &archive).unwrap();
    for key in ["fleet", "other"] {
        run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", key, "-f", &path(key)]);
    }
    let sign = |key: &str| {
        let script = "tar -xOf \"$1\" index.json | ssh-keygen -q -Y sign -n nemos-configuration -f \"$2\"";
        run("sh", ["-c", script, "sh", &path("site.tar"), &path(key)])
    };
    let signers = vec![fs::read_to_string(path("fleet.pub")).unwrap()];
    let policy = Policy { signers, require_signature: true };
    let asked = |signature: Option<&str>| {
        let dry = Wanted { dry_run: true, replace: true, ..Wanted::default() };
        import(volume.folder.path(), &archive[..], Source::Elsewhere { policy: &policy, signature }, dry, NOW)
    };
    let taken = asked(Some(&sign("fleet"))).unwrap();
    assert!(matches!(taken.about.imported.unwrap().voucher, Voucher::Signer(name) if name.ends_with(" fleet")));
    assert!(matches!(asked(None), Err(ImportError::Refused(Refused::Unsigned))));
    assert!(matches!(asked(Some(&sign("other"))), Err(ImportError::Refused(Refused::Stranger(_)))));
    assert!(matches!(asked(Some("signed")), Err(ImportError::Refused(Refused::Malformed(_)))));
    volume.leave();
}

fn the_image_vouches_for_what_it_ships() {
    let volume = Volume::new();
    volume.saves("made", |tree| fs::write(tree.join("a"), "a").unwrap());
    let root = tempfile::tempdir_in("/run").unwrap();
    fs::create_dir_all(root.path().join(SHIPPED_FOLDER)).unwrap();
    fs::write(root.path().join(SHIPPED_FOLDER).join("site.tar"), volume.export("made")).unwrap();
    let ship = |bytes: &[u8]| fs::write(root.path().join(SHIPPED_FOLDER).join("site.tar"), bytes).unwrap();
    let import = |name: &str| import_shipped(volume.folder.path(), root.path(), &name.parse().unwrap(), NOW).unwrap();
    let shipped = shipped_about(root.path(), &"site".parse().unwrap()).unwrap();
    assert_eq!((&shipped.image, shipped.imported.as_ref().unwrap().voucher.clone()), (&image(), Voucher::Image));
    import("site");
    import("nothing");
    assert_eq!(volume.saved(), ["made", "site"]);
    let about = fs::read(volume.path("configurations/site/about.json")).unwrap();
    assert_eq!(About::parse(&about).unwrap().imported, shipped.imported);

    // It is there once; that of a newer image takes its place, and the device's own stays.
    let file = volume.path("configurations/site/tree/a");
    fs::write(&file, "marked").unwrap();
    import("site");
    assert_eq!(fs::read(&file).unwrap(), b"marked");
    fs::write(volume.path("configurations/made/tree/a"), "newer").unwrap();
    ship(&volume.export("made"));
    import("site");
    assert_eq!(fs::read(&file).unwrap(), b"newer");
    fs::write(volume.path("configurations/site/about.json"), self::about().to_text()).unwrap();
    fs::write(&file, "mine").unwrap();
    ship(b"nothing that could be imported");
    import("site");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    volume.leave();
}

/// An entry: path, type, target, bytes.
type Written<'a> = (&'a str, EntryType, &'a str, &'a [u8]);

fn tar(entries: &[Written<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, kind, link, contents) in entries {
        if let Some(name) = path.strip_prefix("pax:") {
            builder.append_pax_extensions([(name, *contents)]).unwrap();
            continue;
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(*kind);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(contents.len() as u64);
        header.set_cksum();
        builder.append(&header, *contents).unwrap();
    }
    builder.into_inner().unwrap()
}

/// An archive that is as it should be, but for its layer.
fn archive_of(unpacked: &[u8]) -> Vec<u8> {
    archive_with(&zstd::encode_all(unpacked, 1).unwrap())
}

fn archive_with(layer: &[u8]) -> Vec<u8> {
    let described = Description::new("hostile".parse().unwrap(), &about());
    let documents = Documents::new(&described, &Blob::of(layer), &BlobDigest::of(b""));
    let files = [&documents.manifest, &documents.config].map(|bytes| (Blob::of(bytes).file(), bytes.as_slice()));
    let last = Blob::of(layer).file();
    let mut entries = vec![
        (LAYOUT_FILE, EntryType::Regular, "", LAYOUT.as_bytes()),
        (INDEX_FILE, EntryType::Regular, "", &documents.index),
    ];
    entries.extend(files.iter().map(|(name, bytes)| (name.as_str(), EntryType::Regular, "", *bytes)));
    entries.push((&last, EntryType::Regular, "", layer));
    tar(&entries)
}

const ROOT: Written<'_> = ("./", EntryType::Directory, "", b"");

fn no_archive_writes_outside_its_folder() {
    use EntryType::{Block, Char, Directory, Fifo, GNULongName, GNUSparse, Link, Regular, Symlink, XGlobalHeader};
    let volume = Volume::new();
    volume.saves("other", |tree| fs::write(tree.join("mine"), "mine").unwrap());
    fs::write(volume.path("upper/victim"), "whole").unwrap();
    let before = volume.everything();
    let hostile: &[(&str, &[Written<'_>], Reason)] = &[
        ("an absolute name", &[("/etc/evil", Regular, "", b"x")], Reason::Path),
        ("a way out", &[("./../../../upper/victim", Regular, "", b"x")], Reason::Path),
        ("a way out below", &[("./a/", Directory, "", b""), ("./a/../../x", Regular, "", b"x")], Reason::Path),
        ("through a link", &[("./a", Symlink, "/", b""), ("./a/x", Regular, "", b"x")], Reason::Order),
        ("onto a link", &[("./a", Symlink, "../../../upper/victim", b""), ("./a", Regular, "", b"x")], Reason::Order),
        ("a folder that becomes a link", &[("./a/", Directory, "", b""), ("./a", Symlink, "/", b"")], Reason::Order),
        ("a hard link out", &[("./a", Link, "../../../upper/victim", b"")], Reason::Target),
        ("an absolute hard link", &[("./a", Link, "/etc/shadow", b"")], Reason::Target),
        ("a hard link to nothing", &[("./b", Link, "./a", b"")], Reason::Target),
        ("a hard link to a link", &[("./a", Symlink, "/etc/shadow", b""), ("./b", Link, "./a", b"")], Reason::Target),
        (
            "a hard link through a link",
            &[("./a", Symlink, "/etc", b""), ("./b", Link, "./a/shadow", b"")],
            Reason::Target,
        ),
        ("a hard link to a mark", &[("./.wh.a", Regular, "", b""), ("./b", Link, "./a", b"")], Reason::Target),
        ("a device", &[("./a", Char, "", b"")], Reason::Kind),
        ("a disk", &[("./a", Block, "", b"")], Reason::Kind),
        ("a pipe", &[("./a", Fifo, "", b"")], Reason::Kind),
        ("a long name of GNU's", &[("././@LongLink", GNULongName, "", b"")], Reason::Kind),
        ("a sparse file", &[("./a", GNUSparse, "", b"")], Reason::Kind),
        ("global records", &[("./a", XGlobalHeader, "", b"")], Reason::Kind),
        ("a folder with contents", &[("./a/", Directory, "", b"x")], Reason::Contents),
        (
            "the overlay's attribute",
            &[("pax:SCHILY.xattr.trusted.overlay.redirect", Regular, "", b"/etc"), ("./a/", Directory, "", b"")],
            Reason::Attribute,
        ),
        (
            "a long way out",
            &[("pax:path", Regular, "", b"./../../../upper/victim"), ("./a", Regular, "", b"x")],
            Reason::Path,
        ),
    ];
    for (what, entries, expected) in hostile {
        let entries: Vec<Written<'_>> = std::iter::once(ROOT).chain(entries.iter().copied()).collect();
        match volume.import(&archive_of(&tar(&entries))) {
            Err(ImportError::Entry(error)) => assert_eq!(error.reason, *expected, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
        assert_eq!(volume.everything(), before, "{what}");
    }
    for records in [&b"9 size=1\n"[..], b"9 path=\n", b"no records", &vec![b'x'; 2 << 20]] {
        let refused = volume.import(&archive_of(&tar(&[
            ROOT,
            ("r", EntryType::XHeader, "", records),
            ("./a", Regular, "", b""),
        ])));
        assert!(matches!(refused, Err(ImportError::Records(_) | ImportError::Entry(_))), "{refused:?}");
    }
    assert_eq!(volume.everything(), before);
    // What the link leads to is its user's business, and of the root that it is for.
    volume.import(&archive_of(&tar(&[ROOT, ("./a", Symlink, "../../../../upper/victim", b"")]))).unwrap();
    volume.leave();
}

fn no_archive_takes_all_the_room() {
    let volume = Volume::new();
    let before = volume.everything();
    // A terabyte of zeros, as it says of itself.
    let mut bomb = tar(&[ROOT, ("./zeros", EntryType::Regular, "", b"")]);
    let mut header = Header::from_byte_slice(&bomb[512..1024]).clone();
    header.set_size(1 << 40);
    header.set_cksum();
    bomb[512..1024].copy_from_slice(header.as_bytes());
    assert!(matches!(volume.import(&archive_of(&bomb)), Err(ImportError::NoRoom(_))));
    // Zeros behind the end, a gigabyte of them, though they are few as they come.
    let mut padded = zstd::Encoder::new(Vec::new(), 1).unwrap();
    padded.write_all(&tar(&[ROOT])).unwrap();
    io::copy(&mut io::repeat(0).take(1 << 30), &mut padded).unwrap();
    assert!(matches!(volume.import(&archive_with(&padded.finish().unwrap())), Err(ImportError::NotOurs(_))));
    // A window of half a gigabyte.
    let mut wide = zstd::Encoder::new(Vec::new(), 1).unwrap();
    wide.set_parameter(CParameter::WindowLog(27)).unwrap();
    wide.write_all(&tar(&[ROOT])).unwrap();
    let wide = volume.import(&archive_with(&wide.finish().unwrap()));
    assert!(matches!(wide, Err(ImportError::Layer(_))), "{wide:?}");
    assert_eq!(volume.everything(), before);
    volume.leave();
}

fn small(tree: &Path) {
    fs::create_dir(tree.join("etc")).unwrap();
    let text = (0..2000).map(|number| format!("{number}\n")).collect::<Vec<_>>().concat();
    fs::write(tree.join("etc/config"), text).unwrap();
    mknodat(CWD, tree.join("etc/gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    setxattr(tree.join("etc"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    symlink("config", tree.join("etc/link")).unwrap();
}

fn what_is_not_whole_is_not_imported() {
    let (here, there) = (Volume::new(), Volume::new());
    here.saves("site", small);
    let archive = here.export("site");
    let whole = everything(&here.path("configurations/site/tree"));
    let end = archive.len() - 1024;
    // The last block of the layer may be filled up.
    for length in (0..end - 512).step_by(61).chain([end - 513]) {
        let error = there.import(&archive[..length]).unwrap_err();
        let is_told = matches!(error, ImportError::Truncated | ImportError::NotOurs(_));
        assert!(is_told, "{length} of {} bytes: {error}", archive.len());
        assert_eq!(there.saved(), [""; 0], "{length} of {} bytes", archive.len());
    }
    let mut unread = 0;
    for at in (0..end).step_by(23) {
        let mut altered = archive.clone();
        altered[at] ^= 0x10;
        match there.import(&altered) {
            Err(_) => assert_eq!(there.saved(), [""; 0], "byte {at}"),
            // What fills a block up is nobody's.
            Ok(unpacked) => {
                let folder = there.path("configurations").join(unpacked.name.as_str());
                assert_eq!(everything(&folder.join("tree")), whole, "byte {at}");
                fs::remove_dir_all(folder).unwrap();
                unread += 1;
            }
        }
    }
    println!("{} bytes cut and altered; {unread} of {} altered ones are padding", archive.len(), end / 23 + 1);
    for foreign in [&b""[..], b"text, and not an archive", &vec![0; 10_240], &tar(&[ROOT]), &archive[512..]] {
        let refused = there.import(foreign);
        assert!(matches!(refused, Err(ImportError::NotOurs(_) | ImportError::Truncated)), "{refused:?}");
    }
    assert_eq!(there.saved(), [""; 0]);
    here.leave();
    there.leave();
}

/// Entries that were never meant, in archives that are otherwise right.
fn whatever_comes_nothing_else_is_touched() {
    let volume = Volume::new();
    volume.saves("other", small);
    fs::write(volume.path("upper/victim"), "whole").unwrap();
    let before = volume.everything();
    let seed = std::env::var("NEMOS_ARCHIVE_SEED").map_or_else(|_| Rng::new().u64(..), |seed| seed.parse().unwrap());
    println!("NEMOS_ARCHIVE_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let names = ["a", "b", "a/b", "a/", "b/c/", "../x", "a/../../y", ".wh.a", "a/.wh.b", ".wh..wh..opq", "/z", ".", ""];
    let targets = ["a", "./a/b", "../../upper/victim", "/etc/shadow", "b", ""];
    let kinds = [b'0', b'0', b'1', b'2', b'3', b'5', b'5', b'6', b'7', b'x', b'g', b'L', b'S'].map(EntryType::new);
    let mut imported = 0;
    for _ in 0..400 {
        let mut paths: Vec<String> =
            (0..random.usize(0..5)).map(|_| format!("./{}", random.choice(names).unwrap())).collect();
        paths.sort();
        let mut entries = vec![ROOT];
        entries.extend(paths.iter().map(|path| {
            let kind = if path.ends_with('/') { EntryType::Directory } else { random.choice(kinds).unwrap() };
            let contents: &[u8] = if random.u8(..3) == 0 && kind == EntryType::Regular { b"x" } else { b"" };
            (path.as_str(), kind, random.choice(targets).unwrap(), contents)
        }));
        let mut layer = tar(&entries);
        if random.bool() {
            let at = random.usize(..layer.len());
            layer[at] ^= random.u8(1..);
        }
        if let Ok(unpacked) = volume.import(&archive_of(&layer)) {
            imported += 1;
            fs::remove_dir_all(volume.path("configurations").join(unpacked.name.as_str())).unwrap();
        }
        let after = volume.everything();
        // The folder that the configurations are in has been written to.
        let others = |all: &[String]| {
            all.iter().filter(|told| !told.starts_with("configurations 4")).cloned().collect::<Vec<_>>()
        };
        assert_eq!(others(&after), others(&before), "{entries:?}");
    }
    assert!(imported > 20, "only {imported} of 400 were imported");
    volume.leave();
}

/// Whenever it goes, the configuration is there whole, or as it was before.
fn the_power_goes_during_an_import() {
    let here = Volume::new();
    here.saves("site", small);
    let archive = here.export("site");
    let whole = everything(&here.path("configurations/site/tree"));
    let old = |tree: &Path| fs::write(tree.join("old"), "old").unwrap();
    for replace in [false, true] {
        let volume = Volume::new();
        if replace {
            volume.saves("site", old);
        }
        let before = replace.then(|| everything(&volume.path("configurations/site/tree")));
        let volume = Volume::on(volume.leave().image().logged_disk());
        volume.import_as(&archive, Wanted { replace, ..Wanted::default() }).unwrap();
        let said = File::create(volume.path("upper/said")).unwrap();
        said.sync_all().unwrap();
        drop(said);
        let counted = cuts(volume.leave().into_log(), &whole, before.as_ref());
        let what = if replace { "replaces another" } else { "is new" };
        println!("The power goes during an import that {what}: {counted}");
    }
    here.leave();
}

fn cuts(mut log: WriteLog, whole: &[String], before: Option<&Vec<String>>) -> String {
    let mut random = Rng::with_seed(7);
    let (mut flushes, mut torn, mut counts) = (0, 0, [0, 0]);
    let mut look = |disk: Disk, cut: &str| {
        let volume = Volume::on(disk);
        let place = volume.path("configurations/site");
        let found = place.exists().then(|| everything(&place.join("tree")));
        let is_new = found.as_deref() == Some(whole);
        assert!(is_new || found.as_ref() == before, "{cut}: {found:?}");
        let said = volume.path("upper/said").exists();
        assert!(is_new || !said, "{cut}: it was said to be there");
        if is_new {
            About::parse(&fs::read(place.join(ABOUT_FILE)).unwrap()).unwrap();
        }
        let others: Vec<String> = volume.saved().into_iter().filter(|name| name != "site").collect();
        assert!(others.iter().all(|name| name.starts_with(".import-")), "{cut}: {others:?}");
        counts[usize::from(is_new)] += 1;
        volume.leave();
        is_new
    };
    let mut is_new;
    loop {
        is_new = look(log.cut(), &format!("at flush {flushes}"));
        for _ in 0..3 * usize::from(log.unsafe_writes() > 0) {
            look(log.torn(&mut random), &format!("after flush {flushes}"));
            torn += 1;
        }
        if !log.goes_on() {
            break;
        }
        flushes += 1;
    }
    assert!(is_new, "it is there at the end");
    let [old, new] = counts;
    format!("cut at {flushes} flushes, torn {torn} times: {old} times as it was, {new} times whole")
}
