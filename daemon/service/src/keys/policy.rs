//! The image's policy of keys, carried out.

use std::path::Path;
use std::sync::Arc;

use nemos_api::{Error, ErrorKind};
use nemos_host::keys::{Given, Recipient, Secret, has_tpm2, policy};
use nemos_model::job::Requester;
use nemos_model::keys::change::Known;
use nemos_model::keys::policy::{Circumstances, Step};
use nemos_model::keys::{KeyslotId, Policy, Provider};
use nemos_model::overlay::LOWER_MOUNT;
use tracing::{debug, info, warn};

use super::{Delivery, Wanted, add_now, remove_now, work};
use crate::bus::Service;

/// Does what the image's policy of keys still wants, as far as it can be done now. Only when nemosd starts: a recovery key that
/// somebody has just asked for is not in their hands yet, and the demo key must not go before it is.
pub(super) async fn pursue(service: &Arc<Service>) {
    let policy = match policy(Path::new(LOWER_MOUNT)) {
        Ok(policy) => policy,
        Err(error) => return warn!("the image's policy of keys is not followed: {error}"),
    };
    while let Some(decided) = next_step(service, &policy).await {
        let step = decided.step;
        match take(service, decided).await {
            Ok(slot) => info!("the image's policy of keys: {step}, in key slot {slot}"),
            Err(error) => return warn!("the image's policy of keys wants to {step}, and cannot: {error}"),
        }
    }
}

async fn next_step(service: &Arc<Service>, policy: &Policy) -> Option<Decided> {
    let (policy, state, seen) = (policy.clone(), service.desk.state().await, service.desk.seen().await);
    let next = work(service, move |_, known, _| {
        let seen = seen?;
        let volume = seen.report.as_ref().and_then(|report| report.volume.as_ref());
        let needed_nobody = volume.is_some_and(|volume| !volume.somebody_was_asked);
        let sealed = state?.sealed(known.slots).cloned().collect();
        let now = Circumstances { has_tpm2: has_tpm2(), needed_nobody, sealed };
        let step = policy.next(&known, &now);
        Ok(step.map(|step| Decided { policy, now, step }))
    });
    next.await.unwrap_or_else(|error| {
        debug!("the image's policy of keys is not followed: {error}");
        None
    })
}

/// What the policy wanted when it was asked. Somebody else may be quicker.
pub(super) struct Decided {
    policy: Policy,
    now: Circumstances,
    step: Step,
}

impl Decided {
    pub(super) fn still_holds(&self, known: &Known<'_>) -> bool {
        self.policy.next(known, &self.now) == Some(self.step)
    }
}

async fn take(service: &Arc<Service>, decided: Decided) -> Result<KeyslotId, Error> {
    let by = Requester::policy();
    let wanted = match decided.step {
        Step::EnrollTpm2 => {
            Wanted { provider: Provider::Tpm2, rotates: false, unlock: None, given: Given::default(), delivery: None }
        }
        Step::SealRecoveryKey => sealed_recovery_key(&decided.policy)?,
        Step::RemoveDemoKey(slot) | Step::RemoveUsedRecoveryKey(slot) => {
            return remove_now(service, slot, by, Some(decided)).await.map(|()| slot);
        }
    };
    add_now(service, wanted, by, Some(decided)).await
}

fn sealed_recovery_key(policy: &Policy) -> Result<Wanted, Error> {
    let failed = |error: &dyn std::error::Error| Error::new(ErrorKind::Failed, error.to_string());
    let recipients = Recipient::parse_all(&policy.recipients).map_err(|error| failed(&error))?;
    let secret = Secret::new_recovery_key().map_err(|error| failed(&error))?;
    let sealed = secret.seal(&recipients).map_err(|error| failed(&error))?;
    let delivery = Some(Delivery::Sealed(String::from_utf8_lossy(sealed.expose()).into_owned()));
    let given = Given { secret: Some(secret), ..Given::default() };
    Ok(Wanted { provider: Provider::RecoveryKey, rotates: false, unlock: None, given, delivery })
}
