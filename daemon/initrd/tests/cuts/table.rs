//! What the cuts came to.

use std::fmt;
use std::time::Instant;

/// When the power went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// When so many flushes had ended, and nothing was written after them.
    Flush(usize),
    /// In the middle of what was written after so many flushes.
    Torn(usize),
}

/// Where a device went on when the power came back, and what it came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WentOn {
    /// The request is not on the disk yet: the device is as it was.
    NotAsked,
    /// At that step: the job is done.
    At(String),
    /// Nothing was left to do.
    Done,
}

/// All cuts of one story, counted.
pub struct Table {
    begin: Instant,
    /// Cuts at flushes and torn ones, by where the device went on.
    rows: Vec<(WentOn, [usize; 2])>,
    flushes: usize,
    same: usize,
    left_out: usize,
    booted_twice: usize,
}

impl Table {
    pub fn new() -> Self {
        Table { begin: Instant::now(), rows: Vec::new(), flushes: 0, same: 0, left_out: 0, booted_twice: 0 }
    }

    /// There was a flush; was there something new to flush?
    pub fn flush(&mut self, is_new: bool) {
        self.flushes += 1;
        self.same += usize::from(!is_new);
    }

    /// A flush that another story is cut at was not cut here.
    pub fn leave_out(&mut self, is_so: bool) {
        self.left_out += usize::from(is_so);
    }

    pub fn add(&mut self, cut: Cut, went_on: WentOn, twice: bool) {
        let column = usize::from(matches!(cut, Cut::Torn(_)));
        let row = self.rows.iter().position(|(known, _)| *known == went_on).unwrap_or_else(|| {
            self.rows.push((went_on, [0, 0]));
            self.rows.len() - 1
        });
        self.rows[row].1[column] += 1;
        self.booted_twice += usize::from(twice);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "    {:24}{:>12}{:>8}   and it ends", "the device goes on at", "at a flush", "torn")?;
        let mut booted = [0, 0];
        for (went_on, [flushes, torn]) in &self.rows {
            let (place, end) = match went_on {
                WentOn::NotAsked => ("(nothing was asked yet)", "as it was"),
                WentOn::At(step) => (step.as_str(), "done, once"),
                WentOn::Done => ("(nothing left to do)", "done, once"),
            };
            writeln!(f, "    {place:24}{flushes:>12}{torn:>8}   {end}")?;
            booted = [booted[0] + flushes, booted[1] + torn];
        }
        let [flushes, torn] = booted;
        writeln!(f, "    {:24}{flushes:>12}{torn:>8}   {} of them booted twice", "in all", self.booted_twice)?;
        let seconds = self.begin.elapsed().as_secs();
        writeln!(
            f,
            "    {} flushes; before {} of them nothing was written, and the disk is that of the one before; {} are left \
             out; {seconds} s",
            self.flushes, self.same, self.left_out
        )
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cut::Flush(0) => f.write_str("before everything"),
            Cut::Flush(count) => write!(f, "at flush {count}"),
            Cut::Torn(count) => write!(f, "in what was written after flush {count}"),
        }
    }
}
