//! What the kernel complains about.

use nemos_tests::{Case, Device};

/// A device on which no read and no write failed since it was booted.
pub fn has_no_errors(device: &mut Device) -> Case {
    let log = device.says("dmesg")?;
    let complaints = ["INTEGRITY AEAD ERROR", "I/O error", "is corrupted", "metadata corruption", "EXT4-fs error"];
    let errors: Vec<_> = log.lines().filter(|line| complaints.iter().any(|what| line.contains(what))).collect();
    assert!(errors.is_empty(), "the kernel log has errors: {errors:#?}");
    Ok(())
}
