//! How a machine gets from one state to the next. Pure: facts and an input in, a transition or a refusal out.
//!
//! ```text
//!             enrol          inventory        proof                 install order      installed       phoned home
//! Discovered ──────▶ Enrolled ───────▶ Erasing ─────▶ Waiting ─▶ Allocated ─▶ Installing ─▶ Booting ─▶ Running
//!                       ▲                  │              allocate ▲                                      │
//!                       │ enrol            │ no proof              └─ proof, if it has an allocation      │
//!                   Releasing ◀────────────┼── release, reprovision, reinstall (all but Discovered) ──────┘
//!                                          ▼
//!                                     Quarantined ──▶ Releasing, only by an operator who says that it's in spite of that
//! ```
//!
//! What holds in all of it:
//! - Every boot of the agent starts over at Enrolled, so every boot erases. Nothing but an [`ErasureProof`] of this very
//!   boot leads past Erasing.
//! - A reinstall leaves drives out of that erase. It starts where a system is, and a machine that had drives left out
//!   gets to nobody but the tenant whose they are: who releases or reprovisions it has all of them erased.
//! - Booting and Running machines have a tenant: no agent can enrol on them, and they boot their own disk.
//! - `max_failures` boots in a row that don't get past their phase lead to Quarantined instead of another round.

use drophammer_protocol::inventory::DiskId;
use drophammer_protocol::machine::{State, TakeBack};
use drophammer_protocol::words::count;

use crate::erasure::{ErasureProof, Unerasable};

/// What the rules need to know besides the state.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Somebody wants an image on it.
    pub allocated: bool,
    /// A reinstall is going on, which leaves the tenant's drives out of the erase.
    pub keeping: bool,
    /// Boots in a row that didn't get past the phase they were in.
    pub failures: u32,
    /// Whether the present boot is among them already.
    pub counted: bool,
    pub max_failures: u32,
}

#[derive(Clone, Debug)]
pub enum Input {
    /// A new boot's agent enrolled; with the last failure that the boot before reported.
    Enrol {
        last_failure: Option<String>,
    },
    Inventory(Result<Vec<DiskId>, Unerasable>),
    Erased(ErasureProof),
    /// The erase order ended in anything but a proof.
    NotErased(String),
    Allocate,
    /// The agent takes its install order.
    InstallOrdered,
    Installed,
    InstallFailed(String),
    /// Firmware asked for a boot and was sent to the machine's own disk.
    OwnDisk,
    PhonedHome,
    Release(TakeBack),
    Reprovision(TakeBack),
    Reinstall(TakeBack),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    pub state: State,
    pub reason: Reason,
    pub order: OrderChange,
    pub allocation: AllocationChange,
    pub keeping: bool,
    pub failures: u32,
    /// Whether the boot that is present afterwards is counted in `failures`.
    pub counted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    Keep,
    Clear,
    Say(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderChange {
    Keep,
    /// There is no order any more.
    Drop,
    /// Erase these; an order that says just that stays as it is.
    Erase(Vec<DiskId>),
    Reboot(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocationChange {
    Keep,
    Drop,
}

/// The rules don't allow it. Not a failure: nothing was done, and the sentence says what could be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the machine is {state}: {why}")]
pub struct Refused {
    pub state: State,
    pub why: &'static str,
}

/// What a machine in this state is given when its firmware boots from the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetBoot {
    Agent,
    LocalDisk,
}

pub fn net_boot(state: State) -> NetBoot {
    match state {
        State::Booting | State::Running => NetBoot::LocalDisk,
        State::Discovered
        | State::Enrolled
        | State::Erasing
        | State::Waiting
        | State::Allocated
        | State::Installing
        | State::Releasing
        | State::Quarantined => NetBoot::Agent,
    }
}

pub fn next(state: State, facts: Facts, input: Input) -> Result<Transition, Refused> {
    match input {
        Input::Enrol { last_failure } => enrol(state, facts, last_failure),
        Input::Inventory(disks) => inventory(state, facts, disks),
        Input::Erased(proof) => erased(state, facts, &proof),
        Input::NotErased(why) => match state {
            State::Erasing => Ok(quarantine(facts, format!("not erased: {why}"))),
            _ => Err(refused(state, NO_ERASE)),
        },
        Input::Allocate => match state {
            State::Waiting => Ok(to(State::Allocated, facts)),
            State::Allocated | State::Installing | State::Booting | State::Running => {
                Err(refused(state, "it is taken already; release it first"))
            }
            State::Quarantined => Err(refused(state, QUARANTINED)),
            State::Discovered | State::Enrolled | State::Erasing | State::Releasing => {
                Err(refused(state, "only a waiting machine, one that is proven erased, can be allocated; wait for it"))
            }
        },
        Input::InstallOrdered => match state {
            State::Allocated if facts.allocated => {
                Ok(Transition { reason: Reason::Keep, ..to(State::Installing, facts) })
            }
            _ => Err(refused(state, "there is nothing to install")),
        },
        Input::Installed => match state {
            State::Installing => {
                let booting = to(State::Booting, facts);
                Ok(Transition { order: OrderChange::Drop, keeping: false, failures: 0, counted: false, ..booting })
            }
            _ => Err(refused(state, NO_INSTALL)),
        },
        Input::InstallFailed(why) => match state {
            State::Installing => Ok(install_failed(facts, &why)),
            _ => Err(refused(state, NO_INSTALL)),
        },
        Input::OwnDisk => match state {
            State::Booting => Ok(booted_in_vain(facts)),
            State::Running => Ok(Transition { reason: Reason::Keep, ..to(State::Running, facts) }),
            _ => Err(refused(state, "it isn't sent to its own disk")),
        },
        Input::PhonedHome => match state {
            State::Booting => Ok(Transition { failures: 0, ..to(State::Running, facts) }),
            _ => Err(refused(state, "no installed system is expected to call")),
        },
        Input::Release(how) => release(state, facts, how, AllocationChange::Drop),
        Input::Reprovision(_) | Input::Reinstall(_) if !facts.allocated => {
            Err(refused(state, "it has no allocation that could be installed again; allocate it"))
        }
        Input::Reprovision(how) => release(state, facts, how, AllocationChange::Keep),
        Input::Reinstall(how) => match state {
            State::Booting | State::Running => reinstall(state, facts, how),
            // Once more, from wherever the last attempt got to.
            _ if facts.keeping => reinstall(state, facts, how),
            _ => Err(refused(state, "what was on its drives is erased, or about to be; reprovision it")),
        },
    }
}

const QUARANTINED: &str = "read its reason and put that right; `drophammer machine release --despite-quarantine`, which \
                           is recorded, then lets it be erased again";
const NO_ERASE: &str = "no erase order is out";
const NO_INSTALL: &str = "no install is going on";

fn enrol(state: State, facts: Facts, last_failure: Option<String>) -> Result<Transition, Refused> {
    let enrolled = Transition { order: OrderChange::Drop, counted: false, ..to(State::Enrolled, facts) };
    match state {
        State::Booting | State::Running => {
            Err(refused(state, "it has a tenant, so no agent runs on it; release or reprovision it first"))
        }
        State::Quarantined => Ok(Transition { state: State::Quarantined, reason: Reason::Keep, ..enrolled }),
        State::Discovered | State::Waiting | State::Releasing => Ok(enrolled),
        State::Enrolled | State::Erasing | State::Allocated | State::Installing if facts.counted => {
            Ok(Transition { reason: Reason::Keep, ..enrolled })
        }
        State::Enrolled | State::Erasing | State::Allocated | State::Installing => {
            let failures = facts.failures.saturating_add(1);
            let heard = last_failure.unwrap_or_else(|| "nothing was heard of why".into());
            let facts = Facts { failures, counted: false, ..facts };
            if failures >= facts.max_failures {
                let why = format!("{failures} boots in a row got no further than {state}; the last one: {heard}");
                return Ok(quarantine(facts, why));
            }
            let why = format!("boot {failures} of {} ended while {state}: {heard}", facts.max_failures);
            Ok(Transition { failures, reason: Reason::Say(why), ..enrolled })
        }
    }
}

fn inventory(state: State, facts: Facts, disks: Result<Vec<DiskId>, Unerasable>) -> Result<Transition, Refused> {
    match (state, disks) {
        (State::Enrolled | State::Erasing, Ok(disks)) => {
            Ok(Transition { reason: Reason::Keep, order: OrderChange::Erase(disks), ..to(State::Erasing, facts) })
        }
        (State::Enrolled | State::Erasing, Err(why)) => Ok(quarantine(facts, why.to_string())),
        // Looked at, nothing ordered: the operator may want to know what it's made of.
        (State::Quarantined, _) => Ok(Transition { reason: Reason::Keep, ..to(State::Quarantined, facts) }),
        (State::Waiting | State::Allocated | State::Installing, _) => {
            Err(refused(state, "its drives were proven erased as they were; reboot it to take another inventory"))
        }
        (State::Discovered | State::Booting | State::Running | State::Releasing, _) => {
            Err(refused(state, "no agent is expected to take an inventory"))
        }
    }
}

fn erased(state: State, facts: Facts, proof: &ErasureProof) -> Result<Transition, Refused> {
    let for_its_tenant = facts.allocated && facts.keeping;
    match (state, facts.allocated) {
        (State::Erasing, _) if !for_its_tenant && !proof.kept().is_empty() => {
            Ok(quarantine(facts, "drives were kept for a tenant who doesn't have the machine any more".into()))
        }
        (State::Erasing, true) => {
            Ok(Transition { reason: Reason::Keep, order: OrderChange::Drop, ..to(State::Allocated, facts) })
        }
        (State::Erasing, false) => {
            Ok(Transition { order: OrderChange::Drop, failures: 0, counted: false, ..to(State::Waiting, facts) })
        }
        _ => Err(refused(state, NO_ERASE)),
    }
}

fn install_failed(facts: Facts, why: &str) -> Transition {
    let failures = if facts.counted { facts.failures } else { facts.failures.saturating_add(1) };
    let facts = Facts { failures, counted: true, ..facts };
    if failures >= facts.max_failures {
        return quarantine(facts, format!("{failures} boots in a row ended without an install; the last one: {why}"));
    }
    Transition {
        reason: Reason::Say(format!("install failed, boot {failures} of {}: {why}", facts.max_failures)),
        order: OrderChange::Reboot("the install failed and is tried again from the start".into()),
        ..to(State::Allocated, facts)
    }
}

/// Said and no more: the system may well run and only its call be lost, and it's the tenant's already.
fn booted_in_vain(facts: Facts) -> Transition {
    let failures = facts.failures.saturating_add(1);
    let times = count(failures as usize, "time");
    let why = format!(
        "the installed system hasn't phoned home, and the firmware has been here {times} since; look at its console"
    );
    Transition { failures, reason: Reason::Say(why), ..to(State::Booting, facts) }
}

fn release(state: State, facts: Facts, how: TakeBack, allocation: AllocationChange) -> Result<Transition, Refused> {
    let order = match state {
        State::Quarantined if !how.despite_quarantine => return Err(refused(state, QUARANTINED)),
        State::Discovered => {
            return Err(refused(state, "its agent never enrolled, so there is nothing to take back"));
        }
        // The agent runs there and does as it's told; the power hook is for those that don't.
        State::Enrolled
        | State::Erasing
        | State::Waiting
        | State::Allocated
        | State::Installing
        | State::Quarantined => OrderChange::Reboot("an operator took the machine back".into()),
        State::Booting | State::Running => OrderChange::Drop,
        State::Releasing => OrderChange::Keep,
    };
    let releasing = to(State::Releasing, facts);
    Ok(Transition { order, allocation, keeping: false, failures: 0, counted: false, ..releasing })
}

fn reinstall(state: State, facts: Facts, how: TakeBack) -> Result<Transition, Refused> {
    Ok(Transition { keeping: true, ..release(state, facts, how, AllocationChange::Keep)? })
}

fn quarantine(facts: Facts, why: String) -> Transition {
    Transition { reason: Reason::Say(why), order: OrderChange::Drop, ..to(State::Quarantined, facts) }
}

fn to(state: State, facts: Facts) -> Transition {
    Transition {
        state,
        reason: Reason::Clear,
        order: OrderChange::Keep,
        allocation: AllocationChange::Keep,
        keeping: facts.keeping,
        failures: facts.failures,
        counted: facts.counted,
    }
}

fn refused(state: State, why: &'static str) -> Refused {
    Refused { state, why }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::erasure::tests::proof;

    #[derive(Clone, Copy, Debug)]
    enum Kind {
        Enrol,
        Inventory,
        BadInventory,
        Erased,
        NotErased,
        Allocate,
        InstallOrdered,
        Installed,
        InstallFailed,
        OwnDisk,
        PhonedHome,
        Release,
        Reprovision,
        ReleaseAnyway,
        ReprovisionAnyway,
        Reinstall,
        ReinstallAnyway,
    }

    impl Kind {
        const ALL: [Self; 17] = [
            Self::Enrol,
            Self::Inventory,
            Self::BadInventory,
            Self::Erased,
            Self::NotErased,
            Self::Allocate,
            Self::InstallOrdered,
            Self::Installed,
            Self::InstallFailed,
            Self::OwnDisk,
            Self::PhonedHome,
            Self::Release,
            Self::Reprovision,
            Self::ReleaseAnyway,
            Self::ReprovisionAnyway,
            Self::Reinstall,
            Self::ReinstallAnyway,
        ];

        /// A new variant of [`Input`] doesn't compile here until the table has a column for it.
        fn of(input: &Input) -> Self {
            match input {
                Input::Enrol { .. } => Self::Enrol,
                Input::Inventory(Ok(_)) => Self::Inventory,
                Input::Inventory(Err(_)) => Self::BadInventory,
                Input::Erased(_) => Self::Erased,
                Input::NotErased(_) => Self::NotErased,
                Input::Allocate => Self::Allocate,
                Input::InstallOrdered => Self::InstallOrdered,
                Input::Installed => Self::Installed,
                Input::InstallFailed(_) => Self::InstallFailed,
                Input::OwnDisk => Self::OwnDisk,
                Input::PhonedHome => Self::PhonedHome,
                Input::Release(how) if how.despite_quarantine => Self::ReleaseAnyway,
                Input::Release(_) => Self::Release,
                Input::Reprovision(how) if how.despite_quarantine => Self::ReprovisionAnyway,
                Input::Reprovision(_) => Self::Reprovision,
                Input::Reinstall(how) if how.despite_quarantine => Self::ReinstallAnyway,
                Input::Reinstall(_) => Self::Reinstall,
            }
        }

        fn input(self) -> Input {
            match self {
                Self::Enrol => Input::Enrol { last_failure: Some("no link".into()) },
                Self::Inventory => Input::Inventory(Ok(vec![DiskId::new("A", 1)])),
                Self::BadInventory => Input::Inventory(Err(Unerasable::NoDisks)),
                Self::Erased => Input::Erased(proof()),
                Self::NotErased => Input::NotErased("locked".into()),
                Self::Allocate => Input::Allocate,
                Self::InstallOrdered => Input::InstallOrdered,
                Self::Installed => Input::Installed,
                Self::InstallFailed => Input::InstallFailed("bad chunk".into()),
                Self::OwnDisk => Input::OwnDisk,
                Self::PhonedHome => Input::PhonedHome,
                Self::Release => Input::Release(TakeBack::default()),
                Self::Reprovision => Input::Reprovision(TakeBack::default()),
                Self::ReleaseAnyway => Input::Release(TakeBack { despite_quarantine: true }),
                Self::ReprovisionAnyway => Input::Reprovision(TakeBack { despite_quarantine: true }),
                Self::Reinstall => Input::Reinstall(TakeBack::default()),
                Self::ReinstallAnyway => Input::Reinstall(TakeBack { despite_quarantine: true }),
            }
        }
    }

    const PLAIN: Facts = Facts { allocated: false, keeping: false, failures: 0, counted: false, max_failures: 3 };
    const ALLOCATED: Facts = Facts { allocated: true, ..PLAIN };
    const KEEPING: Facts = Facts { keeping: true, ..ALLOCATED };

    /// One row per state, one cell per input: the first four letters of the next state, or `-` for a refusal.
    fn grid(facts: Facts) -> String {
        let rows = State::ALL.map(|state| {
            let cells = Kind::ALL.map(|kind| match next(state, facts, kind.input()) {
                Ok(to) => to.state.name()[..4].to_owned(),
                Err(refused) => {
                    assert_eq!(refused.state, state);
                    "-".into()
                }
            });
            format!("{:<12}{}", state.name(), cells.map(|c| format!("{c:<5}")).concat()).trim_end().to_owned()
        });
        rows.join("\n")
    }

    #[test]
    fn every_input_in_every_state() {
        for kind in Kind::ALL {
            assert_eq!(format!("{:?}", Kind::of(&kind.input())), format!("{kind:?}"));
        }
        // columns: enrol, inventory, no disks, erased, not erased, allocate, install ordered, installed, install failed,
        // own disk, phoned home, release, reprovision, the same two despite a quarantine, reinstall, despite a quarantine
        let plain = "\
discovered  enro -    -    -    -    -    -    -    -    -    -    -    -    -    -    -    -
enrolled    enro eras quar -    -    -    -    -    -    -    -    rele -    rele -    -    -
erasing     enro eras quar wait quar -    -    -    -    -    -    rele -    rele -    -    -
waiting     enro -    -    -    -    allo -    -    -    -    -    rele -    rele -    -    -
allocated   enro -    -    -    -    -    -    -    -    -    -    rele -    rele -    -    -
installing  enro -    -    -    -    -    -    boot allo -    -    rele -    rele -    -    -
booting     -    -    -    -    -    -    -    -    -    boot runn rele -    rele -    -    -
running     -    -    -    -    -    -    -    -    -    runn -    rele -    rele -    -    -
releasing   enro -    -    -    -    -    -    -    -    -    -    rele -    rele -    -    -
quarantined quar quar quar -    -    -    -    -    -    -    -    -    -    rele -    -    -";
        let allocated = "\
discovered  enro -    -    -    -    -    -    -    -    -    -    -    -    -    -    -    -
enrolled    enro eras quar -    -    -    -    -    -    -    -    rele rele rele rele -    -
erasing     enro eras quar allo quar -    -    -    -    -    -    rele rele rele rele -    -
waiting     enro -    -    -    -    allo -    -    -    -    -    rele rele rele rele -    -
allocated   enro -    -    -    -    -    inst -    -    -    -    rele rele rele rele -    -
installing  enro -    -    -    -    -    -    boot allo -    -    rele rele rele rele -    -
booting     -    -    -    -    -    -    -    -    -    boot runn rele rele rele rele rele rele
running     -    -    -    -    -    -    -    -    -    runn -    rele rele rele rele rele rele
releasing   enro -    -    -    -    -    -    -    -    -    -    rele rele rele rele -    -
quarantined quar quar quar -    -    -    -    -    -    -    -    -    -    rele rele -    -";
        let last_chance = "\
discovered  enro -    -    -    -    -    -    -    -    -    -    -    -    -    -    -    -
enrolled    quar eras quar -    -    -    -    -    -    -    -    rele rele rele rele -    -
erasing     quar eras quar allo quar -    -    -    -    -    -    rele rele rele rele -    -
waiting     enro -    -    -    -    allo -    -    -    -    -    rele rele rele rele -    -
allocated   quar -    -    -    -    -    inst -    -    -    -    rele rele rele rele -    -
installing  quar -    -    -    -    -    -    boot quar -    -    rele rele rele rele -    -
booting     -    -    -    -    -    -    -    -    -    boot runn rele rele rele rele rele rele
running     -    -    -    -    -    -    -    -    -    runn -    rele rele rele rele rele rele
releasing   enro -    -    -    -    -    -    -    -    -    -    rele rele rele rele -    -
quarantined quar quar quar -    -    -    -    -    -    -    -    -    -    rele rele -    -";
        let keeping = "\
discovered  enro -    -    -    -    -    -    -    -    -    -    -    -    -    -    -    -
enrolled    enro eras quar -    -    -    -    -    -    -    -    rele rele rele rele rele rele
erasing     enro eras quar allo quar -    -    -    -    -    -    rele rele rele rele rele rele
waiting     enro -    -    -    -    allo -    -    -    -    -    rele rele rele rele rele rele
allocated   enro -    -    -    -    -    inst -    -    -    -    rele rele rele rele rele rele
installing  enro -    -    -    -    -    -    boot allo -    -    rele rele rele rele rele rele
booting     -    -    -    -    -    -    -    -    -    boot runn rele rele rele rele rele rele
running     -    -    -    -    -    -    -    -    -    runn -    rele rele rele rele rele rele
releasing   enro -    -    -    -    -    -    -    -    -    -    rele rele rele rele rele rele
quarantined quar quar quar -    -    -    -    -    -    -    -    -    -    rele rele -    rele";
        for (name, facts, want) in [
            ("without an allocation", PLAIN, plain),
            ("with one", ALLOCATED, allocated),
            ("two of three boots failed", Facts { failures: 2, ..ALLOCATED }, last_chance),
            ("in a reinstall", KEEPING, keeping),
        ] {
            assert_eq!(grid(facts), want, "{name}:\n{}", grid(facts));
        }
    }

    #[test]
    fn what_comes_with_a_transition() {
        use AllocationChange as A;
        use OrderChange as O;
        use State as S;
        let erase = || O::Erase(vec![DiskId::new("A", 1)]);
        let again = || O::Reboot("the install failed and is tried again from the start".into());
        let back = || O::Reboot("an operator took the machine back".into());
        let say = |text: &str| Reason::Say(text.into());
        let once = Facts { failures: 1, ..ALLOCATED };
        let counted = Facts { failures: 1, counted: true, ..ALLOCATED };
        for (name, state, facts, kind, order, allocation, failures, reason) in [
            ("a first boot", S::Discovered, PLAIN, Kind::Enrol, O::Drop, A::Keep, 0, Reason::Clear),
            (
                "a waiting machine's reboot is no failure",
                S::Waiting,
                PLAIN,
                Kind::Enrol,
                O::Drop,
                A::Keep,
                0,
                Reason::Clear,
            ),
            (
                "a boot that ended early counts",
                S::Erasing,
                PLAIN,
                Kind::Enrol,
                O::Drop,
                A::Keep,
                1,
                say("boot 1 of 3 ended while erasing: no link"),
            ),
            ("a boot counts once", S::Allocated, counted, Kind::Enrol, O::Drop, A::Keep, 1, Reason::Keep),
            ("an inventory", S::Enrolled, PLAIN, Kind::Inventory, erase(), A::Keep, 0, Reason::Keep),
            (
                "erased and free: past it",
                S::Erasing,
                Facts { failures: 2, ..PLAIN },
                Kind::Erased,
                O::Drop,
                A::Keep,
                0,
                Reason::Clear,
            ),
            ("erased for a tenant: not past it yet", S::Erasing, once, Kind::Erased, O::Drop, A::Keep, 1, Reason::Keep),
            ("not erased", S::Erasing, ALLOCATED, Kind::NotErased, O::Drop, A::Keep, 0, say("not erased: locked")),
            (
                "an install that failed",
                S::Installing,
                once,
                Kind::InstallFailed,
                again(),
                A::Keep,
                2,
                say("install failed, boot 2 of 3: bad chunk"),
            ),
            (
                "the last one",
                S::Installing,
                Facts { failures: 2, ..ALLOCATED },
                Kind::InstallFailed,
                O::Drop,
                A::Keep,
                3,
                say("3 boots in a row ended without an install; the last one: bad chunk"),
            ),
            ("installed: past it", S::Installing, once, Kind::Installed, O::Drop, A::Keep, 0, Reason::Clear),
            (
                "a boot from disk in vain",
                S::Booting,
                once,
                Kind::OwnDisk,
                O::Keep,
                A::Keep,
                2,
                say(
                    "the installed system hasn't phoned home, and the firmware has been here 2 times since; look at its console",
                ),
            ),
            ("one that isn't", S::Running, ALLOCATED, Kind::OwnDisk, O::Keep, A::Keep, 0, Reason::Keep),
            ("heard of at last", S::Booting, once, Kind::PhonedHome, O::Keep, A::Keep, 0, Reason::Clear),
            ("released from a tenant", S::Running, ALLOCATED, Kind::Release, O::Drop, A::Drop, 0, Reason::Clear),
            ("released while its agent runs", S::Waiting, PLAIN, Kind::Release, back(), A::Drop, 0, Reason::Clear),
            ("reprovisioned", S::Running, ALLOCATED, Kind::Reprovision, O::Drop, A::Keep, 0, Reason::Clear),
            (
                "a second release keeps the order to reboot",
                S::Releasing,
                ALLOCATED,
                Kind::Release,
                O::Keep,
                A::Drop,
                0,
                Reason::Clear,
            ),
            ("a quarantined machine's boot", S::Quarantined, once, Kind::Enrol, O::Drop, A::Keep, 1, Reason::Keep),
            ("its inventory orders nothing", S::Quarantined, once, Kind::Inventory, O::Keep, A::Keep, 1, Reason::Keep),
        ] {
            let to = next(state, facts, kind.input()).expect(name);
            assert_eq!(
                (to.order, to.allocation, to.failures, to.reason),
                (order, allocation, failures, reason),
                "{name}"
            );
        }
    }

    #[test]
    fn only_machines_with_a_tenant_boot_their_own_disk() {
        let own: Vec<State> = State::ALL.into_iter().filter(|s| net_boot(*s) == NetBoot::LocalDisk).collect();
        assert_eq!(own, [State::Booting, State::Running]);
    }

    /// A machine's facts carried along a sequence of inputs, as `records` does it.
    fn run(kinds: &[Kind], mut each: impl FnMut(Kind, State)) {
        let (mut state, mut facts) = (State::Discovered, PLAIN);
        for kind in kinds {
            let Ok(to) = next(state, facts, kind.input()) else { continue };
            facts.allocated |= matches!(kind, Kind::Allocate);
            facts.allocated &= to.allocation == AllocationChange::Keep;
            facts.keeping = to.keeping;
            (facts.failures, facts.counted) = (to.failures, to.counted);
            state = to.state;
            each(*kind, state);
        }
    }

    #[test]
    fn drives_are_kept_for_their_tenant_only() {
        let kept = || Input::Erased(crate::erasure::tests::proof_beside(&["K"]));
        for (name, facts, want) in [
            ("their tenant's reinstall", KEEPING, State::Allocated),
            ("nobody has it any more", Facts { keeping: true, ..PLAIN }, State::Quarantined),
            ("no reinstall", ALLOCATED, State::Quarantined),
            ("free, and no reinstall", PLAIN, State::Quarantined),
        ] {
            assert_eq!(next(State::Erasing, facts, kept()).map(|to| to.state), Ok(want), "{name}");
        }
        for (name, kind, keeping) in [
            ("once more", Kind::Reinstall, true),
            ("all of it anew", Kind::Reprovision, false),
            ("given back", Kind::Release, false),
        ] {
            let to = next(State::Installing, KEEPING, kind.input()).expect(name);
            assert_eq!((to.state, to.keeping), (State::Releasing, keeping), "{name}");
        }
        let done = next(State::Installing, KEEPING, Kind::Installed.input()).expect("installed");
        assert!(!done.keeping, "the next time somebody decides again");
        let again = next(State::Installing, KEEPING, Kind::InstallFailed.input()).expect("tried again");
        assert!(again.keeping, "a failure changes nothing about it");
    }

    fn needs_proof(state: State) -> bool {
        match state {
            State::Waiting | State::Allocated | State::Installing | State::Booting | State::Running => true,
            State::Discovered | State::Enrolled | State::Erasing | State::Releasing | State::Quarantined => false,
        }
    }

    fn any_kind() -> impl Strategy<Value = Kind> {
        proptest::sample::select(Kind::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn without_a_proof_nothing_gets_past_erasing(
            kinds in proptest::collection::vec(any_kind().prop_filter("a proof", |k| !matches!(k, Kind::Erased)), 0..60)
        ) {
            run(&kinds, |kind, state| assert!(!needs_proof(state), "{kind:?} led to {state} in {kinds:?}"));
        }

        #[test]
        fn the_proof_is_always_of_the_present_boot(
            // Likelier steps forward, so that long roads are walked too.
            kinds in proptest::collection::vec(prop_oneof![
                3 => any_kind(),
                1 => Just(Kind::Enrol), 1 => Just(Kind::Inventory), 1 => Just(Kind::Erased), 1 => Just(Kind::Allocate),
                1 => Just(Kind::InstallOrdered), 1 => Just(Kind::Installed), 1 => Just(Kind::PhonedHome),
            ], 0..200)
        ) {
            let mut proven = false;
            run(&kinds, |kind, state| {
                proven = match kind {
                    Kind::Enrol => false,
                    Kind::Erased => true,
                    _ => proven,
                };
                assert!(proven || !needs_proof(state), "{kind:?} led to {state} in {kinds:?}");
            });
        }

        #[test]
        fn only_a_decision_against_it_ends_a_quarantine(kinds in proptest::collection::vec(any_kind(), 0..60)) {
            let mut before = State::Discovered;
            run(&kinds, |kind, state| {
                let decided = matches!(kind, Kind::ReleaseAnyway | Kind::ReprovisionAnyway | Kind::ReinstallAnyway);
                let out = before == State::Quarantined && state != State::Quarantined;
                assert!(!out || (decided && state == State::Releasing), "{kind:?} led to {state} in {kinds:?}");
                before = state;
            });
        }

        #[test]
        fn a_machine_that_never_gets_on_is_quarantined(max_failures in 1u32..6) {
            let mut facts = Facts { max_failures, ..PLAIN };
            let (mut state, mut boots) = (State::Discovered, 0);
            while state != State::Quarantined {
                let to = next(state, facts, Kind::Enrol.input()).expect("may enrol");
                (state, facts.failures, facts.counted) = (to.state, to.failures, to.counted);
                boots += 1;
            }
            assert_eq!(boots, max_failures + 1, "the first boot and as many that found it as it was");
        }
    }
}
