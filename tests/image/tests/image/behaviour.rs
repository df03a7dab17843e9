//! What users of the reference image are used to.

use nemos_tests::{Case, Device};

pub fn the_settings_of_the_reference_image_are_in_force() -> Case {
    let mut device = Device::running()?;
    let kernel = "vm.overcommit_memory kernel.randomize_va_space kernel.kptr_restrict kernel.yama.ptrace_scope";
    assert_eq!(device.says(&format!("sysctl --values {kernel}"))?, "2\n2\n1\n1");
    assert_eq!(device.says("findmnt --noheadings --output FSTYPE /tmp")?, "tmpfs");
    let watchdog = device.says("systemctl show --property RuntimeWatchdogUSec,WatchdogDevice")?;
    assert!(watchdog.contains("=10s") && watchdog.contains("=/dev/watchdog0"), "{watchdog}");
    device.says("systemctl is-active serial-getty@ttyS0 systemd-networkd systemd-resolved ssh auditd")?;
    assert_eq!(device.says("systemctl --failed --plain --no-legend")?, "");

    device.says("/usr/lib/systemd/systemd-networkd-wait-online --timeout 120")?;
    let network = device.says("networkctl status --lines 0 '*'")?;
    assert!(network.contains("10.0.2.15 (DHCPv4"), "{network}");
    let may_reboot =
        "busctl call org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager CanReboot";
    assert_eq!(device.says(&format!("runuser -u admin -- {may_reboot}"))?, "s \"yes\"");

    let os_release = device.says("cat /etc/os-release")?;
    for field in ["VARIANT_ID=nemos", "IMAGE_ID=nemos-default", "IMAGE_VERSION=", "BUILD_ID="] {
        assert!(os_release.lines().any(|line| line.starts_with(field)), "{field} in {os_release}");
    }
    Ok(())
}

pub fn its_programs_are_there() -> Case {
    let mut device = Device::running()?;
    for program in
        ["auditctl", "busybox", "crun", "cryptsetup", "iotop", "mkfs.xfs", "podman", "sshd", "strace", "tpm2"]
    {
        device.says(&format!("command -v {program}"))?;
    }
    Ok(())
}

pub fn audit_records_are_collected() -> Case {
    let mut device = Device::running()?;
    device.says("auditctl -m 'a word for the records'")?;
    device.waits_until("ausearch --input-logs --message USER --raw | grep --quiet \"a word for the records\"")?;
    // What is collected is not on the console as well.
    assert_eq!(device.says("dmesg | grep -c 'a word for the records' || true")?, "0");
    Ok(())
}
