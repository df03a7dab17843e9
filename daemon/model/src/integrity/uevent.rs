//! Reads uevents for damage: dm-verity sends one with every block that fails, up to a hundred, and these are not
//! rate-limited as its messages are.
//!
//! Source: `verity_handle_err()` in the kernel's `drivers/md/dm-verity-target.c`: `DM_VERITY_ERR_BLOCK_NR=<type>,<block>`, type 0
//! for data and 1 for the tree.

use crate::integrity::event::{Area, Kind};
use crate::integrity::kernel_log::{BLOCK, Driver, Report};

/// Reads a uevent as the kernel sends it: `action@path`, then variables, each ended by a zero byte. `None` if it tells of no
/// damage.
pub fn report(uevent: &[u8]) -> Option<Report> {
    let text = std::str::from_utf8(uevent).ok()?;
    let mut parts = text.split('\0');
    parts.next()?.split_once('@')?;
    let (mut block, mut device) = (None, None);
    for part in parts {
        match part.split_once('=') {
            Some(("DM_VERITY_ERR_BLOCK_NR", value)) => block = Some(value),
            Some(("DEVNAME", value)) => device = Some(value),
            _ => {}
        }
    }
    let (area, block) = block?.split_once(',')?;
    let area = match area {
        "0" => Area::Data,
        "1" => Area::Tree,
        _ => return None,
    };
    let start = Some(block.parse::<u64>().ok()?.checked_mul(BLOCK)?);
    let device = Some(device?.trim_start_matches("/dev/").to_owned());
    Some(Report { driver: Driver::Verity, device, kind: Kind::Corrupted, area, start })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sent(variables: &str) -> Option<Report> {
        report(format!("change@/devices/virtual/block/dm-0\0ACTION=change\0{variables}SEQNUM=1712\0").as_bytes())
    }

    #[test]
    fn a_damaged_block_is_understood() {
        let report = sent("SUBSYSTEM=block\0DM_VERITY_ERR_BLOCK_NR=0,17\0DEVNAME=dm-0\0").unwrap();
        assert_eq!((report.device.as_deref(), report.area, report.start), (Some("dm-0"), Area::Data, Some(17 * BLOCK)));
        let tree = sent("DM_VERITY_ERR_BLOCK_NR=1,26001\0DEVNAME=dm-0\0").unwrap();
        assert_eq!((tree.area, tree.start), (Area::Tree, Some(26001 * BLOCK)));
    }

    #[test]
    fn other_changes_are_none() {
        assert_eq!(sent("SUBSYSTEM=block\0DEVNAME=dm-0\0"), None);
        assert_eq!(sent("DM_VERITY_ERR_BLOCK_NR=2,17\0DEVNAME=dm-0\0"), None);
        assert_eq!(report(b"libudev\0\xfe\xed\xca\xfe"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>, block: String) {
            let _ = report(&bytes);
            let _ = sent(&format!("DM_VERITY_ERR_BLOCK_NR={block}\0DEVNAME=dm-0\0"));
        }
    }
}
