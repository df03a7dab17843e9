//! What the device says of itself.

use nemos_model::partitions::Partition;
use nemos_tests::{Case, Device};
use serde_json::Value;

pub fn a_healthy_device_draws_each_layer_and_finds_nothing_wrong() -> Case {
    let mut device = Device::running()?;
    let drawn = device.says("nemosctl status")?;
    let mappings = ["verityRoot", "luks", "luks_dif"];
    let layers = mappings.into_iter().chain(Partition::ALL.map(Partition::label));
    for layer in layers.clone() {
        assert!(drawn.contains(layer), "{layer} is not drawn: {drawn}");
    }

    let status = device.tells("nemosctl status --json")?;
    let told: Vec<&Value> = status["storage"].as_array().into_iter().flatten().collect();
    for layer in layers {
        let found = told.iter().find(|told| told["name"] == layer);
        assert_eq!(found.map(|layer| &layer["state"]), Some(&Value::from("ok")), "{layer} in {status}");
    }
    assert_ne!(status["health"], "critical", "{status}");
    Ok(())
}
