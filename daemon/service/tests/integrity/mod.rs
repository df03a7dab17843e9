//! Damage, as the bus tells of it.

use std::collections::BTreeMap;
use std::time::Duration;

use nemos_api::ErrorKind;
use nemos_api::integrity::{EventRecord, IntegrityProxy, ScrubOptions};
use nemos_api::manager::ManagerProxy;
use nemos_model::Timestamp;
use nemos_model::integrity::event::{Area, Finder, Kind, Place, Source};
use nemos_model::integrity::scrub::Step;
use nemos_model::integrity::{Sighting, Volume};
use tokio::time::timeout;
use zbus::export::ordered_stream::OrderedStreamExt;

use crate::fake::Fixture;
use crate::refusal;

const LIMIT: Duration = Duration::from_secs(10);
const CLOCK: u64 = 1_795_442_786;

/// A damaged block, of a volume as the made-up device has it.
fn sighting(fixture: &Fixture, volume: Volume, block: u64) -> Sighting {
    let seen = nemosd::integrity::storage::Storage::observe(&*fixture.device);
    let incarnation = volume.incarnation(seen.report.as_ref());
    let place = Place { volume, incarnation, kind: Kind::Corrupted, area: Area::Data, start: Some(block * 4096) };
    Sighting { place, source: Source::Log, finder: Finder::Read, at: Timestamp(CLOCK) }
}

async fn events(fixture: &Fixture) -> Vec<EventRecord> {
    IntegrityProxy::new(&fixture.client).await.unwrap().events(0, 0).await.unwrap()
}

#[tokio::test]
async fn damage_is_signalled_and_makes_the_device_critical() {
    let mut fixture = Fixture::new().await;
    let integrity = IntegrityProxy::new(&fixture.client).await.unwrap();
    assert_eq!(integrity.state().await.unwrap(), "ok");
    let mut signals = integrity.receive_corruption_detected().await.unwrap();
    let sighting = sighting(&fixture, Volume::Root, 17);
    fixture.service.integrity.see(&[sighting.clone(), sighting], None);
    fixture.signals_damage().await;
    let signal = timeout(LIMIT, signals.next()).await.unwrap().unwrap();
    let arguments = signal.args().unwrap();
    assert_eq!((arguments.volume.as_str(), arguments.event.block), ("verityRoot", Some(17)));

    let manager = ManagerProxy::new(&fixture.client).await.unwrap();
    fixture.until(async || integrity.state().await.unwrap() == "corrupted").await;
    fixture.until(async || manager.health().await.unwrap() == "critical").await;
    let [event] = &events(&fixture).await[..] else { panic!("one block is one event") };
    assert_eq!((event.count, event.found_by.as_str()), (2, "read"));
}

#[tokio::test]
async fn events_outlive_nemosd() {
    let fixture = Fixture::new().await;
    fixture.service.integrity.see(&[sighting(&fixture, Volume::Root, 17)], None);
    let before = events(&fixture).await;
    let fixture = fixture.restart().await;
    assert_eq!(events(&fixture).await, before);
}

#[tokio::test]
async fn what_is_acknowledged_is_no_finding_until_it_is_seen_again() {
    let mut fixture = Fixture::new().await;
    let (integrity, manager) =
        (IntegrityProxy::new(&fixture.client).await.unwrap(), ManagerProxy::new(&fixture.client).await.unwrap());
    let seen = sighting(&fixture, Volume::Root, 17);
    fixture.service.integrity.see(std::slice::from_ref(&seen), None);
    let id = events(&fixture).await[0].id;
    integrity.acknowledge(id).await.unwrap();
    assert_eq!(events(&fixture).await[0].acknowledged, Some(CLOCK));
    fixture.until(async || manager.health().await.unwrap() == "warning").await;
    fixture.service.integrity.see(&[Sighting { at: Timestamp(CLOCK + 1), ..seen }], None);
    fixture.until(async || manager.health().await.unwrap() == "critical").await;
    assert_eq!(refusal(integrity.acknowledge(99).await).kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn who_may_not_ask_changes_nothing_and_sees_no_files_of_the_overlay() {
    let fixture = Fixture::refusing().await;
    let integrity = IntegrityProxy::new(&fixture.client).await.unwrap();
    fixture.service.integrity.see(&[sighting(&fixture, Volume::Overlay, 3), sighting(&fixture, Volume::Root, 4)], None);
    fixture.service.integrity.find_owners(&mut BTreeMap::new());
    let events = events(&fixture).await;
    assert_eq!((events[0].volume.as_str(), events[0].file.as_deref()), ("luks", None));
    assert_eq!((events[1].volume.as_str(), events[1].file.as_deref()), ("verityRoot", Some("/of/verityRoot")));
    assert_eq!(refusal(integrity.acknowledge(events[0].id).await).kind, ErrorKind::NotAuthorized);
    let options = ScrubOptions::default();
    assert_eq!(refusal(integrity.scrub("verityRoot", options).await).kind, ErrorKind::NotAuthorized);
}

#[tokio::test]
async fn events_are_paged_by_time() {
    let fixture = Fixture::new().await;
    let at = |block: u64| Sighting { at: Timestamp(block), ..sighting(&fixture, Volume::Root, block) };
    fixture.service.integrity.see(&[at(30), at(10), at(20)], None);
    let integrity = IntegrityProxy::new(&fixture.client).await.unwrap();
    let blocks = |events: Vec<EventRecord>| events.iter().map(|event| event.block.unwrap()).collect::<Vec<_>>();
    assert_eq!(blocks(integrity.events(0, 2).await.unwrap()), [10, 20]);
    assert_eq!(blocks(integrity.events(20, 0).await.unwrap()), [20, 30]);
}

fn step(position: u64, damaged: Vec<(Area, u64)>) -> Step {
    Step { position, read: 10, total: 30, damaged, corrected: Vec::new() }
}

#[tokio::test]
async fn a_scrub_finds_damage_and_says_what_it_read() {
    let mut fixture = Fixture::new().await;
    fixture.device.scrub_takes(vec![step(10, vec![(Area::Data, 8192)]), step(20, Vec::new()), step(30, Vec::new())]);
    let integrity = IntegrityProxy::new(&fixture.client).await.unwrap();
    integrity.scrub("verityRoot", ScrubOptions::default()).await.unwrap();
    let root =
        async || integrity.volumes().await.unwrap().into_iter().find(|volume| volume.name == "verityRoot").unwrap();
    fixture.until(async || root().await.scrub.as_deref() == Some("done")).await;
    let done = root().await;
    assert_eq!((done.coverage, done.scrubbed, done.scrub_damaged, done.errors), (Some(1.0), Some(30), Some(1), 1));
    assert!(done.last_scrub.is_some());
    assert_eq!(events(&fixture).await[0].found_by, "scrub");
}

#[tokio::test]
async fn a_scrub_is_cancelled_and_one_that_was_interrupted_goes_on() {
    let mut fixture = Fixture::new().await;
    let endless = Step { position: 20, total: 30, ..Step::default() };
    fixture.device.scrub_takes(vec![step(10, Vec::new()), endless]);
    let integrity = IntegrityProxy::new(&fixture.client).await.unwrap();
    integrity.scrub("luks", ScrubOptions::default()).await.unwrap();
    let again = refusal(integrity.scrub("luks", ScrubOptions::default()).await);
    assert_eq!(again.kind, ErrorKind::Busy, "{}", again.message);

    // A new nemosd finds it running in the ledger.
    let old = std::sync::Arc::clone(&fixture.service.integrity);
    fixture = fixture.restart().await;
    let integrity = IntegrityProxy::new(&fixture.client).await.unwrap();
    nemosd::integrity::scrub::resume(&fixture.service.integrity);
    integrity.cancel_scrub("luks").await.unwrap();
    let overlay = async || integrity.volumes().await.unwrap().into_iter().find(|volume| volume.name == "luks").unwrap();
    fixture.until(async || overlay().await.scrub.as_deref() == Some("cancelled")).await;
    assert_eq!(refusal(integrity.cancel_scrub("luks").await).kind, ErrorKind::NotFound);
    old.cancel_scrub(Volume::Overlay).unwrap();
}

#[tokio::test]
async fn what_is_no_scrub_is_refused_by_name() {
    let fixture = Fixture::new().await;
    let integrity = IntegrityProxy::new(&fixture.client).await.unwrap();
    let unknown = refusal(integrity.scrub("p.lxswap", ScrubOptions::default()).await);
    assert_eq!(unknown.kind, ErrorKind::NotFound);
    assert!(unknown.message.contains("verityRoot"), "{}", unknown.message);
    let slow = ScrubOptions { rate: Some(0) };
    assert_eq!(refusal(integrity.scrub("luks", slow).await).kind, ErrorKind::InvalidArgument);
    let home = refusal(integrity.scrub("p.lxhome", ScrubOptions::default()).await);
    assert_eq!(home.kind, ErrorKind::NotSupported);
}
