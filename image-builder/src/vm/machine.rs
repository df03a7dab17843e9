//! A machine that runs.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::config::{CONSOLE_SOCKET, Config, Front};
use super::console::BootEnd;
use super::error::{VmError, io};
use super::guest::{self, Port, UntilMark};
use super::host::Host;
use super::qmp::{self, Message};
use super::seen::{Event, Qmp, Seen};
use super::tpm::Tpm;

/// A machine that runs. Dropping it cuts its power.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    /// Its TPM, if it has one.
    tpm: Option<Tpm>,
    qmp: ChildStdin,
    /// What QEMU itself complains about.
    complaints: File,
    /// Where commands go.
    control: Option<UnixStream>,
    /// Where what is typed goes.
    keyboard: Option<UnixStream>,
    events: Receiver<Event>,
    seen: Seen,
    limit: Duration,
    /// Number of the last command.
    number: u32,
    /// Resets that the caller knows of.
    known_resets: u32,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
    /// How it ended.
    pub status: u8,
}

impl Machine {
    /// Switches a machine on. It has not booted when this returns; one that resumes goes on where it was. It is switched
    /// off when the calling thread ends.
    pub fn start(config: &Config) -> Result<Self, VmError> {
        let host = Host::find(config.architecture)?;
        let sockets = tempfile::tempdir().map_err(io("make a temporary folder"))?;
        let complaints = tempfile::tempfile().map_err(io("make a temporary file"))?;
        let tpm = config.tpm.as_deref().map(|state| Tpm::start(state, config.snapshot)).transpose()?;
        let socket = tpm.as_ref().map(Tpm::socket);
        let mut qemu = host
            .qemu()
            .args(config.arguments(&host, Front::Sockets(sockets.path()), socket.as_deref()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(complaints.try_clone().map_err(io("make a temporary file"))?)
            .spawn()
            .map_err(io("start QEMU"))?;
        let (Some(qmp), Some(qmp_says)) = (qemu.stdin.take(), qemu.stdout.take()) else {
            return Err(VmError::NotStarted("it has no stdin and stdout".to_owned()));
        };
        let (sender, events) = channel();
        let mut machine = Machine {
            qemu,
            tpm,
            qmp,
            complaints,
            control: None,
            keyboard: None,
            events,
            seen: Seen::default(),
            limit: config.limit,
            number: 0,
            known_resets: 0,
        };
        forward_lines(qmp_says, sender.clone());
        machine.listen(sockets.path(), &sender).map_err(|error| match error {
            // A QEMU that ends here did not like its arguments, its disk, or its TPM.
            VmError::Failed { said, .. } => machine
                .tpm
                .as_mut()
                .and_then(Tpm::failure)
                .unwrap_or_else(|| VmError::from_complaint(&said, &config.disk.path)),
            other => other,
        })?;
        drop(sender);
        machine.begin(config)?;
        Ok(machine)
    }

    /// Connects to all that the machine can say. QEMU has made its sockets when it greets.
    fn listen(&mut self, sockets: &Path, sender: &Sender<Event>) -> Result<(), VmError> {
        let ready = "QEMU was ready";
        match self.wait(ready, |seen| Ok((seen.qmp != Qmp::Starting).then_some(seen.qmp)))? {
            Qmp::Closed => return Err(self.gone(ready)),
            Qmp::Starting | Qmp::Open => {}
        }
        let connect = |name| UnixStream::connect(sockets.join(name)).map_err(io("connect to QEMU"));
        let console = connect(CONSOLE_SOCKET)?;
        self.keyboard = Some(console.try_clone().map_err(io("connect to QEMU"))?);
        forward(console, sender.clone(), Event::Console);
        for (port, name) in guest::PORTS {
            let stream = connect(name)?;
            if port == Port::Control {
                self.control = Some(stream.try_clone().map_err(io("connect to QEMU"))?);
            }
            forward(stream, sender.clone(), move |bytes| Event::Port(port, bytes));
        }
        self.execute("qmp_capabilities", &json!({}))
    }

    fn begin(&mut self, config: &Config) -> Result<(), VmError> {
        if let Some(saved) = &config.resume {
            self.migrate("migrate-incoming", saved)?;
            self.seen.up = true;
        }
        self.execute("cont", &json!({}))
    }

    /// Waits until the system has started, even if units of it failed.
    pub fn wait_until_up(&mut self) -> Result<(), VmError> {
        let end = self.wait("the system was up", |seen| match seen.boot_end.take() {
            Some(end) => Ok(Some(Err(end))),
            None => Ok(seen.up.then_some(Ok(()))),
        })?;
        self.known_resets = self.seen.resets;
        end.map_err(|end| self.boot_failed(end))
    }

    /// Waits until the system has started anew, after something that makes it do so.
    pub fn wait_until_restarted(&mut self) -> Result<(), VmError> {
        let known = self.known_resets;
        self.wait("the machine rebooted", |seen| Ok((seen.resets > known).then_some(())))?;
        self.wait_until_up()
    }

    /// Waits until this text is in a line of the console, whole or not, from the beginning of its log.
    pub fn wait_for_console(&mut self, text: &str) -> Result<(), VmError> {
        let mut from = 0;
        self.wait(&format!("its console said `{text}`"), |seen| {
            let found = seen.console.find(from, text);
            from = seen.console.lines().len();
            Ok(found.map(|_| ()))
        })
    }

    /// Types a line at the console.
    pub fn type_line(&mut self, text: &str) -> Result<(), VmError> {
        let Some(keyboard) = &mut self.keyboard else {
            return Err(VmError::NotStarted("its console is not connected".to_owned()));
        };
        keyboard.write_all(format!("{text}\r").as_bytes()).map_err(io("type at the console"))
    }

    /// All whole lines of the console so far.
    pub fn console(&self) -> &[String] {
        self.seen.console.lines()
    }

    /// Runs a command line as root in the guest's shell.
    pub fn shell(&mut self, command: &str) -> Result<Output, VmError> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = self.shell_into(command, &mut stdout, &mut stderr)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Output { stdout: text(stdout), stderr: text(stderr), status })
    }

    /// Runs a command line as root in the guest's shell, passes on what it prints as it comes, and returns its exit
    /// status.
    pub fn shell_into(&mut self, command: &str, stdout: &mut dyn Write, stderr: &mut dyn Write) -> Result<u8, VmError> {
        self.wait_until_up()?;
        let number = self.request(command)?;
        let known = self.known_resets;
        let (mut until_stdout, mut until_stderr) = (UntilMark::new(number), UntilMark::new(number));
        let status = self.wait(&format!("`{command}` ended"), |seen| {
            pass(&mut until_stdout, &mut seen.stdout, stdout)?;
            pass(&mut until_stderr, &mut seen.stderr, stderr)?;
            let whole = until_stdout.ended() && until_stderr.ended();
            let status = seen.done.and_then(|(done, status)| (done == number && whole).then_some(status));
            let rebooted = (seen.resets > known).then_some(Err(()));
            Ok(status.map(Ok).or(rebooted))
        })?;
        status.map_err(|()| self.stopped("rebooted", &format!("`{command}` ended")))
    }

    /// Shuts the system down, and waits until the machine is off.
    pub fn power_off(mut self) -> Result<(), VmError> {
        self.wait_until_up()?;
        self.request("systemctl poweroff")?;
        self.wait_until_off()
    }

    /// Waits until the machine is off.
    pub fn wait_until_off(mut self) -> Result<(), VmError> {
        self.wait("the machine was off", |seen| Ok(seen.ended.then_some(())))?;
        match self.seen.why_off() {
            "powered off" => Ok(()),
            why => Err(self.stopped(why, "it was powered off")),
        }
    }

    /// Takes the power away, now.
    pub fn cut_power(self) {
        drop(self);
    }

    /// Pushes the reset button.
    pub fn reset(&mut self) -> Result<(), VmError> {
        self.execute("system_reset", &json!({}))
    }

    /// Writes the running machine to a file and ends it. Its disk must stay as it is now for whoever
    /// [resumes](Config::resume) it, each with an [overlay](super::Disk::overlay).
    pub fn save(mut self, to: &Path) -> Result<(), VmError> {
        self.wait_until_up()?;
        self.execute("stop", &json!({}))?;
        self.execute("migrate-set-parameters", &json!({ "max-bandwidth": u32::MAX }))?;
        self.migrate("migrate", to)?;
        self.execute("quit", &json!({}))?;
        self.wait("QEMU ended", |seen| Ok(seen.ended.then_some(())))
    }

    fn migrate(&mut self, command: &'static str, file: &Path) -> Result<(), VmError> {
        let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        self.execute("migrate-set-capabilities", &events)?;
        self.execute(command, &json!({ "uri": format!("file:{}", file.display()) }))?;
        let ended = self.wait("the machine's state was moved", |seen| match seen.migration.as_deref() {
            Some("completed") => Ok(Some(Ok(()))),
            Some("failed") => Ok(Some(Err(VmError::Refused { command, reason: "it failed".to_owned() }))),
            _ => Ok(None),
        })?;
        self.seen.migration = None;
        ended
    }

    /// Has QEMU carry out a command.
    fn execute(&mut self, command: &'static str, arguments: &Value) -> Result<(), VmError> {
        let line = qmp::command(command, arguments);
        // A QEMU that is gone says why in what it said before.
        let _ = self.qmp.write_all(line.as_bytes());
        let awaited = format!("QEMU answered `{command}`");
        let reply = self.wait(&awaited, |seen| match seen.reply.take() {
            None if seen.qmp == Qmp::Closed => Ok(Some(None)),
            reply => Ok(reply.map(Some)),
        })?;
        match reply {
            Some(reply) => reply.map_err(|reason| VmError::Refused { command, reason }),
            None => Err(self.gone(&awaited)),
        }
    }

    fn request(&mut self, command: &str) -> Result<u32, VmError> {
        self.number += 1;
        let Some(control) = &mut self.control else {
            return Err(VmError::NotStarted("its command port is not connected".to_owned()));
        };
        control.write_all(guest::request(self.number, command).as_bytes()).map_err(io("send the machine a command"))?;
        Ok(self.number)
    }

    /// The one way of waiting: takes what the machine says until `ready` has what it waits for.
    fn wait<T>(
        &mut self,
        awaited: &str,
        mut ready: impl FnMut(&mut Seen) -> Result<Option<T>, VmError>,
    ) -> Result<T, VmError> {
        let deadline = Instant::now() + self.limit;
        loop {
            if let Some(value) = ready(&mut self.seen)? {
                return Ok(value);
            }
            if self.seen.ended {
                return Err(self.gone(awaited));
            }
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) => self.seen.take(event),
                Err(RecvTimeoutError::Disconnected) => self.seen.ended = true,
                Err(RecvTimeoutError::Timeout) => {
                    let console = self.seen.console.tail();
                    return Err(VmError::TimedOut { awaited: awaited.to_owned(), limit: self.limit, console });
                }
            }
        }
    }

    fn gone(&mut self, awaited: &str) -> VmError {
        match self.seen.why_off() {
            "crashed" => VmError::Failed { awaited: awaited.to_owned(), said: self.complaints() },
            why => self.stopped(why, awaited),
        }
    }

    fn stopped(&self, why: &str, awaited: &str) -> VmError {
        let console = self.seen.console.tail();
        VmError::Stopped { why: why.to_owned(), awaited: awaited.to_owned(), console }
    }

    fn boot_failed(&self, end: BootEnd) -> VmError {
        let console = self.seen.console.tail();
        match end {
            BootEnd::Refused(reason) => VmError::BootRefused { reason, console },
            BootEnd::Failed(why) => VmError::BootFailed { why, console },
        }
    }

    fn complaints(&mut self) -> String {
        // It must be dead to have said everything.
        let _ = self.qemu.wait();
        let mut said = String::new();
        let read = self.complaints.rewind().and_then(|()| self.complaints.read_to_string(&mut said));
        match read {
            Ok(_) => said.trim().to_owned(),
            Err(error) => format!("(its messages cannot be read: {error})"),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Moves a command's output on.
fn pass(until: &mut UntilMark, from: &mut Vec<u8>, to: &mut dyn Write) -> Result<(), VmError> {
    if from.is_empty() {
        return Ok(());
    }
    let output = until.push(&std::mem::take(from));
    to.write_all(&output).and_then(|()| to.flush()).map_err(io("pass the command's output on"))
}

/// Makes events of what comes, until nobody wants them or nothing comes.
fn forward(mut from: impl Read + Send + 'static, to: Sender<Event>, event: impl Fn(Vec<u8>) -> Event + Send + 'static) {
    thread::spawn(move || {
        let mut buffer = [0; 16384];
        loop {
            match from.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
                Ok(len) if to.send(event(buffer[..len].to_vec())).is_err() => break,
                Ok(_) => {}
            }
        }
    });
}

fn forward_lines(from: impl Read + Send + 'static, to: Sender<Event>) {
    thread::spawn(move || {
        let lines = BufReader::new(from).lines().map_while(Result::ok);
        let _ = lines.map(|line| to.send(Event::Qmp(Message::parse(&line)))).find(Result::is_err);
        let _ = to.send(Event::QmpClosed);
    });
}
