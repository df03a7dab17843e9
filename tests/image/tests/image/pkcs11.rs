//! A device that is opened by a PKCS#11 token. Its image has the token's module; the token, which keeps its keys in files, comes in
//! with the machine at each boot, as one that is plugged in would.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use nemos_tests::{Case, Device, Disk, Failed};
use tempfile::TempDir;

use crate::profiles::{build, in_folder};

const PIN: &str = "4321";
const URI: &str = "pkcs11:token=device;object=disk";
/// Where the token is on the device, in its initrd and later: nothing else of the machine's is in both and can be written to.
const PLACE: &str = "/dev/token";

pub fn a_token_opens_the_device_when_somebody_types_its_pin_or_the_machine_gives_it() -> Case {
    let folder = tempfile::tempdir()?;
    let recipe = "description = \"mine\"\nextends = \"default\"\n[debian]\npackages = [\"softhsm2\"]\n";
    fs::write(folder.path().join("token.toml"), recipe)?;
    let disk = build(&folder, "token", &["--recipe", &in_folder(&folder, "token.toml")])?;
    let token = Token::new()?;
    let mut device = token.is_with(disk, None)?;
    device.comes_up()?;
    let enroll = |pin| format!("printf {pin} | nemosctl keys enroll pkcs11 --token-uri '{URI}' --pin-file -");
    let wrong = device.run(&enroll("1234"))?;
    assert!(wrong.status == 1 && wrong.stderr.contains("that is not the PIN of the token"), "{wrong:?}");
    let added = device.says(&enroll(PIN))?;
    assert!(added.contains("was seen to open the volume"), "{added}");
    device.says("nemosctl keys remove 0 --yes && echo mine > /etc/made-here")?;
    let forecast = device.run("nemosctl keys forecast")?;
    assert!(forecast.status == 1 && forecast.stdout.contains("PIN"), "{forecast:?}");

    let mut device = token.is_with(device.powers_off()?, None)?;
    device.prints("PIN of the token that opens this device")?;
    device.is_typed("1234")?;
    device.prints("That was not it; 2 tries are left.")?;
    device.is_typed(PIN)?;
    device.comes_up()?;
    was_opened_by_the_token(&mut device)?;

    let mut device = token.is_with(device.powers_off()?, Some(PIN))?;
    device.comes_up()?;
    was_opened_by_the_token(&mut device)
}

fn was_opened_by_the_token(device: &mut Device) -> Case {
    let slots = device.tells("nemosctl keys --json")?;
    assert_eq!((&slots[0]["provider"], &slots[0]["opened_boot"]), (&"pkcs11".into(), &true.into()), "{slots}");
    assert_eq!(device.says("cat /etc/made-here")?, "mine");
    Ok(())
}

/// The token of `SoftHSM`, with a key and its certificate.
struct Token {
    folder: TempDir,
}

impl Token {
    fn new() -> Result<Self, Failed> {
        let token = Token { folder: tempfile::tempdir()? };
        fs::create_dir(token.file("tokens"))?;
        fs::write(token.file("here.conf"), format!("directories.tokendir = {}\n", token.file("tokens").display()))?;
        token.run("softhsm2-util --init-token --free --label device --so-pin 87654321 --pin $PIN")?;
        token.run("openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=device -keyout key -out certificate")?;
        token.run("openssl x509 -in certificate -outform der -out der")?;
        token.run("softhsm2-util --import key --token device --pin $PIN --id 01 --label disk")?;
        token.run(
            "pkcs11-tool --module /usr/lib/softhsm/libsofthsm2.so --token-label device --login --pin $PIN \
             --write-object der --type cert --id 01 --label disk",
        )?;
        Ok(token)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, command: &str) -> Result<(), Failed> {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(&self.folder).env("PIN", PIN).env("SOFTHSM2_CONF", "here.conf");
        let done = shell.output()?;
        if done.status.success() { Ok(()) } else { Err(format!("{command}: {done:?}").into()) }
    }

    /// Switches a device on that has this disk and the token, with the PIN if the machine knows it.
    fn is_with(&self, disk: Disk, pin: Option<&str>) -> Result<Device, Failed> {
        let mut lines = vec![format!("d {PLACE} 0700"), format!("d {PLACE}/tokens 0700")];
        let conf = format!("directories.tokendir = {PLACE}/tokens\n");
        lines.push(line(Path::new("softhsm2.conf"), conf.as_bytes()));
        for token in fs::read_dir(self.file("tokens"))? {
            let token = token?.path();
            let name = Path::new("tokens").join(token.file_name().unwrap_or_default());
            lines.push(format!("d {PLACE}/{} 0700", name.display()));
            for file in fs::read_dir(&token)? {
                let file = file?;
                lines.push(line(&name.join(file.file_name()), &fs::read(file.path())?));
            }
        }
        let pin = pin.map(|pin| ("cryptsetup.pkcs11-pin".to_owned(), pin.as_bytes().to_vec()));
        let files = ("tmpfiles.extra".to_owned(), lines.join("\n").into_bytes());
        let words = format!("systemd.setenv=SOFTHSM2_CONF={PLACE}/softhsm2.conf");
        disk.starts_by_firmware_given(&words, [files].into_iter().chain(pin).collect())
    }
}

/// The line of tmpfiles.d(5) that makes a file of the token.
fn line(name: &Path, content: &[u8]) -> String {
    format!("f~ {PLACE}/{} 0600 root root - {}", name.display(), BASE64.encode(content))
}
