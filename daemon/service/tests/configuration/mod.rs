//! Saved configurations, and what is on trial.

use std::time::Duration;

use nemos_api::ErrorKind;
use nemos_api::configuration::{ApplyOptions, SaveOptions, TrialRecord};
use nemos_api::job::{self, RetryOptions};
use nemos_api::overlay::{ModeOptions, OverlayProxy};
use nemos_model::Timestamp;
use tokio::time::timeout;

use crate::fake::Fixture;
use crate::refusal;

const LIMIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_configuration_is_asked_for_by_name_and_what_cannot_be_is_refused_up_front() {
    let mut fixture = Fixture::new().await;
    let overlay = OverlayProxy::new(&fixture.client).await.unwrap();
    for (name, kind) in [
        ("factory", ErrorKind::InvalidArgument),
        ("../etc", ErrorKind::InvalidArgument),
        ("", ErrorKind::InvalidArgument),
        (&"n".repeat(300), ErrorKind::InvalidArgument),
    ] {
        assert_eq!(refusal(overlay.save(name, SaveOptions::default()).await).kind, kind, "{name}");
    }
    for name in ["elsewhere", "a/b"] {
        let expected = if name == "elsewhere" { ErrorKind::NotFound } else { ErrorKind::InvalidArgument };
        assert_eq!(refusal(overlay.apply(name, ApplyOptions::default()).await).kind, expected);
        assert_eq!(refusal(overlay.delete(name).await).kind, expected);
        assert_eq!(refusal(overlay.rename(name, "other").await).kind, expected);
    }
    let hasty = ApplyOptions { confirm_within: Some(5), ..ApplyOptions::default() };
    assert_eq!(refusal(overlay.apply("factory", hasty).await).kind, ErrorKind::InvalidArgument);
    assert!(fixture.device.stored().pending().is_none(), "nothing was taken");

    let asked = SaveOptions { reboot: Some(true), key: Some("ticket".into()), ..SaveOptions::default() };
    let job = overlay.save("site-7", asked.clone()).await.unwrap();
    assert_eq!(fixture.next_reboot().await, job);
    assert_eq!(overlay.save("site-7", asked).await.unwrap(), job, "asked twice with one key, it is done once");
    assert_eq!(refusal(overlay.save("other", SaveOptions::default()).await).kind, ErrorKind::Busy);
}

#[tokio::test]
async fn what_is_on_trial_is_told_until_it_is_confirmed() {
    let mut fixture = Fixture::new().await;
    let overlay = OverlayProxy::new(&fixture.client).await.unwrap();
    assert_eq!(refusal(overlay.confirm().await).kind, ErrorKind::NotFound);
    let tried = ApplyOptions { confirm_within: Some(600), ..ApplyOptions::default() };
    overlay.apply("factory", tried).await.unwrap();
    fixture.device.carry_out_what_is_pending();
    fixture = fixture.restart().await;
    let overlay = OverlayProxy::new(&fixture.client).await.unwrap();
    let trial = overlay.trial().await.unwrap();
    assert_eq!((trial.name.as_deref(), trial.within, trial.running), (Some("factory"), Some(600), Some(true)));
    assert_eq!(refusal(overlay.set_mode("volatile", ModeOptions::default()).await).kind, ErrorKind::Busy);
    assert!(fixture.service.failed_trial().await.is_none(), "health is not critical");
    fixture.device.corrupt_root();
    timeout(LIMIT, async {
        while fixture.service.failed_trial().await.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("health has turned critical");
    overlay.confirm().await.unwrap();
    assert!(fixture.service.failed_trial().await.is_none(), "nothing is left to go back from");
    fixture.until(async || overlay.trial().await.unwrap() == TrialRecord::default()).await;
}

#[tokio::test]
async fn a_mode_for_one_boot_has_nothing_to_confirm() {
    let fixture = Fixture::new().await;
    let overlay = OverlayProxy::new(&fixture.client).await.unwrap();
    let both = ModeOptions { once: Some(true), confirm_within: Some(600) };
    assert_eq!(refusal(overlay.set_mode("volatile", both).await).kind, ErrorKind::InvalidArgument);
    let tried = ModeOptions { once: None, confirm_within: Some(600) };
    overlay.set_mode("readonly", tried).await.unwrap();
    assert_eq!(overlay.next_mode().await.unwrap(), "readonly");
    assert_eq!(overlay.trial().await.unwrap().running, Some(false));
}

#[tokio::test]
async fn what_failed_is_not_tried_again_at_a_boot_that_would_not_show_it() {
    let fixture = Fixture::new().await;
    let overlay = OverlayProxy::new(&fixture.client).await.unwrap();
    let job = job::id_at(overlay.apply("factory", ApplyOptions::default()).await.unwrap().as_str()).unwrap();
    fixture.device.change(|state| {
        state.begin_at_boot(job, false, Timestamp(5)).unwrap();
        state.attempt_failed(job, "no such device".into(), Timestamp(6)).unwrap();
    });
    let fixture = fixture.restart().await;
    let overlay = OverlayProxy::new(&fixture.client).await.unwrap();
    overlay.set_mode("volatile", ModeOptions::default()).await.unwrap();
    let refused = refusal(job::retry(&fixture.client, job, RetryOptions::default()).await);
    assert_eq!(refused.kind, ErrorKind::NotSupported, "{refused}");
    overlay.set_mode("persistent", ModeOptions::default()).await.unwrap();
    job::retry(&fixture.client, job, RetryOptions::default()).await.unwrap();
}
