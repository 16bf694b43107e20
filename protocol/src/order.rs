//! What a server tells a machine to do, and what the machine answers.
//!
//! An order names the machine, the boot and, where data is destroyed, the drives by serial and size. An agent carries
//! out an order only if all of these are its own; everything else is a refusal, which is an answer like any other.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::certificate::{ErasureCertificate, Link, Rest, Unwritten};
use crate::erase::{Depth, Method, Policy, Psid};
use crate::id::{BootId, MachineId, OrderId};
use crate::inventory::DiskId;
use crate::layout::Layout;
use crate::manifest::BootBy;
use crate::sign::Signed;
use crate::system::System;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    pub id: OrderId,
    pub machine: MachineId,
    pub boot: BootId,
    pub task: Task,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Task {
    /// Make the data on exactly these drives unreadable, and prove it.
    Erase(Box<Erase>),
    /// Put this image on this drive and start it.
    Install(Box<Install>),
    /// Leave in an orderly way; firmware and boot server decide what comes next.
    Reboot { reason: String },
}

impl Task {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Erase(_) => "erase",
            Self::Install(_) => "install",
            Self::Reboot { .. } => "reboot",
        }
    }
}

/// What an agent is told to erase, and how well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Erase {
    /// Exactly these, which are all that the machine has but for those that are kept.
    pub disks: Vec<DiskId>,
    #[serde(default, skip_serializing_if = "Kept::is_nothing")]
    pub kept: Kept,
    pub policy: Policy,
    pub depth: Depth,
    /// What is printed on the labels of self-encrypting drives, by serial: for those that a tenant has locked.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub psids: BTreeMap<String, Psid>,
    /// Drives that were erased before and given to nobody since, by serial: those that show no write aren't worn out by
    /// another erase.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fresh: BTreeMap<String, Fresh>,
    /// Where the first certificate of this run goes in the machine's chain.
    pub link: Link,
    /// Who asked for it, or what made it necessary.
    pub ordered_by: String,
}

/// Drives whose tenant stays: nothing is written to these.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// By their names in the layout.
    pub drives: BTreeMap<String, DiskId>,
    /// What a reinstall needs to find on them, without which nothing at all is erased.
    pub layout: Layout,
}

impl Kept {
    fn is_nothing(&self) -> bool {
        self.drives.is_empty()
    }

    pub fn has(&self, disk: &DiskId) -> bool {
        self.drives.values().any(|kept| kept == disk)
    }
}

/// The certificate of a drive's last erase, and how the drive was left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fresh {
    pub unwritten: Unwritten,
    pub method: Method,
    pub rest: Rest,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Install {
    /// How the drives are divided.
    pub layout: Layout,
    /// Which of the machine's drives is which of the layout's. These are written to, and no others.
    pub drives: BTreeMap<String, DiskId>,
    /// The layout's drives that stay as they are: what is described on them is there already.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kept: BTreeMap<String, DiskId>,
    /// `name/version`, for people.
    pub image: String,
    /// Where the signed manifest and the packs are: the same in each, laid out as [`crate::manifest`] says. Whoever serves
    /// them needn't be trusted.
    pub stores: Vec<String>,
    /// SHA-256 of the manifest's signed payload: the server says which version it means, so that an older, validly
    /// signed one can't be put in its place.
    pub manifest_sha256: String,
    /// How much of what was written is compared with what was signed, once it's on the disk.
    #[serde(default)]
    pub read_back: ReadBack,
    /// From which the keys of the layout's encrypted volumes are made, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_key: Option<DiskKey>,
    /// What the image becomes.
    pub system: System,
    /// How it's started then; what the image asks for where nobody says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootBy>,
    /// Extra kernel arguments, such as the console.
    pub cmdline: String,
    /// What the installed system needs to say that it's up.
    pub phone_home: crate::ticket::PhoneHome,
}

/// A secret of one install, in hex on its way.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiskKey(String);

impl DiskKey {
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(hex::encode(secret))
    }

    /// Each volume has its own: who reads one key file can't open the others.
    pub fn of_volume(&self, name: &str) -> [u8; 32] {
        let hash = Sha256::new_with_prefix("drophammer volume key 1\0").chain_update(&self.0).chain_update(b"\0");
        hash.chain_update(name).finalize().into()
    }
}

impl std::fmt::Debug for DiskKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DiskKey(not shown)")
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ReadBack {
    /// Some of it, chosen at random.
    #[default]
    Sampled,
    Full,
}

impl ReadBack {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl FromStr for ReadBack {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "sampled" => Ok(Self::Sampled),
            "full" => Ok(Self::Full),
            _ => Err(format!("{name:?} is no way to read back what was written; there are sampled and full")),
        }
    }
}

/// How an order ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Every drive of the order has a certificate here, whatever its verdict.
    Erased { certificates: Vec<Signed<ErasureCertificate>> },
    /// The disk is complete and bootable; the machine starts it when the server has stored this.
    Installed(Box<Installed>),
    /// Nothing was touched: the order doesn't fit this machine. A sentence.
    Refused { reason: String },
    /// Something was tried and didn't work. The whole chain of causes.
    Failed { reason: String },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Installed {
    pub root_uuid: String,
    pub kernel: String,
    pub cmdline: String,
    pub bytes_fetched: u64,
    pub bytes_written: u64,
    /// The agent's own high-water mark (VmHWM).
    pub peak_memory_bytes: u64,
    /// How it's known of each drive that was kept that nothing was written to it: sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<String>,
}
