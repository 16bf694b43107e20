//! What is kept of a machine, and under which keys.

use std::collections::BTreeMap;
use std::mem;
use std::net::IpAddr;

use anyhow::Result;
use drophammer_protocol::certificate::Link;
use drophammer_protocol::erase::Policy;
use drophammer_protocol::hardware::Hardware;
use drophammer_protocol::id::{BootId, Mac, MachineId, OrderId};
use drophammer_protocol::inventory::{DiskId, Inventory};
use drophammer_protocol::machine::{Allocation, Lock, Machine, Select, State};
use drophammer_protocol::provisioning::{Provisioning, ProvisioningEvent};
use drophammer_protocol::resource::Labels;
use drophammer_protocol::sign::PublicKey;
use drophammer_protocol::ticket::Reach;
use serde::{Deserialize, Serialize};

use crate::install::Plan;
use crate::lifecycle::{self, AllocationChange, Facts, Input, OrderChange, Reason, Refused};
use crate::provisioning;
use crate::secret::Hash;
use crate::store::Txn;

pub(crate) const MACHINES: &str = "machine/";

pub(crate) fn machine_key(machine: MachineId) -> String {
    format!("{MACHINES}{machine}")
}

/// [`BootInventory`].
pub(crate) fn inventory_key(machine: MachineId) -> String {
    format!("inventory/{machine}")
}

/// What a machine told of itself whenever that was different from before, in the order of time.
pub(crate) fn inventories_prefix(machine: MachineId) -> String {
    format!("inventories/{machine}/")
}

/// The [`MachineId`] that a boot belongs to.
pub(crate) fn boot_key(boot: BootId) -> String {
    format!("boot/{boot}")
}

/// All certificates of a machine with their receipts, in the order of their chain. They are never deleted.
pub(crate) fn certificates_prefix(machine: MachineId) -> String {
    format!("certificate/{machine}/")
}

pub(crate) fn certificate_key(machine: MachineId, number: u64) -> String {
    format!("{}{number:020}", certificates_prefix(machine))
}

/// A machine without its inventory and its history, which are larger and change at other times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: MachineId,
    pub(crate) name: String,
    pub(crate) serial: Option<String>,
    pub(crate) state: State,
    pub(crate) reason: Option<String>,
    pub(crate) mac: Option<Mac>,
    pub(crate) address: Option<IpAddr>,
    /// Every MAC that was ever seen to be this machine's.
    pub(crate) macs: Vec<Mac>,
    /// The boot that is listened to.
    pub(crate) boot: Option<BootId>,
    /// Tickets that are out, and the last boots that enrolled, oldest first.
    pub(crate) boots: Vec<Boot>,
    pub(crate) allocation: Option<Allocation>,
    /// What was promised to the project that has the machine, or had it last, for as long as it isn't proven erased and
    /// free.
    pub(crate) owed: Option<Policy>,
    /// Who wanted the erase that is due; nobody in particular if it's only the rule.
    pub(crate) wanted_by: Option<String>,
    /// What is on it, as long as it's allocated.
    #[serde(default)]
    pub(crate) standing: Option<Standing>,
    /// A reinstall is going on.
    #[serde(default)]
    pub(crate) keeping: bool,
    /// What the present boot has to do.
    pub(crate) order: Option<Pending>,
    /// Orders of the present boot whose outcome is in.
    pub(crate) answered: Vec<Answered>,
    pub(crate) phone_home: Option<PhoneHomeDue>,
    pub(crate) failures: u32,
    pub(crate) counted: bool,
    /// The power hook has to run, or to run again if the server died meanwhile.
    pub(crate) cycle_due: bool,
    pub(crate) ssh_host_keys: Vec<String>,
    /// Where the next erasure certificate goes.
    pub(crate) link: Link,
    /// Drives that were proven erased and given to nobody since, by serial, with the number of the certificate.
    #[serde(default)]
    pub(crate) rested: BTreeMap<String, u64>,
    pub(crate) created_ms: u64,
    pub(crate) changed_ms: u64,
    pub(crate) last_seen_ms: u64,
    /// Where it is: as its boot server says, and as its partition's racks say.
    #[serde(default = "default_partition")]
    pub(crate) partition: String,
    /// What it's made of, as it told last.
    #[serde(default)]
    pub(crate) hardware: Option<Hardware>,
    /// What the switches that its cables lead to call themselves.
    #[serde(default)]
    pub(crate) switches: Vec<String>,
    #[serde(default)]
    pub(crate) labels: Labels,
    #[serde(default)]
    pub(crate) note: String,
    #[serde(default)]
    pub(crate) lock: Option<Lock>,
    /// How it was chosen for whom it's allocated to.
    #[serde(default)]
    pub(crate) select: Select,
    #[serde(default)]
    pub(crate) provisioning: Provisioning,
    /// Counts what was ever saved of it.
    #[serde(default)]
    pub(crate) generation: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Boot {
    pub(crate) id: BootId,
    pub(crate) minted_ms: u64,
    pub(crate) expires_ms: u64,
    pub(crate) reach: Reach,
    pub(crate) token: Hash,
    /// The token has been used.
    pub(crate) enrolled: Option<Enrolment>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Enrolment {
    pub(crate) at_ms: u64,
    pub(crate) key: PublicKey,
    pub(crate) credential: Hash,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub(crate) id: OrderId,
    pub(crate) what: What,
}

/// An order as it is kept: decisions only. Addresses and secrets are added when it is handed out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(crate) enum What {
    Erase(Erasing),
    Install(Plan),
    Reboot { reason: String },
}

/// What a finished install left behind, as far as the next one may need it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Standing {
    /// By their names in the layout.
    pub(crate) drives: BTreeMap<String, DiskId>,
    /// From whose id the key of encrypted volumes is made.
    pub(crate) key_of: OrderId,
}

/// What the certificates are held against: an order stays as it was written until its outcome is in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Erasing {
    pub(crate) disks: Vec<DiskId>,
    /// By their names in the layout.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) kept: BTreeMap<String, DiskId>,
    pub(crate) policy: Policy,
    pub(crate) ordered_by: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answered {
    pub(crate) order: OrderId,
    pub(crate) outcome_sha256: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PhoneHomeDue {
    pub(crate) order: OrderId,
    pub(crate) token: Hash,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BootInventory {
    pub(crate) boot: BootId,
    pub(crate) inventory: Inventory,
}

/// What a server knows of a machine that isn't in its record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sight<'a> {
    pub(crate) size: Option<&'a str>,
    pub(crate) rack: Option<&'a str>,
    pub(crate) seen_ms: u64,
    /// Since when it could have been heard of.
    pub(crate) heard_ms: u64,
    pub(crate) now_ms: u64,
}

/// The server's settings, as far as the rules need them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) max_failures: u32,
    pub(crate) erase: Policy,
}

fn default_partition() -> String {
    DEFAULT_PARTITION.into()
}

/// Of boot servers whose configuration names none.
pub(crate) const DEFAULT_PARTITION: &str = "default";

const BY_RULE: &str = "the rule that every boot of the agent erases";

/// Tickets of one machine that may be out at once: firmware and iPXE repeat requests, but not without end.
const MAX_TICKETS: usize = 4;
/// Enrolled boots that are remembered, so that an agent of an old one hears that it's old.
const MAX_ENROLLED: usize = 4;
const MAX_MACS: usize = 32;

impl Record {
    pub(crate) fn discovered(id: MachineId, mac: Mac, now: u64) -> Self {
        Self {
            id,
            name: mac.to_string(),
            serial: None,
            state: State::Discovered,
            reason: None,
            mac: Some(mac),
            address: None,
            macs: vec![mac],
            boot: None,
            boots: Vec::new(),
            allocation: None,
            owed: None,
            wanted_by: None,
            standing: None,
            keeping: false,
            order: None,
            answered: Vec::new(),
            phone_home: None,
            failures: 0,
            counted: false,
            cycle_due: false,
            ssh_host_keys: Vec::new(),
            link: Link::FIRST,
            rested: BTreeMap::new(),
            created_ms: now,
            changed_ms: now,
            last_seen_ms: now,
            partition: default_partition(),
            hardware: None,
            switches: Vec::new(),
            labels: Labels::new(),
            note: String::new(),
            lock: None,
            select: Select::default(),
            provisioning: Provisioning::default(),
            generation: 0,
        }
    }

    pub(crate) fn load(txn: &mut Txn<'_>, machine: MachineId) -> Result<Option<Self>> {
        txn.get(&machine_key(machine))
    }

    pub(crate) fn save(&mut self, txn: &mut Txn<'_>) -> Result<()> {
        self.generation += 1;
        txn.put(&machine_key(self.id), self)
    }

    fn facts(&self, max_failures: u32) -> Facts {
        Facts {
            allocated: self.allocation.is_some(),
            keeping: self.keeping,
            failures: self.failures,
            counted: self.counted,
            max_failures,
        }
    }

    /// Whether the rules allow it.
    pub(crate) fn may(&self, input: &Input) -> Result<(), Refused> {
        lifecycle::next(self.state, self.facts(u32::MAX), input.clone()).map(drop)
    }

    /// Applies `input` by the rules of [`lifecycle`]. `order` is the id of the order that may come out of it.
    pub(crate) fn step(&mut self, input: Input, rules: Rules, order: OrderId, now: u64) -> Result<(), Refused> {
        let facts = self.facts(rules.max_failures);
        let proven = matches!(input, Input::Erased(_));
        let to = lifecycle::next(self.state, facts, input)?;
        let before = self.clone();
        self.state = to.state;
        self.failures = to.failures;
        self.counted = to.counted;
        self.keeping = to.keeping;
        match to.reason {
            Reason::Keep => {}
            Reason::Clear => self.reason = None,
            Reason::Say(why) => self.reason = Some(why),
        }
        match to.allocation {
            AllocationChange::Keep => {}
            AllocationChange::Drop => {
                (self.allocation, self.standing) = (None, None);
                self.select = Select::default();
            }
        }
        match to.order {
            OrderChange::Keep => {}
            OrderChange::Drop => self.order = None,
            OrderChange::Reboot(reason) => self.order = Some(Pending { id: order, what: What::Reboot { reason } }),
            OrderChange::Erase(disks) => {
                let policy = self.owed.map_or(rules.erase, |owed| owed.strictest(rules.erase));
                let ordered_by = self.wanted_by.clone().unwrap_or_else(|| BY_RULE.to_owned());
                let kept = self.kept();
                let what = What::Erase(Erasing { disks, kept, policy, ordered_by });
                if self.order.as_ref().is_none_or(|o| o.what != what) {
                    self.order = Some(Pending { id: order, what });
                }
            }
        }
        if proven {
            self.wanted_by = None;
            // Who still has it is owed the same again.
            if self.allocation.is_none() {
                self.owed = None;
            }
        }
        // From here on somebody else writes to the drives.
        if self.state == State::Installing {
            self.rested.clear();
        }
        if !matches!(self.state, State::Installing | State::Booting | State::Running) {
            self.ssh_host_keys.clear();
            // Whoever is to go and still calls is recognised.
            if self.state != State::Releasing {
                self.phone_home = None;
            }
        }
        // Some inputs change nothing: a running machine's boot from its own disk.
        if *self != before {
            self.changed_ms = now;
        }
        Ok(())
    }

    /// The drives that the present round of erase and install leaves as they are, by their names in the layout.
    pub(crate) fn kept(&self) -> BTreeMap<String, DiskId> {
        if self.keeping { self.keeps() } else { BTreeMap::new() }
    }

    /// Those that a reinstall would leave as they are.
    fn keeps(&self) -> BTreeMap<String, DiskId> {
        let (Some(allocation), Some(standing)) = (&self.allocation, &self.standing) else { return BTreeMap::new() };
        let kept = allocation.layout().drives.into_iter().filter(|drive| drive.keep);
        kept.filter_map(|drive| standing.drives.get(&drive.name).map(|id| (drive.name, id.clone()))).collect()
    }

    /// Something happened on its road.
    pub(crate) fn tell(&mut self, event: ProvisioningEvent, now: u64, message: &str) {
        self.provisioning = provisioning::after(mem::take(&mut self.provisioning), event, now, message);
    }

    pub(crate) fn boot_of(&self, boot: BootId) -> Option<&Boot> {
        self.boots.iter().find(|b| b.id == boot)
    }

    pub(crate) fn learn_mac(&mut self, mac: Mac) {
        if !self.macs.contains(&mac) {
            self.macs.push(mac);
            let excess = self.macs.len().saturating_sub(MAX_MACS);
            self.macs.drain(..excess);
        }
    }

    /// Adds a ticket and forgets those that are of no use any more.
    pub(crate) fn add_boot(&mut self, txn: &mut Txn<'_>, boot: Boot) -> Result<()> {
        txn.put(&boot_key(boot.id), &self.id)?;
        let now = boot.minted_ms;
        self.boots.push(boot);
        let (mut tickets, mut enrolled) = (0, 0);
        let mut keep: Vec<Boot> = Vec::new();
        for boot in self.boots.drain(..).rev() {
            let useful = if boot.enrolled.is_some() {
                enrolled += 1;
                enrolled <= MAX_ENROLLED || self.boot == Some(boot.id)
            } else {
                tickets += 1;
                tickets <= MAX_TICKETS && boot.expires_ms > now
            };
            if useful {
                keep.push(boot);
            } else {
                txn.delete(&boot_key(boot.id));
            }
        }
        keep.reverse();
        self.boots = keep;
        Ok(())
    }

    /// From here on no agent can enrol with a ticket that was given out before.
    pub(crate) fn void_tickets(&mut self, txn: &mut Txn<'_>) {
        self.boots.retain(|boot| {
            if boot.enrolled.is_none() {
                txn.delete(&boot_key(boot.id));
            }
            boot.enrolled.is_some()
        });
    }

    /// As operators see it.
    pub(crate) fn view(self, inventory: Option<Inventory>, sight: Sight<'_>) -> Machine {
        let keeps = self.keeps();
        Machine {
            id: self.id,
            name: self.name,
            state: self.state,
            reason: self.reason,
            mac: self.mac,
            address: self.address,
            boot: self.boot,
            keeps,
            allocation: self.allocation.map(Allocation::without_secrets),
            inventory,
            partition: self.partition,
            rack: sight.rack.map(str::to_owned),
            size: sight.size.map(str::to_owned),
            hardware: self.hardware,
            labels: self.labels,
            note: self.note,
            lock: self.lock,
            select: self.select,
            liveliness: provisioning::liveliness(self.state, self.last_seen_ms.max(sight.heard_ms), sight.now_ms),
            provisioning: self.provisioning,
            generation: self.generation,
            failures: self.failures,
            created_ms: self.created_ms,
            changed_ms: self.changed_ms,
            last_seen_ms: self.last_seen_ms.max(sight.seen_ms),
            ssh_host_keys: self.ssh_host_keys,
        }
    }
}
