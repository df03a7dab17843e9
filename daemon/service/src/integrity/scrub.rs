//! Runs scrubs, each on a thread of its own, and goes on with those that a restart has interrupted.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nemos_api::Error;
use nemos_host::time::now;
use nemos_model::integrity::event::{Finder, Kind, Place, Source};
use nemos_model::integrity::scrub::{ScrubState, Step};
use nemos_model::integrity::{Scrub, Sighting, Volume};

use crate::integrity::Integrity;
use crate::journal;

/// How often it is noted how far a scrub is: what a restart repeats.
const NOTED: Duration = Duration::from_secs(5);

/// Begins a scrub. Blocks until that is noted.
pub fn begin(integrity: &Arc<Integrity>, volume: Volume, rate: Option<NonZeroU64>) -> Result<(), Error> {
    let incarnation = volume.incarnation(integrity.storage.observe().report.as_ref());
    let scrub = integrity.begin_scrub(volume, incarnation, rate, now())?;
    run(integrity, scrub);
    Ok(())
}

/// Goes on with the scrubs that were running when nemosd ended.
pub fn resume(integrity: &Arc<Integrity>) {
    let report = integrity.storage.observe().report;
    let view = integrity.view();
    for scrub in view.scrubs.iter().filter(|scrub| scrub.state == ScrubState::Running) {
        if scrub.incarnation == scrub.volume.incarnation(report.as_ref()) {
            run(integrity, scrub.clone());
        }
    }
}

fn run(integrity: &Arc<Integrity>, scrub: Scrub) {
    let stop = Arc::new(AtomicBool::new(false));
    integrity.running().insert(scrub.volume, Arc::clone(&stop));
    let integrity = Arc::clone(integrity);
    thread::spawn(move || {
        let volume = scrub.volume;
        let ended = read_through(&integrity, scrub, &stop);
        // In this order: who sees that it has ended may begin the next one.
        integrity.running().remove(&volume);
        integrity.note_scrub(&ended);
        journal::scrubbed(&ended);
    });
}

fn read_through(integrity: &Integrity, mut scrub: Scrub, stop: &AtomicBool) -> Scrub {
    let begin = Instant::now();
    let (mut read, mut noted) = (0, begin);
    let from = scrub.clone();
    let outcome = integrity.storage.scrub(&from, &mut |step| {
        read += step.read;
        scrub.step(&step);
        let sightings = sightings(&scrub, &step);
        if !sightings.is_empty() {
            integrity.see(&sightings, None);
        }
        if noted.elapsed() >= NOTED {
            integrity.note_scrub(&scrub);
            noted = Instant::now();
        }
        while !stop.load(Ordering::Relaxed) {
            let pause = scrub.pause(read, begin.elapsed());
            if pause.is_zero() {
                break;
            }
            thread::sleep(pause);
        }
        !stop.load(Ordering::Relaxed)
    });
    if stop.load(Ordering::Relaxed) && outcome.is_ok() {
        // It runs, so it can be cancelled.
        let _ = scrub.cancel(now());
    } else {
        scrub.end(outcome, now());
    }
    scrub
}

fn sightings(scrub: &Scrub, step: &Step) -> Vec<Sighting> {
    let sighting = |kind, (area, start): &(_, u64)| {
        let (volume, incarnation) = (scrub.volume, scrub.incarnation.clone());
        let place = Place { volume, incarnation, kind, area: *area, start: Some(*start) };
        Sighting { place, source: Source::Scrub, finder: Finder::Scrub, at: now() }
    };
    let damaged = step.damaged.iter().map(|place| sighting(Kind::Corrupted, place));
    damaged.chain(step.corrected.iter().map(|place| sighting(Kind::Corrected, place))).collect()
}
