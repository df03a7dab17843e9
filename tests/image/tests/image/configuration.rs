//! Saved configurations, and the way back from what nobody confirms.

use nemos_tests::{Case, Device, Failed};

pub fn what_is_saved_is_applied_and_what_is_not_confirmed_is_gone_back_from() -> Case {
    let mut device = Device::running()?;
    device.says("echo saved > /etc/made-here && rm /etc/issue && echo home > /home/admin/note")?;
    for (command, status, complaint) in [
        ("nemosctl overlay save factory --yes", 1, "it cannot be saved over"),
        ("nemosctl overlay save a/b --yes", 1, "is no name of a configuration"),
        ("nemosctl overlay save '' --yes", 1, "is no name of a configuration"),
        ("nemosctl overlay save site", 2, "say --yes"),
        ("nemosctl overlay apply elsewhere --yes", 1, "there is no configuration elsewhere"),
        ("nemosctl overlay confirm", 1, "nothing is on trial"),
        ("runuser -u nobody -- nemosctl overlay save site --yes", 1, "does not grant"),
    ] {
        let refused = device.run(command)?;
        assert!(refused.status == status && refused.stderr.contains(complaint), "{command}: {refused:?}");
    }
    device.reboots_by("nemosctl overlay save site --yes")?;
    device.says("echo later > /etc/made-here && touch /etc/later")?;
    assert_eq!(device.says("nemosctl overlay list | cut -d' ' -f1")?, "NAME\nfactory\nsite");
    let shown = device.tells("nemosctl overlay show site --json")?;
    assert!(shown["changes"].as_u64() > Some(2) && shown["image_id"].is_string(), "{shown}");
    device.says("nemosctl overlay diff --configuration site /etc/issue | grep deleted")?;
    assert!(device.says("nemosctl overlay apply site --dry-run")?.contains("changes go"));
    let missing = device.run("nemosctl overlay apply sight --dry-run")?;
    assert!(missing.status == 1 && missing.stderr.contains("no configuration sight"), "{missing:?}");

    device.reboots_by("nemosctl overlay apply site --confirm-within 1h --yes")?;
    device.says("test -e /home/admin/note && ! test -e /etc/later && ! test -e /etc/issue")?;
    assert_eq!(device.says("cat /etc/made-here")?, "saved");
    assert!(device.says("nemosctl overlay")?.contains("configuration site is on trial"));
    device.says("systemctl is-active nemos-trial.timer")?;
    device.says("nemosctl overlay confirm && ! test -e /run/nemos/trial/running")?;
    // Its time may come now.
    device.says("systemctl start nemos-trial.service && ! systemctl is-active nemos-trial.service")?;

    device.reboots_by("nemosctl overlay apply factory --confirm-within 1h --yes")?;
    device.says("test -e /etc/issue && ! test -e /etc/made-here")?;
    assert_eq!(device.tells("nemosctl overlay --json")?["configuration"], "factory");
    device.reboots()?;
    assert_eq!(device.says("cat /etc/made-here")?, "saved");
    let health = device.run("nemosctl health")?;
    assert!(health.stdout.contains("went back from configuration factory"), "{health:?}");
    device.says("nemosctl overlay rename site other && nemosctl overlay delete other --yes")?;
    assert_eq!(device.says("nemosctl overlay list | wc -l")?, "2");
    Ok(())
}

/// By a timer of systemd's, and because health has turned critical.
pub fn a_device_that_nobody_reaches_any_more_goes_back_by_itself() -> Case {
    let mut device = Device::running()?;
    device.says("echo mine > /etc/made-here")?;
    device.reboots_by("nemosctl overlay apply factory --confirm-within 3m --yes")?;
    device.says("! test -e /etc/made-here && systemctl stop nemosd.service")?;
    device.prints("nobody has confirmed the change of the overlay")?;
    device.reboots_by("true")?;
    assert_eq!(device.says("cat /etc/made-here")?, "mine");

    device.reboots_by("nemosctl overlay apply factory --confirm-within 1h --yes")?;
    device.reboots_by("fallocate --length $(($(stat --file-system --format '%a * %S' /) - (1 << 20))) /full")?;
    device.says("test -e /etc/made-here && ! test -e /full")?;
    // The journal of the boot on trial went with its changes.
    assert!(device.says("nemosctl job list")?.lines().last().is_some_and(|job| job.contains("go-back")));
    goes_back_from_a_mode(&mut device)
}

fn goes_back_from_a_mode(device: &mut Device) -> Result<(), Failed> {
    device.says("nemosctl overlay mode readonly --confirm-within 1h")?;
    device.reboots()?;
    assert!(device.says("nemosctl overlay mode")?.contains("mode readonly is on trial"));
    device.reboots()?;
    assert_eq!(device.says("nemosctl overlay mode; cat /etc/made-here")?, "persistent\nmine");
    Ok(())
}
