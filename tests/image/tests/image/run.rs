//! `nemos-image run`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;

use nemos_tests::{Case, Disk, Failed, Said, nemos_image};

pub fn a_command_gets_its_output_and_status_through_and_a_snapshot_leaves_the_disk_as_it_was() -> Case {
    let mut disk = Disk::fresh()?;
    let path = disk.bytes()?.to_owned();
    let before = fs::read(&path)?;

    let command = "cat /proc/sys/kernel/ostype; echo \"it's $1\" >&2; touch /home/written; sync; exit 7";
    let said = runs(&["--snapshot", &path.to_string_lossy(), "--", "sh", "-c", command, "sh", "$HOME"])?;

    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("Linux\n", "it's $HOME\n"));
    assert_eq!(said.status, Some(7));
    assert!(fs::read(&path)? == before, "the disk was written");
    Ok(())
}

pub fn a_tpm_stays_with_its_disk_and_a_snapshot_forgets_what_was_done_to_it() -> Case {
    let mut disk = Disk::fresh()?;
    let path = disk.bytes()?.to_string_lossy().into_owned();
    let key = |more: &[&str], then: &str| {
        let command = format!("nemosctl reset certificate-key && {then}");
        let arguments = [&["--tpm"], more, &[&path, "--", "sh", "-c", &command]].concat();
        let said = runs(&arguments)?;
        if said.stdout.starts_with("-----BEGIN PUBLIC KEY") {
            Ok(said.stdout)
        } else {
            Err(Failed::from(format!("{said:?}")))
        }
    };

    let first = key(&[], "true")?;
    let memory = tpm_memory(&path)?;
    assert_eq!(key(&["--snapshot"], "tpm2_clear --auth-hierarchy l --tcti device:/dev/tpmrm0")?, first);
    assert!(tpm_memory(&path)? == memory, "what a snapshot did to its TPM stayed");
    Ok(())
}

/// With the time that all cases have, and one processor, as they have: the limit that it has by itself is for a machine alone.
fn runs(arguments: &[&str]) -> Result<Said, Failed> {
    nemos_image(&[&["run", "--timeout", "400", "--cpus", "1"], arguments].concat())
}

/// What the TPM that belongs to a disk keeps, by the names of its files.
fn tpm_memory(disk: &str) -> Result<BTreeMap<OsString, Vec<u8>>, Failed> {
    let files = fs::read_dir(format!("{disk}.tpm"))?;
    files
        .map(|file| file.and_then(|file| Ok((file.file_name(), fs::read(file.path())?))).map_err(Failed::from))
        .collect()
}

pub fn a_command_that_reboots_the_machine_is_told() -> Case {
    let mut disk = Disk::fresh()?;
    let path = disk.bytes()?.to_string_lossy().into_owned();
    let said = runs(&["--snapshot", &path, "--", "sh", "-c", "systemctl reboot; sleep 600"])?;
    assert!(!matches!(said.status, Some(0) | None), "{said:?}");
    assert!(said.stderr.contains("the machine rebooted before"), "{said:?}");
    assert!(said.stderr.contains("reboot: Restarting system"), "{said:?}");
    Ok(())
}
