//! Which of a machine's drives is which of a layout's.

use std::collections::BTreeMap;
use std::fmt;

use super::{Amount, Device, Drive, Filesystem, Layout, Preference, Select, place};
use crate::glob::glob;
use crate::inventory::{Bus, Disk, DiskId};
use crate::words::bytes;

/// What an image needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Of the file system at `/`.
    pub root_bytes: u64,
    /// Of the drive that has it.
    pub disk_bytes: u64,
}

/// No drive of the machine can be this one of the layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmatched {
    pub drive: String,
    /// Every drive that the machine has, with what speaks against it.
    pub against: Vec<(DiskId, String)>,
}

impl fmt::Display for Unmatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the machine has no drive to be the layout's {:?}", self.drive)?;
        if self.against.is_empty() {
            return f.write_str(": it has none that can be installed on");
        }
        for (index, (disk, why)) in self.against.iter().enumerate() {
            let between = if index == 0 { ": " } else { "; " };
            write!(f, "{between}{disk} {why}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Unmatched {}

impl Layout {
    /// A drive of the machine for each of the layout, the preferred one where there's a choice.
    pub fn choose(&self, disks: &[Disk], needs: Needs) -> Result<BTreeMap<String, DiskId>, Unmatched> {
        let mut usable: Vec<(&Disk, DiskId)> =
            disks.iter().filter(|disk| disk.holds_data()).filter_map(|disk| Some((disk, disk.id()?))).collect();
        usable.sort_by(|(_, a), (_, b)| (a.size_bytes, a).cmp(&(b.size_bytes, b)));
        let candidates: Vec<Vec<usize>> = self
            .drives
            .iter()
            .map(|drive| {
                let fits = |index: &usize| self.objection(drive, usable[*index].0, needs).is_none();
                let mut fitting: Vec<usize> = (0..usable.len()).filter(fits).collect();
                if drive.select.prefer == Preference::Largest {
                    fitting.reverse();
                }
                fitting
            })
            .collect();
        if let Err((wanted, taken)) = everybody(&candidates, &vec![None; usable.len()], 0) {
            let drive = &self.drives[wanted];
            let against = usable.iter().zip(taken).map(|((disk, id), taken)| {
                let by = taken.and_then(|by| self.drives.get(by)).map_or("another", |drive| drive.name.as_str());
                let why = self.objection(drive, disk, needs).unwrap_or_else(|| format!("is needed as {by:?}"));
                (id.clone(), why)
            });
            return Err(Unmatched { drive: drive.name.clone(), against: against.collect() });
        }
        let mut taken = vec![None; usable.len()];
        for (wanted, list) in candidates.iter().enumerate() {
            // The first that it wants and the later ones can do without.
            for index in list.iter().filter(|index| taken[**index].is_none()).collect::<Vec<_>>() {
                taken[*index] = Some(wanted);
                if everybody(&candidates, &taken, wanted + 1).is_ok() {
                    break;
                }
                taken[*index] = None;
            }
        }
        let chosen = usable.iter().zip(taken);
        Ok(chosen.filter_map(|((_, id), by)| Some((self.drives.get(by?)?.name.clone(), id.clone()))).collect())
    }

    /// Why a drive of the machine can't be this one of the layout.
    fn objection(&self, drive: &Drive, disk: &Disk, needs: Needs) -> Option<String> {
        if disk.read_only {
            return Some("is read-only".into());
        }
        drive.select.objection(disk).or_else(|| {
            let extents = match place(drive, disk.size_bytes, disk.logical_block) {
                Ok(extents) => extents,
                Err(why) => return Some(format!("doesn't fit: {why}")),
            };
            // A root on an array or in a volume group is for whoever knows what those take for themselves.
            let root = self.mounted_at("/").and_then(|root: &Filesystem| self.device(root.on.as_deref()?));
            let Some(Device::Partition { drive: of, number, .. }) = root else { return None };
            let extent = extents.get(usize::try_from(number).ok()?.checked_sub(1)?)?;
            let Needs { root_bytes, disk_bytes } = needs;
            match () {
                () if of.name != drive.name => None,
                () if disk.size_bytes < disk_bytes => {
                    Some(format!("is too small: the image is for disks of {} and more", bytes(disk_bytes)))
                }
                () if extent.bytes < root_bytes => Some(format!(
                    "is too small: the image needs {}, and {} would be left",
                    bytes(root_bytes),
                    bytes(extent.bytes)
                )),
                () => None,
            }
        })
    }
}

impl Select {
    fn objection(&self, disk: &Disk) -> Option<String> {
        let same = |wanted: &Option<String>, has: &Option<String>| {
            wanted.as_ref().is_none_or(|w| has.as_ref().is_some_and(|has| has.trim().eq_ignore_ascii_case(w.trim())))
        };
        let bus = |bus: Bus| format!("{bus:?}").to_lowercase();
        let bound = |amount: Option<Amount>| match amount {
            Some(Amount::Bytes(bytes)) => Some(bytes),
            _ => None,
        };
        match () {
            () if !same(&self.serial, &disk.serial) => Some("has another serial".into()),
            () if !same(&self.wwn, &disk.wwn) => Some("has another WWN".into()),
            () if !self.model.as_ref().is_none_or(|pattern| matches(pattern, disk.model.as_deref().unwrap_or(""))) => {
                Some(format!("is of the model {:?}", disk.model.as_deref().unwrap_or("")))
            }
            () if self.bus.is_some_and(|wanted| wanted != disk.bus) => Some(format!("is on {}", bus(disk.bus))),
            () if self.rotational == Some(true) && !disk.rotational => Some("doesn't rotate".into()),
            () if self.rotational == Some(false) && disk.rotational => Some("rotates".into()),
            () if bound(self.min_size).is_some_and(|least| disk.size_bytes < least) => {
                Some(format!("is smaller than {}", bytes(bound(self.min_size)?)))
            }
            () if bound(self.max_size).is_some_and(|most| disk.size_bytes > most) => {
                Some(format!("is larger than {}", bytes(bound(self.max_size)?)))
            }
            () => None,
        }
    }
}

/// Whether all from `first` on can have one of their candidates, beside what is taken by those before; else who can't, and
/// what the others would have.
fn everybody(candidates: &[Vec<usize>], taken: &Taken, first: usize) -> Result<(), (usize, Taken)> {
    let mut tried = taken.clone();
    for wanted in first..candidates.len() {
        if !assign(wanted, first, candidates, &mut tried, &mut vec![false; taken.len()]) {
            return Err((wanted, tried));
        }
    }
    Ok(())
}

/// By drives of the machine: which of the layout has it.
type Taken = Vec<Option<usize>>;

/// Kuhn's matching: what is wanted takes the first candidate that is free, or whose owner can do with another. Owners before
/// `first` keep theirs.
fn assign(wanted: usize, first: usize, candidates: &[Vec<usize>], taken: &mut Taken, asked: &mut [bool]) -> bool {
    for index in &candidates[wanted] {
        if std::mem::replace(&mut asked[*index], true) {
            continue;
        }
        if taken[*index].is_none_or(|owner| owner >= first && assign(owner, first, candidates, taken, asked)) {
            taken[*index] = Some(wanted);
            return true;
        }
    }
    false
}

/// Letters are letters whatever their case.
fn matches(pattern: &str, text: &str) -> bool {
    let plain = |text: &str| text.trim().to_lowercase();
    glob(plain(pattern).as_bytes(), plain(text).as_bytes())
}
