//! The device as a whole.

use nemos_model::health::{Finding, Health};
use nemos_model::stack::{Layer, LayerState};
use zbus::{DeserializeDict, SerializeDict, Type, proxy};

use crate::CallError;

/// The Manager interface.
#[proxy(
    interface = "org.nemos.Device1.Manager",
    default_service = "org.nemos.Device1",
    default_path = "/org/nemos/Device1"
)]
pub trait Manager {
    /// Version of nemosd.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> Result<String, CallError>;

    /// `IMAGE_ID` of the image.
    #[zbus(property(emits_changed_signal = "const"))]
    fn image_id(&self) -> Result<String, CallError>;

    /// `IMAGE_VERSION` of the image.
    #[zbus(property(emits_changed_signal = "const"))]
    fn image_version(&self) -> Result<String, CallError>;

    /// The kernel's name for this boot.
    #[zbus(property(emits_changed_signal = "const"))]
    fn boot_id(&self) -> Result<String, CallError>;

    /// Whether the device came up without something that it should have.
    #[zbus(property(emits_changed_signal = "const"))]
    fn degraded(&self) -> Result<bool, CallError>;

    /// What it came up without, and what to do.
    #[zbus(property(emits_changed_signal = "const"))]
    fn degraded_reasons(&self) -> Result<Vec<String>, CallError>;

    /// `ok`, `warning` or `critical`.
    #[zbus(property)]
    fn health(&self) -> Result<String, CallError>;

    /// What the health follows from.
    #[zbus(property)]
    fn findings(&self) -> Result<Vec<FindingEntry>, CallError>;

    /// Each layer of the storage stack, as it is now.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn storage(&self) -> Result<Vec<LayerEntry>, CallError>;
}

/// A [`Layer`] on the wire.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct LayerEntry {
    name: String,
    kind: String,
    on: Vec<String>,
    state: String,
    detail: String,
    device: Option<String>,
    size: Option<u64>,
    used: Option<u64>,
}

impl From<Layer> for LayerEntry {
    fn from(layer: Layer) -> Self {
        let Layer { name, kind, on, state, detail, device, size, used } = layer;
        LayerEntry { name, kind, on, state: state.name().to_owned(), detail, device, size, used }
    }
}

impl From<LayerEntry> for Layer {
    /// A state of a later version is one that somebody should look at.
    fn from(entry: LayerEntry) -> Self {
        let LayerEntry { name, kind, on, state, detail, device, size, used } = entry;
        let state = match state.as_str() {
            "ok" => LayerState::Ok,
            "failed" => LayerState::Failed,
            _ => LayerState::Warning,
        };
        Layer { name, kind, on, state, detail, device, size, used }
    }
}

/// A [`Finding`] on the wire.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct FindingEntry {
    health: String,
    message: String,
}

impl From<Finding> for FindingEntry {
    fn from(finding: Finding) -> Self {
        FindingEntry { health: finding.health.name().to_owned(), message: finding.message }
    }
}

impl From<FindingEntry> for Finding {
    fn from(entry: FindingEntry) -> Self {
        Finding { health: health_named(&entry.health), message: entry.message }
    }
}

/// The health of that name; one of a later version is taken for a warning.
pub fn health_named(name: &str) -> Health {
    match name {
        "ok" => Health::Ok,
        "critical" => Health::Critical,
        _ => Health::Warning,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::wire::{LE, serialized::Context, to_bytes};

    #[test]
    fn a_layer_travels_whole_and_without_what_it_has_not() {
        let layer = Layer {
            name: "luks".into(),
            kind: "dm-crypt".into(),
            on: vec!["luks_dif".into()],
            state: LayerState::Failed,
            detail: "not active".into(),
            device: None,
            size: Some(1),
            used: None,
        };
        let sent = to_bytes(Context::new(LE, 0), &LayerEntry::from(layer.clone())).unwrap();
        let dictionary: crate::options::Dictionary = sent.deserialize().unwrap().0;
        assert!(dictionary.contains_key("size") && !dictionary.contains_key("used"));
        let received: LayerEntry = sent.deserialize().unwrap().0;
        assert_eq!(Layer::from(received), layer);
    }
}
