//! What has to be erased, and when it counts as erased.
//!
//! "Erased" enters this program as an [`ErasureProof`] and in no other way, and [`judge`] is the only place that makes
//! one. No disk list comes out empty: a machine whose agent sees no drive is more often one whose drive controller has
//! no driver in the initramfs than one without drives, and drives that nobody saw were not erased.

use std::collections::{BTreeMap, BTreeSet};

use drophammer_protocol::certificate::{ErasureCertificate, Link, Verdict};
use drophammer_protocol::erase::Policy;
use drophammer_protocol::id::{BootId, MachineId, OrderId};
use drophammer_protocol::inventory::{DiskId, Inventory, PciFunction};
use drophammer_protocol::sign::{PublicKey, SignError, Signed};

/// Every drive that a tenant's data could be on, in a fixed order, but for `kept`, whose tenant stays.
pub fn disks_to_erase<'a>(
    inventory: &Inventory,
    mut kept: impl Iterator<Item = &'a DiskId>,
) -> Result<Vec<DiskId>, Unerasable> {
    let mut disks = BTreeSet::new();
    for disk in inventory.disks.iter().filter(|d| d.holds_data()) {
        let Some(id) = disk.id() else {
            return Err(Unerasable::NoSerial { name: disk.name.clone(), model: disk.model.clone() });
        };
        if !disks.insert(id.clone()) {
            return Err(Unerasable::SameIdentity(id));
        }
    }
    if let Some(gone) = kept.find(|id| !disks.remove(*id)) {
        return Err(Unerasable::KeptGone(gone.clone()));
    }
    if disks.is_empty() {
        return Err(Unerasable::NoDisks);
    }
    // What nobody sees is not erased.
    match inventory.pci.iter().find(|function| is_blind(function)) {
        Some(function) => Err(Unerasable::Blind { address: function.address.clone(), id: pci_id(function) }),
        None => Ok(disks.into_iter().collect()),
    }
}

/// A controller of mass storage that no driver has taken.
fn is_blind(function: &PciFunction) -> bool {
    const MASS_STORAGE: u32 = 0x01;
    function.class >> 16 == MASS_STORAGE && function.driver.is_none()
}

fn pci_id(function: &PciFunction) -> String {
    format!("{:04x}:{:04x}", function.vendor, function.device)
}

/// Why no erase order can be written for a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unerasable {
    #[error(
        "the agent found no disk that could hold data, so nothing can be proven erased: add the driver of the disk \
         controller to the initramfs, or leave this machine out"
    )]
    NoDisks,
    #[error(
        "disk {name} ({}) tells no serial number, so no erase order can name it: take it out or replace it",
        model.as_deref().unwrap_or("unknown model")
    )]
    NoSerial { name: String, model: Option<String> },
    #[error(
        "the storage controller {id} at {address} has no driver, so disks behind it can't be seen and may hold data: add \
         its driver to the initramfs, switch the controller off in the firmware's setup, or take it out"
    )]
    Blind { address: String, id: String },
    #[error("two disks call themselves {0}, so an erase order can't tell them apart: take one out or replace it")]
    SameIdentity(DiskId),
    #[error(
        "{0}, which the reinstall is to keep, isn't there: put it back and `drophammer machine reinstall \
         --despite-quarantine`, or have all drives erased by `machine reprovision --despite-quarantine`"
    )]
    KeptGone(DiskId),
}

/// The erase order of one boot, and what is known about who carries it out.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    pub machine: MachineId,
    pub boot: BootId,
    pub order: OrderId,
    /// The drives that the order names.
    pub disks: &'a [DiskId],
    /// The drives that it leaves out.
    pub kept: &'a BTreeMap<String, DiskId>,
    /// Which erasures the order says are good enough.
    pub policy: Policy,
    /// The inventory of this boot.
    pub inventory: &'a Inventory,
    /// The key that the agent announced when this boot enrolled.
    pub key: PublicKey,
    /// Where the machine's next certificate goes.
    pub link: &'a Link,
    /// Certificates of drives that were given to nobody since, by serial: such a drive may be left as it is.
    pub rested: &'a BTreeMap<String, Signed<ErasureCertificate>>,
}

/// Every drive of a machine that could hold data has a certificate that proves its erasure, made by this boot under
/// this order; but for those that are kept, which makes it good for their tenant alone. [`judge`] is the only way to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErasureProof {
    disks: Vec<DiskId>,
    kept: Vec<DiskId>,
}

impl ErasureProof {
    pub fn disks(&self) -> &[DiskId] {
        &self.disks
    }

    pub fn kept(&self) -> &[DiskId] {
        &self.kept
    }
}

/// What certificates are worth.
#[derive(Debug)]
pub struct Judgement {
    /// Those that are really of this run, whatever they say: worth keeping, in the order of the machine's chain.
    pub authentic: Vec<Signed<ErasureCertificate>>,
    /// Where the next one goes.
    pub link: Link,
    pub proof: Result<ErasureProof, Vec<Doubt>>,
}

/// One reason for not believing that a machine was erased.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    #[error("certificate {number} isn't believed: {why}")]
    Signature { number: usize, why: SignError },
    #[error("certificate {number} is of machine {machine}")]
    OtherMachine { number: usize, machine: MachineId },
    #[error("certificate {number} is of another boot ({boot})")]
    OtherBoot { number: usize, boot: BootId },
    #[error("certificate {number} is of another order ({order})")]
    OtherOrder { number: usize, order: OrderId },
    #[error("certificate {number} is of {disk}, which the order doesn't name")]
    NotOrdered { number: usize, disk: DiskId },
    #[error("certificate {number} says that it is number {} of this machine's chain, and isn't", link.number)]
    OutOfPlace { number: usize, link: Link },
    #[error("the certificate of disk {serial} is of an erase by policy {policy}, and {ordered} was ordered")]
    Weaker { serial: String, policy: Policy, ordered: Policy },
    #[error("{0} has more than one certificate")]
    Twice(DiskId),
    #[error("{0} has no certificate")]
    Missing(DiskId),
    #[error("disk {serial} was not erased: {reason}")]
    NotErased { serial: String, reason: String },
    #[error(
        "the certificate of disk {0} says erased but doesn't prove it (no successful method that is good enough, too \
         little looked at, or something survived)"
    )]
    Unproven(String),
    #[error(
        "the certificate of disk {0} says that nobody wrote to it since an earlier one, and that one doesn't say so or \
         doesn't count any more"
    )]
    NotAtRest(String),
    #[error("the order's disks aren't the ones that this boot's inventory shows")]
    OrderDiffers,
    #[error(transparent)]
    Unerasable(#[from] Unerasable),
}

pub fn judge(run: &Run<'_>, certificates: &[Signed<ErasureCertificate>]) -> Judgement {
    let mut doubts = Vec::new();
    let ordered: BTreeSet<&DiskId> = run.disks.iter().collect();
    match disks_to_erase(run.inventory, run.kept.values()) {
        Err(why) => doubts.push(why.into()),
        Ok(disks) if disks.iter().collect::<BTreeSet<_>>() != ordered => doubts.push(Doubt::OrderDiffers),
        Ok(_) => {}
    }
    let (mut authentic, mut covered) = (Vec::new(), BTreeSet::new());
    let mut link = run.link.clone();
    for (index, signed) in certificates.iter().enumerate() {
        match authenticate(run, &ordered, index + 1, signed, &link) {
            Err(doubt) => doubts.push(doubt),
            Ok(certificate) => {
                link = link.after(signed);
                authentic.push(signed.clone());
                doubts.extend(weigh(run, &certificate));
                let twice = certificate.drive.disks.into_iter().filter(|disk| !covered.insert(disk.clone()));
                doubts.extend(twice.map(Doubt::Twice).collect::<Vec<_>>());
            }
        }
    }
    doubts.extend(run.disks.iter().filter(|d| !covered.contains(d)).cloned().map(Doubt::Missing));
    let proof = if doubts.is_empty() {
        Ok(ErasureProof { disks: run.disks.to_vec(), kept: run.kept.values().cloned().collect() })
    } else {
        Err(doubts)
    };
    Judgement { authentic, link, proof }
}

/// All doubts in one sentence.
pub fn sentence(doubts: &[Doubt]) -> String {
    doubts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn authenticate(
    run: &Run<'_>,
    ordered: &BTreeSet<&DiskId>,
    number: usize,
    signed: &Signed<ErasureCertificate>,
    link: &Link,
) -> Result<ErasureCertificate, Doubt> {
    let certificate = signed.open(&[run.key]).map_err(|why| Doubt::Signature { number, why })?.into_inner();
    if certificate.machine != run.machine {
        return Err(Doubt::OtherMachine { number, machine: certificate.machine });
    }
    if certificate.boot != run.boot {
        return Err(Doubt::OtherBoot { number, boot: certificate.boot });
    }
    if certificate.order != run.order {
        return Err(Doubt::OtherOrder { number, order: certificate.order });
    }
    if certificate.link != *link {
        return Err(Doubt::OutOfPlace { number, link: certificate.link });
    }
    if let Some(disk) = certificate.drive.disks.iter().find(|disk| !ordered.contains(disk)) {
        return Err(Doubt::NotOrdered { number, disk: disk.clone() });
    }
    Ok(certificate)
}

fn weigh(run: &Run<'_>, certificate: &ErasureCertificate) -> Option<Doubt> {
    let serial = || certificate.drive.serial.clone();
    match &certificate.verdict {
        Verdict::NotErased { reason } => Some(Doubt::NotErased { serial: serial(), reason: reason.clone() }),
        Verdict::Erased { .. } if certificate.policy.is_weaker_than(run.policy) => {
            Some(Doubt::Weaker { serial: serial(), policy: certificate.policy, ordered: run.policy })
        }
        Verdict::Erased { .. } if certificate.proves_erasure() => None,
        Verdict::Erased { .. } if certificate.unwritten.is_some() => {
            let before = run.rested.get(&certificate.drive.serial);
            let proven = before.is_some_and(|before| certificate.proves_rest(before));
            (!proven).then(|| Doubt::NotAtRest(serial()))
        }
        Verdict::Erased { .. } => Some(Doubt::Unproven(serial())),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use drophammer_protocol::erase::Method;
    use drophammer_protocol::fixtures::{self, inventory};
    use drophammer_protocol::inventory::{Bus, Disk};
    use ed25519_dalek::SigningKey;
    use uuid::Uuid;

    use super::*;

    const MACHINE: MachineId = MachineId(Uuid::from_u128(1));
    const BOOT: BootId = BootId(Uuid::from_u128(2));
    const ORDER: OrderId = OrderId(Uuid::from_u128(3));

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn disk(serial: &str) -> Disk {
        fixtures::disk(serial, 1 << 30)
    }

    fn id(serial: &str) -> DiskId {
        DiskId::new(serial, 1 << 30)
    }

    fn certificate(serial: &str) -> ErasureCertificate {
        fixtures::certificate(MACHINE, BOOT, ORDER, Link::FIRST, &id(serial))
    }

    /// As one boot signs them, one after the other.
    fn sealed(certificates: Vec<ErasureCertificate>) -> Vec<Signed<ErasureCertificate>> {
        let mut link = Link::FIRST;
        let seal = |certificate| {
            let signed = Signed::seal(&ErasureCertificate { link: link.clone(), ..certificate }, &key());
            link = link.after(&signed);
            signed
        };
        certificates.into_iter().map(seal).collect()
    }

    /// A real proof, made the only way there is.
    pub(crate) fn proof() -> ErasureProof {
        proof_beside(&[])
    }

    /// The same, with drives that were kept.
    pub(crate) fn proof_beside(kept: &[&str]) -> ErasureProof {
        let drives = ["A"].iter().chain(kept).map(|serial| disk(serial)).collect();
        let kept = kept.iter().map(|serial| ((*serial).to_owned(), id(serial))).collect();
        let (disks, inventory) = ([id("A")], inventory(drives));
        let key = PublicKey::of(&key());
        let run = Run {
            machine: MACHINE,
            boot: BOOT,
            order: ORDER,
            disks: &disks,
            kept: &kept,
            policy: Policy::Purge,
            inventory: &inventory,
            key,
            link: &Link::FIRST,
            rested: &BTreeMap::new(),
        };
        judge(&run, &sealed(vec![certificate("A")])).proof.expect("a certificate that proves it")
    }

    #[test]
    fn a_proof_takes_every_disk_and_nothing_but_this_run() {
        let ab = || vec![disk("A"), disk("B")];
        let one = || sealed(vec![certificate("A")]);
        let good = || sealed(vec![certificate("A"), certificate("B")]);
        let with = |change: fn(&mut ErasureCertificate)| {
            let mut changed = certificate("B");
            change(&mut changed);
            sealed(vec![certificate("A"), changed])
        };
        let forged = || {
            let mut signed = good();
            signed[1].payload = signed[1].payload.replace("\"finished\":2", "\"finished\":3");
            signed
        };
        let other_key = SigningKey::from_bytes(&[8; 32]);
        let stranger = [one(), vec![Signed::seal(&certificate("B"), &other_key)]].concat();
        let alone = || vec![good().remove(1)];
        let misplaced = || Doubt::OutOfPlace { number: 1, link: Link::FIRST.after(&one()[0]) };
        let ordered = || vec![id("A"), id("B")];
        for (name, disks, order, certificates, authentic, want) in [
            ("both", ab(), ordered(), good(), 2, Ok(())),
            ("in another order", vec![disk("B"), disk("A")], ordered(), good(), 2, Ok(())),
            ("none", ab(), ordered(), vec![], 0, Err(vec![Doubt::Missing(id("A")), Doubt::Missing(id("B"))])),
            ("one missing", ab(), ordered(), one(), 1, Err(vec![Doubt::Missing(id("B"))])),
            (
                "one twice",
                ab(),
                ordered(),
                sealed(vec![certificate("A"), certificate("A")]),
                2,
                Err(vec![Doubt::Twice(id("A")), Doubt::Missing(id("B"))]),
            ),
            (
                "altered",
                ab(),
                ordered(),
                forged(),
                1,
                Err(vec![Doubt::Signature { number: 2, why: SignError::Forged }, Doubt::Missing(id("B"))]),
            ),
            (
                "another key",
                ab(),
                ordered(),
                stranger,
                1,
                Err(vec![
                    Doubt::Signature { number: 2, why: SignError::Untrusted(PublicKey::of(&other_key)) },
                    Doubt::Missing(id("B")),
                ]),
            ),
            (
                "another machine",
                ab(),
                ordered(),
                with(|c| c.machine = MachineId(Uuid::nil())),
                1,
                Err(vec![Doubt::OtherMachine { number: 2, machine: MachineId(Uuid::nil()) }, Doubt::Missing(id("B"))]),
            ),
            (
                "replayed from another boot",
                ab(),
                ordered(),
                with(|c| c.boot = BootId(Uuid::nil())),
                1,
                Err(vec![Doubt::OtherBoot { number: 2, boot: BootId(Uuid::nil()) }, Doubt::Missing(id("B"))]),
            ),
            (
                "replayed from another order",
                ab(),
                ordered(),
                with(|c| c.order = OrderId(Uuid::nil())),
                1,
                Err(vec![Doubt::OtherOrder { number: 2, order: OrderId(Uuid::nil()) }, Doubt::Missing(id("B"))]),
            ),
            (
                "the same serial on a disk of another size",
                ab(),
                ordered(),
                with(|c| c.drive.disks[0].size_bytes = 1),
                1,
                Err(vec![Doubt::NotOrdered { number: 2, disk: DiskId::new("B", 1) }, Doubt::Missing(id("B"))]),
            ),
            (
                "not erased",
                ab(),
                ordered(),
                with(|c| c.verdict = Verdict::NotErased { reason: "locked".into() }),
                2,
                Err(vec![Doubt::NotErased { serial: "B".into(), reason: "locked".into() }]),
            ),
            (
                "says erased, but nothing was verified",
                ab(),
                ordered(),
                with(|c| c.verification = None),
                2,
                Err(vec![Doubt::Unproven("B".into())]),
            ),
            (
                "a weaker policy than ordered, under which it's proven",
                ab(),
                ordered(),
                with(|c| c.policy = Policy::Clear),
                2,
                Err(vec![Doubt::Weaker { serial: "B".into(), policy: Policy::Clear, ordered: Policy::Purge }]),
            ),
            (
                "a stricter policy than ordered",
                ab(),
                ordered(),
                with(|c| {
                    c.policy = Policy::RekeyOnly;
                    c.attempts[0].method = Method::NvmeFormatCrypto;
                    c.verdict = Verdict::Erased { method: Method::NvmeFormatCrypto };
                }),
                2,
                Ok(()),
            ),
            (
                "a disk that the order forgot",
                vec![disk("A"), disk("B"), disk("C")],
                ordered(),
                good(),
                2,
                Err(vec![Doubt::OrderDiffers]),
            ),
            (
                "the chain has a hole",
                ab(),
                ordered(),
                alone(),
                0,
                Err(vec![misplaced(), Doubt::Missing(id("A")), Doubt::Missing(id("B"))]),
            ),
            (
                "the chain is told backwards",
                ab(),
                ordered(),
                good().into_iter().rev().collect(),
                1,
                Err(vec![misplaced(), Doubt::Missing(id("B"))]),
            ),
            ("a disk that left", vec![disk("A")], ordered(), good(), 2, Err(vec![Doubt::OrderDiffers])),
            ("nothing to erase is no proof", vec![], vec![], vec![], 0, Err(vec![Unerasable::NoDisks.into()])),
        ] {
            let inventory = inventory(disks);
            let key = PublicKey::of(&key());
            let run = Run {
                machine: MACHINE,
                boot: BOOT,
                order: ORDER,
                disks: &order,
                kept: &BTreeMap::new(),
                policy: Policy::Purge,
                inventory: &inventory,
                key,
                link: &Link::FIRST,
                rested: &BTreeMap::new(),
            };
            let judged = judge(&run, &certificates);
            assert_eq!(judged.proof.map(|_| ()), want, "{name}");
            assert_eq!(judged.authentic.len(), authentic, "{name}: what is worth keeping");
        }
    }

    #[test]
    fn every_disk_that_could_hold_data_is_erased_or_the_machine_stays_out() {
        let usb = Disk { bus: Bus::Usb, ..disk("U") };
        let cd = Disk { removable: true, read_only: true, serial: None, ..disk("") };
        let nameless = Disk { serial: Some("  ".into()), model: Some("QEMU NVMe".into()), ..disk("") };
        for (name, disks, want) in [
            ("all", vec![disk("B"), disk("A")], Ok(vec![id("A"), id("B")])),
            ("sticks and discs aside", vec![disk("A"), usb, cd], Ok(vec![id("A")])),
            (
                "one without a serial",
                vec![disk("A"), nameless],
                Err(Unerasable::NoSerial { name: "nvme0n1".into(), model: Some("QEMU NVMe".into()) }),
            ),
            ("two that can't be told apart", vec![disk("A"), disk("A")], Err(Unerasable::SameIdentity(id("A")))),
            ("none", vec![], Err(Unerasable::NoDisks)),
        ] {
            assert_eq!(disks_to_erase(&inventory(disks), [].iter()), want, "{name}");
        }
    }

    #[test]
    fn what_is_kept_is_left_out_and_must_be_there() {
        let ab = || vec![disk("A"), disk("B")];
        for (name, disks, kept, want) in [
            ("one of two", ab(), vec![id("B")], Ok(vec![id("A")])),
            ("gone", ab(), vec![id("C")], Err(Unerasable::KeptGone(id("C")))),
            ("of another size", ab(), vec![DiskId::new("B", 1)], Err(Unerasable::KeptGone(DiskId::new("B", 1)))),
            ("named twice", ab(), vec![id("B"), id("B")], Err(Unerasable::KeptGone(id("B")))),
            ("nothing would be left", ab(), vec![id("A"), id("B")], Err(Unerasable::NoDisks)),
        ] {
            assert_eq!(disks_to_erase(&inventory(disks), kept.iter()), want, "{name}");
        }
    }

    #[test]
    fn disks_behind_a_controller_without_a_driver_are_not_forgotten() {
        let function = |class, driver: Option<&str>| PciFunction {
            address: "0000:00:1f.2".into(),
            class,
            vendor: 0x8086,
            device: 0x2922,
            subsystem_vendor: None,
            subsystem_device: None,
            driver: driver.map(str::to_owned),
            numa_node: None,
        };
        let blind = Err(Unerasable::Blind { address: "0000:00:1f.2".into(), id: "8086:2922".into() });
        for (name, class, driver, want) in [
            ("SATA with its driver", 0x01_06_01, Some("ahci"), Ok(vec![id("A")])),
            ("SATA without", 0x01_06_01, None, blind.clone()),
            ("NVMe without", 0x01_08_02, None, blind),
            ("a network card without", 0x02_00_00, None, Ok(vec![id("A")])),
        ] {
            let inventory = Inventory { pci: vec![function(class, driver)], ..inventory(vec![disk("A")]) };
            assert_eq!(disks_to_erase(&inventory, [].iter()), want, "{name}");
        }
    }
}
