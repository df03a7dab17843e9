//! Containers that ship with the image, and those of the device.

use nemos_tests::{Case, Device, Failed};

const SHIPPED: &str = "localhost/busybox:latest";

pub fn one_that_ships_with_the_image_runs() -> Case {
    let mut device = Device::running()?;
    assert_eq!(device.says(&format!("podman run --rm {SHIPPED} echo hello"))?, "hello");
    // Without a registry and without a network there is nothing else that it could have come from.
    assert_eq!(device.says("podman run --rm --network none --pull never busybox sh -c 'echo $((6 * 7))'")?, "42");
    Ok(())
}

pub fn what_is_built_on_the_device_is_listed_beside_what_shipped() -> Case {
    let mut device = Device::running()?;
    device
        .says(&format!("printf 'FROM {SHIPPED}\\nRUN echo built > /note\\n' | podman build --tag localhost/own:1 -"))?;
    assert_eq!(device.says("podman run --rm localhost/own:1 cat /note")?, "built");
    assert_eq!(listed(&mut device)?, [(SHIPPED.to_owned(), true), ("localhost/own:1".to_owned(), false)]);
    Ok(())
}

pub fn the_store_that_ships_is_whole_and_cannot_be_changed() -> Case {
    let mut device = Device::running()?;
    // It puts every layer together again, and compares digests.
    device.says("podman system check")?;
    device.says(&format!("podman save --format oci-archive --output /tmp/saved.tar {SHIPPED}"))?;
    let removed = device.run(&format!("podman rmi {SHIPPED}"))?;
    assert!(removed.status != 0 && removed.stderr.contains("read-only"), "{removed:?}");
    assert_eq!(listed(&mut device)?, [(SHIPPED.to_owned(), true)]);
    Ok(())
}

/// Names of images, and whether they can only be read.
fn listed(device: &mut Device) -> Result<Vec<(String, bool)>, Failed> {
    let images = device.tells("podman images --format json")?;
    let mut found = Vec::new();
    for image in images.as_array().into_iter().flatten() {
        for name in image["Names"].as_array().into_iter().flatten().filter_map(|name| name.as_str()) {
            found.push((name.to_owned(), image["ReadOnly"] == true));
        }
    }
    found.sort();
    Ok(found)
}
