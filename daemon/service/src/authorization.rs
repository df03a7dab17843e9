//! Who asks, and whether they may.

use std::fs;
use std::future::Future;
use std::pin::Pin;

use nemos_api::{Error, ErrorKind};
use nemos_model::job::Requester;
use nix::unistd::{Uid, User};
use tokio::task::spawn_blocking;
use zbus::Connection;
use zbus::fdo::DBusProxy;
use zbus::message::{Flags, Header};
use zbus::names::BusName;
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

/// An answer that takes a while.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Knows callers, and what they may ask.
pub trait Gate: Send + Sync + 'static {
    /// Who sent the call.
    fn caller<'a>(&'a self, call: &'a Header<'_>) -> Answer<'a, Requester>;
    /// Refuses what the caller may not ask.
    fn admit<'a>(&'a self, call: &'a Header<'_>, caller: &'a Requester, action: &'static str) -> Answer<'a, ()>;
}

/// The gate of the system bus: its daemon says who calls, polkit says who may.
#[derive(Debug)]
pub struct SystemGate {
    connection: Connection,
}

impl SystemGate {
    /// A gate for callers on that bus.
    pub fn new(connection: Connection) -> Self {
        SystemGate { connection }
    }

    /// Who sent the call, as the bus knows it; nothing here is the caller's own word.
    async fn identify(&self, call: &Header<'_>) -> Result<Requester, Error> {
        let sender = call.sender().ok_or_else(|| refused("the call has no sender"))?;
        let unknown = |error: zbus::Error| refused(format!("the bus does not know who calls: {error}"));
        let bus = DBusProxy::new(&self.connection).await.map_err(unknown)?;
        let credentials = bus
            .get_connection_credentials(BusName::from(sender.clone()))
            .await
            .map_err(|error| unknown(error.into()))?;
        let uid = credentials.unix_user_id().ok_or_else(|| refused("the bus does not know which user calls"))?;
        let pid = credentials.process_id();
        spawn_blocking(move || Requester { uid, user: user_name(uid), process: pid.map(process_name), label: None })
            .await
            .map_err(|error| refused(error.to_string()))
    }

    /// Asks polkit. It may in turn ask a human, if the caller lets it.
    pub async fn ask_polkit(&self, call: &Header<'_>, action: &str) -> Result<(), Error> {
        let subject = Subject::new_for_message_header(call).map_err(|error| refused(error.to_string()))?;
        let flags = if call.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH) {
            CheckAuthorizationFlags::ALLOW_USER_INTERACTION
        } else {
            CheckAuthorizationFlags::empty()
        };
        let unasked =
            |error: zbus::Error| refused(format!("polkit cannot be asked about {action} ({error}); ask as root"));
        let polkit = AuthorityProxy::new(&self.connection).await.map_err(unasked)?;
        let no_details = std::collections::HashMap::new();
        let result = polkit.check_authorization(&subject, action, &no_details, flags, "").await.map_err(unasked)?;
        if result.is_authorized { Ok(()) } else { Err(refused(format!("polkit does not grant {action}; ask as root"))) }
    }
}

impl Gate for SystemGate {
    fn caller<'a>(&'a self, call: &'a Header<'_>) -> Answer<'a, Requester> {
        Box::pin(self.identify(call))
    }

    /// polkit never refuses root. Not asking about root lets a device be repaired that runs without polkit.
    fn admit<'a>(&'a self, call: &'a Header<'_>, caller: &'a Requester, action: &'static str) -> Answer<'a, ()> {
        Box::pin(async move { if caller.uid == 0 { Ok(()) } else { self.ask_polkit(call, action).await } })
    }
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::NotAuthorized, message)
}

fn user_name(uid: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name)
}

/// `name[pid]`, or `[pid]` if the process has ended. A process gives itself its name, and it is shown on terminals.
fn process_name(pid: u32) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{}[{pid}]", String::from_utf8_lossy(&name).trim_end().replace(char::is_control, "?"))
}
