//! What an erase of this host would do, drive by drive, for people at a command line. Touches nothing.

use std::fmt;
use std::fs::File;
use std::path::Path;

use anyhow::Context as _;
use drophammer_protocol::certificate::Method;
use drophammer_protocol::inventory::Disk;
use serde::Serialize;

use super::plan;
use super::{capabilities_of, visible_namespaces};
use crate::disk;
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
    /// Why this drive wouldn't be erased.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) left_out: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct PlannedMethod {
    pub(crate) method: Method,
    pub(crate) because: String,
    /// The category of NIST SP 800-88 that a verified run meets.
    pub(crate) nist_800_88: String,
}

/// Every drive below `root`, which is `/` on a machine.
pub(crate) fn survey(root: &Path) -> Vec<DrivePlan> {
    let here = disks::disks(root);
    here.iter().map(|disk| survey_one(root, &here, disk)).collect()
}

fn survey_one(root: &Path, here: &[Disk], disk: &Disk) -> DrivePlan {
    let mut found = DrivePlan {
        name: disk.name.clone(),
        model: disk.model.clone(),
        serial: disk.serial.clone(),
        size_bytes: disk.size_bytes,
        capabilities: Vec::new(),
        methods: Vec::new(),
        left_out: None,
    };
    match choose(root, here, disk, &mut found.capabilities) {
        Ok(methods) => found.methods = methods,
        Err(e) => found.left_out = Some(format!("{e:#}")),
    }
    found
}

fn choose(
    root: &Path,
    here: &[Disk],
    disk: &Disk,
    capabilities: &mut Vec<String>,
) -> anyhow::Result<Vec<PlannedMethod>> {
    anyhow::ensure!(disk.holds_data(), "removable or empty: not a drive that a tenant's data stays on");
    let id = disk.id().context("it tells no serial number, so it can't be named in an order")?;
    let holders = disk::holders(root, &disk.name);
    anyhow::ensure!(holders.is_empty(), "in use: {}", holders.join(", "));
    let path = root.join("dev").join(&disk.name);
    let mut file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    let (found, _) = capabilities_of(&mut file, disk, &id, &visible_namespaces(root, here, disk))?;
    *capabilities = found.words();
    let methods = plan::plan(&found)?.methods;
    let planned = methods.into_iter().map(|choice| PlannedMethod {
        method: choice.method,
        because: choice.because.to_owned(),
        nist_800_88: choice.method.nist_800_88().to_owned(),
    });
    Ok(planned.collect())
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
    use super::*;
    use crate::inventory::tests::Tree;

    #[test]
    fn drives_that_are_left_out_say_why() {
        let tree = Tree::new();
        for (name, serial) in [("sda", "S-1"), ("sdb", ""), ("sdc", "S-3"), ("sdd", "S-4")] {
            tree.file(&format!("sys/block/{name}/size"), "2048\n");
            tree.file(&format!("sys/block/{name}/device/vendor"), "ATA\n");
            tree.file(&format!("sys/block/{name}/serial"), serial);
            tree.file(&format!("dev/{name}"), "");
        }
        tree.file("sys/block/sdc/removable", "1\n");
        tree.file("sys/block/sdd/dev", "8:48\n");
        tree.file("sys/block/sdd/holders/md0", "");
        let said: Vec<String> = survey(tree.root()).iter().map(DrivePlan::to_string).collect();
        assert_eq!(
            said,
            [
                "sda: serial S-1, unknown, 1048576 bytes\n  would NOT be erased: this agent has no erase method for SATA \
                 drives that it can prove; erase it with its maker's tool or take it out",
                "sdb: serial unknown, unknown, 1048576 bytes\n  would NOT be erased: it tells no serial number, so it \
                 can't be named in an order",
                "sdc: serial S-3, unknown, 1048576 bytes\n  would NOT be erased: removable or empty: not a drive that a \
                 tenant's data stays on",
                "sdd: serial S-4, unknown, 1048576 bytes\n  would NOT be erased: in use: part of md0",
            ]
        );
    }
}
