//! Back to the factory state.

use nemos_model::partitions::Partition;
use nemos_tests::{Case, Device, Failed};
use serde_json::Value;

use crate::factory::{MADE_HERE, RESET, is_as_shipped, last_reset, overlay_uuid, use_it};
use crate::kernel_log::has_no_errors;

pub fn a_factory_reset_takes_away_what_was_made_on_the_device() -> Case {
    let mut device = Device::running()?;
    let before = use_it(&mut device)?;
    let asked_after: u64 = device.says("date +%s")?.parse()?;

    device.reboots_by(RESET)?;

    is_as_shipped(&mut device, &before)?;
    let job = last_reset(&mut device)?;
    assert_eq!(job["RequestedBy"]["uid"], 0, "{job}");
    assert_eq!(job["RequestedBy"]["user"], "root", "{job}");
    let requested_at = job["RequestedAt"].as_u64().ok_or("the job does not say when it was asked for")?;
    let finished_at = job["FinishedAt"].as_u64().ok_or("the job does not say when it ended")?;
    assert!(asked_after <= requested_at && requested_at < finished_at, "asked after {asked_after}: {job}");
    Ok(())
}

pub fn a_kept_file_survives_a_factory_reset_and_the_device_becomes_another() -> Case {
    let mut device = Device::running()?;
    let before = use_it(&mut device)?;
    device.says("echo kept-here > /etc/hostname; chmod 640 /etc/hostname; chown root:adm /etc/hostname")?;
    let kept = device.says("stat --format '%a %U:%G %y' /etc/hostname")?;
    let identity = identity(&mut device)?;

    device.reboots_by("nemosctl reset --factory --keep /etc/hostname --yes")?;

    is_as_shipped(&mut device, &before)?;
    assert_eq!(device.says("cat /etc/hostname")?, "kept-here");
    assert_eq!(device.says("stat --format '%a %U:%G %y' /etc/hostname")?, kept);
    assert_ne!(self::identity(&mut device)?, identity, "machine-id and host keys are the old ones");
    assert_eq!(device.says("ls /var/lib/nemos | grep -c kept || true")?, "0", "what waited is still there");

    let history = device.tells("nemosctl reset history --json")?;
    let job = history.as_array().and_then(|jobs| jobs.last()).ok_or("no reset is remembered")?;
    for (partition, grade) in [
        (Partition::Root, "key-destroyed"),
        (Partition::Home, "formatted"),
        (Partition::OciStorage, "formatted"),
        (Partition::OciPreloaded, "untouched"),
        (Partition::State, "untouched"),
    ] {
        assert_eq!(job["grades"][partition.label()], grade, "{partition} in {job}");
    }
    let checks = job["audit"].as_array().ok_or("the reset was not audited")?;
    assert!(checks.len() >= 4 && checks.iter().all(|check| check["passed"] == true), "{job}");
    for told in ["requested_at", "begun_at", "finished_at", "plan"] {
        assert!(job[told].is_string(), "{told} in {job}");
    }
    Ok(())
}

pub fn an_overlay_reset_leaves_home_and_containers_and_a_keep_set_who_it_is() -> Case {
    let mut device = Device::running()?;
    use_it(&mut device)?;
    let identity = identity(&mut device)?;

    device.reboots_by("nemosctl reset --overlay --keep-set identity --label tidy --yes")?;

    let [in_etc, others @ ..] = MADE_HERE;
    assert_ne!(device.run(&format!("test -e {in_etc}"))?.status, 0, "{in_etc} is still there");
    for file in others {
        assert_eq!(device.says(&format!("cat {file}"))?, "made here", "{file}");
    }
    assert_eq!(self::identity(&mut device)?, identity);
    let job = last_reset(&mut device)?;
    assert_eq!((&job["Kind"], &job["State"]), (&Value::from("reset-overlay"), &Value::from("done")), "{job}");
    assert_eq!(job["RequestedBy"]["label"], "tidy", "{job}");
    has_no_errors(&mut device)
}

pub fn a_new_volume_key_leaves_everything_else_as_it_was() -> Case {
    let mut device = Device::running()?;
    let volume = use_it(&mut device)?;
    device.says("echo saved > /etc/hostname && rm /etc/issue && mkdir /etc/app && ln /etc/made-here /etc/app/same")?;
    device.reboots_by("nemosctl overlay save site --yes")?;
    device.reboots_by("nemosctl overlay apply site --yes")?;
    device.says("echo later > /etc/later")?;
    let described = |device: &mut Device| -> Result<String, Failed> {
        let files = device.says(
            "stat --format '%n %h %a %U:%G %y %w' /etc/hostname /etc/made-here /etc/app/same /etc/later; test -e /etc/issue || echo no issue",
        )?;
        let others = device.says("podman images --format '{{.Repository}} {{.ID}}'; cat /home/made-here /var/lib/containers/storage/made-here")?;
        let configuration = device.says("nemosctl overlay list | cut -d' ' -f1")?;
        let active = device.tells("nemosctl overlay --json")?["configuration"].clone();
        Ok(format!("{}\n{files}\n{others}\n{configuration}\n{active}", identity(device)?))
    };
    let before = described(&mut device)?;
    let plan = device.tells("nemosctl reset --overlay --keep-all --dry-run --json")?;
    assert_eq!(plan["erased"][0]["how"], "key-replaced", "{plan}");
    assert!(plan["keep_all"].as_u64() > Some(1 << 20) && plan["room"]["on"].is_string(), "{plan}");
    let told = device.run("nemosctl reset --factory --keep-all --yes")?;
    assert!(told.status != 0 && told.stderr.contains("--keep-all"), "{told:?}");

    device.reboots_by("nemosctl reset --overlay --keep-all --yes")?;

    assert_eq!(described(&mut device)?, before);
    assert_ne!(overlay_uuid(&mut device)?, volume);
    let job = last_reset(&mut device)?;
    assert_eq!((&job["State"], &job["Result"]["kept-all"]), (&Value::from("done"), &Value::from(true)), "{job}");
    device.says("! ls -a /home /var/lib/containers/storage /var/lib/nemos | grep kept")?;
    has_no_errors(&mut device)
}

/// What tells this device from all others.
fn identity(device: &mut Device) -> Result<String, Failed> {
    device.says("cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub")
}

pub fn a_plan_changes_nothing_and_holds_only_while_it_is_true() -> Case {
    let mut device = Device::running()?;
    device.says("mkdir /etc/app && echo settings > /etc/app/config")?;
    let keep = "--factory --keep /etc/app";
    let plan = device.tells(&format!("nemosctl reset {keep} --dry-run --json"))?;
    assert_eq!(plan["keep"][0]["path"], "/etc/app", "{plan}");
    assert_eq!(plan["keep"][0]["entries"], 2, "{plan}");
    assert!(plan["seconds"].is_u64(), "{plan}");
    let told = device.says(&format!("nemosctl reset {keep} --plan"))?;
    for part in ["This goes:", "key destroyed", "This is kept of it:", "/etc/app", "This stays:", "SSH host keys"] {
        assert!(told.contains(part), "`{part}` is not in {told}");
    }
    assert_eq!(device.tells("nemosctl job list --json")?.as_array().map(Vec::len), Some(1), "only the first boot's");

    device.says("seq 100000 > /etc/app/more && sync")?;
    let name = plan["plan"].as_str().ok_or("the plan has no name")?;
    refused(&mut device, &format!("{keep} --yes --if-plan {name}"), "ask for the plan again")?;
    assert_eq!(pending(&mut device)?, 0);
    Ok(())
}

pub fn what_cannot_be_kept_is_refused_in_a_sentence() -> Case {
    let mut device = Device::running()?;
    device.says("ln -s /etc /root/link && mknod /root/null c 1 3 && fallocate -l 80M /root/large")?;
    for (options, reason) in [
        ("--factory --keep etc/hostname", "does not begin with a slash"),
        ("--factory --keep /etc/../home/x", "`..`"),
        ("--factory --keep /", "everything"),
        ("--factory --keep /root/link/hostname", "symbolic link"),
        ("--factory --keep /root/null", "device node"),
        ("--factory --keep /run/nemos", "nothing below /run belongs to a reset"),
        ("--factory --keep /etc/missing", "is not there"),
        ("--factory --keep /root/large", "keep less"),
        ("--factory --keep-set nothing", "no keep set `nothing`"),
        ("--overlay --keep /home", "stays without being kept"),
    ] {
        refused(&mut device, &format!("{options} --yes"), reason)?;
    }
    assert_eq!(pending(&mut device)?, 0);
    Ok(())
}

pub fn a_reset_for_later_can_be_taken_back_and_there_is_one_at_a_time() -> Case {
    let mut device = Device::running()?;
    let asked = device.tells("nemosctl reset --factory --yes --at +1h --key ticket-17 --json")?;
    assert_eq!((&asked["state"], &asked["rebooting"]), (&Value::from("queued"), &Value::from(false)), "{asked}");
    let again = device.tells("nemosctl reset --factory --yes --at +1h --key ticket-17 --json")?;
    assert_eq!(again["job"], asked["job"]);
    let job = asked["job"].as_str().ok_or("the job has no name")?;
    refused(&mut device, "--overlay --yes", job)?;
    device.says(&format!("nemosctl job cancel {job}"))?;
    refused(&mut device, "--factory --yes --at yesterday", "is not a time")?;

    let waiting = device.tells("nemosctl reset --overlay --no-reboot --yes --json")?;
    assert_eq!(waiting["state"], "waiting-for-reboot", "{waiting}");
    device.says(&format!("nemosctl job cancel {}", waiting["job"].as_str().unwrap_or_default()))?;
    device.reboots()?;
    assert_eq!(last_reset(&mut device)?["State"], "cancelled");
    Ok(())
}

pub fn systemds_factory_reset_target_ends_in_the_same_reset() -> Case {
    let mut device = Device::running()?;
    let before = use_it(&mut device)?;
    device.reboots_by("systemctl start factory-reset.target")?;
    is_as_shipped(&mut device, &before)?;
    assert_eq!(last_reset(&mut device)?["RequestedBy"]["label"], "factory-reset.target");
    Ok(())
}

pub fn the_command_line_ends_in_the_same_reset() -> Case {
    let mut device = Device::running()?;
    let before = use_it(&mut device)?;
    let mut device = device.powers_off()?.boots_with("systemd.factory_reset=1")?;
    is_as_shipped(&mut device, &before)?;
    let label = &last_reset(&mut device)?["RequestedBy"]["label"];
    assert!(label.as_str().is_some_and(|label| label.contains("kernel command line")), "{label}");
    Ok(())
}

pub fn a_reset_that_cannot_be_finished_leaves_the_device_up_and_can_be_tried_again() -> Case {
    let (label, hidden) = (Partition::Home.label(), "p.hidden");
    let mut device = Device::running()?;
    let before = use_it(&mut device)?;
    let asked = device.tells("nemosctl reset --factory --no-reboot --yes --json")?;
    let job = asked["job"].as_str().ok_or("the job has no name")?.to_owned();
    let mut disk = device.powers_off()?;
    disk.renames(label, hidden)?;
    let mut device = disk.boots()?;
    for _ in 1..3 {
        let told = device.tells(&format!("nemosctl job show {job} --json"))?;
        assert_eq!(told["state"], "waiting-for-reboot", "{told}");
        assert_eq!(told["error"]["step"], "format-home", "{told}");
        device.reboots()?;
    }
    let told = device.tells(&format!("nemosctl job show {job} --json"))?;
    assert_eq!((&told["state"], &told["error"]["attempts"]), (&Value::from("failed"), &Value::from(3)), "{told}");
    let status = device.run("nemosctl status")?;
    assert!(status.status == 2 && status.stdout.contains("nemosctl job retry"), "{status:?}");

    device.says(&format!("nemosctl job retry {job}"))?;
    let mut disk = device.powers_off()?;
    disk.renames(hidden, label)?;
    let mut device = disk.boots()?;
    is_as_shipped(&mut device, &before)
}

/// A reset that nemosctl refuses, with a sentence that has these words in it.
fn refused(device: &mut Device, options: &str, reason: &str) -> Case {
    let said = device.run(&format!("nemosctl reset {options}"))?;
    let is_sentence = said.stderr.starts_with("nemosctl: ") && said.stderr.trim_end().lines().count() == 1;
    assert!(said.status != 0 && is_sentence && said.stderr.contains(reason), "`reset {options}`: {said:?}");
    Ok(())
}

/// How many jobs have not ended.
fn pending(device: &mut Device) -> Result<usize, Failed> {
    let jobs = device.tells("nemosctl job list --json")?;
    let ended = |job: &&Value| !["done", "failed", "cancelled"].iter().any(|state| job["state"] == *state);
    Ok(jobs.as_array().into_iter().flatten().filter(ended).count())
}
