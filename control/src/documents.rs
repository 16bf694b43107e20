//! What is declared: taken in if it agrees with everything else that is, and withdrawn if nothing needs it any more.
//!
//! All of it, and all allocations, take turns ([`Turn`]): what was decided by the pool's tables is only committed if nobody
//! else had a turn meanwhile.

use std::sync::Arc;

use axum::http::StatusCode;
use drophammer_protocol::faults::{Fault, Faults};
use drophammer_protocol::machine::State;
use drophammer_protocol::resource::{
    ImagePolicy, ImageSource, Kind, Meta, NamedLayout, Partition, Project, Reservation, Size, Stored, Tenant,
};

use crate::audit::{self, Change, Who};
use crate::denied::Denied;
use crate::pool::{Declared, Tables, Turn, document_key};
use crate::size;
use crate::{Control, Policy};

/// What has to be true of a document that is to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    Anything,
    /// It's as it was when it had this generation.
    Generation(u64),
    /// There is none yet.
    Absent,
}

impl Given {
    pub(crate) fn holds(self, what: &str, generation: Option<u64>) -> Result<(), Denied> {
        let now = match (self, generation) {
            (Self::Generation(wanted), Some(now)) if wanted != now => {
                format!("{what} has changed meanwhile: it is at {now}")
            }
            (Self::Generation(_), None) => format!("{what} is gone"),
            (Self::Absent, Some(_)) => format!("{what} is there already"),
            _ => return Ok(()),
        };
        let detail = format!("{now}; read it again and decide anew");
        Err(Denied::new(StatusCode::PRECONDITION_FAILED, detail))
    }
}

/// How kinds have to agree with each other.
pub(crate) trait Agree: Declared {
    /// What speaks against it, given everything else that is declared or configured.
    fn against(&self, tables: &Tables, policy: &Policy) -> Option<Fault>;
    /// What still needs the one of this name.
    fn needed(name: &str, tables: &Tables) -> Option<String>;
}

impl Control {
    pub(crate) fn documents<T: Declared>(&self) -> Vec<Arc<Stored<T>>> {
        T::table(&self.inner.pool.read()).values().cloned().collect()
    }

    pub(crate) fn document<T: Declared>(&self, name: &str) -> Result<Stored<T>, Denied> {
        self.store().get(&document_key::<T>(name))?.ok_or_else(|| there_is_no::<T>(name))
    }

    /// The document as it's kept from here on.
    pub(crate) fn declare<T: Agree>(&self, value: &T, given: Given, who: &Who, now: u64) -> Result<Stored<T>, Denied> {
        value.check().map_err(|faults| Denied::faulty(&faults))?;
        let (name, key) = (value.name(), document_key::<T>(value.name()));
        let what = format!("{} {name}", T::NAME);
        self.store().transact(|txn| {
            let turn = Turn::begin(txn, &self.inner.pool)?;
            let before: Option<Stored<T>> = txn.get(&key)?;
            given.holds(&what, before.as_ref().map(|before| before.meta.generation))?;
            if let Some(before) = before.as_ref().filter(|before| before.value == *value) {
                return Ok(before.clone());
            }
            if let Some(fault) = value.against(&self.inner.pool.read(), &self.policy()) {
                return Err(Denied::disagrees(fault));
            }
            let created_ms = before.as_ref().map_or(now, |before| before.meta.created_ms);
            let generation = before.as_ref().map_or(0, |before| before.meta.generation) + 1;
            let after = Stored { value: value.clone(), meta: Meta { generation, created_ms, changed_ms: now } };
            txn.put(&key, &after)?;
            let change = Change { who, at_ms: now, action: "put", object: &key };
            audit::record(txn, change, before.as_ref().map(|before| &before.value), Some(value))?;
            turn.take(txn)?;
            Ok(after)
        })
    }

    pub(crate) fn withdraw<T: Agree>(&self, name: &str, given: Given, who: &Who, now: u64) -> Result<(), Denied> {
        let key = document_key::<T>(name);
        self.store().transact(|txn| {
            let turn = Turn::begin(txn, &self.inner.pool)?;
            let before: Stored<T> = txn.get(&key)?.ok_or_else(|| there_is_no::<T>(name))?;
            given.holds(&format!("{} {name}", T::NAME), Some(before.meta.generation))?;
            if let Some(why) = T::needed(name, &self.inner.pool.read()) {
                return Err(Denied::conflict(format!("{} {name} is needed: {why}", T::NAME)));
            }
            txn.delete(&key);
            let change = Change { who, at_ms: now, action: "delete", object: &key };
            audit::record(txn, change, Some(&before.value), None)?;
            Ok(turn.take(txn)?)
        })
    }
}

pub(crate) fn there_is_no<T: Kind>(name: &str) -> Denied {
    Denied::new(
        StatusCode::NOT_FOUND,
        format!("there is no {} {name:?}; GET /v1/{} shows which there are", T::NAME, T::PLURAL),
    )
}

impl Denied {
    pub(crate) fn faulty(faults: &Faults) -> Self {
        let detail = format!("it can't be as it's written: {faults}");
        Self::Refused { status: StatusCode::UNPROCESSABLE_ENTITY, detail, faults: faults.0.clone() }
    }

    fn disagrees(fault: Fault) -> Self {
        let detail = format!("{}: {}", fault.at, fault.why);
        Self::Refused { status: StatusCode::UNPROCESSABLE_ENTITY, detail, faults: vec![fault] }
    }
}

fn missing<T: Declared>(at: &str, name: &str, tables: &Tables) -> Option<Fault> {
    let is_there = T::table(tables).contains_key(name);
    (!is_there).then(|| Fault { at: at.into(), why: format!("there is no {} {name:?}", T::NAME) })
}

/// Which of the documents say so.
fn named<T: Declared>(tables: &Tables, is: impl Fn(&T) -> bool) -> Option<&str> {
    T::table(tables).values().find(|stored| is(&stored.value)).map(|stored| stored.value.name())
}

impl Agree for Partition {
    fn against(&self, _: &Tables, _: &Policy) -> Option<Fault> {
        None
    }

    fn needed(name: &str, tables: &Tables) -> Option<String> {
        let has = |reservation: &Reservation| reservation.partitions.iter().any(|partition| partition == name);
        let reservation = named(tables, has).map(|reservation| format!("reservation {reservation} is in it"));
        let machine = || tables.records().find(|record| record.partition == name);
        reservation.or_else(|| machine().map(|record| format!("machine {} is in it", record.name)))
    }
}

impl Agree for Size {
    fn against(&self, tables: &Tables, _: &Policy) -> Option<Fault> {
        let others = tables.sizes.values().map(|stored| &stored.value).filter(|other| other.name != self.name);
        let other = others.into_iter().find(|other| size::overlap(self, other))?;
        Some(Fault {
            at: "constraints".into(),
            why: format!("a machine could be of this size and of {} as well; let them exclude each other", other.name),
        })
    }

    fn needed(name: &str, tables: &Tables) -> Option<String> {
        let reservation = named(tables, |reservation: &Reservation| reservation.size == name)?;
        Some(format!("reservation {reservation} is for it"))
    }
}

impl Agree for NamedLayout {
    fn against(&self, _: &Tables, _: &Policy) -> Option<Fault> {
        None
    }

    /// Allocations have the layout itself.
    fn needed(_: &str, _: &Tables) -> Option<String> {
        None
    }
}

impl Agree for ImagePolicy {
    fn against(&self, _: &Tables, _: &Policy) -> Option<Fault> {
        None
    }

    fn needed(_: &str, _: &Tables) -> Option<String> {
        None
    }
}

impl Agree for ImageSource {
    /// One image from two places would be whichever came first.
    fn against(&self, tables: &Tables, policy: &Policy) -> Option<Fault> {
        let other = named(tables, |other: &Self| other.name != self.name && other.clashes(self));
        let other = other.map(|other| format!("image source {other} may bring the same image; withdraw it first"));
        let configured = || policy.imports.iter().flat_map(|imports| &imports.references);
        let configured = || configured().find(|reference| self.may_bring(reference));
        let why = other.or_else(|| {
            let reference = configured()?;
            Some(format!("this server's configuration has an [[import]] of {reference}; remove it there first"))
        });
        why.map(|why| Fault { at: "image".into(), why })
    }

    /// What is installed stays so, but what is allocated has to be found yet.
    fn needed(name: &str, tables: &Tables) -> Option<String> {
        let image = tables.image_sources.get(name)?.value.compiled()?;
        let is_for = |record: &crate::records::Record| {
            record.state == State::Allocated
                && record.allocation.as_ref().is_some_and(|allocation| allocation.image == image)
        };
        let machine = tables.records().find(|record| is_for(record))?;
        Some(format!("{image} is about to be installed on machine {}", machine.name))
    }
}

impl Agree for Reservation {
    fn against(&self, tables: &Tables, _: &Policy) -> Option<Fault> {
        let partitions = self.partitions.iter();
        missing::<Project>("project", &self.project, tables)
            .or_else(|| missing::<Size>("size", &self.size, tables))
            .or_else(|| partitions.into_iter().find_map(|name| missing::<Partition>("partitions", name, tables)))
    }

    fn needed(_: &str, _: &Tables) -> Option<String> {
        None
    }
}

impl Agree for Tenant {
    fn against(&self, _: &Tables, _: &Policy) -> Option<Fault> {
        None
    }

    fn needed(name: &str, tables: &Tables) -> Option<String> {
        let project = named(tables, |project: &Project| project.tenant == name)?;
        Some(format!("project {project} is its"))
    }
}

impl Agree for Project {
    fn against(&self, tables: &Tables, _: &Policy) -> Option<Fault> {
        missing::<Tenant>("tenant", &self.tenant, tables)
    }

    fn needed(name: &str, tables: &Tables) -> Option<String> {
        let reservation = named(tables, |reservation: &Reservation| reservation.project == name);
        let reservation = reservation.map(|reservation| format!("reservation {reservation} is for it"));
        let has = |record: &crate::records::Record| {
            record.allocation.as_ref().is_some_and(|allocation| allocation.project.as_deref() == Some(name))
        };
        let machine = || tables.records().find(|record| has(record));
        reservation.or_else(|| machine().map(|record| format!("it has machine {}", record.name)))
    }
}
