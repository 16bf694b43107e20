//! Where machines are given out: to one after the other, though many come at once.
//!
//! Whoever comes while others are served waits in line, and the next round serves all of the line: each wish is decided
//! knowing all before it, and one commit makes it so. Several servers on one store have a desk each; of two rounds at once
//! one is done again.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use axum::http::StatusCode;
use drophammer_protocol::api::Capacity;
use drophammer_protocol::erase::Policy;
use drophammer_protocol::event::{Phase, Step};
use drophammer_protocol::glob::glob;
use drophammer_protocol::id::MachineId;
use drophammer_protocol::layout::Layout;
use drophammer_protocol::machine::{Allocation, Machine, Select, State, Wanted};
use drophammer_protocol::provisioning::Liveliness;
use drophammer_protocol::resource::{NamedLayout, Reservation};

use crate::Control;
use crate::allot::{self, Floor, Spot, Status, Taken, Unusable, Wish};
use crate::audit::{self, Change, Who};
use crate::denied::Denied;
use crate::images::Image;
use crate::install;
use crate::lifecycle::Input;
use crate::line::Line;
use crate::pool::{Known, Turn};
use crate::provisioning;
use crate::records::{BootInventory, Record, inventory_key, machine_key};
use crate::store::etcd::Unanswered;
use crate::store::{MOST_CHANGES, Txn};
use crate::timeline::{self, Said};

/// Served in one commit, each with its record, what is told of it, what that pushes out of its history, and the audit's entry.
const MOST_AT_ONCE: usize = MOST_CHANGES / 10;
/// Machines that are tried for one wish: those that its image or its layout doesn't fit are passed by.
const MOST_TRIED: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct Desk {
    line: Line<Asked, Result<MachineId, Denied>>,
}

/// Everything that can be known before it's one's turn.
#[derive(Debug)]
struct Asked {
    select: Select,
    allocation: Allocation,
    machine: Option<MachineId>,
    /// None that could be installed, and why.
    image: Result<Image, String>,
    promised: Result<Option<Policy>, String>,
    who: Who,
    now: u64,
}

impl Control {
    /// Gives out one machine that fits, and says which.
    pub(crate) fn allot(&self, wanted: &Wanted, who: &Who, now: u64) -> Result<Machine, Denied> {
        let machine = wanted.select.machine.as_deref().map(|name| self.resolve(name)).transpose()?;
        let allocation = wanted.allocation.clone();
        let image = self.find_image(&allocation.image, now)?;
        let image = image.ok_or_else(|| self.no_such_image(&allocation.image));
        let promised = self.promised(&allocation);
        let select = wanted.select.clone();
        let asked = Asked { select, allocation, machine, image, promised, who: who.clone(), now };
        let machine = self.stand_in_line(asked)?;
        self.machine(machine)
    }

    fn stand_in_line(&self, asked: Asked) -> Result<MachineId, Denied> {
        let serve = |wishes: Vec<Asked>| match self.serve(&wishes) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                let theirs = || match error.downcast_ref::<Unanswered>() {
                    Some(unanswered) => anyhow::Error::new(unanswered.clone()),
                    None => anyhow!("{error:#}"),
                };
                wishes.iter().map(|_| Err(Denied::Broken(theirs()))).collect()
            }
        };
        let served = self.inner.desk.line.have_done(asked, MOST_AT_ONCE, serve);
        served.context("waiting for an allocation that nobody serves")?
    }

    fn serve(&self, wishes: &[Asked]) -> Result<Vec<Result<MachineId, Denied>>> {
        self.store().transact(|txn| {
            let turn = Turn::begin(txn, &self.inner.pool)?;
            let (mut spots, reservations, layouts) = {
                let tables = self.inner.pool.read();
                let now = wishes.iter().map(|asked| asked.now).max().unwrap_or(0);
                let spots: Vec<Spot> = tables.machines.values().map(|known| self.spot(known, now)).collect();
                let reservations: Vec<_> = tables.reservations.values().cloned().collect();
                let layouts: Vec<_> = tables.layouts.values().cloned().collect();
                (spots, reservations, layouts)
            };
            let reservations: Vec<&Reservation> = reservations.iter().map(|stored| &stored.value).collect();
            let layouts: Vec<&NamedLayout> = layouts.iter().map(|stored| &stored.value).collect();
            let floor = Floor::of(&spots);
            let mut outcomes = Vec::with_capacity(wishes.len());
            for asked in wishes {
                let outcome = txn.attempt(|txn| self.give(txn, asked, (&mut spots, &floor), &reservations, &layouts));
                outcomes.push(match outcome {
                    // What doesn't work for one doesn't work for the others either.
                    Err(Denied::Broken(error)) => return Err(error),
                    outcome => outcome,
                });
            }
            if outcomes.iter().any(Result::is_ok) {
                turn.take(txn)?;
            }
            Ok(outcomes)
        })
    }

    fn give(
        &self,
        txn: &mut Txn<'_>,
        asked: &Asked,
        (spots, floor): (&mut [Spot], &Floor),
        reservations: &[&Reservation],
        layouts: &[&NamedLayout],
    ) -> Result<MachineId, Denied> {
        let wish = Wish { select: &asked.select, machine: asked.machine, project: asked.allocation.project.as_deref() };
        if let Some(machine) = asked.machine {
            // What is to be said about a certain machine is said by its own record.
            let record: Option<Record> = txn.get(&machine_key(machine))?;
            let mut record = record.ok_or_else(|| Denied::no_machine(machine))?;
            if let Some(lock) = &record.lock {
                return Err(Denied::conflict(format!("the machine is locked: {}", lock.reason)));
            }
            record.allocation = Some(asked.allocation.clone());
            record.may(&Input::Allocate)?;
            // That it's silent is no reason: whoever names it knows it.
            for spot in spots.iter_mut().filter(|spot| spot.id == machine) {
                if matches!(spot.status, Status::Unusable(Unusable::Dead)) {
                    spot.status = Status::Free { since_ms: record.changed_ms };
                }
            }
        } else {
            asked.image.as_ref().map_err(|why| Denied::new(StatusCode::UNPROCESSABLE_ENTITY, why.clone()))?;
            asked.promised.as_ref().map_err(|why| Denied::new(StatusCode::UNPROCESSABLE_ENTITY, why.clone()))?;
        }
        if let Some((project, most)) = self.most_of(wish.project) {
            let has = spots
                .iter()
                .filter(|spot| matches!(&spot.status, Status::Taken(t) if t.project.as_deref() == wish.project));
            if has.count() >= most as usize {
                return Err(Denied::conflict(format!(
                    "project {project} has all of the {most} machines that it may have"
                )));
            }
        }
        let mut unfit: Option<Denied> = None;
        for _ in 0..MOST_TRIED {
            let place = match allot::choose(spots, floor, &wish, reservations) {
                Ok(place) => place,
                Err(why) => return Err(unfit.unwrap_or_else(|| Denied::conflict(why))),
            };
            let Some(spot) = spots.get_mut(place) else { break };
            match txn.attempt(|txn| self.give_this(txn, asked, spot, layouts)) {
                Ok(()) => {
                    spot.status = Status::Taken(Taken {
                        project: wish.project.map(Arc::from),
                        reservation: wish.select.reservation.as_deref().map(Arc::from),
                        placement: Arc::new(wish.select.placement.clone()),
                    });
                    return Ok(spot.id);
                }
                Err(Denied::Broken(error)) => return Err(Denied::Broken(error)),
                Err(refused) => {
                    spot.status = Status::Unusable(Unusable::State(State::Waiting));
                    unfit = Some(refused);
                }
            }
        }
        Err(unfit.unwrap_or_else(|| Denied::conflict("no machine could be chosen")))
    }

    fn give_this(&self, txn: &mut Txn<'_>, asked: &Asked, spot: &Spot, layouts: &[&NamedLayout]) -> Result<(), Denied> {
        let unfit = |why: String| Denied::new(StatusCode::UNPROCESSABLE_ENTITY, why);
        let mut record = Record::load(txn, spot.id)?.ok_or_else(|| Denied::no_machine(spot.id))?;
        record.allocation = Some(asked.allocation.clone());
        // First what is wrong with the machine, then what is wrong with the wish.
        record.may(&Input::Allocate)?;
        let inventory = txn.get::<BootInventory>(&inventory_key(spot.id))?.filter(|i| Some(i.boot) == record.boot);
        let Some(inventory) = inventory else {
            return Err(Denied::conflict("the machine has no inventory of its present boot; reboot it"));
        };
        let image = asked.image.as_ref().map_err(|why| unfit(why.clone()))?;
        if let Some(size) = &spot.size {
            self.image_fits_size(size, image).map_err(unfit)?;
        }
        let layout = match &asked.allocation {
            Allocation { layout: None, disk: None, .. } => layout_for(layouts, spot, image).map_err(unfit)?,
            Allocation { layout, .. } => layout.clone(),
        };
        let allocation = Allocation { image: image.reference(), layout, ..asked.allocation.clone() };
        install::plan(&allocation, image, &inventory.inventory, &BTreeMap::new(), &self.policy().reboot_models)
            .map_err(|why| unfit(why.to_string()))?;
        let promised = asked.promised.clone().map_err(unfit)?;
        record.owed = record.owed.into_iter().chain(promised).reduce(Policy::strictest);
        record.allocation = Some(allocation);
        record.select = asked.select.clone();
        self.advance(txn, &mut record, Input::Allocate, asked.now)?;
        let warnings = self.warnings(image, asked.now).into_iter();
        let warnings = warnings.map(|warning| Said::new(asked.now, record.boot, Phase::Allocated, Step::Note, warning));
        timeline::append(txn, spot.id, warnings)?;
        record.save(txn)?;
        let object = machine_key(spot.id);
        let change = Change { who: &asked.who, at_ms: asked.now, action: "allocate", object: &object };
        let after = record.allocation.map(Allocation::without_secrets);
        Ok(audit::record(txn, change, None, after.as_ref())?)
    }

    /// How many machines a project may have, if that is limited.
    fn most_of(&self, project: Option<&str>) -> Option<(String, u32)> {
        let tables = self.inner.pool.read();
        let project = &tables.projects.get(project?)?.value;
        Some((project.name.clone(), project.most_machines?))
    }

    fn image_fits_size(&self, size: &str, image: &Image) -> Result<(), String> {
        let tables = self.inner.pool.read();
        let Some(size) = tables.sizes.get(size).map(|stored| &stored.value) else { return Ok(()) };
        let (name, version) = (&image.summary.name, &image.summary.version);
        if size.images.is_empty() || size.images.iter().any(|rule| rule.means(name, version)) {
            return Ok(());
        }
        Err(format!("image {} isn't among those that size {} takes", image.reference(), size.name))
    }

    /// How a machine looks to whoever gives them out.
    pub(crate) fn spot(&self, known: &Known, now: u64) -> Spot {
        let Known { record, partition, labels, taken, size, rack } = known;
        let status = match taken {
            Some(taken) => Status::Taken(taken.clone()),
            None if record.state != State::Waiting => Status::Unusable(Unusable::State(record.state)),
            None if record.lock.is_some() => Status::Unusable(Unusable::Locked),
            None if self.is_silent(record, now) => Status::Unusable(Unusable::Dead),
            None => Status::Free { since_ms: record.changed_ms },
        };
        Spot {
            id: record.id,
            partition: Arc::clone(partition),
            size: size.clone(),
            rack: rack.clone(),
            labels: Arc::clone(labels),
            status,
        }
    }

    /// Whether nothing was heard of it for too long. Nobody is judged by the time that this server wasn't there.
    pub(crate) fn is_silent(&self, record: &Record, now: u64) -> bool {
        let heard = record.last_seen_ms.max(self.seen(record.id)).max(self.inner.started_ms);
        provisioning::liveliness(record.state, heard, now) == Liveliness::Dead
    }
}

/// The layout that is meant for such machines and images, if there is one.
fn layout_for(layouts: &[&NamedLayout], spot: &Spot, image: &Image) -> Result<Option<Layout>, String> {
    let (name, version) = (&image.summary.name, &image.summary.version);
    let is_meant = |layout: &&&NamedLayout| {
        let constraints = &layout.constraints;
        let size = spot.size.as_deref().unwrap_or_default().as_bytes();
        let fits_size = constraints.sizes.iter().any(|p| glob(p.as_bytes(), size));
        let fits_image = constraints.images.iter().any(|rule| rule.means(name, version));
        !constraints.is_empty()
            && (constraints.sizes.is_empty() || fits_size)
            && (constraints.images.is_empty() || fits_image)
    };
    let meant: Vec<&&NamedLayout> = layouts.iter().filter(is_meant).collect();
    match meant.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.layout.clone())),
        several => {
            let names: Vec<&str> = several.iter().map(|layout| layout.name.as_str()).collect();
            Err(format!("layouts {} are all meant for this: name one, or narrow their constraints", names.join(", ")))
        }
    }
}

/// Machines of each size in each partition, counted.
pub(crate) fn capacity(reservations: &[&Reservation], spots: impl Iterator<Item = Spot>) -> Vec<Capacity> {
    type Group = (Arc<str>, Option<Arc<str>>);
    let mut groups: BTreeMap<Group, (Capacity, Vec<Taken>)> = BTreeMap::new();
    for spot in spots {
        let (count, taken) = groups.entry((spot.partition, spot.size)).or_default();
        count.total += 1;
        match spot.status {
            Status::Free { .. } => count.free += 1,
            Status::Taken(by) => {
                count.allocated += 1;
                taken.push(by);
            }
            Status::Unusable(Unusable::State(State::Quarantined)) => count.quarantined += 1,
            Status::Unusable(Unusable::Dead | Unusable::Locked) => count.faulty += 1,
            Status::Unusable(Unusable::State(_)) => count.unavailable += 1,
        }
    }
    // Also where nothing is that could be had.
    for reservation in reservations {
        for partition in &reservation.partitions {
            groups.entry((partition.as_str().into(), Some(reservation.size.as_str().into()))).or_default();
        }
    }
    let counted = groups.into_iter().map(|((partition, size), (mut count, taken))| {
        let is_ours = |r: &&&Reservation| {
            Some(r.size.as_str()) == size.as_deref() && r.partitions.iter().any(|name| **name == *partition)
        };
        let ours: Vec<&Reservation> = reservations.iter().filter(is_ours).copied().collect();
        for (amount, used) in allot::usage(&ours, &taken.iter().collect::<Vec<_>>()).into_values() {
            count.reserved += amount;
            count.used_reservations += used;
        }
        count.partition = partition.to_string();
        count.size = size.as_deref().map(str::to_owned);
        count
    });
    counted.collect()
}
