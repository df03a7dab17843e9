//! Configurations that are carried from device to device.

use nemos_tests::{Case, Device};

pub fn a_configuration_goes_to_another_device_in_a_file() -> Case {
    let mut device = Device::running()?;
    device.says("mkdir /etc/site && echo seven > /etc/site/name && rm /etc/issue && chown 1000:1000 /etc/site/name")?;
    device.says("install -m 4755 /bin/true /etc/site/true && ln /etc/site/name /etc/site/again")?;
    device.reboots_by("nemosctl overlay save site --yes")?;
    let exported = device.tells("nemosctl overlay export site /var/tmp/site.tar --json")?;
    assert!(exported["digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{exported}");
    device.says("nemosctl overlay export site - | cmp - /var/tmp/site.tar")?;
    device.says("podman pull --quiet oci-archive:/var/tmp/site.tar && podman images | grep -w site")?;

    // As on another device: all that it knows of it is the file.
    device.says("nemosctl overlay delete site --yes && nemosctl overlay import /var/tmp/site.tar --dry-run")?;
    assert!(!device.says("nemosctl overlay list")?.contains("site"));
    let imported = device.tells("nemosctl overlay import /var/tmp/site.tar --name copy --json")?;
    assert_eq!((&imported["digest"], &imported["signed_by"]), (&exported["digest"], &serde_json::Value::Null));
    let list = device.says("nemosctl overlay list")?;
    assert!(list.lines().any(|line| line.starts_with("copy") && line.contains("imported, not signed")), "{list}");
    device.says("journalctl --sync; journalctl -u nemosd NEMOS_ACTION=org.nemos.device1.overlay.import | grep copy")?;

    device
        .says("head -c 5000 /var/tmp/site.tar > /var/tmp/cut.tar; tr a-y b-z < /var/tmp/site.tar > /var/tmp/odd.tar")?;
    device.says(
        "ssh-keygen -q -t ed25519 -N '' -f /root/fleet && nemosctl overlay sign /var/tmp/site.tar --key /root/fleet",
    )?;
    for (command, complaint) in [
        ("nemosctl overlay import /var/tmp/cut.tar --name new", "ends too early"),
        ("nemosctl overlay import /var/tmp/odd.tar --name new", "no configuration"),
        ("nemosctl overlay import /etc/hostname --name new", "not whole"),
        ("nemosctl overlay import /var/tmp/site.tar --name new", "none of this image's signers"),
        ("rm /var/tmp/site.tar.sig; nemosctl overlay import /var/tmp/site.tar --name copy", "already"),
        ("nemosctl overlay import /var/tmp/site.tar --name a/b", "is no name"),
        ("nemosctl overlay export nothing /var/tmp/nothing.tar", "there is no configuration"),
        ("runuser -u nobody -- nemosctl overlay export copy - | cat", "does not grant"),
    ] {
        let refused = device.run(&format!("set -o pipefail; {command}"))?;
        assert!(refused.status == 1 && refused.stderr.contains(complaint), "{command}: {refused:?}");
    }
    device.says(
        "! test -e /var/tmp/nothing.tar && test -z \"$(ls -A /run/nemos/overlay/configurations | grep -v copy)\"",
    )?;

    device.says("rm -r /etc/site && touch /etc/issue")?;
    device.reboots_by("nemosctl overlay apply copy --yes")?;
    assert_eq!(
        device.says("cat /etc/site/again; stat -c '%u %h' /etc/site/name; ls /etc/issue 2>&1 | wc -l")?,
        "seven\n1000 2\n1"
    );
    device.says("test -u /etc/site/true && ! test -e /etc/issue")?;
    assert_eq!(device.says("nemosctl overlay diff /etc/issue")?, "deleted   /etc/issue");
    Ok(())
}
