//! The ledger's database: its tables, and how they are read and written.

use std::fmt::Display;
use std::num::NonZeroU64;
use std::str::FromStr;

use nemos_model::Timestamp;
use nemos_model::integrity::Scrub;
use nemos_model::integrity::event::{Counts, Event, Owner, Place};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};

use super::Heard;

/// SQLite's `application_id`: "nemo".
const APPLICATION: i32 = 0x6e65_6d6f;
/// The version of the tables.
pub const VERSION: i32 = 1;
const SCHEMA: &str = "
CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    volume TEXT NOT NULL, incarnation TEXT NOT NULL, kind TEXT NOT NULL, area TEXT NOT NULL, start INTEGER,
    first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL,
    by_log INTEGER NOT NULL, by_uevent INTEGER NOT NULL, by_audit INTEGER NOT NULL, by_status INTEGER NOT NULL, by_scrub INTEGER NOT NULL,
    finder TEXT NOT NULL, acknowledged INTEGER, file TEXT, package TEXT
) STRICT;
CREATE TABLE scrub (
    volume TEXT PRIMARY KEY NOT NULL, incarnation TEXT NOT NULL, state TEXT NOT NULL,
    started INTEGER NOT NULL, ended INTEGER, position INTEGER NOT NULL, checked INTEGER NOT NULL, total INTEGER NOT NULL, damaged INTEGER NOT NULL,
    rate INTEGER, last_complete INTEGER, error TEXT
) STRICT;
CREATE TABLE heard (begun INTEGER NOT NULL, boot_id TEXT NOT NULL, since INTEGER NOT NULL, sequence INTEGER) STRICT;
";

/// Checks the whole file, and makes the tables of a new one. Gives its version.
pub fn prepare(database: &Connection) -> Result<i32, rusqlite::Error> {
    // A journal that is deleted, the deletion synced: when a commit returns, the power may go.
    database.pragma_update(None, "synchronous", "EXTRA")?;
    database.pragma_update(None, "temp_store", "MEMORY")?;
    let check: String = database.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if check != "ok" {
        return Err(damaged(&check));
    }
    let number = |name: &str| database.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    match (number("application_id")?, number("user_version")?) {
        (0, 0) => {
            let begin = format!(
                "BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT"
            );
            database.execute_batch(&begin)?;
            Ok(VERSION)
        }
        (APPLICATION, version) => Ok(version),
        _ => Err(damaged("it is a database of another program")),
    }
}

/// What is in a database.
pub struct Loaded {
    pub events: Vec<Event>,
    pub scrubs: Vec<Scrub>,
    /// `None` in a new one.
    pub heard: Option<Heard>,
    /// A number that no event had before.
    pub next_id: u64,
}

/// Reads everything.
pub fn load(database: &Connection) -> Result<Loaded, rusqlite::Error> {
    let mut statement = database.prepare(
        "SELECT id, volume, incarnation, kind, area, start, first_seen, last_seen, by_log, by_uevent, by_audit, by_status, by_scrub,
                finder, acknowledged, file, package FROM event ORDER BY id",
    )?;
    let events = statement.query_map([], event_of)?.collect::<Result<Vec<_>, _>>()?;
    let last =
        database.query_row("SELECT seq FROM sqlite_sequence WHERE name = 'event'", [], |row| row.get(0)).optional()?;
    let heard = database
        .query_row("SELECT begun, boot_id, since, sequence FROM heard", [], |row| {
            let (begun, boot_id) = (Timestamp(number(row, 0)?), row.get(1)?);
            Ok(Heard { begun, boot_id, since: number(row, 2)?, sequence: optional(row, 3)? })
        })
        .optional()?;
    let mut statement = database.prepare(
        "SELECT volume, incarnation, state, started, ended, position, checked, total, damaged, rate, last_complete, error FROM scrub",
    )?;
    let scrubs = statement.query_map([], scrub_of)?.collect::<Result<Vec<_>, _>>()?;
    Ok(Loaded { events, scrubs, heard, next_id: last.map_or(1, |last: i64| last.cast_unsigned() + 1) })
}

fn scrub_of(row: &Row<'_>) -> Result<Scrub, rusqlite::Error> {
    Ok(Scrub {
        volume: word(row, 0)?,
        incarnation: row.get(1)?,
        state: word(row, 2)?,
        started: Timestamp(number(row, 3)?),
        ended: optional(row, 4)?.map(Timestamp),
        position: number(row, 5)?,
        checked: number(row, 6)?,
        total: number(row, 7)?,
        damaged: number(row, 8)?,
        rate: optional(row, 9)?.and_then(NonZeroU64::new),
        last_complete: optional(row, 10)?.map(Timestamp),
        error: row.get(11)?,
    })
}

/// One of the words that are stored.
fn word<T: FromStr<Err: Display>>(row: &Row<'_>, column: usize) -> Result<T, rusqlite::Error> {
    row.get::<_, String>(column)?.parse().map_err(|error: T::Err| damaged(&error.to_string()))
}

fn event_of(row: &Row<'_>) -> Result<Event, rusqlite::Error> {
    let package = row.get(16)?;
    Ok(Event {
        id: number(row, 0)?,
        place: Place {
            volume: word(row, 1)?,
            incarnation: row.get(2)?,
            kind: word(row, 3)?,
            area: word(row, 4)?,
            start: optional(row, 5)?,
        },
        first_seen: Timestamp(number(row, 6)?),
        last_seen: Timestamp(number(row, 7)?),
        counts: Counts::new([row.get(8)?, row.get(9)?, row.get(10)?, row.get(11)?, row.get(12)?]),
        finder: word(row, 13)?,
        acknowledged: optional(row, 14)?.map(Timestamp),
        owner: row.get::<_, Option<String>>(15)?.map(|file| Owner { file, package }),
    })
}

/// SQLite's integers are signed, ours never negative.
fn number(row: &Row<'_>, column: usize) -> Result<u64, rusqlite::Error> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}

fn optional(row: &Row<'_>, column: usize) -> Result<Option<u64>, rusqlite::Error> {
    row.get::<_, Option<i64>>(column).map(|number| number.map(i64::cast_unsigned))
}

/// All in one transaction: what was changed, what was dropped, and how far the log was read.
pub fn write<'a>(
    database: &mut Connection,
    changed: impl Iterator<Item = (u64, Option<&'a Event>)>,
    scrubs: &[Scrub],
    heard: &Heard,
) -> Result<(), rusqlite::Error> {
    let transaction = database.transaction()?;
    for (id, event) in changed {
        let Some(event) = event else {
            transaction.execute("DELETE FROM event WHERE id = ?1", [id.cast_signed()])?;
            continue;
        };
        let (place, owner, [log, uevent, audit, status, scrub]) =
            (&event.place, event.owner.as_ref(), event.counts.all());
        transaction.execute(
            "INSERT OR REPLACE INTO event VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
            params![
                id.cast_signed(),
                place.volume.name(),
                place.incarnation,
                place.kind.name(),
                place.area.name(),
                place.start.map(u64::cast_signed),
                event.first_seen.0.cast_signed(),
                event.last_seen.0.cast_signed(),
                log,
                uevent,
                audit,
                status,
                scrub,
                event.finder.name(),
                event.acknowledged.map(|time| time.0.cast_signed()),
                owner.map(|owner| &owner.file),
                owner.and_then(|owner| owner.package.as_ref()),
            ],
        )?;
    }
    transaction.execute("DELETE FROM heard", [])?;
    let (since, sequence) = (heard.since.cast_signed(), heard.sequence.map(u64::cast_signed));
    let begun = heard.begun.0.cast_signed();
    transaction.execute("INSERT INTO heard VALUES (?1, ?2, ?3, ?4)", params![begun, heard.boot_id, since, sequence])?;
    for scrub in scrubs {
        transaction.execute(
            "INSERT OR REPLACE INTO scrub VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            params![
                scrub.volume.name(),
                scrub.incarnation,
                scrub.state.name(),
                scrub.started.0.cast_signed(),
                scrub.ended.map(|time| time.0.cast_signed()),
                scrub.position.cast_signed(),
                scrub.checked.cast_signed(),
                scrub.total.cast_signed(),
                scrub.damaged.cast_signed(),
                scrub.rate.map(|rate| rate.get().cast_signed()),
                scrub.last_complete.map(|time| time.0.cast_signed()),
                scrub.error,
            ],
        )?;
    }
    transaction.commit()
}

/// An error of ours in SQLite's words.
fn damaged(what: &str) -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, Some(what.to_owned()))
}

/// Whether the file is at fault, and not the disk, or who else has it open.
pub fn is_damage(error: &rusqlite::Error) -> bool {
    use ErrorCode::{
        CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, FileLockingProtocolFailed, OutOfMemory, PermissionDenied,
        ReadOnly, SystemIoFailure,
    };
    let code = error.sqlite_error_code();
    !matches!(
        code,
        Some(
            CannotOpen
                | DatabaseBusy
                | DatabaseLocked
                | DiskFull
                | FileLockingProtocolFailed
                | OutOfMemory
                | PermissionDenied
                | ReadOnly
                | SystemIoFailure
        )
    )
}
