//! What people ask and order.

use std::collections::{BTreeSet, HashMap};

use axum::http::StatusCode;
use drophammer_protocol::api::{
    AuditEntry, Capacity, Explanation, ImageSummary, ImportStatus, InventoryTold, SizeMiss, SizeVerdict,
};
use drophammer_protocol::erase::Policy;
use drophammer_protocol::event::{Phase, Recorded, Step};
use drophammer_protocol::faults::{Fault, Faults};
use drophammer_protocol::id::{Mac, MachineId};
use drophammer_protocol::machine::{Allocation, Lock, Machine, Reinstall, Remarks, Select, State, TakeBack, Wanted};
use drophammer_protocol::resource::{Classification, ImagePolicy, Labels, Reservation, Right, check_labels};
use drophammer_protocol::words;

use crate::audit::{self, Change, Who};
use crate::auth::{Caller, project_of};
use crate::backup::{self, RESTORED};
use crate::denied::Denied;
use crate::desk;
use crate::documents::Given;
use crate::explain::{Case, explain};
use crate::images::{self, Image};
use crate::install;
use crate::lifecycle::Input;
use crate::names;
use crate::pool::Known;
use crate::records::{BootInventory, Record, Sight, inventories_prefix, inventory_key, machine_key};
use crate::size;
use crate::store::Txn;
use crate::timeline::{self, Said};
use crate::{Control, unix_ms};

/// Whose history is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Whose {
    Machine(MachineId),
    /// Who has never come as far as to say which machine it is.
    Stranger(Mac),
}

/// Which machines are asked for: those that fit all of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Matching {
    pub(crate) state: Option<State>,
    pub(crate) partition: Option<String>,
    pub(crate) rack: Option<String>,
    pub(crate) size: Option<String>,
    pub(crate) project: Option<String>,
    pub(crate) labels: Labels,
    /// With or without its version.
    pub(crate) image: Option<String>,
}

impl Matching {
    fn fits(&self, known: &Known) -> bool {
        let Known { record, size, rack, .. } = known;
        let is = |wanted: &Option<String>, has: Option<&str>| wanted.as_deref().is_none_or(|text| has == Some(text));
        let runs = record.allocation.as_ref().map(|allocation| allocation.image.as_str());
        let name = runs.and_then(|image| image.split_once('/')).map(|(name, _)| name);
        self.state.is_none_or(|state| state == record.state)
            && is(&self.partition, Some(&record.partition))
            && is(&self.rack, rack.as_deref())
            && is(&self.size, size.as_deref())
            && is(&self.project, project_of(record))
            && (is(&self.image, runs) || is(&self.image, name))
            && self.labels.iter().all(|(key, value)| record.labels.get(key) == Some(value))
    }
}

/// How a machine is taken back, and in which words that is kept.
struct TakingBack {
    action: &'static str,
    input: Input,
    /// Whatever speaks against it.
    despite: bool,
    decided: String,
}

/// What an audit has to know of a machine.
fn brief(record: &Record) -> serde_json::Value {
    let allocation = record.allocation.as_ref();
    serde_json::json!({
        "state": record.state,
        "image": allocation.map(|allocation| &allocation.image),
        "hostname": allocation.map(|allocation| &allocation.system.hostname),
        "project": allocation.and_then(|allocation| allocation.project.as_ref()),
    })
}

impl Control {
    /// Machines that the caller may see and that fit all of it, by what they are listed by.
    pub(crate) fn matching(&self, caller: &Caller, wanted: &Matching) -> Vec<(String, Known)> {
        let tables = self.inner.pool.read();
        let fits = |known: &&Known| wanted.fits(known) && caller.sees(&known.record, &tables);
        let found = tables.machines.values().filter(fits);
        let named = |known: &Known| (format!("{} {}", known.record.name, known.record.id), known.clone());
        let mut found: Vec<_> = found.map(named).collect();
        drop(tables);
        found.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        found
    }

    /// Whether somebody may have a machine given to whom the allocation says.
    pub(crate) fn may_allocate(&self, caller: &Caller, wanted: &Allocation) -> Result<(), Denied> {
        caller.must(Right::Editor, wanted.project.as_deref(), &self.inner.pool.read())
    }

    /// The machine that is meant, if the caller may take it back.
    pub(crate) fn to_take_back(
        &self,
        caller: &Caller,
        name: &str,
        despite_quarantine: bool,
    ) -> Result<MachineId, Denied> {
        // Why it's quarantined is for those to judge who have the machines.
        if despite_quarantine {
            caller.must_be_admin()?;
        }
        self.theirs(caller, name, Right::Editor)
    }

    /// How many machines there are in each state that any is in.
    pub fn states(&self) -> HashMap<State, usize> {
        let mut states = HashMap::new();
        for record in self.inner.pool.read().records() {
            *states.entry(record.state).or_default() += 1;
        }
        states
    }

    pub(crate) fn machine(&self, machine: MachineId) -> Result<Machine, Denied> {
        let record: Record = self.store().get(&machine_key(machine))?.ok_or_else(|| Denied::no_machine(machine))?;
        self.view(record)
    }

    pub(crate) fn resolve(&self, reference: &str) -> Result<MachineId, Denied> {
        names::pick(self.inner.pool.read().records().map(|record| &**record), reference)
    }

    /// A MAC that is no machine's is somebody's all the same.
    pub(crate) fn whose(&self, caller: &Caller, reference: &str) -> Result<Whose, Denied> {
        match (self.theirs(caller, reference, Right::Viewer), reference.trim().parse()) {
            (Err(denied), Ok(mac)) if denied.is_not_found() && caller.may_see_all() => Ok(Whose::Stranger(mac)),
            (resolved, _) => resolved.map(Whose::Machine),
        }
    }

    pub(crate) fn events(&self, whose: Whose, after: u64) -> Result<Vec<Recorded>, Denied> {
        match whose {
            Whose::Machine(machine) => Ok(timeline::read(self.store(), machine, after)?),
            Whose::Stranger(mac) => {
                let mut seen = self.inner.observed.of_stranger(mac);
                seen.retain(|event| event.position > after);
                Ok(seen)
            }
        }
    }

    pub(crate) fn explanation(&self, whose: Whose, now_ms: u64) -> Result<Explanation, Denied> {
        let (state, reason) = match whose {
            Whose::Machine(machine) => self.machine(machine).map(|machine| (machine.state, machine.reason))?,
            Whose::Stranger(_) => (State::Discovered, None),
        };
        let events = self.events(whose, 0)?;
        Ok(explain(&Case { state, reason: reason.as_deref(), events: &events, now_ms }))
    }

    pub(crate) fn images(&self) -> Result<Vec<ImageSummary>, Denied> {
        Ok(self.judged_images()?.into_iter().map(|image| image.summary).collect())
    }

    /// As the policies of now have them.
    fn judged_images(&self) -> anyhow::Result<Vec<Image>> {
        let policies: Vec<ImagePolicy> =
            self.inner.pool.read().image_policies.values().map(|stored| stored.value.clone()).collect();
        let all = self.inner.images.all(&self.compiled())?;
        Ok(all.into_iter().map(|image| images::judged(image, &policies)).collect())
    }

    /// The images that are declared to be compiled here.
    fn compiled(&self) -> BTreeSet<String> {
        let tables = self.inner.pool.read();
        tables.image_sources.values().filter_map(|stored| stored.value.compiled()).map(str::to_owned).collect()
    }

    /// `name/version`, or `name` for its newest version that is neither expired nor meant for those alone who name it.
    pub(crate) fn find_image(&self, reference: &str, now: u64) -> anyhow::Result<Option<Image>> {
        Ok(images::find(self.judged_images()?, reference, now))
    }

    /// What somebody should know who installs it all the same.
    pub(crate) fn warnings(&self, image: &Image, now: u64) -> Vec<String> {
        let ImageSummary { expires, classification, .. } = &image.summary;
        let reference = image.reference();
        let deprecated = (*classification == Classification::Deprecated)
            .then(|| format!("image {reference} is deprecated: choose a newer one next time"));
        let left_s = expires.map(|expires| expires.saturating_sub(now / 1000));
        let ends = left_s.filter(|left| *left < EXPIRES_SOON_S);
        let ends = ends.map(|left| format!("image {reference} expires in {}", count_days(left)));
        deprecated.into_iter().chain(ends).collect()
    }

    /// What a machine told of itself whenever it was different, newest last.
    pub(crate) fn inventories(&self, machine: MachineId) -> Result<Vec<InventoryTold>, Denied> {
        Ok(self.store().list(&inventories_prefix(machine), None)?)
    }

    pub(crate) fn imports(&self) -> Vec<ImportStatus> {
        self.inner.imports.read()
    }

    pub(crate) fn allocate(
        &self,
        machine: MachineId,
        wanted: &Allocation,
        who: &Who,
        now: u64,
    ) -> Result<Machine, Denied> {
        let select = Select { machine: Some(machine.to_string()), ..Select::default() };
        self.allot(&Wanted { select, allocation: wanted.clone() }, who, now)
    }

    /// What people say of a machine.
    pub(crate) fn remark(
        &self,
        machine: MachineId,
        remarks: &Remarks,
        given: Given,
        who: &Who,
        now: u64,
    ) -> Result<Machine, Denied> {
        let labels = remarks.labels.as_ref();
        labels.map_or(Ok(()), check_labels).map_err(|faults| Denied::faulty(&faults))?;
        for (field, text) in [("note", &remarks.note), ("lock", &remarks.lock)] {
            if text.as_ref().is_some_and(|text| text.len() > LONGEST_REMARK) {
                let why = format!("it has more than {LONGEST_REMARK} bytes");
                return Err(Denied::faulty(&Faults(vec![Fault { at: field.into(), why }])));
            }
        }
        self.change(machine, |txn, record| {
            given.holds(&format!("machine {machine}"), Some(record.generation))?;
            let said = |record: &Record| Remarks {
                labels: Some(record.labels.clone()),
                note: Some(record.note.clone()),
                lock: Some(record.lock.as_ref().map(|lock| lock.reason.clone()).unwrap_or_default()),
            };
            let before = said(record);
            remarks.labels.iter().for_each(|labels| record.labels.clone_from(labels));
            remarks.note.iter().for_each(|note| record.note.clone_from(note));
            match &remarks.lock {
                None => {}
                Some(reason) if reason.is_empty() => record.lock = None,
                Some(reason) => {
                    record.lock = Some(Lock { reason: reason.clone(), by: who.to_string(), at_ms: now });
                }
            }
            let object = machine_key(machine);
            let change = Change { who, at_ms: now, action: "remark", object: &object };
            Ok(audit::record(txn, change, Some(&before), Some(&said(record)))?)
        })?;
        self.machine(machine)
    }

    pub(crate) fn capacity(&self, now: u64) -> Vec<Capacity> {
        let tables = self.inner.pool.read();
        let reservations: Vec<&Reservation> = tables.reservations.values().map(|stored| &stored.value).collect();
        desk::capacity(&reservations, tables.machines.values().map(|known| self.spot(known, now)))
    }

    /// Why it's of its size or of none.
    pub(crate) fn size_verdict(&self, machine: MachineId) -> Result<SizeVerdict, Denied> {
        let tables = self.inner.pool.read();
        let Some(Known { record, size, .. }) = tables.machines.get(&machine) else {
            return Err(Denied::no_machine(machine));
        };
        let mut others: Vec<SizeMiss> = Vec::new();
        for other in
            tables.sizes.values().map(|stored| &stored.value).filter(|s| Some(s.name.as_str()) != size.as_deref())
        {
            let why = match &record.hardware {
                Some(hardware) => size::misses(other, hardware),
                None => vec!["nothing is known yet of what it's made of: its agent hasn't told".into()],
            };
            others.push(SizeMiss { size: other.name.clone(), why });
        }
        others.sort_by_key(|other| other.why.len());
        Ok(SizeVerdict { size: size.as_deref().map(str::to_owned), hardware: record.hardware.clone(), others })
    }

    pub(crate) fn audit(&self, after: Option<&str>, limit: usize) -> Result<Vec<AuditEntry>, Denied> {
        Ok(audit::read(self.store(), after, limit)?)
    }

    /// Which erasures the project is promised that the machine is for, whatever becomes of its configuration meanwhile.
    pub(crate) fn promised(&self, wanted: &Allocation) -> Result<Option<Policy>, String> {
        let Some(project) = &wanted.project else { return Ok(None) };
        let policy = self.policy();
        if let Some(declared) = self.inner.pool.read().projects.get(project) {
            return Ok(Some(declared.value.erase_policy.map_or(policy.erase, |wish| wish.strictest(policy.erase))));
        }
        match policy.projects.get(project) {
            Some(promised) => Ok(Some(*promised)),
            None => Err(format!("there is no project {project:?}: declare it with PUT /v1/projects/{project}")),
        }
    }

    pub(crate) fn release(&self, machine: MachineId, how: TakeBack, who: &Who, now: u64) -> Result<Machine, Denied> {
        let (despite, decided) = (how.despite_quarantine, format!("{who}, who released it"));
        let taking = TakingBack { action: "release", input: Input::Release(how), despite, decided };
        self.take_back(machine, &taking, who, now, |_, _| Ok(()))
    }

    pub(crate) fn reprovision(
        &self,
        machine: MachineId,
        how: TakeBack,
        who: &Who,
        now: u64,
    ) -> Result<Machine, Denied> {
        let decided = format!("{who}, who had it provisioned again");
        let despite = how.despite_quarantine;
        let taking = TakingBack { action: "reprovision", input: Input::Reprovision(how), despite, decided };
        self.take_back(machine, &taking, who, now, |_, _| Ok(()))
    }

    /// The system anew, and the drives that the layout keeps as they are. Refuses what would come to an end half-way.
    pub(crate) fn reinstall(
        &self,
        machine: MachineId,
        how: &Reinstall,
        who: &Who,
        now: u64,
    ) -> Result<Machine, Denied> {
        let unfit = |why: String| Denied::new(StatusCode::UNPROCESSABLE_ENTITY, why);
        let named = how.image.as_ref().map(|reference| Ok::<_, Denied>((reference, self.find_image(reference, now)?)));
        let named = named.transpose()?;
        let input = Input::Reinstall(TakeBack { despite_quarantine: how.despite_quarantine });
        let decided = format!("{who}, who had it installed again beside the drives that it keeps");
        let taking = TakingBack { action: "reinstall", input, despite: how.despite_quarantine, decided };
        self.take_back(machine, &taking, who, now, |txn, record| {
            let kept = record.kept();
            let Some(allocation) = record.allocation.as_mut() else { return Ok(()) };
            if kept.is_empty() {
                return Err(Denied::conflict(
                    "its layout keeps no drive (keep = true) that its last install had, so a reinstall would erase all of \
                     them; `drophammer machine reprovision` does that",
                ));
            }
            let Some((reference, image)) = &named else { return Ok(()) };
            let image = image.as_ref().ok_or_else(|| unfit(self.no_such_image(reference)))?;
            allocation.image = image.reference();
            // What it was made of when it last told; the boot that comes has the last word.
            if let Some(last) = txn.get::<BootInventory>(&inventory_key(machine))? {
                install::plan(allocation, image, &last.inventory, &kept, &self.policy().reboot_models)
                    .map_err(|why| unfit(why.to_string()))?;
            }
            Ok(())
        })
    }

    /// `prepare` sees the machine as it will be, and may still refuse.
    fn take_back(
        &self,
        machine: MachineId,
        taking: &TakingBack,
        who: &Who,
        now: u64,
        prepare: impl Fn(&mut Txn<'_>, &mut Record) -> Result<(), Denied>,
    ) -> Result<Machine, Denied> {
        let power = self.inner.power.as_ref();
        let TakingBack { action, input, decided, .. } = taking;
        self.change(machine, |txn, record| {
            if !taking.despite {
                backup::refuse_old_news(txn.get(RESTORED)?.as_ref(), record)?;
            }
            let before = brief(record);
            // The certificates of the erase that follows say it as well, and those are never deleted.
            let decision = match (record.state, record.reason.as_deref()) {
                (State::Quarantined, reason) => {
                    format!("{decided} although it was quarantined: {}", reason.unwrap_or("nobody knows why"))
                }
                _ => decided.clone(),
            };
            let decision = timeline::shortened(decision);
            self.advance(txn, record, input.clone(), now)?;
            prepare(txn, record)?;
            let said = format!("taken back by {decision}");
            timeline::append(txn, machine, [Said::new(now, record.boot, Phase::Lifecycle, Step::Note, said)])?;
            record.wanted_by = Some(decision);
            record.cycle_due = power.is_some();
            record.reason = Some(match power {
                Some(_) => "the power hook is power-cycling it into its agent".into(),
                None => "no power hook is configured: reboot it by hand into network boot, unless its agent runs and \
                         does so itself"
                    .into(),
            });
            let object = machine_key(machine);
            let change = Change { who, at_ms: now, action, object: &object };
            Ok(audit::record(txn, change, Some(&before), Some(&brief(record)))?)
        })?;
        self.machine(machine)
    }

    pub(crate) fn no_such_image(&self, reference: &str) -> String {
        let day = |seconds: u64| {
            let at = i64::try_from(seconds).ok().and_then(|at| time::OffsetDateTime::from_unix_timestamp(at).ok());
            at.map(|at| at.date().to_string()).unwrap_or_default()
        };
        let all = match self.judged_images() {
            Ok(all) => all,
            Err(error) => return format!("whether there is an image {reference} can't be told: {error:#}"),
        };
        if let Some(image) = images::pick(&all, reference) {
            if let Some(expired) = image.summary.expires.filter(|expires| *expires <= unix_ms() / 1000) {
                return format!("image {reference} expired on {}: publish a newer version", day(expired));
            }
            let mut its = all.iter().map(|image| &image.summary).filter(|summary| summary.name == reference);
            if image.summary.name == reference && its.all(|its| its.classification != Classification::Supported) {
                let one = image.reference();
                return format!("image {reference} has no version that is for everybody: name one, such as {one}");
            }
        }
        if let Some(revoked) = self.inner.images.revoked(reference, &self.compiled()) {
            let (since, why) = (day(revoked.at), revoked.reason);
            return format!("image {reference} was revoked on {since}: {why}; choose another version");
        }
        if let Some(import) = self.imports().into_iter().find(|import| import.reference == reference) {
            return format!("image {reference} isn't here yet: {}", import.words);
        }
        let dir = self.inner.images.dir().display();
        format!(
            "image {reference} isn't among those in {dir} that are whole and signed by a trusted key; \
             `drophammer image list` shows which are"
        )
    }

    fn view(&self, record: Record) -> Result<Machine, Denied> {
        let inventory: Option<BootInventory> = self.store().get(&inventory_key(record.id))?;
        let known = self.inner.pool.machine(record.id);
        let (size, rack) = known.map(|known| (known.size, known.rack)).unwrap_or_default();
        let sight = self.sight(record.id, size.as_deref(), rack.as_deref());
        Ok(record.view(inventory.map(|i| i.inventory), sight))
    }

    /// As it's listed: without its inventory and its logs.
    pub(crate) fn in_short(&self, known: &Known) -> Machine {
        let Known { record, size, rack, .. } = known;
        self.record_in_short(Record::clone(record), size.as_deref(), rack.as_deref())
    }

    pub(crate) fn record_in_short(&self, record: Record, size: Option<&str>, rack: Option<&str>) -> Machine {
        let sight = self.sight(record.id, size, rack);
        let mut machine = record.view(None, sight);
        machine.provisioning.log.clear();
        machine
    }

    fn sight<'a>(&self, machine: MachineId, size: Option<&'a str>, rack: Option<&'a str>) -> Sight<'a> {
        let seen_ms = self.seen(machine);
        Sight { size, rack, seen_ms, heard_ms: seen_ms.max(self.inner.started_ms), now_ms: unix_ms() }
    }
}

const LONGEST_REMARK: usize = 4096;
const EXPIRES_SOON_S: u64 = 30 * 24 * 3600;

fn count_days(seconds: u64) -> String {
    words::count(usize::try_from(seconds / (24 * 3600)).unwrap_or(usize::MAX), "day")
}
