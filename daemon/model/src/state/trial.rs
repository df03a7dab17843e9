//! Where changes go and which of them there are: what was asked for, what of it is on trial, and what is gone back from.

use super::{DeviceState, NotTaken};
use crate::job::{Job, JobState, Kind};
use crate::overlay::{ConfigurationName, Mode, Modes, Trial, Tried, Within};

impl DeviceState {
    /// Modes that were asked for.
    pub const fn modes(&self) -> Modes {
        self.modes
    }

    /// Asks for a mode: from the next boot on, or for that boot alone. With `within`, it has to be confirmed at that boot.
    pub fn set_mode(&mut self, mode: Mode, once: bool, within: Option<Within>) -> Result<(), NotTaken> {
        // One trial at a time, and it is to show what is applied.
        let switches = |job: &&Job| matches!(job.kind, Kind::Apply | Kind::GoBack);
        if let Some(job) = self.pending().filter(switches) {
            return Err(NotTaken::Busy(job.id));
        }
        let before = match self.trial.take() {
            None => self.modes,
            Some(Trial { tried: Tried::Mode { before, .. }, running: false, .. }) => before,
            Some(trial) => {
                let tried = trial.tried.clone();
                self.trial = Some(trial);
                return Err(NotTaken::OnTrial(tried));
            }
        };
        self.modes = before;
        self.modes.set(mode, once);
        self.trial = within.map(|within| Trial { tried: Tried::Mode { mode, before }, within, running: false });
        Ok(())
    }

    /// The mode that a boot has which cannot write down that it begins: nothing that would have to end.
    pub fn lasting_mode(&self) -> Mode {
        self.unless_all_waits(match &self.trial {
            Some(Trial { tried: Tried::Mode { before, .. }, .. }) => before.then(),
            _ => self.modes.then(),
        })
    }

    /// Decides the mode of the boot that begins, and what it goes back from, if it does. What was asked for it alone, or had to
    /// be confirmed at the last one, is forgotten with that.
    pub fn begin_mode(&mut self) -> (Mode, Option<Tried>) {
        let mut went_back = None;
        match self.trial.take() {
            Some(Trial { tried: Tried::Mode { mode, before }, running: true, .. }) => {
                self.modes = before;
                went_back = Some(Tried::Mode { mode, before });
            }
            Some(trial @ Trial { tried: Tried::Mode { .. }, .. }) => {
                self.trial = Some(Trial { running: true, ..trial });
            }
            other => self.trial = other,
        }
        let mode = self.modes.begin();
        (self.unless_all_waits(mode), went_back)
    }

    /// While all that is on the overlay's volume waits to be copied back to it, whatever is changed there would be gone without
    /// a word: it goes to memory.
    fn unless_all_waits(&self, mode: Mode) -> Mode {
        let waits = self.jobs.last().is_some_and(|job| job.keep_all.is_some() && job.holds_kept_data());
        if waits && mode == Mode::Persistent { Mode::Volatile } else { mode }
    }

    /// The configuration that was applied last.
    pub const fn configuration(&self) -> &ConfigurationName {
        &self.configuration
    }

    /// Follows a configuration to its new name: what is applied, and what is gone back to.
    pub fn configuration_renamed(&mut self, from: &ConfigurationName, to: &ConfigurationName) {
        let tried = self.trial.as_mut().map(|trial| &mut trial.tried);
        let before = tried.and_then(|tried| match tried {
            Tried::Configuration { before, .. } => Some(before),
            Tried::Mode { .. } => None,
        });
        for name in before.into_iter().chain([&mut self.configuration]).filter(|name| **name == *from) {
            name.clone_from(to);
        }
    }

    /// What nobody has confirmed yet.
    pub const fn trial(&self) -> Option<&Trial> {
        self.trial.as_ref()
    }

    /// What this boot has to be confirmed for. After a way back that was given up no boot ends by itself any more: the device
    /// waits for somebody.
    pub fn running_trial(&self) -> Option<&Trial> {
        self.trial.as_ref().filter(|trial| trial.running && !self.gave_up_the_way_back())
    }

    pub(super) fn gave_up_the_way_back(&self) -> bool {
        self.jobs.last().is_some_and(|job| job.kind == Kind::GoBack && job.state == JobState::Failed)
    }

    /// Keeps what is on trial at this boot, and says what that was.
    pub fn confirm(&mut self) -> Result<Tried, NotTaken> {
        if let Some(job) = self.pending() {
            return Err(NotTaken::Busy(job.id));
        }
        match self.trial.take() {
            Some(trial) if trial.running => Ok(trial.tried),
            other => {
                self.trial = other;
                Err(NotTaken::NothingOnTrial)
            }
        }
    }
}
