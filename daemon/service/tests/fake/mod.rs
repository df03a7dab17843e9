//! A device and a gate that are made up, and a service on them that a client is connected to.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nemos_api::{Error, ErrorKind};
use nemos_host::certificate::{SigningKey, SigningKeyError};
use nemos_host::integrity::ledger::Ledger;
use nemos_host::overlay::shadow::note_image;
use nemos_host::overlay::usage::UsageError;
use nemos_host::reset::keep::KeepError;
use nemos_host::state::{StateError, Store};
use nemos_model::boot::{BootReport, OpenVolume, REPORT_VERSION};
use nemos_model::certificate::KEY_FILE_NAME;
use nemos_model::image::Image;
use nemos_model::integrity::event::{Owner, Place};
use nemos_model::integrity::scrub;
use nemos_model::integrity::{Event, Scrub, VerityTable};
use nemos_model::job::Requester;
use nemos_model::keys::{Identity, Provider};
use nemos_model::overlay::index::{FILE, Fingerprint, Writer};
use nemos_model::overlay::{LOWER_MOUNT, Mode, UPPER_MOUNT, usage as overlay};
use nemos_model::partitions::Partition;
use nemos_model::reset::Step;
use nemos_model::reset::audit::{Audit, Found, Survey};
use nemos_model::reset::keep::{KeptPath, SetName, Usage};
use nemos_model::stack::{Observed, SeenMapping, SeenMount, SeenPartition};
use nemos_model::state::{AtBoot, DeviceState, Outcome, Volume};
use nemos_model::{JobId, Timestamp};
use nemosd::archive::Carrier;
use nemosd::authorization::{Answer, Gate};
use nemosd::bus::announce::Announcer;
use nemosd::bus::{Service, serve};
use nemosd::changes::Layers;
use nemosd::desk::Desk;
use nemosd::device::Device;
use nemosd::integrity::Integrity;
use nemosd::integrity::storage::Storage;
use nemosd::keys::Keyring;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;
use zbus::connection::Builder;
use zbus::message::Header;
use zbus::{Connection, Guid, OwnedObjectPath};

const LIMIT: Duration = Duration::from_secs(10);

/// A service, and a client of it.
pub struct Fixture {
    pub device: Arc<FakeDevice>,
    pub service: Arc<Service>,
    pub client: Connection,
    server: Connection,
    announcer: Announcer,
    reboots: UnboundedReceiver<JobId>,
    damaged: UnboundedReceiver<Event>,
}

impl Fixture {
    /// A healthy device, and an administrator who may ask anything of it.
    pub async fn new() -> Self {
        Fixture::with(FakeDevice::healthy(), FakeGate { open: true }).await
    }

    /// A healthy device, and somebody who may ask nothing of it.
    pub async fn refusing() -> Self {
        Fixture::with(FakeDevice::healthy(), FakeGate { open: false }).await
    }

    /// The same device with a new nemosd: what was only in its memory is gone.
    pub async fn restart(self) -> Self {
        Fixture::with(self.device, FakeGate { open: true }).await
    }

    /// The same, and whoever asks now may ask nothing.
    pub async fn restart_refusing(self) -> Self {
        Fixture::with(self.device, FakeGate { open: false }).await
    }

    async fn with(device: Arc<FakeDevice>, gate: FakeGate) -> Self {
        let (reboots, wanted) = unbounded_channel();
        let device_edge: Arc<dyn Device> = device.clone();
        let storage: Arc<dyn Storage> = device.clone();
        let (integrity, damaged) = Integrity::of_this_device(storage);
        let desk = Desk::new(device_edge);
        let service = Arc::new(Service {
            desk,
            integrity,
            keys: Keyring::default(),
            carrier: Carrier::default(),
            gate: Box::new(gate),
            reboots,
        });
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = serve(Builder::unix_stream(ours).server(Guid::generate()).p2p(), &service);
        let client = Builder::unix_stream(theirs).p2p();
        let (server, client) = tokio::try_join!(server.build(), client.build()).unwrap();
        let mut announcer = Announcer::default();
        announcer.announce(server.object_server(), &service).await.unwrap();
        Fixture { device, service, client, server, announcer, reboots: wanted, damaged }
    }

    /// The job that the device reboots for next.
    pub async fn next_reboot(&mut self) -> OwnedObjectPath {
        nemos_api::job::path(timeout(LIMIT, self.reboots.recv()).await.expect("a reboot").unwrap())
    }

    /// Whether nobody asked for a reboot by the time that a later call was answered.
    pub async fn no_reboot(&mut self) -> bool {
        self.introspect(nemos_api::PATH).await;
        self.reboots.try_recv().is_err()
    }

    /// Signals the next damage that was seen, as nemosd's main loop does.
    pub async fn signals_damage(&mut self) {
        let event = timeout(LIMIT, self.damaged.recv()).await.expect("damage").unwrap();
        nemosd::bus::integrity::signal(self.server.object_server(), &event).await.unwrap();
    }

    /// Announces changes, as nemosd's main loop does, until the client sees what it waits for.
    pub async fn until(&mut self, seen: impl AsyncFn() -> bool) {
        let watch = async {
            while !seen().await {
                self.announcer.announce(self.server.object_server(), &self.service).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LIMIT, watch).await.expect("the client hears of it");
    }

    /// What the object at that path says of itself.
    pub async fn introspect(&self, path: &str) -> String {
        let interface = Some("org.freedesktop.DBus.Introspectable");
        let reply = self.client.call_method(None::<&str>, path, interface, "Introspect", &()).await.unwrap();
        reply.body().deserialize().unwrap()
    }
}

/// Somebody.
pub fn admin() -> Requester {
    Requester { uid: 1000, user: Some("admin".into()), process: Some("nemosctl[7]".into()), label: None }
}

struct FakeGate {
    open: bool,
}

impl Gate for FakeGate {
    fn caller<'a>(&'a self, _: &'a Header<'_>) -> Answer<'a, Requester> {
        Box::pin(async { Ok(admin()) })
    }

    fn admit<'a>(&'a self, _: &'a Header<'_>, _: &'a Requester, action: &'static str) -> Answer<'a, ()> {
        Box::pin(async move { if self.open { Ok(()) } else { Err(Error::new(ErrorKind::NotAuthorized, action)) } })
    }
}

/// A device whose disk is in memory.
pub struct FakeDevice {
    state: Mutex<DeviceState>,
    seen: Mutex<Observed>,
    clock: AtomicU64,
    ids: AtomicU64,
    failure: Mutex<Option<fn() -> StateError>>,
    /// Files, and their sizes.
    files: Mutex<Vec<(&'static str, u64)>>,
    /// Where its key is.
    folder: TempDir,
    ledger: TempDir,
    overlay: TempDir,
    /// The overlay's volume, and the image's root.
    pub volume: TempDir,
    pub lower: TempDir,
    scrubs: Mutex<Vec<scrub::Step>>,
}

/// What writing to a full disk brings.
pub fn full_disk() -> StateError {
    let path = PathBuf::from("/var/lib/nemos/state.json.new");
    StateError::Io { action: "write", path, source: io::ErrorKind::StorageFull.into() }
}

impl FakeDevice {
    fn healthy() -> Arc<Self> {
        let mut state = DeviceState::shipped();
        state.volume = Volume::Provisioned(identity("8a2d7a2e-5a24-4f4e-9d80-04b7a6f2a1c3"));
        Arc::new(FakeDevice {
            state: Mutex::new(state),
            seen: Mutex::new(healthy_storage()),
            clock: AtomicU64::new(1_795_442_786),
            ids: AtomicU64::new(1),
            failure: Mutex::default(),
            files: Mutex::new(vec![
                ("/etc/machine-id", 4096),
                ("/etc/app", 1 << 20),
                ("/home/large", 1 << 30),
                ("/", 90 << 20),
            ]),
            folder: tempfile::tempdir().unwrap(),
            ledger: TempDir::new().unwrap(),
            overlay: TempDir::new().unwrap(),
            volume: TempDir::new().unwrap(),
            lower: TempDir::new().unwrap(),
            scrubs: Mutex::default(),
        })
    }

    /// What is on its disk.
    pub fn stored(&self) -> DeviceState {
        self.state.lock().unwrap().clone()
    }

    /// Changes what is on its disk.
    pub fn change(&self, change: impl FnOnce(&mut DeviceState)) {
        change(&mut self.state.lock().unwrap());
    }

    /// Does what the initrd does with a pending job.
    pub fn carry_out_what_is_pending(&self) {
        self.change(|state| {
            let now = Timestamp(self.clock());
            let AtBoot::CarryOut(job) = state.begin_at_boot(JobId::from_random(0), false, now).unwrap() else {
                panic!("nothing is pending")
            };
            while let Some(step) = state.job(job).unwrap().next_step() {
                let outcome = match step {
                    Step::CreateVolume => Outcome::Volume(identity("b1b4c1c5-3d8e-4a34-8c7e-1f0f0c1d2e3f")),
                    Step::Audit => Outcome::Audited(Audit::new(&Survey::default(), &Found::default(), &[])),
                    _ => Outcome::Done,
                };
                state.step_done(job, outcome, now).unwrap();
            }
        });
    }

    /// Lets writes fail, or succeed again.
    pub fn fail_writes(&self, failure: Option<fn() -> StateError>) {
        *self.failure.lock().unwrap() = failure;
    }

    /// Makes a file larger or smaller.
    pub fn resize(&self, file: &'static str, bytes: u64) {
        self.files.lock().unwrap().iter_mut().filter(|(known, _)| *known == file).for_each(|(_, size)| *size = bytes);
    }

    /// Whether it has a key for certificates.
    pub fn has_key(&self) -> bool {
        self.folder.path().join(KEY_FILE_NAME).exists()
    }

    /// Has it booted in that mode.
    pub fn boot_in(&self, mode: Mode) {
        self.seen.lock().unwrap().report.as_mut().unwrap().mode = mode;
    }

    pub fn unmount(&self, target: &str) {
        self.seen.lock().unwrap().mounts.retain(|mount| mount.target != target);
    }

    /// So many percent of what is mounted there are in use.
    pub fn fills(&self, target: &str, percent: u64) {
        let mut seen = self.seen.lock().unwrap();
        seen.mounts.iter_mut().filter(|mount| mount.target == target).for_each(|mount| mount.used = percent);
    }

    /// The partition of its overlay is larger than the volume.
    pub fn grows(&self) {
        let mut seen = self.seen.lock().unwrap();
        let partitions = seen.partitions.iter_mut();
        partitions.filter(|seen| seen.partition == Partition::Root).for_each(|root| root.size = 1 << 30);
    }

    /// It boots the image with these files, of this root hash, as nemos-initrd has it.
    pub fn boots(&self, root_hash: &str, files: &[(&str, &str)]) {
        let Layers { volume, lower, .. } = self.layers();
        wait_for_another_time(self.overlay.path());
        let _ = fs::remove_dir_all(&lower);
        let mut index = Writer::new(Vec::new()).unwrap();
        for (path, content) in files {
            let file = lower.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, content).unwrap();
            index.add(Path::new(path), [Fingerprint::of(content.as_bytes())]).unwrap();
        }
        let file = lower.join(FILE);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, index.finish().unwrap()).unwrap();
        fs::create_dir_all(volume.join("upper")).unwrap();
        note_image(&volume, &lower, root_hash.parse().unwrap()).unwrap();
    }

    /// Somebody writes a file.
    pub fn writes(&self, path: &str, content: &str) {
        let file = self.layers().volume.join("upper").join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    }

    /// Its volume could not be opened.
    pub fn has_its_overlay_in_memory(&self) {
        let mut seen = self.seen.lock().unwrap();
        seen.mounts
            .iter_mut()
            .filter(|mount| mount.target == UPPER_MOUNT)
            .for_each(|mount| mount.fs_type = "tmpfs".into());
    }

    pub fn corrupt_root(&self) {
        self.seen.lock().unwrap().mappings[0].status = "C".into();
    }

    pub fn clock(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    pub fn set_clock(&self, seconds: u64) {
        self.clock.store(seconds, Ordering::Relaxed);
    }
}

impl FakeDevice {
    /// Steps that a scrub takes from now on; the last of them never ends, if it reads nothing.
    pub fn scrub_takes(&self, steps: Vec<scrub::Step>) {
        *self.scrubs.lock().unwrap() = steps;
    }
}

impl Storage for FakeDevice {
    fn ledger(&self) -> (Ledger, Option<String>) {
        (Ledger::open(self.ledger.path(), "boot", 0, Timestamp(self.clock())).unwrap(), None)
    }

    fn observe(&self) -> Observed {
        self.seen.lock().unwrap().clone()
    }

    fn owners(&self, places: &[&Place]) -> Vec<Option<Owner>> {
        let owner = |place: &&Place| Some(Owner { file: format!("/of/{}", place.volume), package: None });
        places.iter().map(owner).collect()
    }

    fn blocks_of(&self, _: &Place) -> Vec<Place> {
        Vec::new()
    }

    fn is_free(&self, _: &Place) -> bool {
        false
    }

    fn scrub(&self, scrub: &Scrub, step: &mut dyn FnMut(scrub::Step) -> bool) -> Result<(), String> {
        let steps = self.scrubs.lock().unwrap().clone();
        for next in steps.into_iter().filter(|step| step.position > scrub.position) {
            let waits = next.read == 0;
            while step(next.clone()) && waits {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }
}

impl Device for FakeDevice {
    fn image(&self) -> Image {
        Image { id: "nemos-image".into(), version: "1".into() }
    }

    fn boot_id(&self) -> String {
        "0".repeat(32)
    }

    fn observe(&self) -> Observed {
        self.seen.lock().unwrap().clone()
    }

    fn read(&self) -> Result<DeviceState, StateError> {
        Ok(self.stored())
    }

    fn write(&self, state: &DeviceState) -> Result<(), StateError> {
        if let Some(failure) = *self.failure.lock().unwrap() {
            return Err(failure());
        }
        self.change(|stored| stored.clone_from(state));
        Ok(())
    }

    fn measure(&self, path: &KeptPath) -> Result<Usage, KeepError> {
        let files = self.files.lock().unwrap();
        let usage = files
            .iter()
            .find(|(known, _)| *known == path.as_str())
            .map(|(_, bytes)| Usage { entries: 1, bytes: *bytes });
        usage.ok_or_else(|| KeepError::NotThere { path: path.as_str().into() })
    }

    fn keep_set(&self, name: &SetName) -> Result<Vec<KeptPath>, KeepError> {
        match name.to_string().as_str() {
            "identity" => Ok(["/etc/machine-id", "/etc/nowhere"].map(|path| path.parse().unwrap()).to_vec()),
            _ => Err(KeepError::NoSuchSet(name.clone())),
        }
    }

    fn everything(&self, _: &Path, _: &Path) -> Result<Usage, KeepError> {
        let files = self.files.lock().unwrap();
        Ok(files.iter().filter(|(path, _)| *path == "/").map(|(_, bytes)| Usage { entries: 2, bytes: *bytes }).sum())
    }

    fn free(&self, partition: Partition) -> Result<u64, KeepError> {
        Ok(if partition == Partition::OciStorage { 200 << 20 } else { 64 << 20 })
    }

    fn layers(&self) -> Layers {
        Layers { volume: self.overlay.path().join("volume"), lower: self.overlay.path().join("image"), root_hash: None }
    }

    fn usage(&self) -> Result<overlay::Usage, UsageError> {
        let taken = |bytes, shared| overlay::Taken { entries: 2, bytes, shared };
        let configurations = vec![("lab".into(), taken(20, 15))];
        let changes = taken(30, 15);
        Ok(overlay::Usage { size: 100, free: 40, changes, configurations, shared: 15, ..overlay::Usage::default() })
    }

    fn memory_limit(&self) -> u64 {
        512 << 20
    }

    fn volume(&self) -> PathBuf {
        self.volume.path().to_owned()
    }

    fn lower(&self) -> PathBuf {
        self.lower.path().to_owned()
    }

    fn signing_key(&self) -> Result<SigningKey, SigningKeyError> {
        SigningKey::in_file(&Store::open(self.folder.path())?)
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.clock())
    }

    fn new_job(&self) -> JobId {
        JobId::from_random(self.ids.fetch_add(1, Ordering::Relaxed).into())
    }
}

fn healthy_storage() -> Observed {
    let mount = |target: &str, source: &str, fs_type: &str| SeenMount {
        target: target.into(),
        source: source.into(),
        fs_type: fs_type.into(),
        read_only: fs_type == "squashfs",
        size: 100,
        used: 10,
        ..SeenMount::default()
    };
    let mapping = |name: &str, target: &str, status: &str| SeenMapping {
        name: name.into(),
        target: target.into(),
        status: status.into(),
        table: (target == "verity").then(|| {
            let root_hash = "0123456789abcdef".repeat(4).parse().unwrap();
            VerityTable { data_blocks: 8, tree: 9, root_hash, salt: Vec::new(), signed: false, parity: None }
        }),
        device: format!("/dev/mapper/{name}"),
        size: 100,
    };
    Observed {
        partitions: Partition::ALL
            .map(|partition| SeenPartition { partition, device: format!("/dev/{partition}"), size: 128 })
            .to_vec(),
        mappings: vec![
            mapping("verityRoot", "verity", "V"),
            mapping("luks", "crypt", ""),
            mapping("luks_dif", "integrity", "0 100 -"),
        ],
        mounts: vec![
            mount("/", "OverlayOS_rootfs", "overlay"),
            mount(LOWER_MOUNT, "/dev/mapper/verityRoot", "squashfs"),
            mount(UPPER_MOUNT, "/dev/mapper/luks", "xfs"),
            mount("/home", "/dev/vda2", "ext4"),
            mount("/var/lib/containers/storage", "/dev/vda3", "xfs"),
            mount("/var/lib/containers/loaded", "/dev/vda4", "squashfs"),
            mount("/var/lib/nemos", "/dev/vda5", "ext4"),
        ],
        report: Some(BootReport {
            version: REPORT_VERSION,
            disk: "/dev/vda".into(),
            root_hash: "0123456789abcdef".repeat(4).parse().unwrap(),
            mode: Mode::Persistent,
            volume: Some(OpenVolume {
                uuid: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
                built: false,
                provider: Provider::DemoKey,
                keyslot: 0.try_into().unwrap(),
                keyslot_created: None,
                somebody_was_asked: false,
                unbound: None,
            }),
            job: None,
            went_back: None,
            preloaded_hash: None,
            headers: Vec::new(),
            repaired: Vec::new(),
            degraded: Vec::new(),
        }),
        keyslots: Vec::new(),
    }
}

/// A volume with that LUKS UUID.
fn identity(uuid: &str) -> Identity {
    Identity { uuid: uuid.parse().unwrap(), key: None }
}

/// What is changed from now on has another time than what was changed before: the kernel tells files the time of its last tick, and
/// a boot here takes less.
fn wait_for_another_time(folder: &Path) {
    let time = || {
        let file = tempfile::NamedTempFile::new_in(folder).unwrap();
        file.as_file().metadata().unwrap().modified().unwrap()
    };
    let before = time();
    while time() == before {}
}
