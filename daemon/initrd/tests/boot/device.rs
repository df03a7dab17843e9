//! A device to boot: a disk as an image has it, small.

#![allow(dead_code, reason = "each test binary needs a part of it")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use nemos_host::job::new_id;
use nemos_host::state::Store;
use nemos_host::time::now;
use nemos_model::JobId;
use nemos_model::boot::{BootReport, OpenVolume, PRELOADED_HASH_OPTION, REPORT_FILE, Reason};
use nemos_model::job::Requester;
use nemos_model::keys::DEMO_KEY_FILE;
use nemos_model::overlay::index::{Fingerprint, Writer};
use nemos_model::overlay::trial::RUNNING_FILE;
use nemos_model::overlay::{Mode, index, policy};
use nemos_model::partitions::Partition;
use nemos_model::reset::keep::{SetName, decide};
use nemos_model::reset::{Keep, Scope};
use nemos_model::state::{DeviceState, FILE_NAME, Request, Taken, Volume, Wanted};
use nemos_rig::{CommandLine, Disk, Image, KernelLog, WriteLog, leave_nothing_open, run};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_nemos-initrd");
const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

/// An image as it was written, and what its kernel's command line would say of it.
static SHIPPED: LazyLock<(Image, String)> = LazyLock::new(build);
/// The same image after its first boot.
static PROVISIONED: LazyLock<Image> = LazyLock::new(|| {
    let device = Device::shipped();
    device.boots().shuts_down();
    device.disk.image()
});

/// A device that is switched off.
pub struct Device {
    _power: Power,
    disk: Disk,
}

/// Goes before the disk does.
struct Power;

/// A device that is up.
pub struct Running<'a> {
    device: &'a Device,
    pub report: BootReport,
    /// What nemos-initrd said.
    pub said: String,
    log: KernelLog,
}

impl Device {
    /// It was never switched on.
    pub fn shipped() -> Self {
        Device::with(SHIPPED.0.disk())
    }

    /// It was booted once.
    pub fn provisioned() -> Self {
        Device::with(PROVISIONED.disk())
    }

    pub fn with(disk: Disk) -> Self {
        fs::create_dir_all(Path::new(DEMO_KEY_FILE).parent().unwrap()).unwrap();
        fs::write(DEMO_KEY_FILE, "insecure").unwrap();
        Device { _power: Power, disk }
    }

    /// Logs from now on what is written to its disk.
    pub fn logged(self) -> Self {
        Device::with(self.disk.image().logged_disk())
    }

    /// What was written to its disk, of a device that logs it.
    pub fn into_log(self) -> WriteLog {
        self.disk.into_log()
    }

    pub fn partition(&self, partition: Partition) -> PathBuf {
        self.disk.partition(partition.label())
    }

    /// The bytes of its disk that are a partition.
    pub fn extent(&self, partition: Partition) -> Range<u64> {
        self.disk.extent(partition.label())
    }

    /// Boots to the end.
    #[track_caller]
    pub fn boots(&self) -> Running<'_> {
        self.boots_with("quiet")
    }

    /// Boots to the end, with more words on its kernel's command line.
    #[track_caller]
    pub fn boots_with(&self, words: &str) -> Running<'_> {
        let log = KernelLog::from_now();
        let (succeeded, said) = run_initrd(words);
        assert!(succeeded, "nemos-initrd refused to boot:\n{said}");
        let report = serde_json::from_slice(&fs::read(REPORT_FILE).unwrap()).unwrap();
        Running { device: self, report, said, log }
    }

    /// Boots to a refusal, and returns what was said.
    #[track_caller]
    pub fn refuses_to_boot(&self) -> String {
        let (succeeded, said) = run_initrd("quiet");
        assert!(!succeeded, "nemos-initrd booted:\n{said}");
        assert!(!is_mounted("/sysroot"), "a boot that is refused must leave nothing to switch to");
        power_off();
        said
    }

    /// Boots, and is switched off as soon as nemos-initrd says these words.
    #[track_caller]
    pub fn is_killed_when_it_says(&self, words: &str) {
        let _line = CommandLine::says(&format!("quiet {}", SHIPPED.1));
        let mut initrd = start();
        let lines = BufReader::new(initrd.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut said = String::new();
        let heard = { lines }.any(|line| {
            said.push_str(&line);
            said.push('\n');
            line.contains(words)
        });
        kill(&mut initrd);
        assert!(heard, "nemos-initrd never said `{words}`:\n{said}");
        power_off();
    }

    /// Boots, and is switched off after that time. Whether it was still booting then.
    pub fn is_killed_after(&self, time: Duration) -> bool {
        let _line = CommandLine::says(&format!("quiet {}", SHIPPED.1));
        let mut initrd = start();
        thread::sleep(time);
        let booting = initrd.try_wait().unwrap().is_none();
        if booting {
            kill(&mut initrd);
        }
        power_off();
        booting
    }

    /// What the device remembers.
    pub fn state(&self) -> DeviceState {
        self.with_state(|folder| Store::open(folder).unwrap().read().unwrap())
    }

    pub fn is_asked_for_a_factory_reset(&self) -> JobId {
        self.is_asked_for_a_reset(Scope::Factory, &[])
    }

    /// Asks for a reset, as the daemon does.
    pub fn is_asked_for_a_reset(&self, scope: Scope, keep: &[&str]) -> JobId {
        let keep = decide(scope, keep.iter().map(|path| path.parse().unwrap()).collect()).unwrap();
        self.is_asked_for(Wanted::Reset { scope, keep: Keep::Paths(keep), plan: None })
    }

    /// Asks for a new volume key, as the daemon does.
    pub fn is_asked_to_keep_everything(&self, on: Partition) -> JobId {
        self.is_asked_for(Wanted::Reset { scope: Scope::Overlay, keep: Keep::Everything(on), plan: None })
    }

    /// Asks to have changes taken back, as the daemon does.
    pub fn is_asked_to_revert(&self, paths: &[&str]) -> JobId {
        self.is_asked_for(Wanted::Revert { paths: paths.iter().map(|path| path.parse().unwrap()).collect() })
    }

    /// Asks to have the changes saved, as the daemon does.
    pub fn is_asked_to_save(&self, name: &str) -> JobId {
        self.is_asked_for(Wanted::Save { name: name.parse().unwrap(), replace: false })
    }

    /// Asks for a configuration, to be confirmed or not, as the daemon does.
    pub fn is_asked_to_apply(&self, name: &str, within: Option<u32>) -> JobId {
        let within = within.map(|seconds| seconds.try_into().unwrap());
        self.is_asked_for(Wanted::Apply { name: name.parse().unwrap(), within })
    }

    pub fn is_asked_for(&self, wanted: Wanted) -> JobId {
        let by = Requester { uid: 1000, user: Some("admin".into()), process: None, label: None };
        let request = Request { wanted, by, key: None, not_before: None, reboot: true };
        let job = new_id();
        self.changes_state(|state| assert_eq!(state.request(request, job, now()), Ok(Taken::New(job))));
        job
    }

    /// Changes what the device remembers, as the daemon does.
    pub fn changes_state(&self, change: impl FnOnce(&mut DeviceState)) {
        self.with_state(|folder| {
            let store = Store::open(folder).unwrap();
            let mut state = store.read().unwrap();
            change(&mut state);
            store.write(&state).unwrap();
        });
    }

    /// Works on the mounted p.lxstate.
    pub fn with_state<T>(&self, work: impl FnOnce(&Path) -> T) -> T {
        let folder = TempDir::new().unwrap();
        mount(self.partition(Partition::State), folder.path(), "ext4", MountFlags::empty(), None).unwrap();
        let result = work(folder.path());
        unmount(folder.path(), UnmountFlags::empty()).unwrap();
        result
    }

    /// The LUKS headers and key slots, as they are.
    pub fn volume_header(&self) -> Vec<u8> {
        let mut header = vec![0; 16 << 20];
        File::open(self.partition(Partition::Root)).unwrap().read_exact_at(&mut header, 0).unwrap();
        header
    }

    pub fn overwrite_volume_header(&self, bytes: &[u8]) {
        let device = File::options().write(true).open(self.partition(Partition::Root)).unwrap();
        device.write_all_at(bytes, 0).unwrap();
        device.sync_all().unwrap();
    }
}

impl Drop for Power {
    fn drop(&mut self) {
        power_off();
    }
}

impl Running<'_> {
    #[track_caller]
    pub fn writes(&self, path: &str, text: &str) {
        fs::create_dir_all(on_the_device(path).parent().unwrap()).unwrap();
        fs::write(on_the_device(path), text).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
    }

    #[track_caller]
    pub fn reads(&self, path: &str) -> String {
        fs::read_to_string(on_the_device(path)).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
    }

    pub fn has(&self, path: &str) -> bool {
        on_the_device(path).exists()
    }

    /// The volume of its overlay, which is open.
    #[track_caller]
    pub fn volume(&self) -> &OpenVolume {
        self.report.volume.as_ref().expect("the overlay is open")
    }

    /// Nothing is wrong with it, and the kernel has not complained.
    #[track_caller]
    pub fn is_healthy(&mut self) {
        assert_eq!(self.report.degraded, []);
        assert_eq!(self.report.mode, Mode::Persistent);
        let volume = self.volume().uuid;
        let (Volume::Provisioned(ours) | Volume::TakenOver(ours)) = self.device.state().volume else {
            panic!("the device does not know the volume");
        };
        assert_eq!(ours.uuid, volume);
        assert!(ours.key.is_some(), "nobody could tell another volume from it");
        let messages = self.log.messages();
        for complaint in ["INTEGRITY AEAD ERROR", "I/O error", "EXT4-fs error", "Corruption", "corrupted"] {
            assert!(!messages.contains(complaint), "the kernel complained:\n{messages}");
        }
    }

    /// It is up, with memory in place of its overlay. Returns why.
    #[track_caller]
    pub fn is_degraded(&self) -> &Reason {
        assert_eq!(self.report.mode, Mode::Volatile);
        assert_eq!(self.report.volume, None);
        self.writes("/etc/for-now", "an overlay in memory takes changes too");
        self.report.degraded.first().expect("a reason")
    }

    pub fn shuts_down(self) {
        power_off();
    }
}

/// Runs nemos-initrd to its end: whether the boot goes on, and what it said.
fn run_initrd(words: &str) -> (bool, String) {
    let _line = CommandLine::says(&format!("{words} {}", SHIPPED.1));
    let mut said = String::new();
    let mut initrd = start();
    initrd.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (initrd.wait().unwrap().success(), said)
}

/// Where nemos-initrd finds what whoever starts the device gives it.
pub const CREDENTIALS: &str = "/run/credentials-given";

/// Where units live for one boot.
pub const RUNTIME_UNITS: &str = "/run/systemd/system";

/// Starts nemos-initrd, which says to its standard error what it does.
fn start() -> Child {
    let mut command = Command::new(PROGRAM);
    // By this mkfs.xfs knows the tests that it was made for, and makes file systems of less than 300 MB, too.
    command.envs([("TEST_DIR", "/"), ("TEST_DEV", "/"), ("QA_CHECK_FS", "1")]);
    // Memory that was freed is used again: a page that is touched for the first time takes long in User-Mode Linux.
    command.env("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=4294967296");
    command.env("CREDENTIALS_DIRECTORY", CREDENTIALS);
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Leaves nothing mounted or open, as a reboot does.
#[track_caller]
fn power_off() {
    leave_nothing_open(&["/sysroot", "/run/nemos"]);
    let _ = fs::remove_file(REPORT_FILE);
    let _ = fs::remove_dir_all(CREDENTIALS);
    let _ = fs::remove_dir_all(Path::new(RUNNING_FILE).parent().unwrap());
    let _ = fs::remove_dir_all(RUNTIME_UNITS);
}

/// A path on the running device.
pub fn on_the_device(path: &str) -> PathBuf {
    Path::new("/sysroot").join(path.trim_start_matches('/'))
}

/// With whatever it runs: a power cut spares nobody.
fn kill(initrd: &mut Child) {
    kill_process_group(Pid::from_child(initrd), Signal::KILL).unwrap();
    initrd.wait().unwrap();
}

fn is_mounted(target: &str) -> bool {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(target))
}

/// Writes the image: what `nemos-image` does, in short.
fn build() -> (Image, String) {
    let work = TempDir::new().unwrap();
    let root = work.path().join("root.img");
    let root_hash = build_root(work.path(), &root);
    let preloaded = work.path().join("preloaded.img");
    let preloaded_hash = make_verified(&folder(work.path(), "preloaded", &[("image", b"a container")]), &preloaded);
    let words = format!("roothash={root_hash} {PRELOADED_HASH_OPTION}={preloaded_hash}");
    let state = folder(work.path(), "state", &[(FILE_NAME, DeviceState::shipped().to_text().as_bytes())]);

    let size = |partition| match partition {
        Partition::Esp => MIB,
        // Large enough for a second copy of the superblock.
        Partition::Home => 16 * MIB,
        Partition::State => 24 * MIB,
        Partition::OciPreloaded => fs::metadata(&preloaded).unwrap().len(),
        Partition::Readonly => fs::metadata(&root).unwrap().len() + BLOCK,
        // All of the overlay can wait there.
        Partition::OciStorage => 48 * MIB,
        // With room for headers and tags.
        Partition::Root => 64 * MIB,
    };
    let disk = Disk::partitioned(&Partition::ALL.map(|partition| (partition.label(), size(partition))));
    let write = |image: &Path, partition: Partition| {
        fs::copy(image, disk.partition(partition.label())).unwrap();
    };
    write(&root, Partition::Readonly);
    write(&preloaded, Partition::OciPreloaded);
    let state_partition = disk.partition(Partition::State.label());
    run("mkfs.ext4", ["-q".as_ref(), "-d".as_ref(), state.as_os_str(), state_partition.as_os_str()]);
    (disk.image(), words)
}

/// The root. Returns its root hash.
fn build_root(work: &Path, image: &Path) -> String {
    // Not compressible, so that it is most of the squashfs, and damage to the middle of that is damage to it.
    let mut init = vec![0; 256 << 10];
    File::open("/dev/urandom").unwrap().read_exact(&mut init).unwrap();
    let sizes = br#"{"volatile-size": "48MiB"}"#;
    let mut told = Writer::new(Vec::new()).unwrap();
    told.add(Path::new("etc/hostname"), [Fingerprint::of(b"device")]).unwrap();
    let told = told.finish().unwrap();
    let identity = SetName::identity().file();
    let files: [(&str, &[u8]); 6] = [
        ("sbin/init", &init),
        ("etc/hostname", b"device\n"),
        ("etc/app/shipped", b"shipped"),
        (policy::FILE, sizes),
        (index::FILE, &told),
        (&identity, b"/etc/machine-id\n/etc/ssh/ssh_host_rsa_key\n"),
    ];
    let tree = folder(work, "root", &files);
    for mount_point in Partition::ALL.into_iter().filter_map(Partition::mount_point) {
        fs::create_dir_all(tree.join(mount_point.trim_start_matches('/'))).unwrap();
    }
    make_verified(&tree, image)
}

/// A squashfs with its hash tree behind it. Returns the root hash.
fn make_verified(tree: &Path, image: &Path) -> String {
    make_squashfs(tree, image);
    let hash_offset = fs::metadata(image).unwrap().len();
    let offset = format!("--hash-offset={hash_offset}");
    let printed = run("veritysetup", ["format".as_ref(), offset.as_ref(), image.as_os_str(), image.as_os_str()]);
    printed.lines().find_map(|line| line.strip_prefix("Root hash:")).unwrap().trim().to_owned()
}

fn make_squashfs(tree: &Path, image: &Path) {
    let options = ["-quiet", "-no-progress", "-noappend", "-comp", "zstd"].map(AsRef::as_ref);
    run("mksquashfs", [tree.as_os_str(), image.as_os_str()].into_iter().chain(options));
}

fn folder(parent: &Path, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let folder = parent.join(name);
    for (path, content) in files {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}
