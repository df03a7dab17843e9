//! The keys that open the overlay.

use nemos_model::partitions::Partition;
use nemos_tests::{Case, Device, Disk, Failed, Signed};

pub fn a_recovery_key_takes_the_demo_keys_place() -> Case {
    let mut device = Device::running()?;
    device.says("echo mine > /etc/made-here")?;
    let slots = device.tells("nemosctl keys --json")?;
    assert_eq!((&slots[0]["provider"], &slots[1]), (&"demo-key".into(), &serde_json::Value::Null), "{slots}");
    assert_eq!(
        device.says("nemosctl keys forecast")?.lines().next(),
        Some("the next boot opens the overlay by itself")
    );
    let last = device.run("nemosctl keys remove 0 --yes")?;
    assert!(last.status == 1 && last.stderr.contains("is the last"), "{last:?}");

    // busctl does not read what it is given.
    device.says("busctl call org.nemos.Device1 /org/nemos/Device1 org.nemos.Device1.Keys CreateRecoveryKey a{sv} 0")?;
    device.waits_until("journalctl --boot --output cat | grep --quiet \"new key is taken back: whoever asked\"")?;
    assert_eq!(device.says("nemosctl keys --json | grep --count provider")?, "1");
    // Nor can it be shown to anybody.
    let unseen = device.run("nemosctl keys enroll recovery-key > /dev/full")?;
    assert!(unseen.status == 1 && unseen.stderr.contains("No space left on device"), "{unseen:?}");
    assert!(unseen.stderr.contains("is taken back"), "{unseen:?}");
    assert_eq!(device.says("nemosctl keys --json | grep --count provider")?, "1");

    let added = device.tells("nemosctl keys enroll recovery-key --json")?;
    let key = added["recovery_key"].as_str().ok_or("no key")?.to_owned();
    let unasked = device.run("nemosctl keys remove 0")?;
    assert!(unasked.status == 2 && unasked.stderr.contains("waits at its console"), "{unasked:?}");
    device.says("nemosctl keys remove 0 --yes")?;
    assert_eq!(device.run("nemosctl keys forecast")?.status, 1);
    let health = device.says("nemosctl health || true")?;
    assert!(!health.contains("demo key"), "{health}");
    let journal = device.says("journalctl --boot --output cat --all")?;
    assert!(journal.contains("org.nemos.device1.keys.recovery granted"), "{journal}");
    assert!(!journal.contains(&key), "the key is in the journal");

    let mut device = device.powers_off()?.starts()?;
    device.prints("Passphrase or recovery key of this device")?;
    // Somebody looks whether the console is alive.
    device.is_typed("")?;
    device.prints("That was not it; 2 tries are left.")?;
    device.is_typed("open sesame")?;
    device.prints("That was not it; this is the last try.")?;
    device.is_typed(&key)?;
    device.comes_up()?;
    assert_eq!(device.says("cat /etc/made-here")?, "mine");
    let slots = device.tells("nemosctl keys --json")?;
    let opened = (&slots[0]["provider"], &slots[0]["opened_boot"]);
    assert_eq!(opened, (&"recovery-key".into(), &true.into()), "{slots}");
    device.waits_until("nemosctl keys --json | grep --quiet used.*20")?;

    // It is rotated by whoever has it, and by nobody else.
    assert!(device.says("nemosctl health || true")?.contains("a recovery key was used"));
    let wrong = device.run("printf wrong | nemosctl keys rotate recovery-key --unlock-file -")?;
    assert!(wrong.status == 1 && wrong.stderr.contains("opens none of its key slots"), "{wrong:?}");
    let rotate = format!("printf %s {key} | nemosctl keys rotate recovery-key --unlock-file - --json");
    let new = device.tells(&rotate)?["recovery_key"].as_str().ok_or("no key")?.to_owned();
    let mut device = device.powers_off()?.boots_given(&new)?;
    device.waits_until("[ $(nemosctl keys --json | grep --count provider) = 1 ]")?;
    let old = device.run(&format!("printf %s {key} | nemosctl keys enroll recovery-key --unlock-file -"))?;
    assert!(old.stderr.contains("opens none of its key slots"), "the old one is gone: {old:?}");
    Ok(())
}

pub fn what_is_no_key_is_refused_in_a_sentence() -> Case {
    let mut device = Device::running()?;
    for (command, complaint) in [
        ("nemosctl keys remove 40 --yes", "there is no key slot 40"),
        ("nemosctl keys remove 7 --yes", "key slot 7 is not in use"),
        ("nemosctl keys enroll passphrase --secret-file /dev/null", "a secret has 1 to 65536 bytes"),
        ("nemosctl keys enroll passphrase --secret-file /usr/bin/podman", "a secret has 1 to 65536 bytes"),
        ("head -c 20 /dev/zero | nemosctl keys enroll passphrase --secret-file -", "without control characters"),
        ("printf insecure | nemosctl keys enroll passphrase --secret-file -", "opens key slot 0 already"),
        ("nemosctl keys rotate recovery-key", "no key slot is of provider recovery-key"),
        ("runuser -u nobody -- nemosctl keys enroll recovery-key", "does not grant"),
        (
            "busctl call org.nemos.Device1 /org/nemos/Device1 org.nemos.Device1.Keys CreateRecoveryKey a{sv} 1 unlock s x",
            "option `unlock` must be of type h, not s",
        ),
    ] {
        let refused = device.run(command)?;
        assert!(refused.status != 0 && refused.stderr.contains(complaint), "{command}: {refused:?}");
    }
    assert_eq!(device.says("nemosctl keys --json | grep --count provider")?, "1");

    // A key file that is not there is no way in.
    device.says(
        "printf stick | nemosctl keys enroll key-file --device LABEL=NOWHERE --path /nemos.key --secret-file -",
    )?;
    let last = device.run("nemosctl keys remove 0 --yes")?;
    assert!(last.status == 1 && last.stderr.contains("is the last"), "{last:?}");
    device.says("nemosctl keys remove 1 --yes")?;
    Ok(())
}

pub fn a_tpm_opens_the_overlay_until_it_has_reason_not_to() -> Case {
    let mut device = Disk::fresh()?.with_tpm().boots()?;
    device.says("echo mine > /etc/made-here")?;
    // As the image's policy says: the demo key goes when the TPM has opened a boot, and somebody has a recovery key.
    device.waits_until("nemosctl keys --json | grep --quiet tpm2")?;
    let recovery = device.tells("nemosctl keys recovery create --json")?;
    let recovery = recovery["recovery_key"].as_str().ok_or("no key")?.to_owned();
    assert!(device.says("nemosctl health || true")?.contains("demo key in use"));
    device.reboots()?;
    assert_eq!(opened_by(&mut device)?, "tpm2");
    device.waits_until("! nemosctl keys --json | grep --quiet demo-key")?;
    assert!(!device.says("nemosctl health || true")?.contains("demo key"));
    assert_eq!(device.says("cat /etc/made-here")?, "mine");

    // By what the TPM keeps, for nobody has another key at hand.
    device.says("nemosctl keys rotate tpm2")?;
    device.reboots()?;
    device.waits_until("[ $(nemosctl keys --json | grep --count tpm2) = 1 ]")?;
    assert_eq!(opened_by(&mut device)?, "tpm2");
    assert_eq!(
        device.says("nemosctl keys forecast")?.lines().next(),
        Some("the next boot opens the overlay by itself")
    );

    // Wrong tries of whatever has a password lock the TPM out, which does not keep it from what needs none.
    device.says(
        "tpm2_dictionarylockout --setup-parameters --max-tries=1 --recovery-time=900 --lockout-recovery-time=900",
    )?;
    device.says("tpm2_createprimary --quiet --key-auth right --key-context /run/parent")?;
    device.says("! tpm2_create --parent-context /run/parent --parent-auth wrong --public /run/a --private /run/b")?;
    assert_eq!(device.run("nemosctl keys forecast")?.status, 0);
    device.says("tpm2_pcrextend 7:sha256=0000000000000000000000000000000000000000000000000000000000000001")?;
    let forecast = device.run("nemosctl keys forecast")?;
    assert!(forecast.status == 1 && forecast.stdout.contains("recovery-key"), "{forecast:?}");
    assert!(
        forecast.stdout.contains("locked out after 1 wrong tries, and forgets one of them every 900 s"),
        "{forecast:?}"
    );
    let health = device.says("nemosctl health || true")?;
    assert!(health.contains("tpm2 in key slot"), "{health}");
    // Another machine has another TPM, and so has this one when it was cleared.
    let mut device = device.powers_off()?.with_new_tpm()?.boots_given(&recovery)?;
    assert_eq!(opened_by(&mut device)?, "recovery-key");
    assert_eq!(device.says("cat /etc/made-here")?, "mine");
    let health = device.says("nemosctl health || true")?;
    assert!(health.contains("tpm2 in key slot") && !health.contains("does not vouch"), "{health}");
    Ok(())
}

pub fn a_volume_that_somebody_put_there_is_not_opened_whatever_the_state_says() -> Case {
    let mut theirs = Device::running()?;
    theirs.says("echo theirs > /etc/made-elsewhere && sync")?;
    let mut theirs = theirs.powers_off()?;
    let mut device = Disk::fresh()?.with_tpm().boots()?;
    assert!(!device.says("nemosctl health || true")?.contains("does not vouch"));
    let mut disk = device.powers_off()?;
    for partition in [Partition::Root, Partition::State] {
        disk.write(partition, 0, &theirs.read_all(partition)?)?;
    }
    let mut device = disk.boots()?;
    let health = device.says("nemosctl health || true")?;
    assert!(health.contains("is not the one that this device made"), "{health}");
    assert_ne!(device.run("cat /etc/made-elsewhere")?.status, 0);

    // A TPM that was cleared knows nothing of it, and has nothing to lose; that is told, boot after boot.
    let mut device = device.powers_off()?.with_new_tpm()?.boots()?;
    for _ in 0..2 {
        assert_eq!(device.says("cat /etc/made-elsewhere")?, "theirs");
        let health = device.says("nemosctl health || true")?;
        assert!(health.contains("the TPM does not vouch for the overlay's volume"), "{health}");
        device.reboots()?;
    }
    Ok(())
}

pub fn a_key_file_is_made_tried_and_rotated_on_its_own_disk() -> Case {
    let mut device = Device::running()?;
    let (stick, enroll) = ("/mnt/stick", "nemosctl keys enroll key-file --device LABEL=KEYS --path /nemos.key");
    let absent = device.run(enroll)?;
    assert!(absent.status == 2 && absent.stderr.contains("the device with LABEL=KEYS is not there"), "{absent:?}");
    device.says(&format!("truncate --size 16M /home/stick && mkfs.ext4 -q -L KEYS /home/stick && mkdir {stick}"))?;
    let node = device.says("losetup --find --show /home/stick")?;
    device.waits_until("[ -e /dev/disk/by-label/KEYS ]")?;
    let unmounted = device.run(enroll)?;
    assert!(unmounted.status == 2 && unmounted.stderr.contains("is not mounted"), "{unmounted:?}");

    let mount = format!("mount {} {stick}", node.trim());
    device.says(&mount)?;
    let added = device.tells(&format!("{enroll} --json"))?;
    assert_eq!(added["place"], "LABEL=KEYS:/nemos.key", "{added}");
    let again = device.run(enroll)?;
    assert!(again.status == 2 && again.stderr.contains("File exists"), "{again:?}");
    device.says(&format!("printf other > {stick}/other.key"))?;
    let other = "printf another | nemosctl keys enroll key-file --device LABEL=KEYS --path /other.key --secret-file -";
    let other = device.run(other)?;
    assert!(other.status == 1 && other.stderr.contains("has another one"), "{other:?}");
    // Mounted or not, it is tried.
    let by_itself = |device: &mut Device| -> Result<bool, Failed> {
        let ways = device.tells("nemosctl keys forecast --json")?["ways"].clone();
        Ok(ways
            .as_array()
            .into_iter()
            .flatten()
            .any(|way| way["provider"] == "key-file" && way["outlook"] == "by-itself"))
    };
    assert!(by_itself(&mut device)?);
    device.says(&format!("umount {stick}"))?;
    assert!(by_itself(&mut device)?, "{}", device.run("nemosctl keys forecast")?.stdout);
    device.says(&mount)?;
    let rotated = device.tells("nemosctl keys rotate key-file --json")?;
    assert_eq!(rotated["place"], "LABEL=KEYS:/nemos.key.new", "{rotated}");
    assert_eq!(device.says(&format!("stat --format '%a %s' {stick}/nemos.key.new"))?.trim(), "600 64");

    // A boot without that disk is opened by what comes next.
    device.reboots()?;
    assert_eq!(opened_by(&mut device)?, "demo-key");
    let forecast = device.says("nemosctl keys forecast")?;
    assert!(forecast.contains("the device with LABEL=KEYS is not there"), "{forecast}");
    Ok(())
}

pub fn what_the_firmware_and_the_tpm_will_not_take_is_foreseen_before_they_refuse() -> Case {
    let signed = Signed::find()?;
    let mut disk = signed.disk()?.with_tpm();
    disk.takes_from_esp(&mut signed.disk_with_another_root_key()?, "/EFI/BOOT/BOOTX64.EFI", "/EFI/other.efi")?;
    let mut device = disk.boots_secured_given(&signed, "open sesame")?;
    device.waits_until("nemosctl keys --json | grep --quiet tpm2")?;
    device.says("printf 'open sesame' | nemosctl keys enroll passphrase --secret-file -")?;
    device.says("nemosctl keys remove 0 --yes")?;
    let forecast = |device: &mut Device| -> Result<(String, String), Failed> {
        let forecast = device.tells("nemosctl keys forecast --json || [ $? -le 2 ]")?;
        let ways = forecast["ways"].as_array().into_iter().flatten();
        let why = ways.into_iter().find(|way| way["provider"] == "tpm2").and_then(|way| way["why"].as_str());
        Ok((forecast["outlook"].as_str().unwrap_or_default().to_owned(), why.unwrap_or_default().to_owned()))
    };
    let sound = ("by-itself".to_owned(), "it was tried now".to_owned());
    assert_eq!(forecast(&mut device)?, sound);
    device.reboots()?;
    assert_eq!(opened_by(&mut device)?, "tpm2", "by what is signed of PCR 11, too");

    // Another kernel image: one that was changed, none at all, one whose measurements are signed by somebody else.
    device.says("mkdir /run/esp && mount /dev/disk/by-partlabel/p.UEFI /run/esp")?;
    let image = "/run/esp/EFI/BOOT/BOOTX64.EFI";
    let byte = format!("dd bs=1 count=1 status=none if={image} skip=12000000");
    let put = format!("dd bs=1 conv=notrunc status=none of={image} seek=12000000");
    device.says(&format!("{byte} > /run/byte && tr '\\000-\\377' '\\001-\\377\\000' < /run/byte | {put}"))?;
    let (outlook, why) = forecast(&mut device)?;
    assert!(outlook == "locked-out" && why.contains("changed after it was signed"), "{outlook}: {why}");
    assert_eq!(device.run("nemosctl keys forecast")?.status, 2);
    let health = device.run("nemosctl health")?;
    assert!(health.status != 0 && health.stdout.contains("nothing that is known opens the overlay"), "{health:?}");
    device.says(&format!("{put} < /run/byte"))?;
    assert_eq!(forecast(&mut device)?, sound);
    device.says(&format!("mv {image} /run/esp/EFI/ours.efi"))?;
    let (outlook, why) = forecast(&mut device)?;
    assert!(outlook == "locked-out" && why.contains("there is no EFI/BOOT/BOOTX64.EFI"), "{outlook}: {why}");
    device.says(&format!("mv /run/esp/EFI/other.efi {image}"))?;
    let (outlook, why) = forecast(&mut device)?;
    assert!(outlook == "needs-somebody" && why.contains("(PCR 11)"), "{outlook}: {why}");
    device.says(&format!("mv /run/esp/EFI/ours.efi {image} && umount /run/esp"))?;
    assert_eq!(forecast(&mut device)?, sound);

    // Another key that the firmware trusts.
    let update: Vec<_> = signed.trusts_the_other_key()?.iter().map(|byte| format!("\\0{byte:03o}")).collect();
    let update = update.concat();
    device.says(&format!("printf '%b' '{update}' > /run/update"))?;
    device.says("db=$(echo /sys/firmware/efi/efivars/db-*) && chattr -i $db && cat /run/update > $db")?;
    device.says("timeout 300 sh -c 'until nemosctl health | grep --quiet \"db changed\"; do sleep 2; done'")?;
    let (outlook, why) = forecast(&mut device)?;
    assert!(outlook == "needs-somebody" && why.contains("Secure Boot's db changed"), "{outlook}: {why}");
    device.reboots()?;
    assert_eq!(opened_by(&mut device)?, "passphrase", "as it was foreseen");
    Ok(())
}

/// The provider of the key that opened this boot.
fn opened_by(device: &mut Device) -> Result<String, Failed> {
    let slots = device.tells("nemosctl keys --json")?;
    let opened = slots.as_array().into_iter().flatten().find(|slot| slot["opened_boot"] == true);
    Ok(opened
        .and_then(|slot| slot["provider"].as_str())
        .ok_or_else(|| format!("nothing opened it: {slots}"))?
        .to_owned())
}

/// Counts how often a text is in the memory of a process that can be written to.
const IN_MEMORY: &str = r#"perl -e '
    my ($pid, $text) = @ARGV;
    open(my $maps, "<", "/proc/$pid/maps") or die; open(my $memory, "<:raw", "/proc/$pid/mem") or die;
    my $count = 0;
    while (<$maps>) {
        next unless /^([0-9a-f]+)-([0-9a-f]+) rw/;
        my ($begin, $end) = (hex $1, hex $2);
        sysseek($memory, $begin, 0) or next; sysread($memory, my $bytes, $end - $begin) or next;
        $count += () = $bytes =~ /\Q$text\E/g;
    }
    print "$count\n"' $(systemctl show --property MainPID --value nemosd)"#;

pub fn secrets_are_nowhere_but_in_the_hands_of_who_asked() -> Case {
    let mut device = Device::running()?;
    device.says("systemd-run --quiet --unit watch sh -c 'busctl monitor org.nemos.Device1 > /run/seen 2>&1'")?;
    device.waits_until("grep --quiet Monitoring /run/seen")?;
    let key = device.tells("nemosctl keys enroll recovery-key --json")?;
    let key = key["recovery_key"].as_str().ok_or("no key")?.to_owned();
    let fleet = age::x25519::Identity::generate();
    let sealed = device.tells(&format!("nemosctl keys recovery create --recipient {} --json", fleet.to_public()))?;
    let sealed = sealed["sealed_key"].as_str().ok_or("no key")?;
    let sealed = String::from_utf8(age::decrypt(&fleet, sealed.as_bytes())?)?;
    let typed = "correct horse battery staple";
    device.says(&format!("printf '{typed}' | nemosctl keys enroll passphrase --secret-file -"))?;
    device.waits_until("grep --quiet Enroll /run/seen")?;
    assert_ne!(device.says(&format!("{IN_MEMORY} org.nemos.Device1"))?, "0", "the search finds what is there");
    for secret in [&key, &sealed, typed] {
        assert_eq!(device.says(&format!("{IN_MEMORY} '{secret}'"))?, "0", "a secret is in nemosd's memory");
        assert_eq!(device.says(&format!("grep --count '{secret}' /run/seen || true"))?, "0", "a secret is on the bus");
        assert_eq!(device.says(&format!("journalctl --boot --all | grep --count '{secret}' || true"))?, "0");
    }
    let limits = device.says("systemctl show nemosd --property LimitCORE,MemorySwapMax")?;
    assert!(limits.contains("LimitCORE=0") && limits.contains("MemorySwapMax=0"), "{limits}");
    Ok(())
}
