//! What a machine consists of, as a value; and QEMU's arguments for it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::disk::Disk;
use super::error::VmError;
use super::guest;
use super::host::Host;
use super::variables;
use crate::architecture::Architecture;

/// A machine to be started.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its processors.
    pub architecture: Architecture,
    /// Its disk.
    pub disk: Disk,
    /// Whether what it writes is forgotten, and its disk's file not touched.
    pub snapshot: bool,
    /// The folder with the memory of its TPM 2.0, which is made if it is not there; `None` for a machine without a TPM.
    /// What a TPM remembers belongs to the disk: give a disk the same folder each time.
    pub tpm: Option<PathBuf>,
    /// How it boots.
    pub boot: Boot,
    /// MiB of memory.
    pub memory: u32,
    /// Virtual processors.
    pub cpus: u32,
    /// Whether a reboot starts it again; if not, a reboot ends it.
    pub reboots: bool,
    /// Credentials for its systemd, besides those for the command port.
    pub credentials: Vec<(String, Vec<u8>)>,
    /// Words for the kernel's command line besides its own; a UKI takes them if Secure Boot is off.
    pub append: Option<String>,
    /// A file for all that it prints on its console.
    pub console_log: Option<PathBuf>,
    /// A file that [`Machine::save`](super::Machine::save) wrote: go on from there instead of booting.
    pub resume: Option<PathBuf>,
    /// How long a single wait may take.
    pub limit: Duration,
}

/// How a machine boots.
#[derive(Debug, Clone)]
pub enum Boot {
    /// EFI firmware starts what is on the ESP.
    Firmware,
    /// EFI firmware starts what is on the ESP, if it is signed with a key that it trusts.
    SecureFirmware {
        /// Its variables, as [`Config::secure_boot`] makes them.
        variables: PathBuf,
    },
    /// QEMU starts this kernel by itself.
    Kernel {
        /// Kernel.
        kernel: PathBuf,
        /// Initial RAM disk.
        initrd: PathBuf,
        /// Kernel command line.
        command_line: String,
    },
}

/// Where a machine's console and ports end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Front<'a> {
    /// The console on this terminal; no ports.
    Terminal,
    /// Unix sockets in this folder, and QMP on stdin and stdout.
    Sockets(&'a Path),
}

/// File name of the console's socket.
pub(super) const CONSOLE_SOCKET: &str = "console";

impl Config {
    /// A PC with this disk, 2 processors and 1 GiB, which boots by EFI.
    pub fn new(disk: Disk) -> Self {
        Config {
            architecture: Architecture::default(),
            disk,
            snapshot: false,
            tpm: None,
            boot: Boot::Firmware,
            memory: 1024,
            cpus: 2,
            reboots: true,
            credentials: Vec::new(),
            append: None,
            console_log: None,
            resume: None,
            limit: Duration::from_secs(180),
        }
    }

    /// Boots only what is signed with keys whose certificates are in the folder `keys`; the firmware's variables are written
    /// to `variables`, which must stay as long as the machine runs.
    pub fn secure_boot(self, keys: &Path, variables: PathBuf) -> Result<Self, VmError> {
        if self.architecture != Architecture::Amd64 {
            return Err(VmError::NoSecureBoot(self.architecture));
        }
        variables::enroll(&Host::find(self.architecture)?.firmware_vars, keys, &variables)?;
        Ok(Config { boot: Boot::SecureFirmware { variables }, ..self })
    }

    /// QEMU's arguments.
    ///
    /// `tpm` is the socket of the TPM, if there is one.
    pub(super) fn arguments(&self, host: &Host, front: Front<'_>, tpm: Option<&Path>) -> Vec<OsString> {
        let mut arguments = Arguments::default();
        arguments.flag("-nodefaults").flag("-no-user-config");
        arguments.option("-machine", self.machine());
        arguments.option("-accel", host.accelerator.name());
        arguments.option("-cpu", host.accelerator.cpu(self.architecture));
        arguments.option("-smp", self.cpus.to_string()).option("-m", format!("{}M", self.memory));
        arguments.option("-display", "none").option("-device", "virtio-rng-pci");
        arguments.option("-netdev", "user,id=net").option("-device", "virtio-net-pci,netdev=net,romfile=");
        if !self.reboots {
            arguments.flag("-no-reboot");
        }
        self.boot_arguments(host, &mut arguments);
        self.disk_arguments(&mut arguments);
        if let (Some(words), false) = (&self.append, matches!(self.boot, Boot::Kernel { .. })) {
            arguments.option("-smbios", format!("type=11,value={}{}", guest::APPEND, words.replace(',', ",,")));
        }
        if let Some(socket) = tpm {
            arguments.paths("-chardev", "socket,id=tpm", &[("path", socket)]);
            let device = match self.architecture {
                Architecture::Amd64 => "tpm-crb",
                Architecture::Arm64 => "tpm-tis-device",
            };
            arguments
                .option("-tpmdev", "emulator,id=tpm,chardev=tpm")
                .option("-device", format!("{device},tpmdev=tpm"));
        }
        match front {
            Front::Terminal => {
                arguments.option("-serial", "mon:stdio");
            }
            Front::Sockets(folder) => self.socket_arguments(folder, &mut arguments),
        }
        arguments.0
    }

    fn machine(&self) -> &'static str {
        match (self.architecture, &self.boot) {
            // Secure Boot's variables are kept from the system by the processor's system management mode.
            (Architecture::Amd64, Boot::SecureFirmware { .. }) => "q35,sata=off,smbus=off,vmport=off,smm=on",
            // Without what nobody uses: every boot would load drivers for it.
            (Architecture::Amd64, _) => "q35,sata=off,smbus=off,vmport=off",
            (Architecture::Arm64, _) => "virt,gic-version=max",
        }
    }

    fn boot_arguments(&self, host: &Host, arguments: &mut Arguments) {
        match &self.boot {
            Boot::Firmware => {
                arguments.paths("-drive", "if=pflash,unit=0,format=raw,readonly=on", &[("file", &host.firmware_code)]);
                // The firmware may write its variables, into a copy that QEMU makes and forgets.
                arguments.paths("-drive", "if=pflash,unit=1,format=raw,snapshot=on", &[("file", &host.firmware_vars)]);
            }
            Boot::SecureFirmware { variables } => {
                arguments.option("-global", "driver=cfi.pflash01,property=secure,value=on");
                arguments.option("-global", "ICH9-LPC.disable_s3=1");
                let code = &host.secure_firmware_code;
                arguments.paths("-drive", "if=pflash,unit=0,format=raw,readonly=on", &[("file", code)]);
                arguments.paths("-drive", "if=pflash,unit=1,format=raw,snapshot=on", &[("file", variables)]);
            }
            Boot::Kernel { kernel, initrd, command_line } => {
                let words = [Some(command_line), self.append.as_ref()].into_iter().flatten();
                let words = words.map(String::as_str).collect::<Vec<_>>().join(" ");
                arguments.option("-kernel", kernel).option("-initrd", initrd).option("-append", words);
            }
        }
    }

    fn disk_arguments(&self, arguments: &mut Arguments) {
        let format = self.disk.format.name();
        let snapshot = if self.snapshot { "on" } else { "off" };
        let options = format!("if=none,id=disk,discard=unmap,snapshot={snapshot},format={format}");
        arguments.paths("-drive", &options, &[("file", &self.disk.path)]);
        let boot_order = if matches!(self.boot, Boot::Kernel { .. }) { "" } else { ",bootindex=0" };
        arguments.option("-device", format!("virtio-blk-pci,drive=disk{boot_order}"));
    }

    fn socket_arguments(&self, folder: &Path, arguments: &mut Arguments) {
        // Stopped, until somebody listens to everything it says.
        arguments.flag("-S").option("-qmp", "stdio");
        let console = folder.join(CONSOLE_SOCKET);
        let mut files = vec![("path", console.as_path())];
        files.extend(self.console_log.iter().map(|log| ("logfile", log.as_path())));
        arguments.paths("-chardev", "socket,id=console,server=on,wait=off", &files);
        arguments.option("-serial", "chardev:console").option("-device", "virtio-serial-pci");
        for (_, name) in guest::PORTS {
            let socket = folder.join(name);
            arguments.paths("-chardev", &format!("socket,id={name},server=on,wait=off"), &[("path", &socket)]);
            arguments.option("-device", format!("virtserialport,chardev={name},name={name}"));
        }
        let ours = guest::CREDENTIALS.map(|(name, contents)| (name.to_owned(), contents.as_bytes().to_vec()));
        for (name, contents) in ours.iter().chain(&self.credentials) {
            arguments.option("-smbios", format!("type=11,value={}", guest::smbios_string(name, contents)));
        }
        if self.resume.is_some() {
            arguments.option("-incoming", "defer");
        }
    }
}

/// Arguments in the making.
#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.extend([name.into(), value.into()]);
        self
    }

    /// An option of which some values are paths; a comma in them is doubled, as QEMU wants it.
    fn paths(&mut self, name: &str, value: &str, paths: &[(&str, &Path)]) -> &mut Self {
        let mut value = OsString::from(value);
        for (key, path) in paths {
            value.push(format!(",{key}="));
            value.push(doubled_commas(path));
        }
        self.option(name, value)
    }
}

fn doubled_commas(path: &Path) -> OsString {
    let doubled = path.as_os_str().as_bytes().iter().flat_map(|&byte| vec![byte; if byte == b',' { 2 } else { 1 }]);
    OsString::from_vec(doubled.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::disk::Format;
    use crate::vm::host::Accelerator;

    fn config() -> Config {
        Config::new(Disk { path: "a,b.raw".into(), format: Format::Raw })
    }

    fn arguments(config: &Config, front: Front<'_>) -> String {
        let host = Host {
            qemu: "qemu".into(),
            firmware_code: "code.fd".into(),
            secure_firmware_code: "secure-code.fd".into(),
            firmware_vars: "vars.fd".into(),
            accelerator: Accelerator::Tcg,
        };
        let arguments: Vec<_> =
            config.arguments(&host, front, None).into_iter().map(|argument| argument.into_string().unwrap()).collect();
        arguments.join(" ")
    }

    #[test]
    fn a_comma_in_a_path_stays_in_the_path() {
        assert!(arguments(&config(), Front::Terminal).contains("format=raw,file=a,,b.raw "));
    }

    #[test]
    fn words_for_the_kernel_arrive_whole() {
        let append = Config { append: Some("a=1,2 b".into()), ..config() };
        let told = arguments(&append, Front::Terminal);
        assert!(told.contains("value=io.systemd.stub.kernel-cmdline-extra=a=1,,2 b"), "{told}");
    }

    #[test]
    fn a_snapshot_is_told_to_qemu() {
        assert!(arguments(&config(), Front::Terminal).contains("snapshot=off,format=raw"));
        let snapshot = Config { snapshot: true, ..config() };
        assert!(arguments(&snapshot, Front::Terminal).contains("snapshot=on,format=raw"));
    }

    #[test]
    fn secure_boot_has_its_own_firmware_and_its_own_variables() {
        let boot = Boot::SecureFirmware { variables: "mine.fd".into() };
        let arguments = arguments(&Config { boot, ..config() }, Front::Terminal);
        assert!(arguments.contains(",smm=on ") && arguments.contains("property=secure,value=on"));
        assert!(arguments.contains("file=secure-code.fd") && arguments.contains("file=mine.fd"));
        assert!(!arguments.contains("vars.fd") && arguments.contains("bootindex=0"));
    }

    #[test]
    fn an_arm_machine_has_nothing_of_a_pc() {
        let arm = Config { architecture: Architecture::Arm64, ..config() };
        let told = arguments(&arm, Front::Terminal);
        assert!(told.contains("-machine virt,gic-version=max ") && told.contains("-cpu max,pauth-impdef=on"), "{told}");
        assert!(!told.contains("q35") && !told.contains("smm") && !told.contains("la57"), "{told}");
        let refused = arm.secure_boot(Path::new("keys"), "mine.fd".into());
        assert!(matches!(refused, Err(VmError::NoSecureBoot(Architecture::Arm64))), "{refused:?}");
    }

    #[test]
    fn the_terminal_has_the_console_and_no_way_in_besides_it() {
        let arguments = arguments(&config(), Front::Terminal);
        assert!(arguments.contains("-serial mon:stdio"));
        assert!(!arguments.contains("smbios") && !arguments.contains("virtserialport"));
    }

    #[test]
    fn a_machine_behind_sockets_waits_until_it_is_listened_to() {
        let arguments = arguments(&config(), Front::Sockets(Path::new("/run/x")));
        assert!(arguments.contains("-S ") && arguments.contains("-qmp stdio"));
        assert!(arguments.contains("path=/run/x/nemos.run.err"));
    }
}
