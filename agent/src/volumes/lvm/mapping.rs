//! A logical volume as the device mapper wants it: tables, those of its parts first.

use std::fmt::Write as _;

use zeroize::Zeroizing;

use super::id::Id;
use super::metadata::{Kind, Logical, Physical, Segment, VolumeGroup};
use crate::sys::dm::Target;

/// One device of the device mapper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) read_only: bool,
    pub(super) rows: Vec<Row>,
}

/// A part of its table, in sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    start: u64,
    length: u64,
    on: On,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum On {
    /// From a sector of each.
    Striped {
        stripe_sectors: u64,
        stripes: Vec<(Below, u64)>,
    },
    Raid1 {
        region_sectors: u64,
        not_synced: bool,
        copies: Vec<(Below, Below)>,
    },
}

/// What a mapping lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Below {
    Physical(Id),
    /// One in front of it in the list.
    Mapping(usize),
}

/// Why a logical volume can't be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Unusable {
    #[error("it is of the kind {0}; only linear and striped volumes and mirrors (raid1) are known here")]
    Kind(String),
    #[error("it lies on {0}, which isn't a physical volume of the group")]
    On(String),
    #[error("it lies outside of the physical volume {0}")]
    Outside(String),
    #[error("its part {0} isn't there, or isn't what a mirror is made of")]
    Part(String),
    #[error("its segments don't follow each other")]
    Gap,
}

/// `vg-lv`, where a dash of a name is written twice.
pub(crate) fn device_name(group: &str, volume: &str) -> String {
    format!("{}-{}", group.replace('-', "--"), volume.replace('-', "--"))
}

/// The devices of a visible volume, in the order in which they must be made; the last is the volume itself.
pub(super) fn mappings(group: &VolumeGroup, volume: &Logical) -> Result<Vec<Mapping>, Unusable> {
    let mut mappings = Vec::new();
    let mut rows = Vec::new();
    for segment in contiguous(volume)? {
        let on = match &segment.kind {
            Kind::Raid1 { region_sectors, copies } => {
                let mut below = Vec::new();
                for (meta, image) in copies {
                    let mut part = |name: &String, extents: u64| {
                        let part = group.logical.iter().find(|logical| logical.name == *name && !logical.visible);
                        let part = part.filter(|part| part.extents() >= extents);
                        let part = part.ok_or_else(|| Unusable::Part(name.clone()))?;
                        mappings.push(plain(group, part)?);
                        Ok(Below::Mapping(mappings.len() - 1))
                    };
                    below.push((part(meta, 1)?, part(image, segment.extents)?));
                }
                On::Raid1 { region_sectors: *region_sectors, not_synced: volume.not_synced, copies: below }
            }
            _ => striped(group, segment)?,
        };
        rows.push(row(group, segment, on)?);
    }
    mappings.push(mapping(group, volume, rows));
    Ok(mappings)
}

/// A volume that lies on physical volumes alone.
fn plain(group: &VolumeGroup, volume: &Logical) -> Result<Mapping, Unusable> {
    let rows = contiguous(volume)?.iter().map(|segment| row(group, segment, striped(group, segment)?));
    Ok(mapping(group, volume, rows.collect::<Result<_, Unusable>>()?))
}

fn mapping(group: &VolumeGroup, volume: &Logical, rows: Vec<Row>) -> Mapping {
    Mapping {
        name: device_name(&group.name, &volume.name),
        uuid: format!("LVM-{}{}", group.id.without_dashes(), volume.id.without_dashes()),
        read_only: !volume.writable,
        rows,
    }
}

/// Its segments, if there is at least one and none is missing.
fn contiguous(volume: &Logical) -> Result<&[Segment], Unusable> {
    let mut next = Some(0);
    for segment in &volume.segments {
        next = next.filter(|next| *next == segment.first).and_then(|next| next.checked_add(segment.extents));
    }
    next.filter(|end| *end > 0).map(|_| volume.segments.as_slice()).ok_or(Unusable::Gap)
}

fn row(group: &VolumeGroup, segment: &Segment, on: On) -> Result<Row, Unusable> {
    let sectors = |extents: u64| extents.checked_mul(group.extent_sectors).ok_or(Unusable::Gap);
    Ok(Row { start: sectors(segment.first)?, length: sectors(segment.extents)?, on })
}

fn striped(group: &VolumeGroup, segment: &Segment) -> Result<On, Unusable> {
    let (stripe_sectors, stripes) = match &segment.kind {
        Kind::Striped { stripe_sectors, stripes } => (*stripe_sectors, stripes),
        Kind::Raid1 { .. } => return Err(Unusable::Kind("raid1 within another volume".to_owned())),
        Kind::Other(kind) => return Err(Unusable::Kind(kind.clone())),
    };
    let each = segment.extents.checked_div(stripes.len() as u64).unwrap_or_default();
    if each.checked_mul(stripes.len() as u64) != Some(segment.extents) {
        return Err(Unusable::Gap);
    }
    let stripes = stripes.iter().map(|(name, first)| {
        let on = group.physical.iter().find(|physical| physical.name == *name);
        let physical = on.ok_or_else(|| Unusable::On(name.clone()))?;
        let outside = || Unusable::Outside(name.clone());
        let Physical { first_sector, extents, .. } = physical;
        first.checked_add(each).filter(|end| end <= extents).ok_or_else(outside)?;
        let sector = first.checked_mul(group.extent_sectors).and_then(|sector| sector.checked_add(*first_sector));
        Ok((Below::Physical(physical.id), sector.ok_or_else(outside)?))
    });
    Ok(On::Striped { stripe_sectors, stripes: stripes.collect::<Result<_, Unusable>>()? })
}

impl Mapping {
    pub(super) fn sectors(&self) -> u64 {
        self.rows.iter().map(|row| row.length).fold(0, u64::saturating_add)
    }

    /// With `slowly`, the kernel brings copies up to date at the least speed that it has.
    pub(super) fn table(&self, slowly: bool, number: impl Fn(Below) -> Option<(u64, u64)>) -> Option<Vec<Target>> {
        let device = |below: Below| number(below).map(|(major, minor)| format!("{major}:{minor}"));
        let mut table = Vec::new();
        for Row { start, length, on } in &self.rows {
            let mut parameters = String::new();
            let kind = match on {
                On::Striped { stripe_sectors, stripes } => {
                    let several = stripes.len() > 1;
                    if several {
                        write!(parameters, "{} {stripe_sectors}", stripes.len()).ok()?;
                    }
                    for (below, from) in stripes {
                        write!(parameters, " {} {from}", device(*below)?).ok()?;
                    }
                    if several { "striped" } else { "linear" }
                }
                On::Raid1 { region_sectors, not_synced, copies } => {
                    // A mirror has no chunks.
                    let mut words = vec!["0".to_owned()];
                    words.extend(not_synced.then(|| "nosync".to_owned()));
                    words.extend(["region_size".to_owned(), region_sectors.to_string()]);
                    if slowly {
                        words.extend(["min_recovery_rate", "1", "max_recovery_rate", "1"].map(str::to_owned));
                    }
                    write!(parameters, "raid1 {} {} {}", words.len(), words.join(" "), copies.len()).ok()?;
                    for (meta, image) in copies {
                        write!(parameters, " {} {}", device(*meta)?, device(*image)?).ok()?;
                    }
                    "raid"
                }
            };
            let parameters = Zeroizing::new(parameters.trim_start().to_owned());
            table.push(Target { start: *start, length: *length, kind, parameters });
        }
        Some(table)
    }
}
