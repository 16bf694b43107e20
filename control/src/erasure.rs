//! What has to be erased, and when it counts as erased.
//!
//! "Erased" enters this program as an [`ErasureProof`] and in no other way, and [`judge`] is the only place that makes
//! one. No disk list comes out empty: a machine whose agent sees no drive is more often one whose drive controller has
//! no driver in the initramfs than one without drives, and drives that nobody saw were not erased.

use std::collections::BTreeSet;

use drophammer_protocol::certificate::{ErasureCertificate, Verdict};
use drophammer_protocol::id::{BootId, MachineId, OrderId};
use drophammer_protocol::inventory::{DiskId, Inventory};
use drophammer_protocol::sign::{PublicKey, SignError, Signed};

/// Every drive that a tenant's data could be on, in a fixed order.
pub fn disks_to_erase(inventory: &Inventory) -> Result<Vec<DiskId>, Unerasable> {
    let mut disks = BTreeSet::new();
    for disk in inventory.disks.iter().filter(|d| d.holds_data()) {
        let Some(id) = disk.id() else {
            return Err(Unerasable::NoSerial { name: disk.name.clone(), model: disk.model.clone() });
        };
        if !disks.insert(id.clone()) {
            return Err(Unerasable::SameIdentity(id));
        }
    }
    if disks.is_empty() { Err(Unerasable::NoDisks) } else { Ok(disks.into_iter().collect()) }
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
    #[error("two disks call themselves {0}, so an erase order can't tell them apart: take one out or replace it")]
    SameIdentity(DiskId),
}

/// The erase order of one boot, and what is known about who carries it out.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    pub machine: MachineId,
    pub boot: BootId,
    pub order: OrderId,
    /// The drives that the order names.
    pub disks: &'a [DiskId],
    /// The inventory of this boot.
    pub inventory: &'a Inventory,
    /// The key that the agent announced when this boot enrolled.
    pub key: PublicKey,
}

/// Every drive of a machine that could hold data has a certificate that proves its erasure, made by this boot under
/// this order. [`judge`] is the only way to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErasureProof {
    disks: Vec<DiskId>,
}

impl ErasureProof {
    pub fn disks(&self) -> &[DiskId] {
        &self.disks
    }
}

/// What certificates are worth.
#[derive(Debug)]
pub struct Judgement {
    /// Those that are really of this run, whatever they say: worth keeping.
    pub authentic: Vec<Signed<ErasureCertificate>>,
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
    #[error("{0} has more than one certificate")]
    Twice(DiskId),
    #[error("{0} has no certificate")]
    Missing(DiskId),
    #[error("{disk} was not erased: {reason}")]
    NotErased { disk: DiskId, reason: String },
    #[error(
        "the certificate of {0} says erased but doesn't prove it (no successful method, no canaries, or something survived)"
    )]
    Unproven(DiskId),
    #[error("the order's disks aren't the ones that this boot's inventory shows")]
    OrderDiffers,
    #[error(transparent)]
    Unerasable(#[from] Unerasable),
}

pub fn judge(run: &Run<'_>, certificates: &[Signed<ErasureCertificate>]) -> Judgement {
    let mut doubts = Vec::new();
    let ordered: BTreeSet<&DiskId> = run.disks.iter().collect();
    match disks_to_erase(run.inventory) {
        Err(why) => doubts.push(why.into()),
        Ok(disks) if disks.iter().collect::<BTreeSet<_>>() != ordered => doubts.push(Doubt::OrderDiffers),
        Ok(_) => {}
    }
    let (mut authentic, mut covered) = (Vec::new(), BTreeSet::new());
    for (index, signed) in certificates.iter().enumerate() {
        match authenticate(run, &ordered, index + 1, signed) {
            Err(doubt) => doubts.push(doubt),
            Ok(certificate) => {
                authentic.push(signed.clone());
                if !covered.insert(certificate.disk.clone()) {
                    doubts.push(Doubt::Twice(certificate.disk.clone()));
                }
                doubts.extend(weigh(&certificate));
            }
        }
    }
    doubts.extend(run.disks.iter().filter(|d| !covered.contains(d)).cloned().map(Doubt::Missing));
    let proof = if doubts.is_empty() { Ok(ErasureProof { disks: run.disks.to_vec() }) } else { Err(doubts) };
    Judgement { authentic, proof }
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
    if !ordered.contains(&certificate.disk) {
        return Err(Doubt::NotOrdered { number, disk: certificate.disk });
    }
    Ok(certificate)
}

fn weigh(certificate: &ErasureCertificate) -> Option<Doubt> {
    match &certificate.verdict {
        Verdict::NotErased { reason } => {
            Some(Doubt::NotErased { disk: certificate.disk.clone(), reason: reason.clone() })
        }
        Verdict::Erased { .. } if certificate.proves_erasure() => None,
        Verdict::Erased { .. } => Some(Doubt::Unproven(certificate.disk.clone())),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use drophammer_protocol::certificate::{Attempt, Method, Verification};
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
        DiskId { serial: serial.into(), size_bytes: 1 << 30 }
    }

    fn certificate(serial: &str) -> ErasureCertificate {
        let method = Method::NvmeFormatCrypto;
        ErasureCertificate {
            machine: MACHINE,
            boot: BOOT,
            order: ORDER,
            disk: id(serial),
            model: None,
            firmware: None,
            capabilities: vec![],
            attempts: vec![Attempt { method, because: String::new(), millis: 1, error: None }],
            verification: Some(Verification {
                canaries_planted: 3,
                canaries_surviving: 0,
                samples: 3,
                samples_surviving: 0,
                block_bytes: 4096,
            }),
            verdict: Verdict::Erased { method },
            started: 0,
            finished: 1,
            agent_version: "1".into(),
        }
    }

    fn sealed(certificate: &ErasureCertificate) -> Signed<ErasureCertificate> {
        Signed::seal(certificate, &key())
    }

    /// A real proof, made the only way there is.
    pub(crate) fn proof() -> ErasureProof {
        let (disks, inventory) = ([id("A")], inventory(vec![disk("A")]));
        let key = PublicKey::of(&key());
        let run = Run { machine: MACHINE, boot: BOOT, order: ORDER, disks: &disks, inventory: &inventory, key };
        judge(&run, &[sealed(&certificate("A"))]).proof.expect("a certificate that proves it")
    }

    #[test]
    fn a_proof_takes_every_disk_and_nothing_but_this_run() {
        let ab = || vec![disk("A"), disk("B")];
        let good = || vec![sealed(&certificate("A")), sealed(&certificate("B"))];
        let with = |change: fn(&mut ErasureCertificate)| {
            let mut changed = certificate("B");
            change(&mut changed);
            vec![sealed(&certificate("A")), sealed(&changed)]
        };
        let forged = || {
            let mut signed = sealed(&certificate("B"));
            signed.payload = signed.payload.replace("\"finished\":1", "\"finished\":2");
            vec![sealed(&certificate("A")), signed]
        };
        let other_key = SigningKey::from_bytes(&[8; 32]);
        let stranger = vec![sealed(&certificate("A")), Signed::seal(&certificate("B"), &other_key)];
        let ordered = || vec![id("A"), id("B")];
        for (name, disks, order, certificates, authentic, want) in [
            ("both", ab(), ordered(), good(), 2, Ok(())),
            ("in another order", vec![disk("B"), disk("A")], ordered(), good(), 2, Ok(())),
            ("none", ab(), ordered(), vec![], 0, Err(vec![Doubt::Missing(id("A")), Doubt::Missing(id("B"))])),
            ("one missing", ab(), ordered(), vec![sealed(&certificate("A"))], 1, Err(vec![Doubt::Missing(id("B"))])),
            (
                "one twice",
                ab(),
                ordered(),
                vec![sealed(&certificate("A")), sealed(&certificate("A"))],
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
                with(|c| c.disk.size_bytes = 1),
                1,
                Err(vec![
                    Doubt::NotOrdered { number: 2, disk: DiskId { serial: "B".into(), size_bytes: 1 } },
                    Doubt::Missing(id("B")),
                ]),
            ),
            (
                "not erased",
                ab(),
                ordered(),
                with(|c| c.verdict = Verdict::NotErased { reason: "locked".into() }),
                2,
                Err(vec![Doubt::NotErased { disk: id("B"), reason: "locked".into() }]),
            ),
            (
                "says erased, but nothing was verified",
                ab(),
                ordered(),
                with(|c| c.verification = None),
                2,
                Err(vec![Doubt::Unproven(id("B"))]),
            ),
            (
                "a disk that the order forgot",
                vec![disk("A"), disk("B"), disk("C")],
                ordered(),
                good(),
                2,
                Err(vec![Doubt::OrderDiffers]),
            ),
            ("a disk that left", vec![disk("A")], ordered(), good(), 2, Err(vec![Doubt::OrderDiffers])),
            ("nothing to erase is no proof", vec![], vec![], vec![], 0, Err(vec![Unerasable::NoDisks.into()])),
        ] {
            let inventory = inventory(disks);
            let key = PublicKey::of(&key());
            let run = Run { machine: MACHINE, boot: BOOT, order: ORDER, disks: &order, inventory: &inventory, key };
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
            assert_eq!(disks_to_erase(&inventory(disks)), want, "{name}");
        }
    }
}
