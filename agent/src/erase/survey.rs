//! What an erase of this host would do, drive by drive, for people at a command line. Touches nothing.

use std::fmt;
use std::fs::File;
use std::path::Path;

use drophammer_protocol::erase::{Category, Method};
use drophammer_protocol::inventory::{Disk, DiskId};
use drophammer_protocol::order::Erase;
use serde::Serialize;

use super::subject::{self, Subject, Volume, names};
use crate::disk::OpenDisk;
use crate::holders;
use crate::inventory::disks;

/// What would be done to one drive, or why nothing would.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct DrivePlan {
    pub(crate) name: String,
    pub(crate) model: Option<String>,
    pub(crate) serial: Option<String>,
    pub(crate) size_bytes: u64,
    /// What the drive says it can do.
    pub(crate) capabilities: Vec<String>,
    pub(crate) methods: Vec<PlannedMethod>,
    /// What lies on it.
    pub(crate) found: Vec<String>,
    /// What would be done first, so that nobody holds it any more.
    pub(crate) before: Vec<String>,
    /// Why this drive wouldn't be erased.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) left_out: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct PlannedMethod {
    pub(crate) method: Method,
    pub(crate) because: String,
    /// The category of NIST SP 800-88 that a verified run meets.
    pub(crate) nist_800_88: Category,
}

/// Every drive below `root`, which is `/` on a machine, as it would be erased together with those that `order` names.
pub(crate) fn survey(root: &Path, order: &Erase) -> Vec<DrivePlan> {
    let here = disks::disks(root);
    let chosen = here.iter().filter(|disk| disk.id().is_some_and(|id| order.disks.contains(&id)));
    let chosen: Vec<&str> = chosen.flat_map(names).collect();
    let (mut named, mut ids, mut plans): (Vec<&Disk>, Vec<DiskId>, Vec<DrivePlan>) = Default::default();
    for disk in &here {
        match nameable(disk) {
            Ok(id) => {
                named.push(disk);
                ids.push(id);
            }
            Err(why) => plans.push(DrivePlan { left_out: Some(why.to_owned()), ..bare(disk) }),
        }
    }
    for volumes in subject::drives(&ids, named) {
        let subject = Subject::of(root, &volumes, open(root, &volumes), order);
        plans.extend(volumes.iter().map(|volume| planned(root, volume.disk, &chosen, &subject)));
    }
    let place = |plan: &DrivePlan| here.iter().position(|disk| disk.name == plan.name);
    plans.sort_by_key(place);
    plans
}

/// How an order would name a drive, or why none does.
fn nameable(disk: &Disk) -> Result<DiskId, &'static str> {
    match disk.passed_by() {
        Some(why) => Err(why),
        None => disk.id().ok_or("it tells no serial number, so it can't be named in an order"),
    }
}

fn open(root: &Path, volumes: &[Volume<'_>]) -> Result<Vec<OpenDisk>, String> {
    let open = |volume: &Volume<'_>| {
        let path = root.join("dev").join(&volume.disk.name);
        let file = File::open(&path).map_err(|e| format!("opening {}: {e}", path.display()))?;
        Ok(OpenDisk { file, path, facts: volume.disk.clone(), others: Vec::new() })
    };
    volumes.iter().map(open).collect()
}

fn planned(root: &Path, disk: &Disk, chosen: &[&str], subject: &Subject) -> DrivePlan {
    let (capabilities, lies) = (subject.capabilities.clone(), subject.found.clone());
    let mut found = DrivePlan { capabilities, found: lies, ..bare(disk) };
    let own: Vec<&str> = names(disk).collect();
    let others = chosen.iter().copied().filter(|name| !own.contains(name));
    let together: Vec<&str> = others.chain(own.iter().copied()).collect();
    match holders::plan_for(root, &together, &own) {
        Ok(steps) => found.before = steps.iter().map(ToString::to_string).collect(),
        Err(held) => {
            found.left_out = Some(held.to_string());
            return found;
        }
    }
    match &subject.ready {
        Ok(ready) => {
            let each = ready.plan.methods.iter().map(|choice| PlannedMethod {
                method: choice.method,
                because: choice.because.to_owned(),
                nist_800_88: choice.method.category(subject.drive.medium),
            });
            found.methods = each.collect();
        }
        Err(reason) => found.left_out = Some(reason.clone()),
    }
    found
}

fn bare(disk: &Disk) -> DrivePlan {
    DrivePlan {
        name: disk.name.clone(),
        model: disk.model.clone(),
        serial: disk.serial.clone(),
        size_bytes: disk.size_bytes,
        capabilities: Vec::new(),
        methods: Vec::new(),
        found: Vec::new(),
        before: Vec::new(),
        left_out: None,
    }
}

impl fmt::Display for DrivePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
        write!(
            f,
            "{}: serial {}, {}, {} bytes",
            self.name,
            unknown(&self.serial),
            unknown(&self.model),
            self.size_bytes
        )?;
        for found in &self.found {
            write!(f, "\n  holds {found}")?;
        }
        for step in &self.before {
            write!(f, "\n  first: {step}")?;
        }
        for (place, planned) in self.methods.iter().enumerate() {
            let step = if place == 0 { "would be erased by" } else { "if that fails, by" };
            write!(f, "\n  {step} {} ({})", planned.method.name(), planned.nist_800_88)?;
            write!(f, "\n    because {}", planned.because)?;
        }
        if let Some(reason) = &self.left_out {
            write!(f, "\n  would NOT be erased: {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::fixtures;

    use super::*;
    use crate::inventory::tests::Tree;

    #[test]
    fn drives_that_are_left_out_say_why() {
        let tree = Tree::new();
        for (name, serial) in [("vda", "S-1"), ("vdb", ""), ("vdc", "S-3"), ("vdd", "S-4")] {
            tree.file(&format!("sys/block/{name}/size"), "2048\n");
            tree.file(&format!("sys/block/{name}/device/vendor"), "0x1af4\n");
            tree.file(&format!("sys/block/{name}/serial"), serial);
            tree.file(&format!("dev/{name}"), "");
        }
        tree.file("sys/block/vdc/removable", "1\n");
        tree.file("sys/block/vdd/dev", "8:48\n");
        tree.file("sys/block/vdd/holders/md0", "");
        let said: Vec<String> =
            survey(tree.root(), &fixtures::erase(vec![])).iter().map(DrivePlan::to_string).collect();
        assert_eq!(
            said,
            [
                "vda: serial S-1, unknown, 1048576 bytes\n  would NOT be erased: the policy purge asks for more than this \
                 drive offers: overwrite with zeros (Clear). Allow less with the policy clear, erase it with its maker's \
                 tool, or take it out",
                "vdb: serial unknown, unknown, 1048576 bytes\n  would NOT be erased: it tells no serial number, so it \
                 can't be named in an order",
                "vdc: serial S-3, unknown, 1048576 bytes\n  would NOT be erased: its medium can be taken out, so it \
                 isn't a part of this machine",
                "vdd: serial S-4, unknown, 1048576 bytes\n  would NOT be erased: md0 is on vdd, and how to take it apart isn't \
                 known here; do it by hand",
            ]
        );
    }
}
