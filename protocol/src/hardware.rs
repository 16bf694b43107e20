//! What a machine is made of, in short: what sizes go by and lists show.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::inventory::Inventory;
use crate::words::{bytes, count};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Hardware {
    /// Maker and product.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    pub processors: Vec<Processor>,
    pub memory_bytes: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
    pub drives: Vec<Drive>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Processor {
    pub model: String,
    pub cores: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Gpu {
    pub vendor: String,
    pub model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Drive {
    /// `/dev/nvme0n1`
    pub device: String,
    pub bytes: u64,
}

impl Hardware {
    /// `gpu` knows what a PCI function is called, if it's a graphics processor.
    pub fn of(inventory: &Inventory, gpu: impl Fn(&crate::inventory::PciFunction) -> Option<Gpu>) -> Self {
        let system = [&inventory.system.manufacturer, &inventory.system.product];
        let model = system.into_iter().flatten().map(|text| text.trim()).filter(|text| !text.is_empty());
        let model = model.collect::<Vec<_>>().join(" ");
        let processors =
            inventory.cpus.iter().map(|cpu| Processor { model: cpu.model.trim().to_owned(), cores: cpu.cores });
        let drives = inventory.disks.iter().filter(|disk| disk.holds_data());
        let drives = drives.map(|disk| Drive { device: format!("/dev/{}", disk.name), bytes: disk.size_bytes });
        // What the kernel keeps for itself is missing from the one, modules that nobody described from the other.
        let modules = inventory.dimms.iter().map(|dimm| dimm.bytes).sum();
        Self {
            model: (!model.is_empty()).then_some(model),
            processors: processors.collect(),
            memory_bytes: inventory.memory_bytes.max(modules),
            gpus: inventory.pci.iter().filter_map(gpu).collect(),
            drives: drives.collect(),
        }
    }

    pub fn cores(&self) -> u64 {
        self.processors.iter().map(|processor| u64::from(processor.cores)).sum()
    }

    pub fn drive_bytes(&self) -> u64 {
        self.drives.iter().fold(0, |sum, drive| sum.saturating_add(drive.bytes))
    }
}

impl fmt::Display for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cores, drives) = (self.cores(), self.drives.len());
        let cores = count(usize::try_from(cores).unwrap_or(usize::MAX), "core");
        write!(
            f,
            "{cores}, {}, {} of {}",
            bytes(self.memory_bytes),
            count(drives, "drive"),
            bytes(self.drive_bytes())
        )?;
        match self.gpus.len() {
            0 => Ok(()),
            gpus => write!(f, ", {}", count(gpus, "GPU")),
        }
    }
}
