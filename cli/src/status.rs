//! `nemosctl status`: the storage stack, from the root down to each partition.

use nemos_api::CallError;
use nemos_api::manager::{ManagerProxy, health_named};
use nemos_model::health::{Finding, Health};
use nemos_model::image::Image;
use nemos_model::stack::{Layer, LayerState};
use serde::Serialize;
use zbus::Connection;

use crate::output::Output;
use crate::style::Style;
use crate::{Failure, table, text};

/// All that is shown. This is also the shape of `--json`; keys are added, never changed.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Version of nemosd.
    pub version: String,
    /// `{"id", "version"}`, empty where the image has none.
    pub image: Image,
    /// The kernel's name for this boot.
    pub boot_id: String,
    /// `ok`, `warning`, `critical`.
    pub health: Health,
    /// Why the boot is degraded; empty if it is not.
    pub degraded: Vec<String>,
    /// `[{"health", "message"}]`: what the health follows from.
    pub findings: Vec<Finding>,
    /// `[{"name", "kind", "on": [names], "state": "ok|warning|failed", "detail", "device", "size", "used"}]`; sizes in
    /// bytes, null where there is none.
    pub storage: Vec<Layer>,
}

/// Asks, prints, and says how to exit.
pub async fn run(connection: &Connection, output: Output) -> Result<u8, Failure> {
    let status = Status::ask(connection).await?;
    output.show(&status, |status| status.render(output.style))?;
    Ok(if status.health == Health::Critical { 2 } else { 0 })
}

impl Status {
    /// The state of the device that the bus leads to. The proxy reads all properties in one call.
    pub async fn ask(connection: &Connection) -> Result<Self, CallError> {
        let manager = ManagerProxy::new(connection).await?;
        Ok(Status {
            version: manager.version().await?,
            image: Image { id: manager.image_id().await?, version: manager.image_version().await? },
            boot_id: manager.boot_id().await?,
            health: health_named(&manager.health().await?),
            degraded: manager.degraded_reasons().await?,
            findings: manager.findings().await?.into_iter().map(Finding::from).collect(),
            storage: manager.storage().await?.into_iter().map(Layer::from).collect(),
        })
    }

    /// The status, for people.
    pub fn render(&self, style: Style) -> String {
        let image = [self.image.id.as_str(), self.image.version.as_str()].join(" ");
        let image = if image.trim().is_empty() { "an image without a name" } else { image.trim() };
        let health = style.health(self.health, self.health.name());
        let findings: String = self.findings.iter().map(|finding| render_finding(finding, style)).collect();
        format!("{image}, nemos {}: health {health}\n{findings}\n{}", self.version, tree(&self.storage, style))
    }
}

fn render_finding(finding: &Finding, style: Style) -> String {
    format!("  {} {}\n", style.health(finding.health, &format!("{}:", finding.health)), finding.message)
}

/// Draws the layers, each under what sits on it.
fn tree(layers: &[Layer], style: Style) -> String {
    let is_under = |layer: &Layer| layers.iter().any(|other| other.on.contains(&layer.name));
    let mut rows = Vec::new();
    for top in layers.iter().filter(|layer| !is_under(layer)) {
        draw(top, layers, "", "", &mut rows);
    }
    let drawn = table::columns(&rows.iter().map(|(row, _)| row.clone()).collect::<Vec<_>>());
    // Coloured after it was set in columns: colour has no width.
    let coloured = drawn.lines().zip(&rows).map(|(line, (_, state))| paint_state(line, *state, style));
    coloured.collect()
}

type Row = ([String; 6], LayerState);

/// `lead` stands before this layer's name, `below` before those of the layers under it.
fn draw(layer: &Layer, layers: &[Layer], lead: &str, below: &str, rows: &mut Vec<Row>) {
    // A stack is as deep as its number of layers; anything deeper goes in a circle.
    if rows.len() > layers.len() * layers.len() {
        return;
    }
    let row = [
        format!("{lead}{}", layer.name),
        layer.kind.clone(),
        layer.state.to_string(),
        layer.detail.clone(),
        usage(layer),
        layer.device.clone().unwrap_or_default(),
    ];
    rows.push((row, layer.state));
    let under: Vec<&Layer> =
        layer.on.iter().filter_map(|name| layers.iter().find(|other| other.name == *name)).collect();
    for (nth, other) in under.iter().enumerate() {
        let (lead, rest) = if nth + 1 == under.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        draw(other, layers, &format!("{below}{lead}"), &format!("{below}{rest}"), rows);
    }
}

fn usage(layer: &Layer) -> String {
    match (layer.used, layer.size) {
        (Some(used), Some(size)) => format!("{} of {}", text::bytes(used), text::bytes(size)),
        (None, Some(size)) => text::bytes(size),
        _ => String::new(),
    }
}

/// Colours the state's word: the first that stands between spaces.
fn paint_state(line: &str, state: LayerState, style: Style) -> String {
    let word = format!("  {state}");
    let painted = format!("  {}", style.state(state, state.name()));
    format!("{}\n", line.replacen(&word, &painted, 1))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn layer(name: &str, kind: &str, on: &[&str], state: LayerState, detail: &str) -> Layer {
        Layer {
            name: name.into(),
            kind: kind.into(),
            on: on.iter().map(|&name| name.to_owned()).collect(),
            state,
            detail: detail.into(),
            device: None,
            size: None,
            used: None,
        }
    }

    pub(crate) fn healthy() -> Status {
        use LayerState::Ok;
        let partition = |name, device: &str, size| Layer {
            device: Some(device.into()),
            size: Some(size),
            ..layer(name, "partition", &[], Ok, "present")
        };
        let storage = vec![
            layer("/", "overlay", &["/run/nemos/root", "/run/nemos/overlay"], Ok, "read-write"),
            layer("/run/nemos/root", "squashfs", &["verityRoot"], Ok, "read-only"),
            layer("verityRoot", "dm-verity", &["p.lxreadonly"], Ok, "verified"),
            Layer {
                size: Some(490 << 20),
                used: Some(12_345_678),
                device: Some("/dev/mapper/luks".into()),
                ..layer("/run/nemos/overlay", "xfs", &["luks"], Ok, "read-write")
            },
            layer("luks", "dm-crypt", &["luks_dif"], Ok, "active"),
            layer("luks_dif", "dm-integrity", &["p.lxroot"], Ok, "active"),
            layer("/home", "ext4", &["p.lxhome"], Ok, "read-write"),
            partition("p.UEFI", "/dev/vda1", 128 << 20),
            partition("p.lxhome", "/dev/vda2", 256 << 20),
            partition("p.lxreadonly", "/dev/vda6", 120 << 20),
            partition("p.lxroot", "/dev/vda7", 512 << 20),
        ];
        Status {
            version: "0.1.0".into(),
            image: Image { id: "nemos-image".into(), version: "2026.11.23".into() },
            boot_id: "0".repeat(32),
            health: Health::Warning,
            degraded: Vec::new(),
            findings: vec![Finding { health: Health::Warning, message: "demo key in use".into() }],
            storage,
        }
    }

    fn degraded() -> Status {
        let mut status = healthy();
        status.health = Health::Critical;
        status.findings[0] = Finding { health: Health::Critical, message: "the overlay is damaged".into() };
        status.storage.retain(|layer| !layer.name.starts_with("luks"));
        status.storage[3] = layer(
            "/run/nemos/overlay",
            "tmpfs",
            &[],
            LayerState::Failed,
            "in memory: changes are lost at the next boot",
        );
        status
    }

    #[test]
    fn a_healthy_stack_is_drawn_from_the_root_down() {
        insta::assert_snapshot!(healthy().render(Style::new(false)));
    }

    #[test]
    fn a_degraded_stack_says_so_in_red() {
        insta::assert_snapshot!(degraded().render(Style::new(true)));
    }

    #[test]
    fn the_json_is_stable() {
        let mut status = healthy();
        status.storage.truncate(4);
        insta::assert_snapshot!(serde_json::to_string_pretty(&status).unwrap());
    }

    #[test]
    fn a_stack_that_bites_its_tail_ends() {
        let mut status = healthy();
        status.storage[2].on = vec!["/run/nemos/root".into()];
        assert!(status.render(Style::new(false)).contains("verityRoot"));
    }
}
