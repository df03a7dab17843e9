//! The overlay's interface.

use nemos_api::ErrorKind;
use nemos_api::manager::{FindingEntry, ManagerProxy};
use nemos_api::options::Dictionary;
use nemos_api::overlay::{ChangeRecord, ChangesOptions, OverlayProxy};
use nemos_model::health::Finding;
use zbus::OwnedVariant;

use crate::fake::Fixture;
use crate::refusal;

/// Those of an older image, and of the one that the device's report is of.
const HASHES: [&str; 2] = [
    "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
];

/// All changes, page by page.
async fn changes(overlay: &OverlayProxy<'_>, limit: u32) -> Vec<ChangeRecord> {
    let (mut changes, mut after) = (Vec::new(), None);
    loop {
        let options = ChangesOptions { after, limit: Some(limit), ..ChangesOptions::default() };
        let (page, next) = overlay.changes(options).await.unwrap();
        assert!(page.len() <= limit as usize);
        changes.extend(page);
        if next.is_empty() {
            return changes;
        }
        after = Some(next);
    }
}

async fn shadowed(overlay: &OverlayProxy<'_>) -> Vec<String> {
    let changes = changes(overlay, 1000).await.into_iter();
    changes.filter(|change| change.shadowed).map(|change| change.path).collect()
}

#[tokio::test]
async fn pages_are_all_of_it_whoever_reads_in_between() {
    let fixture = Fixture::new().await;
    fixture.device.boots(HASHES[1], &[("etc/shipped", "1")]);
    for number in 0..25 {
        fixture.device.writes(&format!("etc/{number:02}/deep"), "made here");
    }
    let overlay = OverlayProxy::new(&fixture.client).await.unwrap();
    let all = changes(&overlay, 1000).await;
    let added = all.iter().filter(|change| change.what == "added").count();
    assert_eq!(added, 50);
    for limit in [1, 7, 25, 51] {
        assert_eq!(changes(&overlay, limit).await, all, "in pages of {limit}");
    }
    let (one, other) = tokio::join!(changes(&overlay, 3), changes(&overlay, 3));
    assert_eq!((&one, &other), (&all, &all));
}

#[tokio::test]
async fn what_hides_something_newer_is_told_until_it_is_made_anew() {
    let fixture = Fixture::new().await;
    let image = |app: &'static str| [("etc/app", app), ("etc/other", "1"), ("opt/gone", "1")];
    fixture.device.boots(HASHES[0], &image("1"));
    for path in ["etc/app", "etc/other", "srv/new"] {
        fixture.device.writes(path, "made here");
    }
    fixture.device.boots(HASHES[1], &[image("2").as_slice(), &[("srv/new", "shipped now")]].concat());
    let overlay = OverlayProxy::new(&fixture.client).await.unwrap();
    assert_eq!(shadowed(&overlay).await, ["/etc/app", "/srv/new"]);
    let fixture = fixture.restart().await;
    let overlay = OverlayProxy::new(&fixture.client).await.unwrap();
    let manager = ManagerProxy::new(&fixture.client).await.unwrap();
    let findings: Vec<Finding> = manager.findings().await.unwrap().into_iter().map(FindingEntry::into).collect();
    assert!(findings.iter().any(|finding| finding.message.starts_with("2 changes to the root hide")), "{findings:?}");

    fixture.device.writes("etc/app", "made here, anew");
    assert_eq!(shadowed(&overlay).await, ["/srv/new"]);
    // The same image again changes nothing of that.
    fixture.device.boots(HASHES[1], &[image("2").as_slice(), &[("srv/new", "shipped now")]].concat());
    assert_eq!(shadowed(&overlay).await, ["/srv/new"]);
}

#[tokio::test]
async fn what_takes_room_is_told_to_whoever_may_see_changes() {
    let fixture = Fixture::new().await;
    let overlay = OverlayProxy::new(&fixture.client).await.unwrap();
    let usage = overlay.usage(Dictionary::new()).await.unwrap();
    assert_eq!((usage.size, usage.free, usage.memory_limit), (Some(100), Some(40), 512 << 20));
    assert_eq!((usage.unused, usage.memory_used), (None, None));
    let lab = &usage.configurations.unwrap()[0];
    assert_eq!((lab.name.as_deref(), lab.bytes, lab.shared), (Some("lab"), 20, 15));
    assert_eq!(usage.rest, Some(60 - 15 - 5 - 15));
    let unknown = Dictionary::from([("deep".to_owned(), OwnedVariant::from(true))]);
    assert_eq!(refusal(overlay.usage(unknown).await).kind, ErrorKind::InvalidArgument);

    let fixture = fixture.restart_refusing().await;
    let overlay = OverlayProxy::new(&fixture.client).await.unwrap();
    assert_eq!(refusal(overlay.usage(Dictionary::new()).await).kind, ErrorKind::NotAuthorized);
}

#[tokio::test]
async fn a_volume_that_is_not_open_takes_no_room() {
    let fixture = Fixture::new().await;
    fixture.device.has_its_overlay_in_memory();
    let fixture = fixture.restart().await;
    let overlay = OverlayProxy::new(&fixture.client).await.unwrap();
    let usage = overlay.usage(Dictionary::new()).await.unwrap();
    assert_eq!((usage.size, usage.changes), (None, None));
    assert_eq!((usage.memory_limit, usage.memory_used), (100, Some(10)));
}

#[tokio::test]
async fn a_full_overlay_and_a_partition_that_has_grown_are_findings() {
    let fixture = Fixture::new().await;
    fixture.device.fills("/run/nemos/overlay", 99);
    fixture.device.grows();
    let fixture = fixture.restart().await;
    let manager = ManagerProxy::new(&fixture.client).await.unwrap();
    let findings: Vec<Finding> = manager.findings().await.unwrap().into_iter().map(FindingEntry::into).collect();
    let told = |text: &str| findings.iter().any(|finding| finding.message.contains(text));
    assert!(told("/run/nemos/overlay is 99 % full") && told("of p.lxroot are not used"), "{findings:?}");
    assert_eq!(manager.health().await.unwrap(), "critical");
}
