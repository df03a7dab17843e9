//! The image's policy of keys, carried out.

use std::path::Path;
use std::sync::Arc;

use nemos_api::{Error, ErrorKind};
use nemos_host::keys::{Given, Recipient, Secret, has_tpm2, policy};
use nemos_model::job::Requester;
use nemos_model::keys::policy::Step;
use nemos_model::keys::recovery::Sealed;
use nemos_model::keys::{KeyslotId, Policy, Provider};
use nemos_model::overlay::LOWER_MOUNT;
use nemos_model::state::DeviceState;
use tracing::{debug, info, warn};

use super::{Wanted, add_at, remove_now, work};
use crate::bus::Service;

/// Does what the image's policy of keys still wants, as far as it can be done now. Only when nemosd starts: a recovery key that
/// somebody has just asked for is not in their hands yet, and the demo key must not go before it is.
pub(super) async fn pursue(service: &Arc<Service>) {
    let policy = match policy(Path::new(LOWER_MOUNT)) {
        Ok(policy) => policy,
        Err(error) => return warn!("the image's policy of keys is not followed: {error}"),
    };
    while let Some(step) = next_step(service, &policy).await {
        match take(service, &policy, step).await {
            Ok(slot) => info!("the image's policy of keys: {step}, in key slot {slot}"),
            Err(error) => return warn!("the image's policy of keys wants to {step}, and cannot: {error}"),
        }
    }
}

async fn next_step(service: &Arc<Service>, policy: &Policy) -> Option<Step> {
    let policy = policy.clone();
    let next = work(service, move |_, known, _| Ok(policy.next(&known, has_tpm2())));
    next.await.unwrap_or_else(|error| {
        debug!("the image's policy of keys is not followed: {error}");
        None
    })
}

async fn take(service: &Arc<Service>, policy: &Policy, step: Step) -> Result<KeyslotId, Error> {
    let by = Requester::policy();
    match step {
        Step::EnrollTpm2 => {
            let provider = Provider::Tpm2;
            let wanted = Wanted { provider, rotates: false, unlock: None, given: Given::default(), delivery: None };
            add_at(service, wanted, by, service.desk.now(), Some((policy.clone(), step))).await
        }
        Step::SealRecoveryKey => {
            let failed = |error: &dyn std::error::Error| Error::new(ErrorKind::Failed, error.to_string());
            let recipients = Recipient::parse_all(&policy.recipients).map_err(|error| failed(&error))?;
            let secret = Secret::new_recovery_key().map_err(|error| failed(&error))?;
            let sealed = secret.seal(&recipients).map_err(|error| failed(&error))?;
            let text = String::from_utf8_lossy(sealed.expose()).into_owned();
            // Before the slot is there: a recovery key that nobody can read is none.
            let created = service.desk.now();
            let seal = |state: &mut DeviceState| {
                state.seal(Sealed { created, text });
                Ok(())
            };
            service.desk.note(seal).await?;
            let wanted = Wanted {
                provider: Provider::RecoveryKey,
                rotates: false,
                unlock: None,
                given: Given { secret: Some(secret), ..Given::default() },
                delivery: None,
            };
            add_at(service, wanted, by, created, Some((policy.clone(), step))).await
        }
        Step::RemoveDemoKey(slot) => remove_now(service, slot, by).await.map(|()| slot),
    }
}
