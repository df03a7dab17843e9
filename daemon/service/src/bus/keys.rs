//! The ways into the overlay's volume.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nemos_api::keys::{ForecastRecord, SlotRecord, TakenKeyOptions};
use nemos_api::options::Dictionary;
use nemos_api::{Error, ErrorKind, action};
use nemos_host::keys::{EscrowError, Given, Handover, Recipient, Secret, SecretError, way};
use nemos_model::job::Requester;
use nemos_model::keys::{KeyslotId, Provider};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use zbus::interface;
use zbus::message::Header;

use crate::bus::Service;
use crate::journal::Subject;
use crate::keys::{self, Delivery, Wanted};

/// How long a secret may take to come through its file descriptor.
const ARRIVES: Duration = Duration::from_secs(30);

/// `org.nemos.Device1.Keys`.
pub struct Keys {
    service: Arc<Service>,
}

impl Keys {
    /// The interface of that service.
    pub fn new(service: Arc<Service>) -> Self {
        Keys { service }
    }

    /// Does something that changes the keys, if the caller may ask for it.
    async fn on_request<T>(
        &self,
        call: &Header<'_>,
        action: &'static str,
        work: impl AsyncFnOnce(Requester) -> Result<(KeyslotId, T), Error>,
    ) -> Result<T, Error> {
        let work = async |by: &mut Requester| {
            let (slot, result) = work(by.clone()).await?;
            Ok((Subject::Keyslot(slot), result))
        };
        self.service.on_request(call, action, work).await
    }

    async fn add(
        &self,
        provider: &str,
        rotates: bool,
        options: Dictionary,
        secret: OwnedFd,
        by: Requester,
    ) -> Result<(KeyslotId, u32), Error> {
        let provider = parse(provider)?;
        let options = TakenKeyOptions::parse(options)?;
        if provider == Provider::RecoveryKey {
            let message = "the device makes recovery keys itself: call CreateRecoveryKey";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let unlock = read_if_given(options.unlock).await?;
        let secret = if way(provider).takes_secret() { Some(read(secret).await?) } else { None };
        let given = Given { secret, place: options.place, pin: read_if_given(options.pin).await? };
        let wanted = Wanted { provider, rotates, unlock, given, delivery: None };
        let slot = keys::add(&self.service, wanted, by).await?;
        Ok((slot, slot.into()))
    }
}

fn parse(provider: &str) -> Result<Provider, Error> {
    provider.parse().map_err(|_| {
        let known: Vec<&str> = Provider::ALL.iter().map(|provider| provider.name()).collect();
        let message = format!("`{}` is no provider; there are {}", provider.escape_debug(), known.join(", "));
        Error::new(ErrorKind::InvalidArgument, message)
    })
}

fn not_sealed(error: &EscrowError) -> Error {
    let kind = if matches!(error, EscrowError::Failed(_)) { ErrorKind::Failed } else { ErrorKind::InvalidArgument };
    Error::new(kind, error.to_string())
}

async fn read_if_given(secret: Option<OwnedFd>) -> Result<Option<Secret>, Error> {
    match secret {
        Some(secret) => read(secret).await.map(Some),
        None => Ok(None),
    }
}

async fn read(secret: OwnedFd) -> Result<Secret, Error> {
    let unusable = |error: SecretError| Error::new(ErrorKind::InvalidArgument, error.to_string());
    let read = spawn_blocking(move || Secret::receive(secret, ARRIVES)).await;
    read.map_err(|error| Error::new(ErrorKind::Failed, error.to_string()))?.map_err(unusable)
}

#[interface(name = "org.nemos.Device1.Keys", introspection_docs = false)]
impl Keys {
    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn slots(&self) -> Result<Vec<SlotRecord>, Error> {
        let seen = self.service.desk.seen().await?;
        let state = self.service.desk.state().await.ok();
        let opened_by = seen.opened_by();
        Ok(seen.keyslots.iter().map(|slot| SlotRecord::new(slot, state.as_ref(), opened_by)).collect())
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn demo_key(&self) -> Result<bool, Error> {
        Ok(self.service.desk.seen().await?.demo_key_opens())
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn sealed_recovery_key(&self) -> Result<String, Error> {
        let seen = self.service.desk.seen().await?;
        let state = self.service.desk.state().await?;
        let newest = state.sealed(&seen.keyslots).next_back();
        Ok(newest.map(|sealed| sealed.text.clone()).unwrap_or_default())
    }

    #[zbus(out_args("slot"))]
    async fn enroll(
        &self,
        provider: &str,
        options: Dictionary,
        secret: zbus::OwnedFd,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<u32, Error> {
        let work = async |by| self.add(provider, false, options, secret.into(), by).await;
        self.on_request(&call, action::KEYS_ENROLL, work).await
    }

    #[zbus(out_args("slot"))]
    async fn rotate(
        &self,
        provider: &str,
        options: Dictionary,
        secret: zbus::OwnedFd,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<u32, Error> {
        let work = async |by| self.add(provider, true, options, secret.into(), by).await;
        self.on_request(&call, action::KEYS_ROTATE, work).await
    }

    #[zbus(out_args("secret"))]
    async fn create_recovery_key(
        &self,
        options: Dictionary,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<zbus::OwnedFd, Error> {
        let work = async |by| {
            let TakenKeyOptions { unlock, rotate, recipients, .. } = TakenKeyOptions::parse_for_recovery(options)?;
            let recipients = Recipient::parse_all(&recipients).map_err(|error| not_sealed(&error))?;
            let unlock = read_if_given(unlock).await?;
            let failed = |error: std::io::Error| Error::new(ErrorKind::Failed, format!("no recovery key: {error}"));
            let secret = Secret::new_recovery_key().map_err(failed)?;
            let handover = if recipients.is_empty() {
                Handover::of(&secret)
            } else {
                Handover::of(&secret.seal(&recipients).map_err(|error| not_sealed(&error))?)
            };
            let (handover, fetched) = handover.map_err(failed)?;
            let given = Given { secret: Some(secret), ..Given::default() };
            let (ready, is_ready) = oneshot::channel();
            let delivery = Some(Delivery::Fetched { handover, ready });
            let wanted = Wanted { provider: Provider::RecoveryKey, rotates: rotate, unlock, given, delivery };
            Ok((keys::add_and_deliver(&self.service, wanted, is_ready, by).await?, fetched.into()))
        };
        self.on_request(&call, action::KEYS_RECOVERY, work).await
    }

    async fn acknowledge_sealed_recovery_key(
        &self,
        sealed: String,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<(), Error> {
        let work = async |_| Ok((keys::acknowledge_sealed(&self.service, sealed).await?, ()));
        self.on_request(&call, action::KEYS_RECOVERY, work).await
    }

    async fn remove(&self, slot: u32, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        let work = async |by| {
            let slot = slot.try_into()?;
            keys::remove(&self.service, slot, by).await?;
            Ok((slot, ()))
        };
        self.on_request(&call, action::KEYS_REMOVE, work).await
    }

    #[zbus(out_args("outlook", "details"))]
    async fn forecast(&self) -> Result<(String, ForecastRecord), Error> {
        let forecast = keys::forecast_boot(&self.service).await?;
        Ok((forecast.outlook.name().to_owned(), ForecastRecord::from(&forecast)))
    }
}
