//! How fast all changes come over D-Bus, page by page: each page should take as long as the first one.
//!
//! `cargo bench --package nemosd --bench changes [-- COUNT]`: so many files (100,000 if not said), all of them in two folders, over
//! a connection without a bus, with a service that is made up but for what it tells of changes.

#![allow(clippy::unwrap_used, dead_code, reason = "it is made of what tests are made of")]

#[path = "../tests/fake/mod.rs"]
mod fake;

use std::env;
use std::time::{Duration, Instant};

use fake::Fixture;
use nemos_api::overlay::{ChangesOptions, OverlayProxy};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let count: usize = env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(100_000);
    let fixture = Fixture::new().await;
    for number in 0..count {
        let folder = ["first", "second"][usize::from(number > count / 2)];
        fixture.device.writes(&format!("opt/{folder}/{number:06}"), "made here");
    }
    let overlay = OverlayProxy::new(&fixture.client).await.unwrap();
    let (mut times, mut told, mut after) = (Vec::new(), 0, None);
    let begin = Instant::now();
    loop {
        let asked = Instant::now();
        let (page, next) = overlay.changes(ChangesOptions { after, ..ChangesOptions::default() }).await.unwrap();
        times.push(asked.elapsed());
        told += page.len();
        if next.is_empty() {
            break;
        }
        after = Some(next);
    }
    let all = begin.elapsed();
    assert!(told >= count);
    let half = times.len() / 2;
    let mean = |times: &[Duration]| {
        let count = u32::try_from(times.len()).unwrap().max(1);
        (times.iter().sum::<Duration>() / count).as_secs_f64()
    };
    let (first, second) = times.split_at(half);
    println!("{told} changes in {} pages: {:.3} s", times.len(), all.as_secs_f64());
    println!("a page of the second half takes {:.2} times as long as one of the first", mean(second) / mean(first));
}
