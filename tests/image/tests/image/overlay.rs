//! What differs from the factory image.

use nemos_tests::{Case, Device};

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
