//! The Device Statistics log: what a drive counts (ACS-3, A.5).

use crate::drive::Written;

/// Which logs there are.
pub(crate) const LOG_DIRECTORY: u8 = 0x00;
pub(crate) const STATISTICS: u8 = 0x04;
/// General Statistics, a page of [`STATISTICS`].
pub(crate) const STATISTICS_GENERAL: u8 = 0x01;

/// Whether the directory of logs has a page of general statistics: a word for each log, the number of its pages.
pub(crate) fn has_statistics(directory: &[u8]) -> bool {
    let word = |at: usize| directory.get(2 * at..)?.first_chunk().map(|word| u16::from_le_bytes(*word));
    word(0) == Some(1) && word(STATISTICS.into()).is_some_and(|pages| pages > STATISTICS_GENERAL.into())
}

/// Number of Write Commands and Logical Sectors Written. `None` if this is another page, or the drive doesn't count both.
pub(crate) fn written(page: &[u8]) -> Option<Written> {
    let is_general = page.get(2) == Some(&STATISTICS_GENERAL);
    is_general.then_some(())?;
    Some(Written { data_units: statistic(page, 24)?, commands: statistic(page, 32)? })
}

/// Of 48 bits, below a byte that says whether the drive has it, and whether it's valid.
fn statistic(page: &[u8], at: usize) -> Option<u64> {
    const SUPPORTED_AND_VALID: u64 = 0b11 << 62;
    let all = u64::from_le_bytes(*page.get(at..)?.first_chunk()?);
    (all & SUPPORTED_AND_VALID == SUPPORTED_AND_VALID).then_some(all & 0xffff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::ata::fixtures;

    #[test]
    fn what_was_written_is_counted() {
        let written_says = |change: fn(&mut Vec<u8>)| {
            let mut page = fixtures::general_statistics(70_000, 0x1234_5678_9abc);
            change(&mut page);
            written(&page)
        };
        let both = Some(Written { commands: 70_000, data_units: 0x1234_5678_9abc });
        for (name, change, want) in [
            ("both", (|_| ()) as fn(&mut Vec<u8>), both),
            ("another page", |page| page[2] = 5, None),
            ("sectors aren't valid", |page| page[31] = 1 << 7, None),
            ("commands aren't counted", |page| page[39] = 0, None),
            ("cut short", |page| page.truncate(39), None),
            ("nothing", |page| page.clear(), None),
        ] {
            assert_eq!(written_says(change), want, "{name}");
        }
        for (name, directory, want) in [
            ("it has them", fixtures::log_directory(8), true),
            ("only the list of pages", fixtures::log_directory(1), false),
            ("no such log", fixtures::log_directory(0), false),
            ("not a directory", vec![0xff; 512], false),
            ("cut short", fixtures::log_directory(8)[..9].to_vec(), false),
        ] {
            assert_eq!(has_statistics(&directory), want, "{name}");
        }
    }
}
