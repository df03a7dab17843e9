//! Reboots, which are logind's to make.

use std::time::Duration;

use nemos_model::JobId;
use nemos_model::overlay::Tried;
use tokio::time::timeout;
use tracing::warn;
use zbus::{Connection, proxy};

use crate::journal;

#[proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Logind {
    fn reboot(&self, interactive: bool) -> zbus::Result<()>;
}

/// How long logind may take to answer: less than systemd's patience with a nemosd that waits for it.
const LIMIT: Duration = Duration::from_secs(20);

/// Reboots so that the next boot carries out the job. If logind refuses, the job stays as it is and waits.
pub async fn for_job(connection: &Connection, job: JobId) {
    journal::rebooting(job);
    match timeout(LIMIT, ask(connection)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => journal::not_rebooted(job, &error.to_string()),
        Err(_) => journal::not_rebooted(job, "systemd-logind does not answer"),
    }
}

/// Reboots so that the next boot goes back from what nobody has confirmed. If logind refuses, it is asked again.
pub async fn to_go_back(connection: &Connection, tried: &Tried) {
    journal::going_back(tried);
    match timeout(LIMIT, ask(connection)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!("cannot reboot to go back from {tried}: {error}"),
        Err(_) => warn!("cannot reboot to go back from {tried}: systemd-logind does not answer"),
    }
}

async fn ask(connection: &Connection) -> zbus::Result<()> {
    LogindProxy::new(connection).await?.reboot(false).await
}
