//! How orders ended, and what follows from it: in one transaction, so that there is never one without the other.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use axum::http::StatusCode;
use drophammer_protocol::event::{Phase, Step};
use drophammer_protocol::id::OrderId;
use drophammer_protocol::machine::State;
use drophammer_protocol::order::{self, Outcome};
use drophammer_protocol::words::{bytes, list};
use sha2::{Digest, Sha256};

use crate::Control;
use crate::agent::agent_step;
use crate::denied::Denied;
use crate::erasure::{self, Run};
use crate::install;
use crate::lifecycle::Input;
use crate::records::{Answered, BootInventory, Erasing, Record, Standing, What, certificate_key, inventory_key};
use crate::rested;
use crate::store::Txn;
use crate::timeline::{self, Said};

/// As many drives as a layout has.
const MOST_KEPT: usize = 64;

impl Control {
    pub(crate) fn take_outcome(&self, bearer: &str, id: OrderId, outcome: &Outcome, now: u64) -> Result<(), Denied> {
        let text = serde_json::to_vec(outcome).context("hashing an outcome")?;
        let outcome_sha256 = hex::encode(Sha256::digest(text));
        self.as_agent(bearer, now, |txn, record, _| {
            if let Some(answered) = record.answered.iter().find(|a| a.order == id) {
                return if answered.outcome_sha256 == outcome_sha256 {
                    Ok(())
                } else {
                    Err(Denied::conflict(format!("order {id} has another outcome already")))
                };
            }
            let Some(pending) = record.order.clone().filter(|o| o.id == id) else {
                return Err(match record.state {
                    State::Releasing => Denied::gone("the machine was taken back meanwhile; reboot into the network"),
                    _ => Denied::new(StatusCode::NOT_FOUND, format!("this boot has no order {id}")),
                });
            };
            record.answered.push(Answered { order: id, outcome_sha256: outcome_sha256.clone() });
            match pending.what {
                What::Erase(erasing) => {
                    let input = self.erase_result(txn, record, id, &erasing, outcome, now)?;
                    agent_step(self, txn, record, input, now)
                }
                What::Install(plan) => self.install_ended(txn, record, id, &plan, outcome, now),
                What::Reboot { .. } => reboot_ended(txn, record, outcome, now),
            }
        })
    }

    /// What the outcome of an erase order is worth. Certificates that are really this run's are kept, whatever they say,
    /// in the same transaction as what follows from them.
    fn erase_result(
        &self,
        txn: &mut Txn<'_>,
        record: &mut Record,
        order: OrderId,
        erasing: &Erasing,
        outcome: &Outcome,
        now: u64,
    ) -> Result<Input, Denied> {
        let certificates = match outcome {
            Outcome::Erased { certificates } => certificates,
            Outcome::Refused { reason } => return Ok(Input::NotErased(format!("the agent refused: {reason}"))),
            Outcome::Failed { reason } => return Ok(Input::NotErased(reason.clone())),
            Outcome::Installed(_) => {
                return Ok(Input::NotErased("the agent says that it installed something instead".into()));
            }
        };
        let inventory = txn.get::<BootInventory>(&inventory_key(record.id))?.filter(|i| Some(i.boot) == record.boot);
        let boot = record.boot.and_then(|boot| record.boot_of(boot));
        let (Some(inventory), Some((boot, enrolment))) =
            (inventory, boot.and_then(|b| b.enrolled.as_ref().map(|e| (b.id, e))))
        else {
            return Ok(Input::NotErased("this boot has no inventory to compare the certificates with".into()));
        };
        let rested = rested::load(txn, record, Duration::MAX, now)?;
        let run = Run {
            machine: record.id,
            boot,
            order,
            disks: &erasing.disks,
            kept: &erasing.kept,
            policy: erasing.policy,
            inventory: &inventory.inventory,
            key: enrolment.key,
            link: &record.link,
            rested: &rested,
        };
        let judged = erasure::judge(&run, certificates);
        record.rested = match &judged.proof {
            Ok(_) => rested::after(&judged.authentic)?,
            Err(_) => BTreeMap::new(),
        };
        for (number, certificate) in (record.link.number..).zip(judged.authentic) {
            let entry = self.inner.notary.receive(&run, number, certificate, now);
            txn.put(&certificate_key(record.id, number), &entry)?;
        }
        record.link = judged.link;
        Ok(match judged.proof {
            Ok(proof) => Input::Erased(proof),
            Err(doubts) => Input::NotErased(erasure::sentence(&doubts)),
        })
    }

    fn install_ended(
        &self,
        txn: &mut Txn<'_>,
        record: &mut Record,
        order: OrderId,
        plan: &install::Plan,
        outcome: &Outcome,
        now: u64,
    ) -> Result<(), Denied> {
        match outcome {
            Outcome::Installed(done) => {
                agent_step(self, txn, record, Input::Installed, now)?;
                let drives =
                    plan.drives.iter().chain(&plan.kept).map(|(name, id)| (name.clone(), id.clone())).collect();
                let key_of = record.standing.as_ref().filter(|_| !plan.kept.is_empty()).map_or(order, |s| s.key_of);
                record.standing = Some(Standing { drives, key_of });
                let order::Installed { bytes_fetched, bytes_written, peak_memory_bytes, ref kept, .. } = **done;
                let message = format!(
                    "{} is on {}: {} fetched, {} written, the agent's memory peaked at {}",
                    plan.image,
                    list(plan.drives.values()),
                    bytes(bytes_fetched),
                    bytes(bytes_written),
                    bytes(peak_memory_bytes)
                );
                let kept = kept.iter().take(MOST_KEPT).cloned();
                let said = std::iter::once(message).chain(kept).map(timeline::shortened);
                let said = said.map(|text| Said::new(now, record.boot, Phase::Lifecycle, Step::Note, text));
                Ok(timeline::append(txn, record.id, said.collect::<Vec<_>>())?)
            }
            Outcome::Refused { reason } => {
                agent_step(self, txn, record, Input::InstallFailed(format!("the agent refused: {reason}")), now)
            }
            Outcome::Failed { reason } => agent_step(self, txn, record, Input::InstallFailed(reason.clone()), now),
            Outcome::Erased { .. } => {
                let why = "the agent says that it erased disks instead of installing".into();
                agent_step(self, txn, record, Input::InstallFailed(why), now)
            }
        }
    }
}

/// A machine that reboots says so by its next boot; here is only heard that it can't.
fn reboot_ended(txn: &mut Txn<'_>, record: &mut Record, outcome: &Outcome, now: u64) -> Result<(), Denied> {
    let why = match outcome {
        Outcome::Refused { reason } | Outcome::Failed { reason } => reason,
        Outcome::Erased { .. } | Outcome::Installed(_) => "it did something else instead",
    };
    let message = format!("the agent can't reboot: {why}. Reboot the machine by hand into network boot");
    record.order = None;
    record.reason = Some(message.clone());
    let said = Said::new(now, record.boot, Phase::Lifecycle, Step::Failed, message);
    Ok(timeline::append(txn, record.id, [said])?)
}

#[cfg(test)]
pub(crate) mod tests {
    use drophammer_protocol::api::Enrol;
    use drophammer_protocol::certificate::{ErasureCertificate, Verdict};
    use drophammer_protocol::fixtures;
    use drophammer_protocol::id::MachineId;
    use drophammer_protocol::inventory::{Disk, DiskId};
    use drophammer_protocol::order::{Order, Task};
    use drophammer_protocol::sign::{PublicKey, Signed};
    use ed25519_dalek::SigningKey;
    use uuid::Uuid;

    use super::*;
    use crate::agent::tests::{control, ticket};
    use crate::operator::Whose;
    use crate::records::machine_key;
    use crate::store::Revision;
    use crate::unix_ms;

    pub(crate) const MACHINE: MachineId = MachineId(Uuid::from_u128(1));

    /// A boot of a machine with these drives, as far as its erase order.
    pub(crate) struct Erase {
        pub(crate) order: Order,
        credential: String,
        key: SigningKey,
    }

    impl Erase {
        pub(crate) fn begin(control: &Control, serials: &[&str]) -> Self {
            let (now, key) = (unix_ms(), SigningKey::from_bytes(&[7; 32]));
            let ticket = ticket(control, MACHINE);
            let enrol =
                Enrol { machine: MACHINE, key: PublicKey::of(&key), macs: vec![], agent_version: String::new() };
            let credential = control.enrol(&ticket.token, &enrol, now).expect("enrols").credential;
            let disks: Vec<Disk> = serials.iter().map(|serial| fixtures::disk(serial, 1 << 30)).collect();
            control.take_inventory(&credential, &fixtures::inventory(disks), now).expect("is taken");
            let order = control.take_order(&credential, now).expect("answers").expect("an order");
            Self { order, credential, key }
        }

        pub(crate) fn outcome(&self, change: impl Fn(&mut ErasureCertificate)) -> Outcome {
            let Task::Erase(task) = &self.order.task else { panic!("an erase order, not {:?}", self.order) };
            let mut link = task.link.clone();
            let seal = |disk: &DiskId| {
                let (boot, order) = (self.order.boot, self.order.id);
                let mut made = fixtures::certificate(MACHINE, boot, order, link.clone(), disk);
                change(&mut made);
                let signed = Signed::seal(&made, &self.key);
                link = link.after(&signed);
                signed
            };
            Outcome::Erased { certificates: task.disks.iter().map(seal).collect() }
        }

        pub(crate) fn end(&self, control: &Control, outcome: &Outcome) {
            control.take_outcome(&self.credential, self.order.id, outcome, unix_ms()).expect("is stored");
        }
    }

    /// A crash leaves all of it or nothing: certificates with receipts, state and timeline are one commit.
    #[test]
    fn what_follows_from_certificates_is_stored_with_them() {
        for (name, erased, state) in [("erased", true, State::Waiting), ("not erased", false, State::Quarantined)] {
            let dir = tempfile::tempdir().expect("temporary directory");
            let control = control(dir.path());
            let erase = Erase::begin(&control, &["A", "B"]);
            let outcome = erase.outcome(|certificate| {
                if !erased {
                    certificate.verdict = Verdict::NotErased { reason: "locked".into() };
                }
            });
            let commit = |key: &str| -> Option<Revision> { control.store().revision(key).expect("reads") };
            let certificates = [1, 2].map(|number| certificate_key(MACHINE, number));
            assert_eq!(certificates.each_ref().map(|key| commit(key)), [None; 2]);
            let before = commit(&machine_key(MACHINE));
            erase.end(&control, &outcome);
            let after = commit(&machine_key(MACHINE));
            assert_ne!(after, before, "{name}");
            assert_eq!(control.machine(MACHINE).expect("is there").state, state, "{name}");
            assert_eq!(certificates.each_ref().map(|key| commit(key)), [after; 2], "{name}");
            let told = control.events(Whose::Machine(MACHINE), 0).expect("lists");
            let last = told.last().map_or(0, |event| event.position);
            assert_eq!(commit(&timeline::event_key(MACHINE, last)), after, "{name}: {told:?}");
            erase.end(&control, &outcome);
            assert_eq!(commit(&machine_key(MACHINE)), after, "{name}: said again, it changes nothing");
        }
    }
}
