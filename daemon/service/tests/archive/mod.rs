//! Configurations that come and go in files, over a connection without a bus.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::os::fd::AsFd as _;

use nemos_api::archive::{ExportOptions, ImportOptions};
use nemos_api::overlay::OverlayProxy;
use nemos_api::{Error, ErrorKind};
use nemos_model::Timestamp;
use nemos_model::image::Image;
use nemos_model::overlay::Mode;
use nemos_model::overlay::archive::signature::FILE;
use nemos_model::overlay::configuration::About;

use crate::fake::Fixture;
use crate::refusal;

/// A device that has saved `site`.
async fn with_a_configuration() -> Fixture {
    let fixture = Fixture::new().await;
    let folder = fixture.device.volume.path().join("configurations/site");
    fs::create_dir_all(folder.join("tree/etc")).unwrap();
    fs::write(folder.join("tree/etc/site"), "seven").unwrap();
    let image = Image { id: "nemos-image".into(), version: "1".into() };
    let about = About::new(image, "ab".repeat(32).parse().unwrap(), Timestamp(7), None);
    fs::write(folder.join("about.json"), about.to_text()).unwrap();
    fixture
}

async fn exported(fixture: &Fixture) -> File {
    let overlay = OverlayProxy::new(&fixture.client).await.unwrap();
    let mut file = tempfile::tempfile().unwrap();
    let told = overlay.export("site", file.as_fd().into(), ExportOptions::default()).await.unwrap();
    assert!(told.digest.starts_with("sha256:") && told.left_out.is_empty(), "{told:?}");
    file.rewind().unwrap();
    file
}

async fn refused(fixture: &Fixture, name: &str, mut file: File, options: ImportOptions) -> Error {
    file.rewind().unwrap();
    let overlay = OverlayProxy::new(&fixture.client).await.unwrap();
    refusal(overlay.import(name, file.as_fd().into(), options).await)
}

#[tokio::test]
async fn a_configuration_comes_back_from_a_file() {
    let fixture = with_a_configuration().await;
    let overlay = OverlayProxy::new(&fixture.client).await.unwrap();
    let mut file = exported(&fixture).await;
    let (name, told) = overlay.import("copy", file.as_fd().into(), ImportOptions::default()).await.unwrap();
    assert_eq!((name.as_str(), told.exported_as.as_str(), told.made_at), ("copy", "site", 7));
    assert_eq!((told.image_id.as_str(), told.signed_by, told.bytes), ("nemos-image", None, 5));
    let copied = fixture.device.volume.path().join("configurations/copy/tree/etc/site");
    assert_eq!(fs::read_to_string(copied).unwrap(), "seven");

    file.rewind().unwrap();
    let dry = ImportOptions { dry_run: Some(true), replace: Some(true), ..ImportOptions::default() };
    assert_eq!(overlay.import("", file.as_fd().into(), dry).await.unwrap().0, "site");
}

#[tokio::test]
async fn a_file_that_is_not_taken_is_refused_by_name() {
    let fixture = with_a_configuration().await;
    let file = || async { exported(&fixture).await };
    let asked = ImportOptions::default;
    for name in ["factory", "a/b", "..", &"n".repeat(300)] {
        assert_eq!(refused(&fixture, name, file().await, asked()).await.kind, ErrorKind::InvalidArgument, "{name}");
    }
    assert_eq!(refused(&fixture, "", file().await, asked()).await.kind, ErrorKind::InvalidArgument, "it is there");
    let cut = file().await;
    cut.set_len(3000).unwrap();
    assert_eq!(refused(&fixture, "new", cut, asked()).await.kind, ErrorKind::Corrupt);
    let foreign = tempfile::tempfile().unwrap();
    foreign.set_len(10_000).unwrap();
    assert_eq!(refused(&fixture, "new", foreign, asked()).await.kind, ErrorKind::Corrupt);
    let folder = File::open("/").unwrap();
    assert_eq!(refused(&fixture, "new", folder, asked()).await.kind, ErrorKind::InvalidArgument);
    let signed = ImportOptions { signature: Some("signed".into()), ..asked() };
    assert_eq!(refused(&fixture, "new", file().await, signed).await.kind, ErrorKind::NotAuthorized);

    let policy = fixture.device.lower.path().join(FILE);
    fs::create_dir_all(policy.parent().unwrap()).unwrap();
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFAIMVDDfukdER4VvaqZ7WE0F0OAjGOR5TkSSH+rBVmW fleet";
    fs::write(&policy, format!(r#"{{"signers": ["{key}"], "require-signature": true}}"#)).unwrap();
    assert_eq!(refused(&fixture, "new", file().await, asked()).await.kind, ErrorKind::NotAuthorized);
    fs::write(&policy, "everybody").unwrap();
    assert_eq!(refused(&fixture, "new", file().await, asked()).await.kind, ErrorKind::Failed, "no policy is no leave");
    let names: Vec<_> = fs::read_dir(fixture.device.volume.path().join("configurations")).unwrap().collect();
    assert_eq!(names.len(), 1, "nothing was imported");
}

#[tokio::test]
async fn nothing_is_imported_where_it_would_not_stay() {
    let fixture = with_a_configuration().await;
    let file = exported(&fixture).await;
    fixture.device.boot_in(Mode::ReadOnly);
    let fixture = fixture.restart().await;
    let refused = refused(&fixture, "new", file, ImportOptions::default()).await;
    assert_eq!(refused.kind, ErrorKind::NotSupported);
    exported(&fixture).await;
}

#[tokio::test]
async fn only_what_is_there_is_exported_and_only_to_whom_may_have_it() {
    let fixture = with_a_configuration().await;
    let export = async |fixture: &Fixture, name: &str| {
        let overlay = OverlayProxy::new(&fixture.client).await.unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let refused = refusal(overlay.export(name, file.as_fd().into(), ExportOptions::default()).await);
        let mut written = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut written).unwrap();
        assert!(written.is_empty(), "{name}");
        refused.kind
    };
    assert_eq!(export(&fixture, "none").await, ErrorKind::NotFound);
    for name in ["factory", "../site", ""] {
        assert_eq!(export(&fixture, name).await, ErrorKind::InvalidArgument, "{name}");
    }
    assert_eq!(export(&fixture.restart_refusing().await, "site").await, ErrorKind::NotAuthorized);
}
