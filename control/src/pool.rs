//! All machines, and what is declared about them, in memory: for lists, look-ups and decisions over all of them.
//!
//! It follows the store's own news, so it has what other servers on the same store change as well, a moment later. What is
//! decided by it is checked again in a transaction, which fails if it was outdated. Whoever waits for a machine is woken
//! from here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use drophammer_protocol::id::{BootId, Mac, MachineId};
use drophammer_protocol::machine::State;
use drophammer_protocol::resource::{
    ImagePolicy, ImageSource, Kind, Labels, NamedLayout, Partition, Project, Reservation, Size, Stored, Tenant,
};
use tokio::sync::{Notify, watch};

use crate::allot::Taken;
use crate::own_disks::Watched;
use crate::presence::{PRESENCE, Presence};
use crate::rack;
use crate::records::{MACHINES, Record};
use crate::size;
use crate::store::{Changes, Followed, News, Revision, Store, Txn, decode};
use crate::wake::Wakes;

/// Others' decisions are here long before.
const LATE: Duration = Duration::from_secs(2);
/// Between attempts to read everything anew.
const PAUSE: Duration = Duration::from_secs(1);

/// Counts all turns that were ever had.
const TURN: &str = "turn";

/// One's turn to decide by the pool's tables.
#[derive(Debug)]
pub(crate) struct Turn(u64);

impl Turn {
    /// The pool has everything that was decided before.
    pub(crate) fn begin(txn: &mut Txn<'_>, pool: &Pool) -> anyhow::Result<Self> {
        let turn = txn.get(TURN)?.unwrap_or(0);
        pool.wait_for_turn(turn)?;
        Ok(Self(turn))
    }

    /// From here on nobody else's decision of the same time holds.
    pub(crate) fn take(self, txn: &mut Txn<'_>) -> anyhow::Result<()> {
        txn.put(TURN, &(self.0 + 1))
    }
}

#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    anew: mpsc::Sender<()>,
    keeper: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    tables: RwLock<Tables>,
    wakes: Arc<Wakes>,
    own_disks: Arc<Watched>,
    presence: Arc<Presence>,
    /// There are machines that are to be power-cycled.
    due: Notify,
    /// Changes with what boot servers do by what is declared.
    declared: watch::Sender<()>,
    followed: Arc<Followed>,
    closed: AtomicBool,
}

/// Documents by their names.
pub(crate) type Table<T> = BTreeMap<String, Arc<Stored<T>>>;

#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) machines: BTreeMap<MachineId, Known>,
    macs: HashMap<Mac, MachineId>,
    /// By the boot that is listened to.
    boots: HashMap<BootId, MachineId>,
    /// Those that are to be power-cycled.
    pub(crate) due: BTreeSet<MachineId>,
    /// How many turns to decide were had, as far as it's known here.
    turn: u64,
    pub(crate) partitions: Table<Partition>,
    pub(crate) sizes: Table<Size>,
    pub(crate) layouts: Table<NamedLayout>,
    pub(crate) reservations: Table<Reservation>,
    pub(crate) image_policies: Table<ImagePolicy>,
    pub(crate) image_sources: Table<ImageSource>,
    pub(crate) tenants: Table<Tenant>,
    pub(crate) projects: Table<Project>,
}

/// A machine, and what follows from everything that is declared.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) record: Arc<Record>,
    /// The record's own, to be shared by all who look at thousands of machines at once.
    pub(crate) partition: Arc<str>,
    pub(crate) labels: Arc<Labels>,
    /// Who has it.
    pub(crate) taken: Option<Taken>,
    /// `None` if it's of none, or nothing is known of what it's made of.
    pub(crate) size: Option<Arc<str>>,
    pub(crate) rack: Option<Arc<str>>,
}

/// A kind that has its table.
pub(crate) trait Declared: Kind {
    fn table(tables: &Tables) -> &Table<Self>;
    fn table_mut(tables: &mut Tables) -> &mut Table<Self>;
}

macro_rules! declared {
    ($($kind:ty => $table:ident),* $(,)?) => {
        $(impl Declared for $kind {
            fn table(tables: &Tables) -> &Table<Self> {
                &tables.$table
            }
            fn table_mut(tables: &mut Tables) -> &mut Table<Self> {
                &mut tables.$table
            }
        })*

        /// What keys of documents begin with.
        fn prefixes() -> Vec<String> {
            vec![$(prefix::<$kind>()),*]
        }

        /// Takes in a change of a document; none of another key's.
        fn take_document(tables: &mut Tables, kind: &str, name: &str, value: Option<&[u8]>) -> Result<()> {
            match kind {
                $(<$kind as Kind>::NAME => take::<$kind>(tables, name, value),)*
                _ => Ok(()),
            }
        }
    };
}

declared! {
    Partition => partitions,
    Size => sizes,
    NamedLayout => layouts,
    Reservation => reservations,
    ImagePolicy => image_policies,
    ImageSource => image_sources,
    Tenant => tenants,
    Project => projects,
}

fn prefix<T: Kind>() -> String {
    format!("{}/", T::NAME)
}

/// Where a document is kept.
pub(crate) fn document_key<T: Kind>(name: &str) -> String {
    format!("{}/{name}", T::NAME)
}

fn take<T: Declared>(tables: &mut Tables, name: &str, value: Option<&[u8]>) -> Result<()> {
    match value {
        Some(value) => {
            let document = decode(document_key::<T>(name).as_bytes(), value)?;
            T::table_mut(tables).insert(name.to_owned(), Arc::new(document));
        }
        None => {
            T::table_mut(tables).remove(name);
        }
    }
    Ok(())
}

impl Tables {
    pub(crate) fn by_mac(&self, mac: Mac) -> Option<MachineId> {
        self.macs.get(&mac).copied()
    }

    /// The machine whose present boot this is, as far as it's known here.
    pub(crate) fn by_boot(&self, boot: BootId) -> Option<&Known> {
        self.machines.get(self.boots.get(&boot)?)
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.machines.values().map(|known| &known.record)
    }

    /// Of those that never enrolled.
    pub(crate) fn discovered(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.records().filter(|record| record.state == State::Discovered)
    }

    fn known(&self, record: Arc<Record>) -> Known {
        let sizes = self.sizes.values().map(|stored| &stored.value);
        let size = record.hardware.as_ref().and_then(|hardware| size::of(sizes, hardware));
        let size = size.map(|size| Arc::from(size.name.as_str()));
        let declared = self.partitions.get(&record.partition);
        let rack = declared.and_then(|partition| rack::of(&partition.value, &record)).map(Arc::from);
        let (partition, labels) = (Arc::from(record.partition.as_str()), Arc::new(record.labels.clone()));
        let taken = record.allocation.as_ref().map(|allocation| Taken {
            project: allocation.project.as_deref().map(Arc::from),
            reservation: record.select.reservation.as_deref().map(Arc::from),
            placement: Arc::new(record.select.placement.clone()),
        });
        Known { record, partition, labels, taken, size, rack }
    }

    fn take_machine(&mut self, id: MachineId, record: Option<Record>) {
        self.due.remove(&id);
        if let Some(before) = self.machines.remove(&id) {
            if let Some(boot) = before.record.boot {
                self.boots.remove(&boot);
            }
            for mac in &before.record.macs {
                if self.macs.get(mac) == Some(&id) {
                    self.macs.remove(mac);
                }
            }
        }
        if let Some(record) = record {
            self.macs.extend(record.macs.iter().map(|mac| (*mac, id)));
            self.boots.extend(record.boot.map(|boot| (boot, id)));
            if record.cycle_due && record.state == State::Releasing {
                self.due.insert(id);
            }
            let known = self.known(Arc::new(record));
            self.machines.insert(id, known);
        }
    }

    /// Sizes or partitions have changed.
    fn look_at_all_again(&mut self) {
        let machines = std::mem::take(&mut self.machines);
        self.machines = machines.into_iter().map(|(id, known)| (id, self.known(known.record))).collect();
    }
}

impl Pool {
    /// Reads everything, and follows it from there.
    pub(crate) fn start(
        store: Store,
        wakes: Arc<Wakes>,
        own_disks: Arc<Watched>,
        presence: Arc<Presence>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            tables: RwLock::default(),
            wakes,
            own_disks,
            presence,
            due: Notify::new(),
            declared: watch::Sender::new(()),
            followed: store.followed(),
            closed: AtomicBool::new(false),
        });
        let (anew, wanted) = mpsc::channel();
        load(&store, &shared, &anew)?;
        let (ours, again) = (Arc::clone(&shared), anew.clone());
        let keep = move || {
            while wanted.recv().is_ok() && !ours.closed.load(Ordering::Relaxed) {
                tracing::info!("the store's history was cut off: reading everything anew");
                while let Err(error) = load(&store, &ours, &again) {
                    tracing::warn!("reading everything anew, which is tried again: {error:#}");
                    thread::sleep(PAUSE);
                    if ours.closed.load(Ordering::Relaxed) {
                        return;
                    }
                }
            }
        };
        let keeper = thread::Builder::new().name("pool".into()).spawn(keep).context("starting the pool's thread")?;
        Ok(Self { shared, anew, keeper: Some(keeper) })
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.shared.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn machine(&self, id: MachineId) -> Option<Known> {
        self.read().machines.get(&id).cloned()
    }

    /// Until everything that was decided up to this turn is here.
    fn wait_for_turn(&self, turn: u64) -> Result<()> {
        let since = Instant::now();
        while self.read().turn < turn {
            ensure!(since.elapsed() < LATE, "this server hasn't heard yet what another one decided; try again");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Enable a `notified()` of it before looking at [`Tables::due`], so that nothing falls in between.
    pub(crate) fn due(&self) -> &Notify {
        &self.shared.due
    }

    /// Changes with what boot servers do by what is declared.
    pub(crate) fn declared(&self) -> watch::Receiver<()> {
        self.shared.declared.subscribe()
    }

    /// Which of the machines that are known this is.
    pub(crate) fn owner(&self, mac: Mac, machine: Option<MachineId>) -> Option<MachineId> {
        let tables = self.read();
        machine.filter(|machine| tables.machines.contains_key(machine)).or_else(|| tables.by_mac(mac))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        // It's there until it's told.
        let _ = self.anew.send(());
        if let Some(keeper) = self.keeper.take()
            && keeper.join().is_err()
        {
            tracing::error!("the thread that keeps the pool current panicked");
        }
    }
}

fn load(store: &Store, shared: &Arc<Shared>, anew: &mpsc::Sender<()>) -> Result<()> {
    let mut fresh = Tables::default();
    let mut from = Revision::MAX;
    // Sizes and partitions come before their machines.
    for prefix in prefixes().into_iter().chain([MACHINES.to_owned(), TURN.to_owned()]) {
        let (entries, revision) = store.entries(&prefix)?;
        from = from.min(revision);
        for entry in entries {
            take_in(&mut fresh, &entry.key, Some(&entry.value))?;
        }
    }
    shared.own_disks.are(fresh.records().map(|record| &**record));
    *shared.write() = fresh;
    shared.followed.until(from);
    let (ours, anew) = (Arc::clone(shared), anew.clone());
    store.watch(
        from,
        Box::new(move |news| {
            match news {
                _ if ours.closed.load(Ordering::Relaxed) => return false,
                News::Changed { revision, changes } => {
                    ours.follow(&changes);
                    ours.followed.until(revision);
                }
                // Its thread goes with the pool, and so does this.
                News::Lost => drop(anew.send(())),
            }
            true
        }),
    )?;
    shared.wakes.wake_all();
    shared.declared.send_replace(());
    Ok(())
}

impl Shared {
    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self, changes: &Changes) {
        let mut tables = self.write();
        let mut concerned: Vec<MachineId> = Vec::new();
        let (mut sorts_changed, mut declared) = (false, false);
        for (key, value) in changes {
            let text = String::from_utf8_lossy(key);
            let done = match value {
                Some(value) if text.starts_with(PRESENCE) => decode(key, value).map(|said| self.presence.learn(said)),
                value => take_in(&mut tables, key, value.as_deref()),
            };
            if let Err(error) = done {
                tracing::error!("it's left as it was before: {error:#}");
            }
            let mut parts = text.split('/');
            let (kind, machine) = (parts.next(), parts.next().and_then(|id| id.parse::<MachineId>().ok()));
            sorts_changed |= matches!(kind, Some(Size::NAME | Partition::NAME));
            declared |= matches!(kind, Some(Partition::NAME | ImageSource::NAME));
            concerned.extend(machine.filter(|machine| !concerned.contains(machine)));
        }
        if sorts_changed {
            tables.look_at_all_again();
        }
        if !tables.due.is_empty() {
            self.due.notify_waiters();
        }
        for machine in &concerned {
            self.own_disks.is(*machine, tables.machines.get(machine).map(|known| &*known.record));
        }
        drop(tables);
        if declared {
            self.declared.send_replace(());
        }
        concerned.into_iter().for_each(|machine| self.wakes.wake(machine));
    }
}

fn take_in(tables: &mut Tables, key: &[u8], value: Option<&[u8]>) -> Result<()> {
    if let Some(value) = value.filter(|_| key == TURN.as_bytes()) {
        tables.turn = decode(key, value)?;
        return Ok(());
    }
    let Some((kind, name)) = std::str::from_utf8(key).ok().and_then(|key| key.split_once('/')) else { return Ok(()) };
    if kind != MACHINES.trim_end_matches('/') {
        return take_document(tables, kind, name, value);
    }
    let Ok(id) = name.parse::<MachineId>() else { return Ok(()) };
    let record = value.map(|value| decode::<Record>(key, value)).transpose()?;
    tables.take_machine(id, record);
    Ok(())
}
