//! What the kernel calls the devices of this boot.

use std::fs;
use std::path::Path;

use devicemapper::DM;
use nemos_model::integrity::Volume;
use nemos_model::integrity::volume::Names;
use nemos_model::stack::SeenPartition;
use tracing::debug;

/// The names of the mappings that are there now, and of these partitions.
pub fn names(partitions: &[SeenPartition]) -> Names {
    let mut names = Names::default();
    match DM::new().and_then(|dm| dm.list_devices()) {
        Ok(mappings) => {
            for (name, device, _) in mappings {
                let name = name.to_string();
                let under_verity = Volume::ALL.into_iter().find(|volume| volume.verity_mapping() == Some(&name));
                if let Some(volume) = under_verity.or_else(|| name.parse().ok()) {
                    names.add(format!("{}:{}", device.major, device.minor), volume);
                    names.add(format!("dm-{}", device.minor), volume);
                }
            }
        }
        Err(error) => debug!(%error, "device-mapper cannot be asked"),
    }
    for seen in partitions {
        // dm-crypt and dm-integrity name their mappings; dm-verity names what it lies on.
        let volume = Volume::ALL.into_iter().find(|volume| volume.partition() == seen.partition);
        if let (Some(volume), Some(name)) = (volume, Path::new(&seen.device).file_name().and_then(|name| name.to_str()))
        {
            names.add(name, volume);
            let number = fs::read_to_string(format!("/sys/class/block/{name}/dev")).unwrap_or_default();
            names.add(number.trim(), volume);
        }
    }
    names
}
