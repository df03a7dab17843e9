//! Where changes to the root go, and what differs from the factory image.

use nemos_tests::{Case, Device, Failed};

pub fn what_was_changed_is_told_and_what_was_not_is_not() -> Case {
    let mut device = Device::running()?;
    assert_eq!(device.tells("nemosctl overlay --json")?["mode"], "persistent");
    device.says("echo new > /etc/new && rm /etc/issue && echo more >> /etc/debian_version && chmod 700 /srv")?;
    // Copied up, and as it was.
    device.says("true >> /etc/host.conf && mkdir /opt/many && seq 2500 | (cd /opt/many && xargs touch)")?;
    let told = device.says("nemosctl overlay diff")?;
    for line in ["added     /etc/new", "deleted   /etc/issue", "metadata  /srv/", "added     /opt/many/"] {
        assert!(told.lines().any(|told| told == line), "{line} is not in\n{told}");
    }
    assert!(told.contains("changed   /etc/debian_version ("), "{told}");
    assert!(!told.contains("/etc/host.conf"), "it is no change:\n{told}");
    assert_eq!(told.matches(" /opt/many/").count(), 2501);
    let inside = device.says("nemosctl overlay diff /etc --content")?;
    for line in ["--- factory/etc/debian_version", "+more", "+++ now/etc/new", "+new", "--- factory/etc/issue"] {
        assert!(inside.lines().any(|told| told == line), "{line} is not in\n{inside}");
    }
    let stat = device.tells("nemosctl overlay diff /opt --stat --json")?;
    assert_eq!((&stat[1]["path"], &stat[1]["changes"]), (&"/opt/many".into(), &2500.into()), "{stat}");

    for (command, complaint) in [
        ("nemosctl overlay diff opt", "is not an absolute path"),
        ("nemosctl overlay diff /opt/../etc", "is not an absolute path"),
        ("runuser -u nobody -- nemosctl overlay diff", "does not grant"),
    ] {
        let refused = device.run(command)?;
        assert!(refused.status == 1 && refused.stderr.contains(complaint), "{command}: {refused:?}");
    }
    Ok(())
}

pub fn a_read_only_device_is_whole_and_takes_changes_only_where_it_must() -> Case {
    let mut device = Device::running()?;
    device.says("echo mine > /etc/made-here")?;
    let refused = device.run("runuser -u nobody -- nemosctl overlay mode readonly")?;
    assert!(refused.status == 1 && refused.stderr.contains("does not grant"), "{refused:?}");
    let said = device.says("nemosctl overlay mode; nemosctl overlay mode readonly --once")?;
    assert_eq!(said, "persistent\npersistent; readonly at the next boot, persistent from then on");
    device.reboots()?;
    assert_eq!(device.says("nemosctl overlay mode")?, "readonly; persistent from the next boot on");
    is_well(&mut device)?;
    device.says(
        "! test -e /etc/made-here && ! touch /usr/made-here 2>/dev/null && touch /etc/made-here /var/made-here",
    )?;
    let told = device.says("nemosctl overlay diff")?;
    assert!(["/etc/made-here", "/var/made-here"].iter().all(|path| told.contains(path)), "{told}");
    device.says("podman run --rm --network none localhost/busybox:latest true")?;
    Ok(())
}

/// The same of a device in memory, and that both are over when they should be.
pub fn a_mode_ends_when_it_should_and_the_changes_have_waited() -> Case {
    let mut device = Device::running()?;
    device.says("echo mine > /etc/made-here")?;
    device.says("nemosctl overlay mode readonly && nemosctl overlay mode volatile --once")?;
    device.reboots()?;
    assert_eq!(device.says("nemosctl overlay mode")?, "volatile; readonly from the next boot on");
    is_well(&mut device)?;
    device.says("! test -e /etc/made-here && echo now > /etc/made-here && nemosctl overlay diff | grep made-here")?;
    device.reboots()?;
    assert_eq!(
        device.says("nemosctl overlay mode && nemosctl overlay mode persistent")?.lines().next(),
        Some("readonly")
    );
    device.reboots()?;
    assert_eq!(device.says("nemosctl overlay mode && cat /etc/made-here")?, "persistent\nmine");
    Ok(())
}

/// Each layer is as it should be, and everything that should run does.
fn is_well(device: &mut Device) -> Result<(), Failed> {
    let status = device.run("nemosctl status")?;
    assert!(status.status < 2, "{status:?}");
    assert_eq!(device.says("systemctl --failed --plain --no-legend")?, "");
    device.waits_until("systemctl is-active --quiet ssh")?;
    Ok(())
}

pub fn what_is_taken_back_is_as_the_image_has_it_after_the_next_boot() -> Case {
    let mut device = Device::running()?;
    let shipped = device.says("cat /etc/debian_version")?;
    device
        .says("echo mine > /etc/debian_version && rm /etc/issue && mkdir /opt/mine && touch /opt/mine/a /etc/stays")?;
    for (command, status, complaint) in [
        ("nemosctl overlay revert /etc/hosts --yes", 1, "is as the image has it"),
        ("nemosctl overlay revert /home/admin --yes", 1, "is not on the overlay"),
        ("nemosctl overlay revert etc --yes", 1, "cannot be reverted"),
        ("nemosctl overlay revert /etc/issue", 2, "say --yes"),
        ("runuser -u nobody -- nemosctl overlay revert /etc/issue --yes", 1, "does not grant"),
    ] {
        let refused = device.run(command)?;
        assert!(refused.status == status && refused.stderr.contains(complaint), "{command}: {refused:?}");
    }
    let plan = device.says("nemosctl overlay revert /etc/debian_version /etc/issue /opt/mine --dry-run")?;
    assert!(plan.contains("deleted   /etc/issue\n") && plan.lines().count() == 4, "{plan}");
    assert_eq!(device.says("cat /etc/debian_version; nemosctl job list")?.lines().next(), Some("mine"));

    device.reboots_by("nemosctl overlay revert /etc/debian_version /etc/issue /opt/mine --yes")?;
    assert_eq!(device.says("cat /etc/debian_version")?, shipped);
    device.says("test -s /etc/issue && ! test -e /opt/mine && test -e /etc/stays")?;
    let jobs = device.tells("nemosctl job list --json")?;
    let last = jobs.as_array().and_then(|jobs| jobs.last()).ok_or("no job")?;
    assert_eq!((&last["kind"], &last["state"]), (&"revert".into(), &"done".into()), "{last}");
    Ok(())
}

/// Hardly anything fits any more.
const FILL: &str = "mkdir /opt/full && cd /opt/full && { dd if=/dev/zero of=large bs=1M; dd if=/dev/zero of=more bs=4k; \
                    for number in $(seq 20000); do echo x > small-$number || break; done; } 2>/dev/null; sync; \
                    ! dd if=/dev/zero of=/opt/more bs=1M count=2 2>/dev/null && rm -f /opt/more";

pub fn a_full_overlay_boots_says_so_and_is_taken_back_or_reset() -> Case {
    let mut device = Device::running()?;
    let usage = device.tells("nemosctl overlay usage --json")?;
    let size = usage["size"].as_u64().ok_or("no size")?;
    assert!(usage["free"].as_u64() > Some(size / 2) && usage["reserve"].as_u64() > Some(1 << 20), "{usage}");
    assert!(usage["memory_limit"].as_u64() > Some(100 << 20) && usage["unused"].is_null(), "{usage}");
    let refused = device.run("runuser -u nobody -- nemosctl overlay usage")?;
    assert!(refused.status == 1 && refused.stderr.contains("does not grant"), "{refused:?}");

    device.says("echo mine > /etc/mine")?;
    device.says(FILL)?;
    is_full(&mut device)?;
    device.reboots()?;
    is_full(&mut device)?;
    assert_eq!(device.says("cat /etc/mine && findmnt --noheadings --output OPTIONS / | cut -d, -f1")?, "mine\nrw");
    let usage = device.tells("nemosctl overlay usage --json")?;
    assert!(usage["changes"]["bytes"].as_u64() > Some(size / 2), "{usage}");

    device.reboots_by("nemosctl overlay revert /opt/full --yes")?;
    device.says("! test -e /opt/full && test -e /etc/mine && echo more > /opt/more")?;
    let health = device.run("nemosctl health")?;
    assert!(health.status < 2 && !health.stdout.contains("% full"), "{health:?}");

    device.says(FILL)?;
    is_full(&mut device)?;
    device.reboots_by("nemosctl reset --overlay --yes")?;
    device.says("! test -e /opt/full && ! test -e /etc/mine && echo more > /opt/more")?;
    Ok(())
}

/// It answers, says what is wrong, and what to do.
fn is_full(device: &mut Device) -> Result<(), Failed> {
    let health = device.run("nemosctl health")?;
    assert!(health.status == 2 && health.stdout.contains("% full"), "{health:?}");
    assert!(health.stdout.contains("nemosctl overlay usage"), "{health:?}");
    device.says(
        "nemosctl status > /dev/null; nemosctl overlay diff /etc > /dev/null && nemosctl overlay usage > /dev/null",
    )?;
    Ok(())
}

pub fn the_index_of_the_image_is_kept_and_what_another_image_had_is_told() -> Case {
    let mut device = Device::running()?;
    let index = "/run/nemos/root/usr/share/nemos/index";
    let kept = r"/run/nemos/overlay/images/$(sed -n 's/.*roothash=\([0-9a-f]*\).*/\1/p' /proc/cmdline)";
    device.says(&format!("cmp {index} {kept}"))?;
    // Each path of the root is in it but the index itself: for the end of its bytes says how many there are.
    let counted = device.says(&format!("tail -c 8 {index} | od -An -td8 | tr -d ' '"))?;
    let found = device.says("find /run/nemos/root -xdev ! -path /run/nemos/root/usr/share/nemos/index | wc -l")?;
    assert_eq!(counted, found);

    // As if the device had run an image that had nothing of what this one has.
    device.says("echo mine >> /etc/debian_version && rm /etc/issue && echo new > /etc/new")?;
    let forget = format!(
        "mv {kept} /tmp/index && {{ head -c 16 /tmp/index; printf '\\377\\377\\377\\377\\0\\0\\0\\0\\0\\0\\0\\0'; }} > \
         /run/nemos/overlay/images/$(printf %064d 0) && sync"
    );
    device.says(&forget)?;
    assert_eq!(device.says("nemosctl overlay diff --shadowed")?, "");
    device.reboots()?;
    let told = device.says("nemosctl overlay diff /etc --shadowed")?;
    assert!(told.contains("/etc/debian_version") && told.contains("deleted   /etc/issue"), "{told}");
    assert!(!told.contains("/etc/new"), "the image has nothing there:\n{told}");
    let health = device.run("nemosctl health")?;
    assert!(health.stdout.contains("hide what this image has changed"), "{health:?}");
    device.says("echo anew >> /etc/debian_version; nemosctl overlay diff /etc --shadowed --json | grep -q debian_version && exit 1; true")?;
    Ok(())
}
