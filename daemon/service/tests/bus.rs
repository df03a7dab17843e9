//! The interfaces, over a connection without a bus, on a device that is made up.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

mod archive;
mod configuration;
mod fake;
mod integrity;
mod overlay;

use fake::{Fixture, admin, full_disk};
use nemos_api::job::{self, RetryOptions, path};
use nemos_api::manager::ManagerProxy;
use nemos_api::options::Dictionary;
use nemos_api::reset::{PlanOptions, RequestOptions, ResetProxy};
use nemos_api::{CallError, Error, ErrorKind, PATH};
use nemos_model::Timestamp;
use nemos_model::certificate::{PublicKey, verify};
use nemos_model::job::JobState;
use nemos_model::overlay::UPPER_MOUNT;
use nemos_model::partitions::Partition;
use nemos_model::reset::KeptPath;
use nemos_model::state::Volume;
use zbus::OwnedVariant;

pub(crate) fn refusal<T: std::fmt::Debug>(outcome: Result<T, CallError>) -> Error {
    match outcome.expect_err("it should be refused") {
        CallError::Refused(error) => error,
        CallError::Unreachable(error) => panic!("{error}"),
    }
}

fn asking() -> RequestOptions {
    RequestOptions::default()
}

#[tokio::test]
async fn an_accepted_reset_is_durable_and_says_who_asked() {
    let fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let options = RequestOptions { label: Some("returned".into()), ..asking() };
    let accepted = reset.request("factory", options).await.unwrap();

    let stored = fixture.device.stored();
    let pending = stored.pending().expect("it is on the disk");
    assert_eq!(accepted, path(pending.id));
    assert_eq!(pending.state, JobState::WaitingForReboot);
    assert_eq!((pending.requested_by.uid, pending.requested_by.label.as_deref()), (admin().uid, Some("returned")));

    let record = job::get(&fixture.client, pending.id).await.unwrap();
    assert_eq!((record.kind.as_str(), record.state.as_str()), ("reset-factory", "waiting-for-reboot"));
    assert_eq!(record.requested_by.user.as_deref(), Some("admin"));
    assert_eq!(job::list(&fixture.client).await.unwrap(), [record]);
    assert_eq!(reset.pending().await.unwrap(), accepted);
}

#[tokio::test]
async fn the_device_reboots_only_if_that_was_asked() {
    let mut fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let asked = reset.request("factory", asking()).await.unwrap();
    job::cancel(&fixture.client, job::id_at(asked.as_str()).unwrap()).await.unwrap();
    let asked = reset.request("factory", RequestOptions { reboot: Some(true), ..asking() }).await.unwrap();
    assert_eq!(fixture.next_reboot().await, asked, "the first reboot is for the second request");
}

#[tokio::test]
async fn the_same_key_gives_the_same_job_and_resets_once() {
    let mut fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let (plan, _) = reset.plan(PlanOptions::default()).await.unwrap();
    let options = RequestOptions { key: Some("ticket-17".into()), plan: Some(plan), reboot: Some(true), ..asking() };
    let first = reset.request("factory", options.clone()).await.unwrap();
    assert_eq!(fixture.next_reboot().await, first);

    fixture.device.carry_out_what_is_pending();
    let mut fixture = fixture.restart().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    assert_eq!(reset.request("factory", options).await.unwrap(), first);
    assert!(fixture.no_reboot().await, "it was done before");
    let history = reset.history().await.unwrap();
    assert_eq!(history.len(), 1);
    assert_eq!((history[0].state.as_str(), history[0].progress), ("done", 1.0));
}

#[tokio::test]
async fn who_may_not_ask_is_refused_and_nothing_is_written() {
    let fixture = Fixture::refusing().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    assert_eq!(refusal(reset.request("factory", asking()).await).kind, ErrorKind::NotAuthorized);
    assert!(fixture.device.stored().jobs().is_empty());
    assert!(reset.plan(PlanOptions::default()).await.is_ok(), "reading is for everyone");
}

#[tokio::test]
async fn a_full_disk_accepts_nothing() {
    let fixture = Fixture::new().await;
    fixture.device.fail_writes(Some(full_disk));
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let options = RequestOptions { reboot: Some(true), ..asking() };
    assert_eq!(refusal(reset.request("factory", options).await).kind, ErrorKind::NoSpace);
    assert_eq!(reset.pending().await.unwrap().as_str(), "/");
    fixture.device.fail_writes(None);
    reset.request("factory", asking()).await.expect("there is space again");
}

#[tokio::test]
async fn a_device_that_would_forget_accepts_nothing() {
    let fixture = Fixture::new().await;
    fixture.device.unmount("/var/lib/nemos");
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let error = refusal(reset.request("factory", asking()).await);
    assert_eq!(error.kind, ErrorKind::Failed);
    assert!(error.message.starts_with("p.lxstate (/var/lib/nemos) is not mounted"), "{}", error.message);
    let manager = ManagerProxy::new(&fixture.client).await.unwrap();
    assert_eq!(manager.health().await.unwrap(), "critical");
    assert!(fixture.device.stored().jobs().is_empty());
    let fixture = fixture.restart().await;
    refusal(job::list(&fixture.client).await);
}

#[tokio::test]
async fn a_plan_that_was_made_for_another_volume_is_refused() {
    let fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let (plan, details) = reset.plan(PlanOptions::default()).await.unwrap();
    assert!(details.untouched.contains(&"p.lxstate".to_owned()));
    fixture.device.change(|state| state.volume = Volume::Erased);
    let fixture = fixture.restart().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let options = RequestOptions { plan: Some(plan), ..asking() };
    assert_eq!(refusal(reset.request("factory", options).await).kind, ErrorKind::PlanChanged);
    assert!(fixture.device.stored().jobs().is_empty());
}

fn keeping(paths: &[&str]) -> RequestOptions {
    RequestOptions { keep: Some(paths.iter().map(|path| (*path).to_owned()).collect()), ..asking() }
}

#[tokio::test]
async fn what_is_kept_is_part_of_the_plan_and_of_the_job() {
    let fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let options = PlanOptions {
        keep: Some(vec!["/etc/app".into()]),
        keep_sets: Some(vec!["identity".into()]),
        ..PlanOptions::default()
    };
    let (plan, details) = reset.plan(options).await.unwrap();
    let kept: Vec<_> = details.keep.iter().map(|kept| (kept.path.as_str(), kept.bytes)).collect();
    assert_eq!(kept, [("/etc/app", 1 << 20), ("/etc/machine-id", 4096), ("/etc/nowhere", 0)]);
    assert_eq!(details.regenerated, ["SSH host keys"]);
    assert!(details.room_needed.unwrap() <= details.room_available.unwrap());
    assert!(details.steps.contains(&"stage-kept".to_owned()));

    let options =
        RequestOptions { keep_sets: Some(vec!["identity".into()]), plan: Some(plan), ..keeping(&["/etc/app"]) };
    reset.request("factory", options).await.unwrap();
    let stored = fixture.device.stored();
    let job = stored.pending().unwrap();
    let kept: Vec<_> = job.keep.iter().map(KeptPath::as_str).collect();
    assert_eq!(kept, ["/etc/app", "/etc/machine-id"], "what is not there is not kept");
}

#[tokio::test]
async fn a_plan_is_refused_when_there_is_more_to_keep_than_it_showed() {
    let fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let options = PlanOptions { keep: Some(vec!["/etc/app".into()]), ..PlanOptions::default() };
    let (plan, _) = reset.plan(options).await.unwrap();
    fixture.device.resize("/etc/app", 2 << 20);
    let options = RequestOptions { plan: Some(plan), ..keeping(&["/etc/app"]) };
    assert_eq!(refusal(reset.request("factory", options).await).kind, ErrorKind::PlanChanged);
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_before_anything_is_written() {
    let fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let sets = |name: &str| RequestOptions { keep_sets: Some(vec![name.into()]), ..asking() };
    for (scope, options, kind) in [
        ("factory", keeping(&["etc/app"]), ErrorKind::InvalidArgument),
        ("factory", keeping(&["/etc/../home"]), ErrorKind::InvalidArgument),
        ("factory", keeping(&["/run/app"]), ErrorKind::InvalidArgument),
        ("overlay", keeping(&["/home/large"]), ErrorKind::InvalidArgument),
        ("factory", keeping(&["/etc/missing"]), ErrorKind::NotFound),
        ("factory", keeping(&["/home/large"]), ErrorKind::NoSpace),
        ("factory", sets("no-such-set"), ErrorKind::NotFound),
        ("factory", sets("../identity"), ErrorKind::InvalidArgument),
    ] {
        let refused = refusal(reset.request(scope, options.clone()).await);
        assert_eq!(refused.kind, kind, "{scope} {options:?}: {refused}");
    }
    assert!(fixture.device.stored().jobs().is_empty());
}

fn keeping_all() -> RequestOptions {
    RequestOptions { keep_all: Some(true), ..asking() }
}

#[tokio::test]
async fn everything_waits_where_there_is_room_and_the_job_says_where() {
    let fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let options = PlanOptions { scope: Some("overlay".into()), keep_all: Some(true), ..PlanOptions::default() };
    let (plan, details) = reset.plan(options).await.unwrap();
    assert_eq!((details.keep_all, details.waits_on.as_deref()), (Some(90 << 20), Some("p.lxoci-storage")));
    assert!(details.room_needed.unwrap() <= details.room_available.unwrap());
    assert_eq!(details.erased.iter().map(|erased| erased.how.as_str()).collect::<Vec<_>>(), ["key-replaced"]);
    assert!(details.regenerated.is_empty());
    fixture.device.resize("/", 91 << 20);
    let options = RequestOptions { plan: Some(plan), ..keeping_all() };
    let job = job::id_at(reset.request("overlay", options).await.unwrap().as_str()).unwrap();
    assert_eq!(fixture.device.stored().pending().unwrap().keep_all, Some(Partition::OciStorage));
    assert_eq!(job::get(&fixture.client, job).await.unwrap().result.kept_all, Some(true));
}

#[tokio::test]
async fn everything_is_kept_whole_or_not_at_all() {
    let fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let more = RequestOptions { keep: Some(vec!["/etc/app".into()]), ..keeping_all() };
    for (scope, options) in [("factory", keeping_all()), ("overlay", more)] {
        assert_eq!(refusal(reset.request(scope, options).await).kind, ErrorKind::InvalidArgument);
    }
    fixture.device.resize("/", 190 << 20);
    let refused = refusal(reset.request("overlay", keeping_all()).await);
    assert_eq!(refused.kind, ErrorKind::NoSpace);
    assert!(refused.message.contains("on p.lxoci-storage, where most room is"), "{refused}");
    fixture.device.unmount(UPPER_MOUNT);
    let refused = refusal(reset.request("overlay", keeping_all()).await);
    assert!(refused.message.contains("p.lxroot: it is not open at this boot"), "{refused}");
    assert!(fixture.device.stored().jobs().is_empty());
}

#[tokio::test]
async fn nothing_is_kept_of_a_partition_that_is_not_in_use() {
    let fixture = Fixture::new().await;
    fixture.device.unmount("/home");
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let refused = refusal(reset.request("factory", keeping(&["/home/large"])).await);
    assert!(refused.message.contains("p.lxhome is not in use"), "{refused}");
}

#[tokio::test]
async fn who_may_not_reset_does_not_learn_what_there_is_to_keep() {
    let fixture = Fixture::refusing().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let options = PlanOptions { keep: Some(vec!["/etc/app".into()]), ..PlanOptions::default() };
    assert_eq!(refusal(reset.plan(options).await).kind, ErrorKind::NotAuthorized);
}

#[tokio::test]
async fn a_job_that_was_given_up_is_tried_again_with_the_device_rebooting() {
    let fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let job = job::id_at(reset.request("overlay", asking()).await.unwrap().as_str()).unwrap();
    let again = RetryOptions { reboot: Some(true) };
    assert_eq!(refusal(job::retry(&fixture.client, job, again).await).kind, ErrorKind::Failed, "it has not failed");
    fixture.device.change(|state| {
        state.begin_at_boot(job, false, Timestamp(5)).unwrap();
        state.attempt_failed(job, "no such device".into(), Timestamp(6)).unwrap();
    });
    let mut fixture = fixture.restart().await;
    assert_eq!(job::get(&fixture.client, job).await.unwrap().state, "failed");
    job::retry(&fixture.client, job, again).await.unwrap();
    assert_eq!(fixture.next_reboot().await, path(job));
    assert_eq!(fixture.device.stored().job(job).unwrap().state, JobState::WaitingForReboot);
}

#[tokio::test]
async fn history_says_what_became_of_each_partition_and_what_the_audit_found() {
    let fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    reset.request("overlay", asking()).await.unwrap();
    fixture.device.carry_out_what_is_pending();
    let fixture = fixture.restart().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let history = reset.history().await.unwrap();
    let result = &history[0].result;
    assert!(result.grades.contains(&("p.lxroot".into(), "key-destroyed".into())), "{result:?}");
    assert!(result.grades.contains(&("p.lxhome".into(), "untouched".into())), "{result:?}");
    assert!(result.audit.as_ref().unwrap().iter().all(|(_, passed, _)| *passed), "{result:?}");
    assert!(!history[0].plan.is_empty() && history[0].begun_at > 0);
}

#[tokio::test]
async fn of_two_requests_at_once_one_is_told_of_the_other() {
    let fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let (one, other) = tokio::join!(reset.request("factory", asking()), reset.request("factory", asking()));
    let (accepted, refused) = if one.is_ok() { (one, other) } else { (other, one) };
    let error = refusal(refused);
    assert_eq!(error.kind, ErrorKind::Busy);
    let job = job::id_at(accepted.unwrap().as_str()).unwrap();
    assert!(error.message.contains(&job.to_string()), "{}", error.message);
}

#[tokio::test]
async fn what_is_not_a_request_is_refused_by_name() {
    let fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    assert_eq!(refusal(reset.request("everything", asking()).await).kind, ErrorKind::InvalidArgument);
    let error = refusal(reset.request("factory", RequestOptions { label: Some("a\nb".into()), ..asking() }).await);
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    let missing = nemos_model::JobId::from_random(9);
    assert_eq!(refusal(job::cancel(&fixture.client, missing).await).kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn a_job_that_has_begun_is_not_cancelled() {
    let fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let job = job::id_at(reset.request("factory", asking()).await.unwrap().as_str()).unwrap();
    fixture.device.change(|state| {
        state.begin_at_boot(job, false, Timestamp(5)).unwrap();
    });
    let fixture = fixture.restart().await;
    assert_eq!(refusal(job::cancel(&fixture.client, job).await).kind, ErrorKind::Failed);
    assert_eq!(fixture.device.stored().job(job).unwrap().state, JobState::Running);
}

#[tokio::test]
async fn a_job_for_later_becomes_due_in_its_time() {
    let mut fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let later = fixture.device.clock() + 60;
    let options = RequestOptions { not_before: Some(later), reboot: Some(true), ..asking() };
    let job = job::id_at(reset.request("factory", options).await.unwrap().as_str()).unwrap();
    assert!(fixture.no_reboot().await);
    assert_eq!(fixture.service.desk.become_due().await.unwrap(), None);
    assert_eq!(job::get(&fixture.client, job).await.unwrap().state, "queued");

    fixture.device.set_clock(later);
    let due = fixture.service.desk.become_due().await.unwrap().expect("its time has come");
    assert!(due.reboot);
    assert_eq!(fixture.device.stored().job(job).unwrap().state, JobState::WaitingForReboot);
}

#[tokio::test]
async fn a_root_that_becomes_corrupted_is_announced() {
    let mut fixture = Fixture::new().await;
    let manager = ManagerProxy::new(&fixture.client).await.unwrap();
    assert_eq!(manager.health().await.unwrap(), "warning", "the demo key is in use");
    fixture.device.corrupt_root();
    // The cached property changes only by a signal.
    fixture.until(async || manager.health().await.unwrap() == "critical").await;
    let storage = manager.storage().await.unwrap();
    let root = storage.into_iter().map(nemos_model::stack::Layer::from).find(|layer| layer.name == "verityRoot");
    assert_eq!(root.unwrap().detail, "corrupted");
}

#[tokio::test]
async fn a_job_that_is_taken_back_is_announced() {
    let mut fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let asked = reset.request("factory", asking()).await.unwrap();
    fixture.until(async || reset.pending().await.unwrap() == asked).await;
    job::cancel(&fixture.client, job::id_at(asked.as_str()).unwrap()).await.unwrap();
    fixture.until(async || reset.pending().await.unwrap().as_str() == "/").await;
    assert_eq!(reset.history().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_reset_that_was_done_is_certified_to_whoever_has_the_devices_key() {
    let fixture = Fixture::new().await;
    let options = RequestOptions { label: Some("returned".into()), ..asking() };
    let asked = ResetProxy::new(&fixture.client).await.unwrap().request("factory", options).await.unwrap();
    fixture.device.carry_out_what_is_pending();

    let fixture = fixture.restart().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let job = job::id_at(asked.as_str()).unwrap();
    let certificate = reset.certificate(&job.to_string(), Dictionary::new()).await.unwrap();

    // Who may ask nothing may have the key, and not what names users and paths.
    let fixture = fixture.restart_refusing().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let refused = reset.certificate(&job.to_string(), Dictionary::new()).await;
    assert_eq!(refusal(refused).kind, ErrorKind::NotAuthorized);
    let (key, details) = reset.certificate_key(Dictionary::new()).await.unwrap();
    let key = PublicKey::from_pem(&key).unwrap();
    assert_eq!((details.id, details.kept_in.as_str()), (key.id(), "file"));

    let claims = verify(certificate.as_bytes(), &key).unwrap().claims;
    assert_eq!((claims.job, claims.key_kept_in.as_str()), (job, "file"));
    assert_eq!((claims.requested_by.uid, claims.requested_by.label.as_deref()), (admin().uid, Some("returned")));
    assert_eq!(claims.image.id, "nemos-image");
    assert_eq!(claims.new_volume, Some("b1b4c1c5-3d8e-4a34-8c7e-1f0f0c1d2e3f".parse().unwrap()));
}

#[tokio::test]
async fn what_was_not_done_is_not_certified_and_makes_no_key() {
    let fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let asked = reset.request("factory", asking()).await.unwrap();
    let waiting = job::id_at(asked.as_str()).unwrap().to_string();
    for (job, kind) in [
        (waiting.as_str(), ErrorKind::Failed),
        ("00000000000000000000000000000009", ErrorKind::NotFound),
        ("the last one", ErrorKind::InvalidArgument),
    ] {
        assert_eq!(refusal(reset.certificate(job, Dictionary::new()).await).kind, kind, "{job}");
    }
    let unknown = Dictionary::from([("format".to_owned(), OwnedVariant::from(7u8))]);
    assert_eq!(refusal(reset.certificate_key(unknown).await).kind, ErrorKind::InvalidArgument);
    assert!(!fixture.device.has_key());
}

#[tokio::test]
async fn a_device_that_would_forget_its_key_makes_none() {
    let fixture = Fixture::new().await;
    fixture.device.unmount("/var/lib/nemos");
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    assert_eq!(refusal(reset.certificate_key(Dictionary::new()).await).kind, ErrorKind::Failed);
    assert!(!fixture.device.has_key());
}

/// The contract that is shipped says what the service does, member for member.
#[tokio::test]
async fn the_service_is_what_its_contract_says() {
    let fixture = Fixture::new().await;
    let reset = ResetProxy::new(&fixture.client).await.unwrap();
    let job = reset.request("factory", asking()).await.unwrap();
    let mut served = contract::members(&fixture.introspect(PATH).await);
    served.extend(contract::members(&fixture.introspect(job.as_str()).await));
    served.retain(|(interface, _)| interface.starts_with("org.nemos."));

    let shipped =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../systemd/usr/share/dbus-1/interfaces/org.nemos.Device1.xml");
    let shipped = contract::members(&std::fs::read_to_string(shipped).unwrap());
    assert_eq!(served, shipped);
}

mod contract {
    use std::collections::BTreeSet;

    /// Each member of each interface, as `(interface, its XML without comments and layout)`.
    pub fn members(xml: &str) -> BTreeSet<(String, String)> {
        let (mut members, mut interface, mut member) = (BTreeSet::new(), String::new(), String::new());
        for tag in without_comments(xml).lines().map(str::trim).filter(|tag| !tag.is_empty()) {
            if let Some(name) = tag.strip_prefix("<interface name=\"") {
                name.trim_end_matches("\">").clone_into(&mut interface);
            } else if tag == "</interface>" {
                interface.clear();
            } else if !interface.is_empty() {
                member.push_str(tag);
                let ends = ["</method>", "</property>", "</signal>"].iter().any(|end| tag.ends_with(end));
                if ends || (tag.starts_with("<property") && tag.ends_with("/>")) {
                    members.insert((interface.clone(), std::mem::take(&mut member)));
                }
            }
        }
        members
    }

    fn without_comments(xml: &str) -> String {
        let mut parts = xml.split("<!--");
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |text, part| text + part.split_once("-->").map_or("", |(_, rest)| rest))
    }
}
