//! nemosd, as its callers and the system see it.

use nemos_tests::{Case, Device};

use crate::factory::plain;

/// The daemon's bus name and object.
const DEVICE: &str = "org.nemos.Device1 /org/nemos/Device1";
/// A request that waits for the year 2100.
const REQUEST: &str = "org.nemos.Device1.Reset Request 'sa{sv}' factory 1 not-before t 4102444800";

pub fn it_comes_up_when_it_is_called() -> Case {
    let mut device = Device::running()?;
    device.says("systemctl stop nemosd")?;
    let interfaces = device.says(&format!("busctl introspect {DEVICE}"))?;
    for interface in ["Manager", "Reset", "Overlay", "Keys", "Integrity"] {
        assert!(interfaces.contains(&format!("org.nemos.Device1.{interface}")), "{interface} is not in {interfaces}");
    }
    assert_eq!(device.says("systemctl is-active nemosd")?, "active");
    Ok(())
}

pub fn everybody_may_look_and_not_everybody_may_reset() -> Case {
    let mut device = Device::running()?;
    let health =
        device.says(&format!("runuser -u nobody -- busctl get-property {DEVICE} org.nemos.Device1.Manager Health"))?;
    assert!(health.starts_with("s \""), "{health}");

    let refused =
        device.run(&format!("SYSTEMD_LOG_LEVEL=debug runuser -u nobody -- busctl call {DEVICE} {REQUEST}"))?;
    assert_ne!(refused.status, 0, "{refused:?}");
    assert!(refused.stderr.contains("org.nemos.Device1.Error.NotAuthorized"), "{refused:?}");
    assert_eq!(pending(&mut device)?, "/");
    Ok(())
}

pub fn it_is_hardened() -> Case {
    let mut device = Device::running()?;
    let verdict = device.says("systemd-analyze security --no-pager nemosd.service | tail -n 1")?;
    let exposure = verdict.split_whitespace().find_map(|word| word.parse::<f64>().ok());
    assert!(exposure.is_some_and(|exposure| exposure < 3.0), "{verdict}");
    let enters = "nsenter --mount --target $(systemctl show --property MainPID --value nemosd)";
    for folder in ["/etc", "/home", "/run", "/run/nemos/overlay/upper", "/run/systemd/ask-password"] {
        let writes = device.run(&format!("{enters} touch {folder}/written"))?;
        assert!(writes.stderr.contains("Read-only file system"), "{folder}: {writes:?}");
    }
    device.says(&format!("{enters} touch /var/lib/nemos/written /run/nemos/overlay/configurations/written"))?;
    Ok(())
}

pub fn it_writes_who_asked_and_the_answer_to_the_journal() -> Case {
    let mut device = Device::running()?;
    device.run(&format!("runuser -u nobody -- busctl call {DEVICE} {REQUEST}"))?;
    device.says(&format!("busctl call {DEVICE} {REQUEST}"))?;
    device.says("journalctl --sync")?;
    for (user, outcome, message) in [
        ("nobody", "refused", "5fa638dc82ed4d71b23d73780ef11a97"),
        ("root", "granted", "d0c273ead1334af9b2e7b17176656ace"),
    ] {
        let matches = format!("MESSAGE_ID={message} NEMOS_CALLER_USER={user} NEMOS_OUTCOME={outcome}");
        let entry = device.tells(&format!("journalctl -u nemosd -o json -n 1 {matches}"))?;
        assert_eq!(entry["NEMOS_ACTION"], "org.nemos.device1.reset.factory", "{entry}");
        let explained = device.says(&format!("journalctl -u nemosd -x -n 1 {matches}"))?;
        assert!(explained.contains("Subject: Request "), "{explained}");
    }
    Ok(())
}

pub fn it_comes_back_with_its_job_after_it_was_killed() -> Case {
    let mut device = Device::running()?;
    device.says(&format!("busctl call {DEVICE} {REQUEST}"))?;
    let job = pending(&mut device)?;
    assert_ne!(job, "/");

    device.says("systemctl kill --signal=KILL nemosd")?;
    has_restarted(&mut device, 1)?;
    assert_eq!(pending(&mut device)?, job);
    Ok(())
}

pub fn it_is_started_anew_when_it_hangs() -> Case {
    let mut device = Device::running()?;
    device.says("systemctl kill --signal=STOP nemosd")?;
    has_restarted(&mut device, 1)?;
    pending(&mut device)?;
    Ok(())
}

fn has_restarted(device: &mut Device, times: u32) -> Case {
    let again = format!("test \"$(systemctl show -P NRestarts nemosd)\" -ge {times}");
    device.says(&format!("timeout 200 sh -c 'until {again}; do sleep 0.2; done'"))?;
    Ok(())
}

/// The object of the reset that has not ended.
fn pending(device: &mut Device) -> Result<String, nemos_tests::Failed> {
    let pending =
        device.tells(&format!("busctl --json=short get-property {DEVICE} org.nemos.Device1.Reset Pending"))?;
    Ok(plain(&pending).as_str().unwrap_or_default().to_owned())
}
