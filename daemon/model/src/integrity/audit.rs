//! Reads audit records for damage: there is one for each time, where the kernel's log is rate-limited.
//!
//! Sources: `dm_audit_log_bio()` in the kernel's `drivers/md/dm-audit.c`, and its callers in `dm-verity-target.c`, `dm-crypt.c`
//! and `dm-integrity.c`, as of Linux 6.12.

use crate::integrity::event::{Area, Kind};
use crate::integrity::kernel_log::{BLOCK, Driver, Report, block_of};

/// The type of a record that device-mapper makes of an event: `AUDIT_DM_EVENT` of the kernel's `linux/audit.h`.
pub const DM_EVENT: u16 = 1339;

/// Reads a record of type [`DM_EVENT`]: `audit(1732441000.123:45): module=verity op=verify-data dev=254:0 sector=17 res=0`.
/// dm-verity says blocks where it says sectors. `None` if it tells of no damage.
pub fn report(record: &str) -> Option<Report> {
    let (_, record) = record.split_once("): ")?;
    let value = |name: &str| record.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let sector: u64 = value("sector")?.parse().ok()?;
    if value("res")? != "0" {
        return None;
    }
    let (driver, area, start) = match (value("module")?, value("op")?) {
        ("verity", "verify-data") => (Driver::Verity, Area::Data, sector.checked_mul(BLOCK)),
        ("verity", "verify-metadata") => (Driver::Verity, Area::Tree, sector.checked_mul(BLOCK)),
        ("crypt", "integrity-aead") => (Driver::Crypt, Area::Data, block_of(sector)),
        ("integrity", "integrity-checksum") => (Driver::Integrity, Area::Data, block_of(sector)),
        _ => return None,
    };
    Some(Report { driver, device: Some(value("dev")?.to_owned()), kind: Kind::Corrupted, area, start })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_drivers_record_is_understood() {
        let told = |record: &str| {
            let report = report(&format!("audit(1732441000.123:45): {record}"))?;
            Some((report.driver, report.device?, report.area, report.start?))
        };
        let verity = told("module=verity op=verify-data dev=254:6 sector=17 res=0");
        assert_eq!(verity, Some((Driver::Verity, "254:6".into(), Area::Data, 17 * BLOCK)));
        let tree = told("module=verity op=verify-metadata dev=254:6 sector=26001 res=0");
        assert_eq!(tree, Some((Driver::Verity, "254:6".into(), Area::Tree, 26001 * BLOCK)));
        let crypt = told("module=crypt op=integrity-aead dev=254:1 sector=1028 res=0");
        assert_eq!(crypt, Some((Driver::Crypt, "254:1".into(), Area::Data, 1024 * 512)));
        let integrity = told("module=integrity op=integrity-checksum dev=254:3 sector=1032 res=0");
        assert_eq!(integrity, Some((Driver::Integrity, "254:3".into(), Area::Data, 1032 * 512)));
        assert_eq!(told("module=crypt op=ctr ppid=1 pid=5 dev=254:1 error_msg='success' res=1"), None);
        assert_eq!(told("module=verity op=verify-data dev=254:6 sector=17 res=1"), None);
    }

    proptest! {
        #[test]
        fn no_noise_makes_the_parser_panic(text: String, cut in 0_usize..70) {
            let _ = report(&text);
            let record = "audit(1.2:3): module=verity op=verify-data dev=254:6 sector=17 res=0";
            let _ = report(&format!("{}{text}", &record[..cut.min(record.len())]));
        }
    }
}
