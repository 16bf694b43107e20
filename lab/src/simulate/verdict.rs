//! Whether everything is where it should be, by what machines and operators were told and what the server says in the end.
//! Pure.

use std::collections::{BTreeMap, BTreeSet};

use drophammer_protocol::id::MachineId;
use drophammer_protocol::machine::State;

/// How far a machine came, by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// It hasn't come yet.
    #[default]
    Off,
    /// On its way, for the first time or again.
    Booting,
    Registered,
    Waiting,
    /// It has its install order.
    Installing,
    /// Its system has phoned home.
    Running,
    Quarantined,
    /// It got stuck, and why.
    Lost(String),
}

impl Stage {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Booting => "booting",
            Self::Registered => "registered",
            Self::Waiting => "waiting",
            Self::Installing => "installing",
            Self::Running => "running",
            Self::Quarantined => "quarantined",
            Self::Lost(_) => "lost",
        }
    }

    fn is_of(&self, state: State) -> bool {
        match self {
            Self::Waiting => state == State::Waiting,
            Self::Installing => state == State::Installing,
            Self::Running => state == State::Running,
            Self::Quarantined => state == State::Quarantined,
            Self::Off | Self::Booting | Self::Registered | Self::Lost(_) => false,
        }
    }
}

/// A machine as it knows itself.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub(super) id: MachineId,
    pub(super) name: String,
    pub(super) stage: Stage,
    /// Its install order was for a system of this name.
    pub(super) ordered: Option<String>,
}

/// A machine as the server lists it.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) id: MachineId,
    pub(super) state: State,
    pub(super) hostname: Option<String>,
}

/// What operators asked for: each a system of its own name.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    /// Which machine they were told to have.
    pub(super) given: Vec<(MachineId, String)>,
    /// They had no answer: it may have happened or not.
    pub(super) unanswered: BTreeSet<String>,
}

/// Everything that isn't as it should be, in sentences.
pub(super) fn discrepancies(own: &[Own], listed: &[Listed], asked: &Asked) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut known: BTreeMap<MachineId, &Listed> = BTreeMap::new();
    for machine in listed {
        if known.insert(machine.id, machine).is_some() {
            wrong.push(format!("the server lists machine {} twice", machine.id));
        }
    }
    let names: BTreeMap<MachineId, &str> = own.iter().map(|machine| (machine.id, machine.name.as_str())).collect();
    let name = |id: MachineId| names.get(&id).map_or_else(|| id.to_string(), |name| (*name).to_owned());
    for machine in listed.iter().filter(|machine| !names.contains_key(&machine.id)) {
        wrong.push(format!("the server lists machine {}, which was never simulated", machine.id));
    }
    for Own { id, name, stage, ordered } in own {
        if let Stage::Lost(why) = stage {
            wrong.push(format!("machine {name} didn't come to its end: {why}"));
        }
        let Some(there) = known.get(id) else {
            wrong.push(format!("the server doesn't know machine {name}, which is {}", stage.name()));
            continue;
        };
        if !matches!(stage, Stage::Lost(_)) && !stage.is_of(there.state) {
            wrong.push(format!("machine {name} is {} for the server, and {} by itself", there.state, stage.name()));
        }
        if ordered.is_some() && *ordered != there.hostname {
            let (own, theirs) = [ordered, &there.hostname].map(|name| name.as_deref().unwrap_or("nobody's")).into();
            wrong.push(format!("machine {name} was told to become {own}, and is {theirs} for the server"));
        }
    }
    let mut given: BTreeMap<MachineId, &str> = BTreeMap::new();
    for (id, hostname) in &asked.given {
        if let Some(before) = given.insert(*id, hostname) {
            wrong.push(format!("machine {} was given out twice: to {before} and to {hostname}", name(*id)));
        }
    }
    let mut of_host: BTreeMap<&str, MachineId> = BTreeMap::new();
    for machine in listed {
        let Some(hostname) = machine.hostname.as_deref() else { continue };
        if let Some(other) = of_host.insert(hostname, machine.id) {
            wrong.push(format!("{hostname} has two machines: {} and {}", name(other), name(machine.id)));
        }
        if given.get(&machine.id) != Some(&hostname) && !asked.unanswered.contains(hostname) {
            wrong.push(format!("machine {} is {hostname}'s for the server, and nobody was told", name(machine.id)));
        }
    }
    for (id, hostname) in &given {
        if of_host.get(hostname) != Some(id) {
            wrong.push(format!("{hostname} was told to have machine {}, and hasn't", name(*id)));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(n: u128) -> MachineId {
        MachineId(Uuid::from_u128(n))
    }

    fn own(n: u128, stage: Stage, ordered: Option<&str>) -> Own {
        Own { id: id(n), name: format!("m{n}"), stage, ordered: ordered.map(Into::into) }
    }

    fn listed(n: u128, state: State, hostname: Option<&str>) -> Listed {
        Listed { id: id(n), state, hostname: hostname.map(Into::into) }
    }

    #[test]
    fn what_is_not_as_it_should_be_is_said() {
        let waits = || own(1, Stage::Waiting, None);
        let runs = || own(2, Stage::Running, Some("h"));
        let waiting = || listed(1, State::Waiting, None);
        let running = || listed(2, State::Running, Some("h"));
        let given = |all: &[(u128, &str)]| all.iter().map(|(n, host)| (id(*n), (*host).to_owned())).collect::<Vec<_>>();
        for (name, own, listed, gave, unanswered, want) in [
            ("all is well", vec![waits(), runs()], vec![waiting(), running()], given(&[(2, "h")]), vec![], &[][..]),
            ("an answer was lost", vec![runs()], vec![running()], vec![], vec!["h"], &[]),
            ("an answer was lost, and nothing came of it", vec![waits()], vec![waiting()], vec![], vec!["h"], &[]),
            (
                "one got stuck",
                vec![own(1, Stage::Lost("no answer".into()), None)],
                vec![listed(1, State::Erasing, None)],
                vec![],
                vec![],
                &["machine m1 didn't come to its end: no answer"],
            ),
            (
                "one is gone",
                vec![waits()],
                vec![],
                vec![],
                vec![],
                &["the server doesn't know machine m1, which is waiting"],
            ),
            ("one is twice", vec![waits()], vec![waiting(), waiting()], vec![], vec![], &["lists machine"]),
            ("one too many", vec![], vec![waiting()], vec![], vec![], &["never simulated"]),
            (
                "somewhere else",
                vec![waits()],
                vec![listed(1, State::Erasing, None)],
                vec![],
                vec![],
                &["machine m1 is erasing for the server, and waiting by itself"],
            ),
            (
                "given twice",
                vec![runs()],
                vec![running()],
                given(&[(2, "g"), (2, "h")]),
                vec![],
                &["machine m2 was given out twice: to g and to h"],
            ),
            (
                "two for one",
                vec![runs(), own(3, Stage::Running, Some("h"))],
                vec![running(), listed(3, State::Running, Some("h"))],
                given(&[(3, "h")]),
                vec!["h"],
                &["h has two machines: m2 and m3"],
            ),
            (
                "given and forgotten",
                vec![waits()],
                vec![waiting()],
                given(&[(1, "h")]),
                vec![],
                &["h was told to have machine m1, and hasn't"],
            ),
            (
                "somebody else's",
                vec![runs()],
                vec![listed(2, State::Running, Some("g"))],
                given(&[(2, "g")]),
                vec![],
                &["machine m2 was told to become h, and is g for the server"],
            ),
            (
                "nobody's",
                vec![runs()],
                vec![running()],
                vec![],
                vec![],
                &["machine m2 is h's for the server, and nobody was told"],
            ),
        ] {
            let unanswered = unanswered.into_iter().map(str::to_owned).collect();
            let wrong = discrepancies(&own, &listed, &Asked { given: gave, unanswered });
            assert_eq!(wrong.len(), want.len(), "{name}: {wrong:?}");
            for (wrong, want) in wrong.iter().zip(want) {
                assert!(wrong.contains(want), "{name}: {wrong}");
            }
        }
    }
}
