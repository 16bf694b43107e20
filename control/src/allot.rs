//! Which machine somebody gets. Pure.
//!
//! Two things hold after every choice. **Reservations**: what is reserved and not yet used fits into what is left, unless it
//! didn't before; so nobody gets a machine that another project is promised. **Spread**: no other machine that could have
//! been chosen is in a rack where the project has fewer machines with the same placement labels, or, among those, fewer
//! machines at all.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use drophammer_protocol::id::MachineId;
use drophammer_protocol::machine::{Select, State};
use drophammer_protocol::resource::{Labels, Reservation};
use drophammer_protocol::words::count;

/// A machine, as far as it matters here.
#[derive(Clone, Debug)]
pub(crate) struct Spot {
    pub(crate) id: MachineId,
    pub(crate) partition: Arc<str>,
    pub(crate) size: Option<Arc<str>>,
    pub(crate) rack: Option<Arc<str>>,
    pub(crate) labels: Arc<Labels>,
    pub(crate) status: Status,
}

#[derive(Clone, Debug)]
pub(crate) enum Status {
    /// It could be given to somebody, and could have been since then.
    Free { since_ms: u64 },
    /// Somebody has it.
    Taken(Taken),
    /// Neither, and why.
    Unusable(Unusable),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// Not on its way to anybody.
    State(State),
    Locked,
    /// Nothing was heard of it for too long.
    Dead,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Taken {
    pub(crate) project: Option<Arc<str>>,
    /// The one that was named.
    pub(crate) reservation: Option<Arc<str>>,
    pub(crate) placement: Arc<Labels>,
}

/// Who wants one.
#[derive(Clone, Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) select: &'a Select,
    /// If a certain one is meant.
    pub(crate) machine: Option<MachineId>,
    pub(crate) project: Option<&'a str>,
}

/// Machines of one size in one partition.
type Group<'a> = (&'a str, Option<&'a str>);

impl Spot {
    fn group(&self) -> Group<'_> {
        (&self.partition, self.size.as_deref())
    }

    fn is_free(&self) -> bool {
        matches!(self.status, Status::Free { .. })
    }

    fn taken(&self) -> Option<&Taken> {
        match &self.status {
            Status::Taken(taken) => Some(taken),
            _ => None,
        }
    }

    /// Whether the wish is for machines of its group.
    fn is_in_group_of(&self, wish: &Wish<'_>) -> bool {
        let Select { partition, size, .. } = wish.select;
        partition.as_ref().is_none_or(|partition| **partition == *self.partition)
            && size.as_ref().is_none_or(|size| self.size.as_deref() == Some(size))
    }

    /// Whether the wish is for such a machine of its group, free or not.
    fn is_itself_meant(&self, wish: &Wish<'_>) -> bool {
        let has = |(key, value)| self.labels.get(key) == Some(value);
        wish.machine.is_none_or(|id| id == self.id) && wish.select.labels.iter().all(has)
    }
}

/// Which group and which rack each machine is of, by numbers: thousands of machines are looked at for each wish, and few
/// names are different.
#[derive(Clone, Debug, Default)]
pub(crate) struct Floor {
    at: Vec<(usize, usize)>,
    /// A machine of each.
    groups: Vec<usize>,
    racks: usize,
}

impl Floor {
    pub(crate) fn of(spots: &[Spot]) -> Self {
        let (mut groups, mut racks) = (HashMap::new(), HashMap::new());
        let mut floor = Self::default();
        for (place, spot) in spots.iter().enumerate() {
            let next = groups.len();
            let group = *groups.entry(spot.group()).or_insert(next);
            if group == next {
                floor.groups.push(place);
            }
            let next = racks.len();
            let rack = *racks.entry((&spot.partition, &spot.rack)).or_insert(next);
            floor.at.push((group, rack));
        }
        floor.racks = racks.len();
        floor
    }
}

/// The place of the machine that is chosen, or a sentence on why there is none.
pub(crate) fn choose(
    spots: &[Spot],
    floor: &Floor,
    wish: &Wish<'_>,
    reservations: &[&Reservation],
) -> Result<usize, String> {
    let looked_for: Vec<bool> =
        floor.groups.iter().map(|place| spots.get(*place).is_some_and(|spot| spot.is_in_group_of(wish))).collect();
    let meant = || {
        let all = spots.iter().zip(&floor.at).enumerate();
        all.filter(|(_, (spot, (group, _)))| looked_for.get(*group) == Some(&true) && spot.is_itself_meant(wish))
    };
    let mut verdicts: BTreeMap<usize, Result<(), String>> = BTreeMap::new();
    let racks = racks(spots, floor, wish);
    let mut best: Option<(usize, Cost)> = None;
    for (place, (spot, (group, rack))) in meant() {
        let Status::Free { since_ms } = spot.status else { continue };
        let verdict = verdicts.entry(*group).or_insert_with(|| {
            let its: Vec<&Spot> =
                spots.iter().zip(&floor.at).filter(|(_, at)| at.0 == *group).map(|(s, _)| s).collect();
            may_have(&its, spot.group(), wish, reservations)
        });
        if verdict.is_err() {
            continue;
        }
        let (alike, all) = racks.get(*rack).copied().unwrap_or_default();
        let cost = (alike, all, since_ms, spot.id);
        if best.as_ref().is_none_or(|(_, least)| cost < *least) {
            best = Some((place, cost));
        }
    }
    match best {
        Some((place, _)) => Ok(place),
        None => Err(why_not(
            &meant().map(|(_, (spot, _))| spot).collect::<Vec<_>>(),
            verdicts.into_values().find_map(Result::err),
        )),
    }
}

/// Machines of the project in the rack that have the same placement labels; all of them; then whoever waits longest.
type Cost = (usize, usize, u64, MachineId);

/// What the project has in each rack: machines with the same placement labels, and all of them.
fn racks(spots: &[Spot], floor: &Floor, wish: &Wish<'_>) -> Vec<(usize, usize)> {
    let placement = &wish.select.placement;
    let mut racks = vec![(0, 0); floor.racks];
    for (spot, (_, rack)) in spots.iter().zip(&floor.at) {
        let Some(taken) = spot.taken().filter(|taken| taken.project.as_deref() == wish.project) else { continue };
        let Some((alike, all)) = racks.get_mut(*rack) else { continue };
        *all += 1;
        let same = |(key, value): (&String, &String)| taken.placement.get(key) == Some(value);
        *alike += usize::from(!placement.is_empty() && placement.iter().all(same));
    }
    racks
}

/// Whether the project may have one more of a group, which is these machines.
fn may_have(spots: &[&Spot], group: Group<'_>, wish: &Wish<'_>, reservations: &[&Reservation]) -> Result<(), String> {
    let (partition, size) = group;
    let ours: Vec<&Reservation> = of_group(reservations, group);
    if let Some(name) = &wish.select.reservation {
        let Some(reservation) = reservations.iter().find(|reservation| reservation.name == *name) else {
            return Err(format!("there is no reservation {name:?}"));
        };
        if wish.project != Some(&reservation.project) {
            return Err(format!("reservation {name} is for project {}", reservation.project));
        }
        if !ours.iter().any(|ours| ours.name == *name) {
            let (of, at) = (&reservation.size, reservation.partitions.join(", "));
            return Err(format!("reservation {name} is for machines of size {of} in {at}"));
        }
        let by_name = |taken: &&Taken| taken.reservation.as_deref() == Some(name);
        let used = spots.iter().filter_map(|spot| spot.taken()).filter(by_name).count();
        if used >= reservation.amount as usize {
            return Err(format!(
                "reservation {name} is used up: it's for {} in {partition}",
                machines(reservation.amount)
            ));
        }
    }
    let free = spots.iter().filter(|spot| spot.is_free()).count();
    let more = Taken {
        project: wish.project.map(Arc::from),
        reservation: wish.select.reservation.as_deref().map(Arc::from),
        placement: Arc::default(),
    };
    let taken = || spots.iter().filter_map(|spot| spot.taken());
    let unused = |taken: Vec<&Taken>| usage(&ours, &taken).values().map(|(amount, used)| amount - used).sum::<usize>();
    let before = unused(taken().collect());
    let after = unused(taken().chain([&more]).collect());
    if after < before || after < free {
        return Ok(());
    }
    let of = size.map(|size| format!(" of size {size}")).unwrap_or_default();
    Err(format!("of {}{of} that could be had in {partition}, {after} are reserved for other projects", machines(free)))
}

fn of_group<'a>(reservations: &[&'a Reservation], (partition, size): Group<'_>) -> Vec<&'a Reservation> {
    let is_ours = |r: &&&Reservation| Some(r.size.as_str()) == size && r.partitions.iter().any(|p| p == partition);
    reservations.iter().filter(is_ours).copied().collect()
}

/// How much of each reservation is used, of how much. Who names a reservation uses that one; a project's other machines
/// use what is left of its reservations.
pub(crate) fn usage<'a>(reservations: &[&'a Reservation], taken: &[&Taken]) -> BTreeMap<&'a str, (usize, usize)> {
    let mut usage: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for reservation in reservations {
        let ours = |taken: &&&Taken| taken.project.as_deref() == Some(&reservation.project);
        let named = taken.iter().filter(ours).filter(|t| t.reservation.as_deref() == Some(&reservation.name)).count();
        let amount = reservation.amount as usize;
        usage.insert(&reservation.name, (amount, named.min(amount)));
    }
    let mut projects: Vec<&str> = reservations.iter().map(|reservation| reservation.project.as_str()).collect();
    projects.sort_unstable();
    projects.dedup();
    for project in projects {
        let its = || reservations.iter().filter(|reservation| reservation.project == project);
        let has = taken.iter().filter(|taken| taken.project.as_deref() == Some(project)).count();
        let named: usize =
            its().filter_map(|reservation| usage.get(reservation.name.as_str())).map(|(_, used)| used).sum();
        let mut rest = has - named;
        let mut names: Vec<&str> = its().map(|reservation| reservation.name.as_str()).collect();
        names.sort_unstable();
        for name in names {
            let Some((amount, used)) = usage.get_mut(name) else { continue };
            let more = rest.min(*amount - *used);
            *used += more;
            rest -= more;
        }
    }
    usage
}

fn why_not(meant: &[&Spot], refused: Option<String>) -> String {
    if let Some(why) = refused {
        return why;
    }
    if meant.is_empty() {
        return "no machine is like that; `drophammer machine list --output wide` shows sizes, partitions and labels"
            .into();
    }
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for spot in meant {
        let reason = match &spot.status {
            Status::Free { .. } => "free".to_owned(),
            Status::Taken(_) => "allocated".to_owned(),
            Status::Unusable(Unusable::State(state)) => state.name().to_owned(),
            Status::Unusable(Unusable::Locked) => "locked".to_owned(),
            Status::Unusable(Unusable::Dead) => "silent for too long".to_owned(),
        };
        *reasons.entry(reason).or_default() += 1;
    }
    let reasons: Vec<String> = reasons.into_iter().map(|(reason, many)| format!("{many} {reason}")).collect();
    format!("of {} that would do, none waits: {}", count(meant.len(), "machine"), reasons.join(", "))
}

fn machines(number: impl TryInto<usize>) -> String {
    count(number.try_into().unwrap_or(usize::MAX), "machine")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn spot(n: u128, partition: &str, size: &str, rack: &str) -> Spot {
        Spot {
            id: MachineId(Uuid::from_u128(n)),
            partition: partition.into(),
            size: (!size.is_empty()).then(|| size.into()),
            rack: Some(rack.into()),
            labels: Arc::default(),
            status: Status::Free { since_ms: 0 },
        }
    }

    fn reservation(name: &str, project: &str, amount: u32) -> Reservation {
        Reservation {
            name: name.into(),
            description: String::new(),
            labels: Labels::new(),
            project: project.into(),
            size: "s".into(),
            partitions: vec!["p".into()],
            amount,
        }
    }

    fn take(spots: &mut [Spot], place: usize, wish: &Wish<'_>) {
        spots[place].status = Status::Taken(Taken {
            project: wish.project.map(Arc::from),
            reservation: wish.select.reservation.as_deref().map(Arc::from),
            placement: Arc::new(wish.select.placement.clone()),
        });
    }

    fn select(size: &str, reservation: Option<&str>, placement: &[(&str, &str)]) -> Select {
        Select {
            size: Some(size.into()),
            reservation: reservation.map(Into::into),
            placement: placement.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            ..Select::default()
        }
    }

    #[test]
    fn who_gets_the_last_ones() {
        for (name, reservations, wishes) in [
            (
                "nobody reserved",
                vec![],
                vec![
                    ("a", None, ""),
                    ("b", None, ""),
                    ("b", None, ""),
                    ("b", None, "of 3 machines that would do, none waits"),
                ],
            ),
            (
                "two are a's",
                vec![reservation("r", "a", 2)],
                vec![
                    ("b", None, ""),
                    ("b", None, "of 2 machines of size s that could be had in p, 2 are reserved for other projects"),
                    ("a", None, ""),
                    ("a", Some("r"), ""),
                    ("a", None, "of 3 machines that would do, none waits"),
                ],
            ),
            (
                "by name",
                vec![reservation("one", "a", 1), reservation("two", "a", 1)],
                vec![
                    ("a", Some("two"), ""),
                    ("a", Some("two"), "reservation two is used up: it's for 1 machine in p"),
                    ("b", Some("one"), "reservation one is for project a"),
                    ("a", Some("three"), "there is no reservation \"three\""),
                    ("b", None, ""),
                    ("b", None, "of 1 machine of size s that could be had in p, 1 are reserved"),
                    ("a", None, ""),
                ],
            ),
            (
                "more is promised than there is",
                vec![reservation("r", "a", 2), reservation("q", "b", 2)],
                vec![
                    ("c", None, "of 3 machines of size s that could be had in p, 4 are"),
                    ("a", None, ""),
                    ("b", None, ""),
                    ("a", None, ""),
                ],
            ),
        ] {
            let mut spots = vec![spot(1, "p", "s", "1"), spot(2, "p", "s", "1"), spot(3, "p", "s", "1")];
            let reservations: Vec<&Reservation> = reservations.iter().collect();
            for (step, (project, named, want)) in wishes.into_iter().enumerate() {
                let select = select("s", named, &[]);
                let wish = Wish { select: &select, machine: None, project: Some(project) };
                match choose(&spots, &Floor::of(&spots), &wish, &reservations) {
                    Ok(place) if want.is_empty() => take(&mut spots, place, &wish),
                    Err(why) if !want.is_empty() => assert!(why.contains(want), "{name} {step}: {why}"),
                    got => panic!("{name} {step}: {got:?} instead of {want:?}"),
                }
            }
        }
    }

    #[test]
    fn machines_are_spread() {
        let mut spots: Vec<Spot> = (0..12u128).map(|n| spot(n, "p", "s", ["1", "2", "3"][n as usize % 3])).collect();
        let racks = |spots: &[Spot], role: &str| {
            let mut per_rack = [0; 3];
            for spot in spots {
                let Some(taken) = spot.taken() else { continue };
                let rack = spot.rack.as_deref().and_then(|rack| rack.parse::<usize>().ok()).unwrap_or(0);
                let is = role.is_empty() || taken.placement.get("role").map(String::as_str) == Some(role);
                per_rack[rack - 1] += usize::from(is);
            }
            per_rack
        };
        for (role, many) in [("db", 2), ("web", 4), ("db", 1), ("", 2)] {
            for _ in 0..many {
                let placement: &[(&str, &str)] = if role.is_empty() { &[] } else { &[("role", role)] };
                let select = select("s", None, placement);
                let wish = Wish { select: &select, machine: None, project: Some("a") };
                let place = choose(&spots, &Floor::of(&spots), &wish, &[]).expect("free");
                take(&mut spots, place, &wish);
            }
        }
        assert_eq!(racks(&spots, "db"), [1, 1, 1]);
        assert_eq!(racks(&spots, "web").iter().max(), Some(&2));
        assert_eq!(racks(&spots, ""), [3, 3, 3]);
    }

    #[test]
    fn by_label_by_id_and_by_partition() {
        let mut spots =
            vec![spot(1, "p", "s", "1"), spot(2, "q", "s", "1"), spot(3, "q", "t", "1"), spot(4, "q", "", "1")];
        spots[2].labels = Arc::new(Labels::from([("disk".into(), "fast".into())]));
        spots[0].status = Status::Unusable(Unusable::Locked);
        let labelled = Select { labels: Labels::from([("disk".into(), "fast".into())]), ..Select::default() };
        let in_p = Select { partition: Some("p".into()), ..Select::default() };
        let any = Select::default();
        for (name, select, machine, want) in [
            ("a label", &labelled, None, Ok(2)),
            ("an id", &any, Some(4), Ok(3)),
            ("an id that is of another partition", &in_p, Some(4), Err("no machine is like that")),
            ("a partition", &in_p, None, Err("of 1 machine that would do, none waits: 1 locked")),
        ] {
            let machine = machine.map(|n| MachineId(Uuid::from_u128(n)));
            let got = choose(&spots, &Floor::of(&spots), &Wish { select, machine, project: None }, &[]);
            match (got, want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{name}"),
                (Err(got), Err(want)) => assert!(got.contains(want), "{name}: {got}"),
                (got, want) => panic!("{name}: {got:?} instead of {want:?}"),
            }
        }
    }

    /// Whether every project could still get all that it's promised, one machine after the other.
    fn could_all_be_served(spots: &[Spot], reservations: &[Reservation]) -> bool {
        let mut spots = spots.to_vec();
        for reservation in reservations {
            for partition in &reservation.partitions {
                let is_here =
                    |spot: &Spot| *spot.partition == **partition && spot.size.as_deref() == Some(&reservation.size);
                // What the project has here beyond its reservations that were served before.
                let others = reservations.iter().take_while(|other| other.name != reservation.name);
                let before: u32 = others
                    .filter(|other| {
                        other.project == reservation.project
                            && other.size == reservation.size
                            && other.partitions.contains(partition)
                    })
                    .map(|other| other.amount)
                    .sum();
                loop {
                    let is_its = |t: &Taken| t.project.as_deref() == Some(&reservation.project);
                    let has = spots.iter().filter(|s| is_here(s) && s.taken().is_some_and(is_its)).count();
                    if has >= (before + reservation.amount) as usize {
                        break;
                    }
                    let Some(free) = spots.iter_mut().find(|spot| is_here(spot) && spot.is_free()) else {
                        return false;
                    };
                    let project = Some(reservation.project.as_str().into());
                    free.status = Status::Taken(Taken { project, ..Taken::default() });
                }
            }
        }
        true
    }

    #[derive(Clone, Debug)]
    enum Op {
        Take { project: usize, size: Option<usize>, partition: Option<usize>, role: Option<usize>, named: bool },
        Free { place: usize },
    }

    fn op() -> impl Strategy<Value = Op> {
        let take = (0..3usize, prop::option::of(0..2usize), prop::option::of(0..2usize), prop::option::of(0..2usize));
        prop_oneof![
            4 => (take, any::<bool>()).prop_map(|((project, size, partition, role), named)| {
                Op::Take { project, size, partition, role, named }
            }),
            1 => (0..24usize).prop_map(|place| Op::Free { place }),
        ]
    }

    const PROJECTS: [&str; 3] = ["a", "b", "c"];
    const SIZES: [&str; 2] = ["s", "t"];
    const PARTITIONS: [&str; 2] = ["p", "q"];
    const ROLES: [&str; 2] = ["db", "web"];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]
        #[test]
        fn promises_are_kept_and_nothing_could_be_spread_better(
            racks in prop::collection::vec(0..3usize, 1..24),
            reserved in prop::collection::vec((0..2usize, 0..2usize, 1..4u8, 1..4u32), 0..4),
            ops in prop::collection::vec(op(), 1..40),
        ) {
            let mut spots: Vec<Spot> = racks.iter().enumerate().map(|(n, rack)| {
                spot(n as u128, PARTITIONS[n % 2], SIZES[n / 2 % 2], ["1", "2", "3"][*rack])
            }).collect();
            let reservations: Vec<Reservation> = reserved.iter().enumerate().map(|(n, (project, size, partitions, amount))| {
                let partitions = (0..2).filter(|p| partitions >> p & 1 == 1).map(|p| PARTITIONS[p].into()).collect();
                let (project, size) = (PROJECTS[*project].into(), SIZES[*size].into());
                Reservation { partitions, project, size, ..reservation(&format!("r{n}"), "", *amount) }
            }).collect();
            let all: Vec<&Reservation> = reservations.iter().collect();
            for op in ops {
                let (project, size, partition, role, named) = match op {
                    Op::Take { project, size, partition, role, named } => (project, size, partition, role, named),
                    Op::Free { place } => {
                        spots.iter_mut().skip(place).take(1).for_each(|spot| spot.status = Status::Free { since_ms: 1 });
                        continue;
                    }
                };
                let named = reservations.iter().find(|r| named && r.project == PROJECTS[project]);
                let select = Select {
                    size: size.map(|size| SIZES[size].into()),
                    partition: partition.map(|partition| PARTITIONS[partition].into()),
                    placement: role.map(|role| ("role".to_owned(), ROLES[role].to_owned())).into_iter().collect(),
                    reservation: named.map(|reservation| reservation.name.clone()),
                    ..Select::default()
                };
                let wish = Wish { select: &select, machine: None, project: Some(PROJECTS[project]) };
                let could = could_all_be_served(&spots, &reservations);
                let chosen = choose(&spots, &Floor::of(&spots), &wish, &all);
                // What would be right: tried one by one.
                let with = |place: usize| {
                    let mut after = spots.clone();
                    take(&mut after, place, &wish);
                    after
                };
                let open: Vec<usize> = (0..spots.len()).filter(|place| {
                    let spot = &spots[*place];
                    spot.is_free() && spot.is_in_group_of(&wish) && spot.is_itself_meant(&wish)
                }).collect();
                if could && named.is_none() {
                    let right: Vec<usize> = open.iter().copied().filter(|place| could_all_be_served(&with(*place), &reservations)).collect();
                    prop_assert_eq!(chosen.is_ok(), !right.is_empty(), "{:?} of {:?}", chosen, right);
                    if let Ok(place) = chosen {
                        prop_assert!(right.contains(&place));
                        let in_rack = |place: usize, alike: bool| spots.iter().filter(|other| {
                            other.partition == spots[place].partition && other.rack == spots[place].rack
                                && other.taken().is_some_and(|t| t.project.as_deref() == wish.project
                                    && (!alike || (!select.placement.is_empty() && t.placement.get("role") == select.placement.get("role"))))
                        }).count();
                        let cost = |place: usize| (in_rack(place, true), in_rack(place, false));
                        let least = right.iter().map(|place| cost(*place)).min();
                        prop_assert_eq!(Some(cost(place)), least);
                    }
                }
                if let Ok(place) = chosen {
                    prop_assert!(open.contains(&place));
                    spots = with(place);
                    prop_assert!(!could || could_all_be_served(&spots, &reservations), "somebody's promise was broken");
                }
            }
        }
    }
}
