//! A device that was used, and what a factory reset makes of it.

use nemos_tests::{Case, Device, Failed};
use serde_json::Value;

use crate::kernel_log::has_no_errors;

/// Asks for a reset and reboots.
pub const RESET: &str = "nemosctl reset --factory --yes";

/// Files that somebody made on a device: in the overlay, at home, among the containers.
pub const MADE_HERE: [&str; 3] = ["/etc/made-here", "/home/made-here", "/var/lib/containers/storage/made-here"];

/// Uses a device, and gives the UUID of its overlay.
pub fn use_it(device: &mut Device) -> Result<String, Failed> {
    for file in MADE_HERE {
        device.says(&format!("echo made here > {file}"))?;
    }
    device.says("sync")?;
    overlay_uuid(device)
}

/// Checks that a device which had the overlay `before` is as the image was, and knows why.
pub fn is_as_shipped(device: &mut Device, before: &str) -> Case {
    let report = device.run("cat /run/nemos/boot.json")?.stdout;
    for file in MADE_HERE {
        let there = device.run(&format!("test -e {file}"))?.status == 0;
        assert!(!there, "{file} is still there; this boot reported {report}");
    }
    assert_ne!(overlay_uuid(device)?, before, "the overlay has still the same volume");
    let job = last_reset(device)?;
    assert_eq!(job["State"], "done", "{job}");
    let status = device.run("nemosctl status")?;
    assert_eq!(status.status, 0, "{status:?}");
    has_no_errors(device)
}

/// Which volume the overlay has.
pub fn overlay_uuid(device: &mut Device) -> Result<String, Failed> {
    device.says("cryptsetup luksUUID /dev/disk/by-partlabel/p.lxroot")
}

/// The newest entry of the resets' history, without the types of its values.
pub fn last_reset(device: &mut Device) -> Result<Value, Failed> {
    let property = "org.nemos.Device1 /org/nemos/Device1 org.nemos.Device1.Reset History";
    let history = device.tells(&format!("busctl --json=short get-property {property}"))?;
    let last = history["data"].as_array().and_then(|jobs| jobs.last()).ok_or("no reset is remembered")?;
    Ok(plain(last))
}

/// The values of a dictionary of variants, as busctl prints it.
pub fn plain(value: &Value) -> Value {
    match value {
        Value::Object(map) if map.len() == 2 && map.contains_key("type") => plain(&map["data"]),
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), plain(value))).collect(),
        other => other.clone(),
    }
}
