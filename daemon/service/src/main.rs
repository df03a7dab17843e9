//! nemosd: puts the device on the system bus.

#![forbid(unsafe_code)]

use std::alloc::System;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use nemos_api::BUS_NAME;
use nemosd::archive::Carrier;
use nemosd::authorization::SystemGate;
use nemosd::bus::announce::Announcer;
use nemosd::bus::{self, Service, serve};
use nemosd::desk::Desk;
use nemosd::device::ThisDevice;
use nemosd::integrity::storage::ThisStorage;
use nemosd::integrity::{Integrity, listen, name_owners, scrub};
use nemosd::keys::{self, Keyring};
use nemosd::{configuration, journal, reboot};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;
use zbus::Connection;
use zbus::connection::Builder;
use zeroizing_alloc::ZeroAlloc;

/// Secrets pass through the memory of libraries as well, which do not wipe it.
#[global_allocator]
static MEMORY: ZeroAlloc<System> = ZeroAlloc(System);

/// The nemos daemon: offers org.nemos.Device1 on the system bus. systemd starts it; it takes no options.
#[derive(Parser)]
#[command(version)]
struct Arguments {}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Arguments {} = Arguments::parse();
    journal::begin();
    run().await.inspect_err(|error| tracing::error!("{error:#}"))
}

async fn run() -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    // Callers are asked about on a connection of their own, so that the bus's own answers never wait for ours.
    let asking = Connection::system().await.context("cannot connect to the system bus")?;
    let (reboots, mut wanted) = mpsc::unbounded_channel();
    let (integrity, mut damaged) = Integrity::of_this_device(Arc::new(ThisStorage));
    let mut view = integrity.watch();
    let service = Arc::new(Service {
        desk: Desk::new(Arc::new(ThisDevice::default())),
        integrity: Arc::clone(&integrity),
        keys: Keyring::default(),
        carrier: Carrier::default(),
        gate: Box::new(SystemGate::new(asking.clone())),
        reboots,
    });
    let connection = serve(Builder::system(), &service).build().await.context("cannot connect to the system bus")?;
    let objects = connection.object_server();
    let mut announcer = Announcer::default();
    announcer.announce(objects, &service).await?;
    connection.request_name(BUS_NAME).await.with_context(|| {
        format!("cannot take the name {BUS_NAME}: is another nemosd running, or its bus policy not installed?")
    })?;
    notify(&[NotifyState::Ready]);
    listen::begin(Arc::clone(&integrity));
    scrub::resume(&integrity);
    let of_the_keys = Arc::clone(&service);
    tokio::spawn(async move { keys::settle(&of_the_keys).await });
    let of_the_overlay = Arc::clone(&service);
    tokio::spawn(async move { configuration::settle(&of_the_overlay).await });
    tokio::spawn(name_owners(Arc::clone(&integrity)));
    if let Ok(Some(job)) = service.desk.carried_out().await {
        journal::carried_out(&job);
    }

    let mut tick = interval(tick_length());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
            () = connection.closed() => bail!("the system bus closed the connection"),
            Some(job) = wanted.recv() => reboot::for_job(&asking, job).await,
            () = service.desk.changed() => {}
            Some(event) = damaged.recv() => {
                journal::damaged(&event);
                if let Err(error) = bus::integrity::signal(objects, &event).await {
                    warn!("damage was not announced: {error}");
                }
            }
            _ = view.changed() => {}
            _ = tick.tick() => {
                match service.desk.become_due().await {
                    Ok(Some(job)) if job.reboot => reboot::for_job(&asking, job.id).await,
                    Ok(_) => {}
                    Err(error) => warn!("no job can become due: {error}"),
                }
                notify(&[NotifyState::Watchdog]);
                keys::watch(&service);
                if let Some(tried) = service.failed_trial().await {
                    reboot::to_go_back(&asking, &tried).await;
                }
            }
        }
        if let Err(error) = announcer.announce(objects, &service).await {
            warn!("changes were not announced: {error}");
        }
    }
    notify(&[NotifyState::Stopping]);
    connection.graceful_shutdown().await;
    Ok(())
}

/// Often enough for the watchdog, and for jobs that wait for their time.
fn tick_length() -> Duration {
    let longest = Duration::from_secs(10);
    sd_notify::watchdog_enabled().map_or(longest, |limit| longest.min(limit / 3))
}

/// Tells systemd, if it listens.
fn notify(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("systemd cannot be told: {error}");
    }
}
