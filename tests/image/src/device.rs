//! A device that is switched on.

use libtest_mimic::Failed;
use nemos_image::vm::{Config, Machine, Output, VmError};
use serde_json::Value;

use crate::disk::Disk;
use crate::image::{booted, config, kernel};

/// What the kernel says when its timer does not come any more.
const LOST_TIMER: &str = "Possible timer handling issue on cpu";

/// A device that is switched on.
#[derive(Debug)]
pub struct Device {
    machine: Machine,
    disk: Disk,
}

impl Device {
    /// A device that was booted for the first time and runs: its own copy of the one that all cases share.
    pub fn running() -> Result<Device, Failed> {
        let booted = booted()?;
        let disk = Disk::on(&booted.disk)?;
        let resume = Some(booted.machine.clone());
        let config = Config { resume, boot: kernel()?, ..config(disk.vm_disk()) };
        Ok(Device { machine: Machine::start(&config)?, disk })
    }

    /// Switches a device with this disk on, and does not wait for anything.
    pub(crate) fn start(disk: Disk, config: &Config) -> Result<Device, Failed> {
        Ok(Device { machine: Machine::start(config)?, disk })
    }

    /// Waits until the system is up.
    pub fn comes_up(&mut self) -> Result<(), Failed> {
        Ok(comes_up(&mut self.machine)?)
    }

    /// Waits until the boot is refused, and gives the reason.
    pub fn refuses_to_boot(mut self) -> Result<String, Failed> {
        match comes_up(&mut self.machine) {
            Err(VmError::BootRefused { reason, .. }) => Ok(reason),
            Err(other) => Err(other.into()),
            Ok(()) => Err("the device booted, and should have refused to".into()),
        }
    }

    /// Waits until the boot fails before anything could refuse it, and gives the reason.
    pub fn fails_to_boot(mut self) -> Result<String, Failed> {
        match comes_up(&mut self.machine) {
            Err(VmError::BootFailed { why, .. }) => Ok(why),
            Err(other) => Err(other.into()),
            Ok(()) => Err("the device booted, and should have failed to".into()),
        }
    }

    /// Runs a command as root, and gives what came of it.
    pub fn run(&mut self, command: &str) -> Result<Output, Failed> {
        Ok(self.machine.shell(command)?)
    }

    /// Runs a command as root that must succeed, and gives what it printed.
    pub fn says(&mut self, command: &str) -> Result<String, Failed> {
        let Output { stdout, stderr, status } = self.run(command)?;
        match status {
            0 => Ok(stdout.trim_end().to_owned()),
            _ => Err(format!("`{command}` ended with status {status}: {stderr}{stdout}").into()),
        }
    }

    /// Waits until a command succeeds, for five minutes at most: what nemosd does behind the boot takes its time in an emulator.
    pub fn waits_until(&mut self, condition: &str) -> Result<(), Failed> {
        self.says(&format!("timeout 300 sh -c 'until {condition}; do sleep 0.5; done'")).map(drop)
    }

    /// Runs a command as root that must succeed and print JSON.
    pub fn tells(&mut self, command: &str) -> Result<Value, Failed> {
        let said = self.says(command)?;
        serde_json::from_str(&said).map_err(|error| format!("`{command}` printed no JSON ({error}): {said}").into())
    }

    /// Runs a command that makes the device reboot by itself, and waits until it is up again.
    pub fn reboots_by(&mut self, command: &str) -> Result<(), Failed> {
        self.begins_to_reboot_by(command)?;
        let restarted = self.machine.wait_until_restarted();
        Ok(unless_it_stalled(&mut self.machine, restarted)?)
    }

    /// Runs a command that makes the device reboot by itself. It may end before the reboot, or by it.
    pub fn begins_to_reboot_by(&mut self, command: &str) -> Result<(), Failed> {
        match self.machine.shell(command) {
            Ok(Output { status: 0, .. }) | Err(VmError::Stopped { .. }) => Ok(()),
            Ok(Output { stdout, stderr, status }) => {
                Err(format!("`{command}` ended with status {status}: {stderr}{stdout}").into())
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Shuts down and starts again.
    pub fn reboots(&mut self) -> Result<(), Failed> {
        self.reboots_by("systemctl reboot")
    }

    /// Types a line at the console.
    pub fn is_typed(&mut self, text: &str) -> Result<(), Failed> {
        Ok(self.machine.type_line(text)?)
    }

    /// Waits until this text was on the console.
    pub fn prints(&mut self, text: &str) -> Result<(), Failed> {
        Ok(self.machine.wait_for_console(text)?)
    }

    /// Shuts down, cleanly.
    pub fn powers_off(self) -> Result<Disk, Failed> {
        self.machine.power_off()?;
        Ok(self.disk)
    }

    /// Is off from one instruction to the next.
    pub fn loses_power(self) -> Disk {
        self.machine.cut_power();
        self.disk
    }
}

/// Waits until the system of a machine is up.
pub(crate) fn comes_up(machine: &mut Machine) -> Result<(), VmError> {
    let came_up = machine.wait_until_up();
    unless_it_stalled(machine, came_up)
}

/// An emulated processor that shares its host's with others can lose its timer, and then stands still. That is no fault of the
/// device: its reset button is pushed, as a person would, and it must come up as from any power cut.
fn unless_it_stalled(machine: &mut Machine, outcome: Result<(), VmError>) -> Result<(), VmError> {
    let lost = |machine: &Machine| machine.console().iter().any(|line| line.contains(LOST_TIMER));
    match outcome {
        Err(VmError::TimedOut { .. }) if lost(machine) => {
            eprintln!("the emulator lost its timer, and the device was reset");
            machine.reset()?;
            machine.wait_until_restarted()
        }
        outcome => outcome,
    }
}
