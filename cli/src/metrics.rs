//! `nemosctl metrics`: the device in numbers, for Prometheus.
//!
//! Source: OpenMetrics 1.0, which Prometheus' node exporter reads as well (`--collector.textfile.directory`).

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use nemos_api::CallError;
use nemos_api::integrity::{IntegrityProxy, VolumeRecord};
use nemos_model::health::Health;
use zbus::Connection;

use crate::Failure;
use crate::arguments::Metrics as Arguments;
use crate::output::print;
use crate::status::Status;

/// A sample: labels and their values, and its own.
type Sample<'a> = (Vec<(&'a str, &'a str)>, f64);

/// Asks, writes, and says how to exit: 3 if there is nobody to ask, which is a number too.
pub async fn run(connection: Result<Connection, CallError>, arguments: Arguments) -> Result<u8, Failure> {
    let asked = match &connection {
        Ok(connection) => ask(connection).await,
        Err(error) => Err(error.clone()),
    };
    let text = match &asked {
        Ok((status, volumes)) => render(status, volumes),
        Err(_) => unknown(),
    };
    match arguments.output {
        Some(path) => replace(&path, &text)?,
        None => print(&text)?,
    }
    match asked {
        Ok(_) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

async fn ask(connection: &Connection) -> Result<(Status, Vec<VolumeRecord>), CallError> {
    Ok((Status::ask(connection).await?, IntegrityProxy::new(connection).await?.volumes().await?))
}

/// Whoever reads the file meanwhile reads the old one, or the new one.
fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    let new = path.with_extension("new");
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, path));
    let named = |error: std::io::Error| std::io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    written.map_err(|error| Failure::Output(named(error)))
}

#[allow(clippy::cast_precision_loss, reason = "a metric is a floating-point number")]
fn render(status: &Status, volumes: &[VolumeRecord]) -> String {
    let mut text = String::new();
    let mut family = |name: &str, help: &str, samples: &[Sample<'_>]| push(&mut text, name, help, samples);
    let health = match status.health {
        Health::Ok => 0.0,
        Health::Warning => 1.0,
        Health::Critical => 2.0,
    };
    family("nemos_health", HEALTH, &[(Vec::new(), health)]);
    let info = vec![
        ("version", status.version.as_str()),
        ("image_id", status.image.id.as_str()),
        ("image_version", status.image.version.as_str()),
    ];
    family("nemos_build_info", "What runs on the device; always 1.", &[(info, 1.0)]);
    let degraded = f64::from(u8::from(!status.degraded.is_empty()));
    family(
        "nemos_degraded",
        "Whether the device came up without something that it should have.",
        &[(Vec::new(), degraded)],
    );
    let found = [Health::Warning, Health::Critical].map(|health| {
        let count = status.findings.iter().filter(|finding| finding.health == health).count();
        (vec![("health", health.name())], count as f64)
    });
    family("nemos_findings", "What somebody should look at.", &found);

    let of_volumes = |value: &dyn Fn(&VolumeRecord) -> Option<f64>| -> Vec<Sample<'_>> {
        volumes.iter().filter_map(|volume| Some((vec![("volume", volume.name.as_str())], value(volume)?))).collect()
    };
    family(
        "nemos_damaged_places",
        "Places of a volume that are damaged.",
        &of_volumes(&|volume| Some(volume.errors as f64)),
    );
    family(
        "nemos_corrected_places",
        "Places of a volume that are put right at each read.",
        &of_volumes(&|volume| Some(volume.corrected as f64)),
    );
    family(
        "nemos_last_scrub_timestamp_seconds",
        "When the last complete scrub of a volume began; absent if there was none.",
        &of_volumes(&|volume| volume.last_scrub.map(|time| time as f64)),
    );
    family("nemos_scrub_coverage_ratio", "How much the newest scrub has read.", &of_volumes(&|volume| volume.coverage));

    let of_layers = |value: &dyn Fn(&nemos_model::stack::Layer) -> Option<u64>| -> Vec<Sample<'_>> {
        let file_systems = status.storage.iter().filter(|layer| layer.used.is_some());
        file_systems.filter_map(|layer| Some((vec![("mount", layer.name.as_str())], value(layer)? as f64))).collect()
    };
    family("nemos_file_system_size_bytes", "Size of a file system.", &of_layers(&|layer| layer.size));
    family("nemos_file_system_used_bytes", "Bytes in use.", &of_layers(&|layer| layer.used));
    text.push_str("# EOF\n");
    text
}

const HEALTH: &str = "Health of the device: 0 ok, 1 warning, 2 critical, 3 unknown.";

fn unknown() -> String {
    let mut text = String::new();
    push(&mut text, "nemos_health", HEALTH, &[(Vec::new(), 3.0)]);
    text + "# EOF\n"
}

/// A family of gauges; one without samples is not there.
fn push(text: &mut String, name: &str, help: &str, samples: &[Sample<'_>]) {
    if samples.is_empty() {
        return;
    }
    // Writing to a string does not fail.
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
    for (labels, value) in samples {
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(text, "{name}{labels} {value}");
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::integrity::tests::volume;
    use crate::status::tests::healthy;

    #[test]
    fn the_device_is_told_in_numbers() {
        let root = VolumeRecord {
            errors: 2,
            last_scrub: Some(1_795_442_786),
            coverage: Some(0.25),
            ..volume("verityRoot", "dm-verity")
        };
        insta::assert_snapshot!(render(&healthy(), &[root, volume("p.lxhome", "ext4")]));
    }

    #[test]
    fn a_device_that_cannot_be_asked_is_a_number_too() {
        assert!(unknown().contains("\nnemos_health 3\n") && unknown().ends_with("# EOF\n"));
    }

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nemos.prom");
        replace(&path, "one").unwrap();
        replace(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        folder.close().unwrap();
        let error = replace(&path, "three").unwrap_err().to_string();
        assert!(error.contains("nemos.prom"), "{error}");
    }
}
