//! What only a real bus daemon can show: who calls, what polkit says, and whether the files that are shipped for them
//! are what they take. Needs `dbus-daemon`.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nemos_api::manager::ManagerProxy;
use nemos_api::{BUS_NAME, ErrorKind, action};
use nemosd::authorization::{Gate, SystemGate};
use tempfile::TempDir;
use tokio::time::timeout;
use zbus::connection::Builder;
use zbus::message::Header;
use zbus::{Connection, OwnedVariant, interface};

const LIMIT: Duration = Duration::from_secs(20);

/// A bus of our own, with the bus policy that is shipped.
struct Bus {
    daemon: Child,
    address: String,
    _folder: TempDir,
}

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../systemd").join(path)
}

impl Bus {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let configuration = folder.path().join("bus.conf");
        let policy = shipped("usr/share/dbus-1/system.d/org.nemos.Device1.conf");
        let text = format!(
            r#"<busconfig>
                 <listen>unix:dir={}</listen>
                 <policy context="default">
                   <allow user="*"/> <allow own="*"/> <allow send_destination="*" eavesdrop="true"/> <allow eavesdrop="true"/>
                 </policy>
                 <include>{}</include>
               </busconfig>"#,
            folder.path().display(),
            policy.canonicalize().unwrap().display()
        );
        std::fs::write(&configuration, text).unwrap();
        let mut daemon = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", configuration.display()))
            .args(["--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test needs dbus-daemon (package dbus-daemon)");
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        assert!(address.starts_with("unix:"), "the bus does not start with the shipped policy");
        Bus { daemon, address: address.trim().to_owned(), _folder: folder }
    }

    fn builder(&self) -> Builder<'_> {
        Builder::address(self.address.as_str())
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Grants what it was made for.
struct FakePolkit {
    grants: &'static str,
}

#[interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl FakePolkit {
    #[allow(clippy::needless_pass_by_value, reason = "as polkit has it")]
    fn check_authorization(
        &self,
        subject: (String, HashMap<String, OwnedVariant>),
        action: &str,
        details: HashMap<String, String>,
        flags: u32,
        cancellation: &str,
    ) -> ((bool, bool, HashMap<String, String>),) {
        assert_eq!(subject.0, "system-bus-name", "a bus name cannot be reused, a process id can");
        assert!(details.is_empty() && cancellation.is_empty());
        assert_eq!(flags, 0, "nobody is to be asked for a password by a caller that did not say so");
        ((action == self.grants, false, HashMap::new()),)
    }
}

/// Asks the gate about whoever calls.
struct Door {
    gate: Arc<SystemGate>,
}

#[interface(name = "org.nemos.Test")]
impl Door {
    async fn caller(&self, #[zbus(header)] call: Header<'_>) -> Result<(u32, String), nemos_api::Error> {
        let caller = self.gate.caller(&call).await?;
        Ok((caller.uid, caller.process.unwrap_or_default()))
    }

    async fn ask(&self, action: &str, #[zbus(header)] call: Header<'_>) -> Result<(), nemos_api::Error> {
        self.gate.ask_polkit(&call, action).await
    }
}

const DOOR: &str = "/org/nemos/Test";

async fn door(bus: &Bus) -> Connection {
    let gate = Arc::new(SystemGate::new(bus.builder().build().await.unwrap()));
    bus.builder().serve_at(DOOR, Door { gate }).name("org.nemos.Test").build().await.unwrap()
}

async fn ask(client: &Connection, action: &str) -> Result<(), nemos_api::CallError> {
    let interface = Some("org.nemos.Test");
    Ok(client.call_method(Some("org.nemos.Test"), DOOR, interface, "Ask", &(action,)).await.map(drop)?)
}

#[tokio::test]
async fn callers_are_known_by_the_bus_and_not_by_what_they_say() {
    let bus = Bus::start();
    let _door = door(&bus).await;
    let client = bus.builder().build().await.unwrap();
    let interface = Some("org.nemos.Test");
    let reply = client.call_method(Some("org.nemos.Test"), DOOR, interface, "Caller", &()).await.unwrap();
    let (uid, process): (u32, String) = reply.body().deserialize().unwrap();
    assert_eq!(uid, nix::unistd::Uid::current().as_raw());
    assert!(process.ends_with(&format!("[{}]", std::process::id())), "{process}");
}

#[tokio::test]
async fn polkit_grants_one_verb_and_not_the_other() {
    let bus = Bus::start();
    let polkit = FakePolkit { grants: action::JOB_CANCEL };
    let authority = "/org/freedesktop/PolicyKit1/Authority";
    let _polkit = bus.builder().serve_at(authority, polkit).name("org.freedesktop.PolicyKit1").build().await.unwrap();
    let _door = door(&bus).await;
    let client = bus.builder().build().await.unwrap();
    ask(&client, action::JOB_CANCEL).await.expect("it is granted");
    assert_refused(ask(&client, action::RESET_FACTORY).await);
}

#[tokio::test]
async fn without_polkit_nothing_is_granted() {
    let bus = Bus::start();
    let _door = door(&bus).await;
    let client = bus.builder().build().await.unwrap();
    assert_refused(ask(&client, action::RESET_FACTORY).await);
}

fn assert_refused(outcome: Result<(), nemos_api::CallError>) {
    match outcome {
        Err(nemos_api::CallError::Refused(error)) => assert_eq!(error.kind, ErrorKind::NotAuthorized),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nemosd_answers_on_the_bus_and_goes_when_it_is_told() {
    let bus = Bus::start();
    let mut nemosd = Command::new(env!("CARGO_BIN_EXE_nemosd"))
        .env("DBUS_SYSTEM_BUS_ADDRESS", &bus.address)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let client = bus.builder().build().await.unwrap();
    let answers = async {
        loop {
            if let Ok(version) = version(&client).await {
                return version;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(timeout(LIMIT, answers).await.expect("nemosd takes its name"), env!("CARGO_PKG_VERSION"));

    let process = nix::unistd::Pid::from_raw(nemosd.id().try_into().unwrap());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM).unwrap();
    let ended = tokio::task::spawn_blocking(move || nemosd.wait());
    assert!(timeout(LIMIT, ended).await.expect("nemosd ends").unwrap().unwrap().success());
}

async fn version(client: &Connection) -> Result<String, nemos_api::CallError> {
    ManagerProxy::builder(client).destination(BUS_NAME).build().await?.version().await
}

#[test]
fn each_action_is_declared_to_polkit() {
    let policy = std::fs::read_to_string(shipped("usr/share/polkit-1/actions/org.nemos.device1.policy")).unwrap();
    for action in [
        action::RESET_OVERLAY,
        action::RESET_FACTORY,
        action::RESET_CERTIFICATE,
        action::INTEGRITY_ACKNOWLEDGE,
        action::INTEGRITY_FILES,
        action::INTEGRITY_SCRUB,
        action::OVERLAY_EXPORT,
        action::OVERLAY_IMPORT,
        action::JOB_CANCEL,
    ] {
        assert!(policy.contains(&format!("<action id=\"{action}\">")), "{action}");
    }
}

#[test]
fn each_message_of_the_journal_is_explained() {
    use nemosd::journal::{
        CARRIED_OUT, DAMAGED, HEALTH_CHANGED, NOT_REBOOTED, REBOOTING, REQUEST_GRANTED, REQUEST_REFUSED, SCRUBBED,
    };
    let catalog = std::fs::read_to_string(shipped("usr/lib/systemd/catalog/nemos.catalog")).unwrap();
    for id in
        [REQUEST_GRANTED, REQUEST_REFUSED, CARRIED_OUT, REBOOTING, NOT_REBOOTED, HEALTH_CHANGED, DAMAGED, SCRUBBED]
    {
        assert!(catalog.contains(&format!("-- {id}\n")), "{id}");
    }
}
