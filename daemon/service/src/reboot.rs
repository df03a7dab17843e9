//! Reboots, which are logind's to make.

use nemos_model::JobId;
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

/// Reboots so that the next boot carries out the job. If logind refuses, the job stays as it is and waits.
pub async fn for_job(connection: &Connection, job: JobId) {
    journal::rebooting(job);
    if let Err(error) = ask(connection).await {
        journal::not_rebooted(job, &error);
    }
}

async fn ask(connection: &Connection) -> zbus::Result<()> {
    LogindProxy::new(connection).await?.reboot(false).await
}
