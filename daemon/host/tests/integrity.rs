//! Damage on real device-mapper: what is heard of it.

#![allow(clippy::unwrap_used, reason = "panicking is how a test fails")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use devicemapper::DM;
use nemos_host::integrity::ledger::Ledger;
use nemos_host::integrity::names::names;
use nemos_host::integrity::owner;
use nemos_host::integrity::scrub::{self, ScrubError};
use nemos_host::integrity::verity::{self, Verity};
use nemos_host::integrity::watch::{Heard, Watch};
use nemos_host::keys::{Secret, read_key_file};
use nemos_host::overlay;
use nemos_host::overlay::changes::Trees;
use nemos_model::Timestamp;
use nemos_model::integrity::event::{Area, Finder, Kind, Place, Source};
use nemos_model::integrity::scrub::Step;
use nemos_model::integrity::{Protection, RootHash, Sighting, VERITY_MAPPING, VerityTable, Volume};
use nemos_model::partitions::Partition;
use nemos_model::stack::SeenPartition;
use nemos_rig::{Disk, corrupt, leave_nothing_open, run};
use tempfile::TempDir;

const BLOCK: u64 = 4096;
/// How long the kernel may take to report.
const LIMIT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    nemos_rig::main(nemos_rig::tests![
        a_damaged_block_of_the_root_is_heard_by_log_and_uevent,
        a_damaged_hash_tree_is_told_from_damaged_data,
        a_damaged_block_of_the_overlay_is_heard,
        a_damaged_tag_is_heard_as_damage_of_what_it_is_of,
        what_was_said_before_is_heard_too,
        a_program_cannot_make_damage_up,
        a_healthy_overlay_is_silent,
        a_scrub_of_a_sound_root_reads_all_of_it,
        a_scrub_of_the_root_finds_data_and_tree,
        a_scrub_of_the_root_goes_on_where_it_was,
        a_volume_of_a_single_block_is_checked_too,
        a_scrub_of_the_overlay_reads_what_is_in_use_and_nothing_else,
        a_scrub_of_the_overlay_finds_a_files_damage_and_the_file,
        a_scrub_of_the_overlay_finds_a_damaged_header,
        a_ledger_that_loses_its_power_at_any_flush_is_whole_and_forgets_nothing,
    ])
}

/// A root on a disk of its own.
struct Root {
    disk: Disk,
    /// Where the hash tree begins, behind its superblock.
    tree: u64,
    hash: RootHash,
}

impl Root {
    fn open() -> Self {
        let root = Root::closed();
        root.is_opened();
        root
    }

    fn closed() -> Self {
        Root::with(512 << 10)
    }

    /// One file of that many random bytes.
    fn with(size: usize) -> Self {
        let folder = TempDir::new().unwrap();
        let (content, image) = (folder.path().join("content"), folder.path().join("image"));
        fs::create_dir(&content).unwrap();
        let mut bytes = vec![0; size];
        File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
        fs::write(content.join("file"), bytes).unwrap();
        let options = ["-quiet", "-no-progress", "-noappend", "-comp", "zstd"].map(AsRef::as_ref);
        run("mksquashfs", [content.as_os_str(), image.as_os_str()].into_iter().chain(options));
        let offset = fs::metadata(&image).unwrap().len();
        let hash_offset = format!("--hash-offset={offset}");
        let said = run("veritysetup", ["format".as_ref(), hash_offset.as_ref(), image.as_os_str(), image.as_os_str()]);
        let hash: RootHash =
            said.lines().find_map(|line| line.strip_prefix("Root hash:")).unwrap().trim().parse().unwrap();
        let disk = Disk::new(fs::metadata(&image).unwrap().len());
        fs::copy(&image, disk.path()).unwrap();
        Root { disk, tree: offset + BLOCK, hash }
    }

    fn is_opened(&self) {
        self.verity().open().unwrap();
    }

    fn verity(&self) -> Verity<'_> {
        let (partition, root_hash, protection) = (self.disk.path(), self.hash, Protection::default());
        Verity { mapping: VERITY_MAPPING, partition, root_hash, signature: None, protection }
    }

    fn table() -> VerityTable {
        verity::table(&DM::new().unwrap(), VERITY_MAPPING).expect("the root is open")
    }

    fn seen(&self) -> [SeenPartition; 1] {
        seen(Partition::Readonly, self.disk.path())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = self.verity().close();
        leave_nothing_open(&[]);
    }
}

fn seen(partition: Partition, device: &Path) -> [SeenPartition; 1] {
    [SeenPartition { partition, device: device.display().to_string(), size: 0 }]
}

/// Reads the root through, from there.
fn scrub_root(root: &Root, position: u64) -> (u64, Vec<(Area, u64)>) {
    let table = Root::table();
    scrubbed(|step| {
        scrub::verity::read_through(root.disk.path(), Path::new("/dev/mapper/verityRoot"), &table, position, step)
    })
}

/// Bytes that a scrub has read, and what it has found.
fn scrubbed(scrub: impl FnOnce(&mut dyn FnMut(Step) -> bool) -> Result<(), ScrubError>) -> (u64, Vec<(Area, u64)>) {
    let (mut read, mut total, mut damaged) = (0, 0, Vec::new());
    scrub(&mut |step| {
        read += step.read;
        total = step.total;
        damaged.extend(step.damaged);
        true
    })
    .unwrap();
    assert!(read <= total, "{read} bytes of {total} were read");
    damaged.sort();
    (read, damaged)
}

/// Reads a block past the page cache; whether that works is the kernel's to report.
fn read(device: &str, block: u64) {
    let skip = format!("skip={block}");
    let input = format!("if={device}");
    let dd = ["of=/dev/null", "bs=4096", "count=1", "iflag=direct", &input, &skip];
    let _ = Command::new("dd").args(dd).stderr(Stdio::null()).status().unwrap();
}

/// Listens until each of these sources has told of damage; the first that each told.
#[track_caller]
fn hears<const N: usize>(watch: &mut Watch, sources: [Source; N]) -> [Heard; N] {
    let begin = Instant::now();
    let mut all = Vec::new();
    loop {
        all.extend(watch.next(Duration::from_millis(100)).unwrap());
        let first = sources.map(|source| all.iter().find(|heard| heard.source == source).cloned());
        if first.iter().all(Option::is_some) {
            return first.map(Option::unwrap);
        }
        assert!(begin.elapsed() < LIMIT, "only this was heard: {all:#?}");
    }
}

/// A watch that has heard all that was said so far.
fn watch_from_now() -> Watch {
    let mut watch = Watch::begin(None).unwrap();
    watch.next(Duration::ZERO).unwrap();
    watch
}

fn a_damaged_block_of_the_root_is_heard_by_log_and_uevent() {
    let root = Root::open();
    let mut watch = watch_from_now();
    corrupt(root.disk.path(), 5 * BLOCK, 1);
    read("/dev/mapper/verityRoot", 5);
    let names = names(&root.seen());
    let heard = hears(&mut watch, [Source::Log, Source::Uevent]);
    for Heard { report, .. } in heard {
        assert_eq!((report.kind, report.area, report.start), (Kind::Corrupted, Area::Data, Some(5 * BLOCK)));
        assert_eq!(names.volume(&report), Some(Volume::Root), "{report:?} is about one of {names:?}");
    }
}

fn a_damaged_hash_tree_is_told_from_damaged_data() {
    let root = Root::closed();
    // The top comes first, then the digests of 128 blocks of data each. Once it is open, the kernel has read them ahead.
    corrupt(root.disk.path(), root.tree + 2 * BLOCK, 1);
    root.is_opened();
    let mut watch = watch_from_now();
    read("/dev/mapper/verityRoot", 128);
    let [heard] = hears(&mut watch, [Source::Log]);
    assert_eq!((heard.report.area, heard.report.start), (Area::Tree, Some(root.tree + 2 * BLOCK)));
}

fn secret() -> Secret {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"insecure").unwrap();
    read_key_file(file.path()).unwrap()
}

/// An overlay that is open.
fn overlay() -> Disk {
    let disk = Disk::new(64 << 20);
    overlay::create_volume(disk.path(), &secret(), &mut |_, _| {}).unwrap();
    overlay::open(disk.path(), &secret()).unwrap();
    disk
}

fn a_damaged_block_of_the_overlay_is_heard() {
    let disk = overlay();
    run("dd", ["if=/dev/urandom", "of=/dev/mapper/luks", "bs=1M", "count=8", "oflag=direct", "status=none"]);
    let mut watch = watch_from_now();
    // Ciphertext is somewhere behind the headers, the journal and the first tags: damage a stretch of it.
    let middle = fs::read(disk.path()).unwrap().len() as u64 / 2;
    corrupt(disk.path(), middle, 4096);
    let dd = ["if=/dev/mapper/luks", "of=/dev/null", "bs=32k", "iflag=direct", "conv=noerror"];
    let _ = Command::new("dd").args(dd).stderr(Stdio::null()).status().unwrap();
    let [heard] = hears(&mut watch, [Source::Log]);
    assert_eq!((heard.report.kind, heard.report.area), (Kind::Corrupted, Area::Data));
    assert_eq!(names(&seen(Partition::Root, disk.path())).volume(&heard.report), Some(Volume::Overlay));
    let start = heard.report.start.unwrap();
    assert_eq!(start % BLOCK, 0);
    assert!(start / BLOCK < overlay_blocks());
    overlay::close(disk.path()).unwrap();
}

fn a_damaged_tag_is_heard_as_damage_of_what_it_is_of() {
    let disk = overlay();
    let writes = |source: &str| {
        let source = format!("if={source}");
        let dd = ["of=/dev/mapper/luks", "bs=4096", "count=1", "seek=7", "oflag=direct", "conv=fsync", "status=none"];
        run("dd", dd.into_iter().chain([source.as_str()]));
        overlay::close(disk.path()).unwrap();
        fs::read(disk.path()).unwrap()
    };
    let before = writes("/dev/zero");
    overlay::open(disk.path(), &secret()).unwrap();
    let after = writes("/dev/urandom");
    // What changed is the block, which is all other, and its tag, in a block of tags. The journal of tags is not used.
    let differing =
        |block: &usize| (0..4096).filter(|at| before[block * 4096 + at] != after[block * 4096 + at]).count();
    let changed = |block: &usize| (1..512).contains(&differing(block));
    let header = 16 << 20;
    let tags = (header / 4096..before.len() / 4096).rfind(changed).expect("a block with the tag");
    let tag = (0..4096).map(|at| tags * 4096 + at).find(|at| before[*at] != after[*at]).unwrap();
    corrupt(disk.path(), tag as u64, 1);

    overlay::open(disk.path(), &secret()).unwrap();
    let mut watch = watch_from_now();
    read("/dev/mapper/luks", 7);
    let [heard] = hears(&mut watch, [Source::Log]);
    assert_eq!((heard.report.kind, heard.report.start), (Kind::Corrupted, Some(7 * BLOCK)));
    overlay::close(disk.path()).unwrap();
}

fn overlay_blocks() -> u64 {
    let sectors: u64 = run("blockdev", ["--getsz", "/dev/mapper/luks"]).trim().parse().unwrap();
    sectors / 8
}

fn what_was_said_before_is_heard_too() {
    let root = Root::open();
    corrupt(root.disk.path(), 9 * BLOCK, 1);
    read("/dev/mapper/verityRoot", 9);
    let mut watch = Watch::begin(None).unwrap();
    let all = watch.next(Duration::ZERO).unwrap();
    let heard = all.iter().find(|heard| heard.report.start == Some(9 * BLOCK)).expect("it was said before");
    assert!(heard.sequence.is_some() && heard.sequence <= watch.sequence());
}

fn a_program_cannot_make_damage_up() {
    let mut watch = watch_from_now();
    let message = "device-mapper: verity: 254:6: data block 1 is corrupted";
    for priority in ["", "<3>", "<0>"] {
        fs::write("/dev/kmsg", format!("{priority}{message}\n")).unwrap();
    }
    assert_eq!(watch.next(Duration::from_millis(200)).unwrap(), []);
}

fn a_healthy_overlay_is_silent() {
    let mut watch = watch_from_now();
    let disk = overlay();
    run("dd", ["if=/dev/mapper/luks", "of=/dev/null", "bs=1M", "iflag=direct", "status=none"]);
    overlay::close(disk.path()).unwrap();
    assert_eq!(watch.next(Duration::from_millis(200)).unwrap(), []);
}

fn a_scrub_of_a_sound_root_reads_all_of_it() {
    let root = Root::open();
    let table = Root::table();
    let (read, damaged) = scrub_root(&root, 0);
    assert_eq!(damaged, []);
    let size = fs::read(root.disk.path()).unwrap().len() as u64;
    assert_eq!(read, size - BLOCK, "all but the superblock of the tree, which the kernel does not use");
    assert_eq!((table.root_hash, table.tree * BLOCK), (root.hash, root.tree));
}

fn a_scrub_of_the_root_finds_data_and_tree() {
    let root = Root::open();
    let leaf = root.tree + 2 * BLOCK;
    for place in [3 * BLOCK + 7, 100 * BLOCK, leaf + 40] {
        corrupt(root.disk.path(), place, 1);
    }
    assert_eq!(scrub_root(&root, 0).1, [(Area::Data, 3 * BLOCK), (Area::Data, 100 * BLOCK), (Area::Tree, leaf)]);
    corrupt(root.disk.path(), root.tree, 1);
    // Nothing vouches for anything any more.
    assert_eq!(scrub_root(&root, 0).1, [(Area::Tree, root.tree), (Area::Tree, root.tree + BLOCK), (Area::Tree, leaf)]);
}

fn a_scrub_of_the_root_goes_on_where_it_was() {
    let root = Root::open();
    corrupt(root.disk.path(), 3 * BLOCK, 1);
    corrupt(root.disk.path(), 128 * BLOCK, 1);
    assert_eq!(scrub_root(&root, 128 * BLOCK).1, [(Area::Data, 128 * BLOCK)]);
}

fn a_volume_of_a_single_block_is_checked_too() {
    let root = Root::with(0);
    root.is_opened();
    assert_eq!(scrub_root(&root, 0), (BLOCK, vec![]));
    corrupt(root.disk.path(), 4000, 1);
    assert_eq!(scrub_root(&root, 0).1, [(Area::Data, 0)]);
}

/// The overlay of a device, on a disk of its own, mounted.
struct Overlay {
    disk: Disk,
    mount: TempDir,
}

impl Overlay {
    fn mounted() -> Self {
        let disk = Disk::new(400 << 20);
        let mount = TempDir::new_in("/run").unwrap();
        overlay::create_volume(disk.path(), &secret(), &mut |_, _| {}).unwrap();
        overlay::create_overlay(disk.path(), &secret(), mount.path()).unwrap();
        overlay::open(disk.path(), &secret()).unwrap();
        overlay::mount_file_system(mount.path()).unwrap();
        Overlay { disk, mount }
    }

    fn scrub(&self) -> (u64, Vec<(Area, u64)>) {
        let mapping = overlay::mapping();
        scrubbed(|step| scrub::overlay::read_through(self.disk.path(), &mapping, self.mount.path(), 0, step))
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        leave_nothing_open(&[self.mount.path().to_str().unwrap()]);
    }
}

fn a_scrub_of_the_overlay_reads_what_is_in_use_and_nothing_else() {
    let overlay = Overlay::mounted();
    let (before, damaged) = overlay.scrub();
    assert_eq!(damaged, []);
    assert!(before < 100 << 20, "an empty file system uses little: {before}");
    let file = overlay.mount.path().join("upper/file");
    fs::write(&file, vec![7; 16 << 20]).unwrap();
    File::open(&file).unwrap().sync_all().unwrap();
    let (after, damaged) = overlay.scrub();
    assert_eq!(damaged, []);
    assert!((16 << 20..18 << 20).contains(&(after - before)), "{before} {after}");
}

fn a_scrub_of_the_overlay_finds_a_files_damage_and_the_file() {
    let overlay = Overlay::mounted();
    let folder = overlay.mount.path().join("upper/etc/deep");
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("file");
    // Where a block lies on the disk only dm-integrity knows: a file that has most of them has the one in the middle.
    run("dd", ["if=/dev/zero", "bs=1M", "count=250", "conv=fsync", "status=none", &format!("of={}", file.display())]);
    corrupt(overlay.disk.path(), 200 << 20, 512);
    let (_, damaged) = overlay.scrub();
    assert!(!damaged.is_empty());
    for (area, start) in damaged {
        assert_eq!(area, Area::Data);
        let found = owner::on_overlay(overlay.mount.path(), start).unwrap();
        assert_eq!(found.expect("a file has it").file, "/etc/deep/file");
    }

    // What cannot be read can be taken back, whatever the image has there.
    let image = TempDir::new_in("/run").unwrap();
    fs::create_dir_all(image.path().join("etc/deep")).unwrap();
    File::create(image.path().join("etc/deep/file")).unwrap().set_len(250 << 20).unwrap();
    let upper = overlay.mount.path().join("upper");
    let trees = Trees { upper: &upper, lower: image.path() };
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    trees.can_revert(&"/etc/deep/file".parse().unwrap()).unwrap();
}

fn a_scrub_of_the_overlay_finds_a_damaged_header() {
    let overlay = Overlay::mounted();
    corrupt(overlay.disk.path(), 5000, 1);
    assert_eq!(overlay.scrub().1, [(Area::Header, 0)]);
    corrupt(overlay.disk.path(), (16 << 10) + 5000, 1);
    assert_eq!(overlay.scrub().1, [(Area::Header, 0), (Area::Header, 16 << 10)]);
}

fn a_ledger_that_loses_its_power_at_any_flush_is_whole_and_forgets_nothing() {
    let place = |block: u64| {
        let (volume, incarnation) = (Volume::Root, "ab".to_owned());
        let place = Place { volume, incarnation, kind: Kind::Corrupted, area: Area::Data, start: Some(block * BLOCK) };
        Sighting { place, source: Source::Log, finder: Finder::Read, at: Timestamp(block) }
    };
    let open = |folder: &Path| Ledger::open(folder, "boot", 0, Timestamp(0)).unwrap();
    let disk = Disk::new(16 << 20);
    run("mkfs.ext4", ["-q".as_ref(), disk.path().as_os_str()]);
    let disk = disk.image().logged_disk();
    on(&disk, |folder| {
        let mut ledger = open(folder);
        for block in 0..4 {
            ledger.see(&[place(block)]);
            ledger.write().unwrap();
        }
    });

    let mut log = disk.into_log();
    let mut remembered = 0;
    while log.goes_on() {
        on(&log.cut(), |folder| {
            let events = open(folder).events().to_vec();
            assert!(events.iter().all(|event| event.place.area == Area::Data), "it was set aside: {events:?}");
            assert!(events.len() >= remembered, "{remembered} events were durable, {} are left", events.len());
            remembered = events.len();
        });
    }
    assert_eq!(remembered, 4);
}

/// Works on what is on a disk, mounted.
fn on(disk: &Disk, work: impl FnOnce(&Path)) {
    let folder = TempDir::new().unwrap();
    run("mount", [disk.path(), folder.path()]);
    work(folder.path());
    run("umount", [folder.path()]);
}
