//! Which size a machine is of, and why it's of none. Pure.
//!
//! As in metal-stack a match is exclusive and complete: a machine is of a size if every constraint holds and if every
//! processor, every drive, every graphics processor and its memory are spoken of by one. Sizes that one machine could both
//! be of are refused when they're declared, so that no machine is of two.

use drophammer_protocol::glob::{glob, globs_meet};
use drophammer_protocol::hardware::Hardware;
use drophammer_protocol::resource::{Constraint, Resource, Size};
use drophammer_protocol::words::{bytes, count};

/// Why a machine isn't of a size; nothing if it is.
pub(crate) fn misses(size: &Size, hardware: &Hardware) -> Vec<String> {
    let mut misses = Vec::new();
    for constraint in &size.constraints {
        let meant = parts(hardware, constraint.of).into_iter().filter(|part| is_meant(constraint, part));
        let amount = meant.fold(0, |sum: u64, part| sum.saturating_add(part.amount));
        if !(constraint.min..=constraint.max).contains(&amount) {
            misses.push(format!(
                "{} {}, and it has {}",
                wanted(constraint),
                range(constraint),
                said(constraint.of, amount)
            ));
        }
    }
    for of in ALL {
        for part in parts(hardware, of) {
            let is_spoken_of = size.constraints.iter().any(|c| c.of == of && is_meant(c, &part));
            if part.amount > 0 && !is_spoken_of {
                misses.push(format!("nothing in it is about {}", part.words()));
            }
        }
    }
    misses
}

/// The one that the machine is of.
pub(crate) fn of<'a>(sizes: impl IntoIterator<Item = &'a Size>, hardware: &Hardware) -> Option<&'a Size> {
    sizes.into_iter().find(|size| misses(size, hardware).is_empty())
}

/// Whether some machine could be of both. It may say so of two sizes that no real machine is of, and never the other way
/// round.
pub(crate) fn overlap(a: &Size, b: &Size) -> bool {
    ALL.into_iter().all(|of| could_agree(a, b, of))
}

const ALL: [Resource; 4] = [Resource::Cores, Resource::Memory, Resource::Storage, Resource::Gpu];

/// What a machine has of something.
struct Part<'a> {
    of: Resource,
    /// What patterns are held against; memory has no name.
    name: &'a str,
    amount: u64,
}

impl Part<'_> {
    fn words(&self) -> String {
        match self.of {
            Resource::Cores => format!("the processor {}", self.name),
            Resource::Memory => "memory".into(),
            Resource::Storage => format!("the drive {} of {}", self.name, bytes(self.amount)),
            Resource::Gpu => format!("the graphics processor {}", self.name),
        }
    }
}

fn parts(hardware: &Hardware, of: Resource) -> Vec<Part<'_>> {
    match of {
        Resource::Cores => {
            let cpus = hardware.processors.iter();
            cpus.map(|cpu| Part { of, name: &cpu.model, amount: cpu.cores.into() }).collect()
        }
        Resource::Memory => vec![Part { of, name: "", amount: hardware.memory_bytes }],
        Resource::Storage => {
            hardware.drives.iter().map(|drive| Part { of, name: &drive.device, amount: drive.bytes }).collect()
        }
        Resource::Gpu => hardware.gpus.iter().map(|gpu| Part { of, name: &gpu.model, amount: 1 }).collect(),
    }
}

fn is_meant(constraint: &Constraint, part: &Part<'_>) -> bool {
    let pattern = constraint.identifier.as_ref();
    constraint.of == part.of && pattern.is_none_or(|pattern| glob(pattern.as_bytes(), part.name.as_bytes()))
}

fn wanted(constraint: &Constraint) -> String {
    let like = constraint.identifier.as_ref().map(|pattern| format!(" like {pattern:?}")).unwrap_or_default();
    format!("{}{like} has to be", constraint.of)
}

fn range(constraint: &Constraint) -> String {
    let [min, max] = [constraint.min, constraint.max].map(|amount| said(constraint.of, amount));
    if constraint.min == constraint.max { min } else { format!("{min} to {max}") }
}

fn said(of: Resource, amount: u64) -> String {
    match of {
        Resource::Cores => count(usize::try_from(amount).unwrap_or(usize::MAX), "core"),
        Resource::Gpu => amount.to_string(),
        Resource::Memory | Resource::Storage => bytes(amount),
    }
}

fn could_agree(a: &Size, b: &Size, of: Resource) -> bool {
    let [these, those] = [a, b].map(|size| size.constraints.iter().filter(|c| c.of == of).collect::<Vec<_>>());
    let ((low, high), (other_low, other_high)) = (total(&these), total(&those));
    if low.max(other_low) > high.min(other_high) {
        return false;
    }
    // Something that one of them demands has to be spoken of by the other.
    let demands = |these: &[&Constraint], those: &[&Constraint]| {
        these.iter().filter(|c| c.min > 0).all(|c| those.iter().any(|other| may_mean_the_same(c, other)))
    };
    // The same things can't be few and many.
    let contradict =
        these.iter().any(|c| those.iter().any(|o| c.identifier == o.identifier && c.min.max(o.min) > c.max.min(o.max)));
    demands(&these, &those) && demands(&those, &these) && !contradict
}

fn may_mean_the_same(a: &Constraint, b: &Constraint) -> bool {
    let [a, b] = [a, b].map(|c| c.identifier.as_deref().unwrap_or("*").as_bytes());
    globs_meet(a, b)
}

/// How much a machine that meets these can have in all, at least and at most.
fn total(constraints: &[&Constraint]) -> (u64, u64) {
    if let Some(all) = constraints.iter().find(|c| c.identifier.is_none()) {
        return (all.min, all.max);
    }
    let low = constraints.iter().map(|c| c.min).max().unwrap_or(0);
    (low, constraints.iter().fold(0, |sum: u64, c| sum.saturating_add(c.max)))
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::hardware::{Drive, Gpu, Processor};
    use drophammer_protocol::resource::Labels;
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn size(name: &str, constraints: Vec<Constraint>) -> Size {
        Size { name: name.into(), description: String::new(), labels: Labels::new(), constraints, images: vec![] }
    }

    fn constraint(of: Resource, min: u64, max: u64, identifier: &str) -> Constraint {
        Constraint { of, min, max, identifier: (!identifier.is_empty()).then(|| identifier.into()) }
    }

    fn machine() -> Hardware {
        let cpu = Processor { model: "Intel Xeon Silver 4310".into(), cores: 12 };
        let drive = |device: &str| Drive { device: device.into(), bytes: 960 * GIB };
        Hardware {
            model: None,
            processors: vec![cpu.clone(), cpu],
            memory_bytes: 256 * GIB,
            gpus: vec![Gpu { vendor: "NVIDIA".into(), model: "H100 PCIe".into() }],
            drives: vec![drive("/dev/nvme0n1"), drive("/dev/nvme1n1")],
        }
    }

    /// One that [`machine`] is of.
    fn fitting() -> Vec<Constraint> {
        vec![
            constraint(Resource::Cores, 24, 24, "Intel Xeon Silver*"),
            constraint(Resource::Memory, 256 * GIB, 256 * GIB, ""),
            constraint(Resource::Storage, 1000 * GIB, 2000 * GIB, "/dev/nvme*"),
            constraint(Resource::Gpu, 1, 2, "H100*"),
        ]
    }

    #[test]
    fn why_a_machine_is_not_of_a_size() {
        let with = |index: usize, constraint: Constraint| {
            let mut all = fitting();
            all[index] = constraint;
            size("s", all)
        };
        let without = |index: usize| {
            let mut all = fitting();
            all.remove(index);
            size("s", all)
        };
        for (name, size, want) in [
            ("it is", size("s", fitting()), vec![]),
            (
                "fewer cores",
                with(0, constraint(Resource::Cores, 32, 64, "Intel*")),
                vec!["cores like \"Intel*\" has to be 32 cores to 64 cores, and it has 24 cores"],
            ),
            (
                "other processors",
                with(0, constraint(Resource::Cores, 24, 24, "AMD*")),
                vec![
                    "cores like \"AMD*\" has to be 24 cores, and it has 0 cores",
                    "nothing in it is about the processor Intel Xeon Silver 4310",
                    "nothing in it is about the processor Intel Xeon Silver 4310",
                ],
            ),
            (
                "more memory",
                with(1, constraint(Resource::Memory, 512 * GIB, 512 * GIB, "")),
                vec!["memory has to be 512.0 GiB, and it has 256.0 GiB"],
            ),
            ("nothing about graphics", without(3), vec!["nothing in it is about the graphics processor H100 PCIe"]),
            (
                "one of the drives",
                with(2, constraint(Resource::Storage, 900 * GIB, 1000 * GIB, "/dev/nvme0n1")),
                vec!["nothing in it is about the drive /dev/nvme1n1 of 960.0 GiB"],
            ),
        ] {
            assert_eq!(misses(&size, &machine()), want, "{name}");
        }
    }

    #[test]
    fn sizes_that_one_machine_could_both_be_of() {
        let with = |constraint: Constraint| {
            let mut all: Vec<_> = fitting().into_iter().filter(|c| c.of != constraint.of).collect();
            all.push(constraint);
            size("b", all)
        };
        let a = size("a", fitting());
        for (name, b, want) in [
            ("itself", a.clone(), true),
            ("more cores", with(constraint(Resource::Cores, 32, 64, "Intel Xeon Silver*")), false),
            ("others' cores", with(constraint(Resource::Cores, 24, 24, "AMD*")), false),
            ("anybody's cores", with(constraint(Resource::Cores, 24, 24, "")), true),
            ("other graphics", with(constraint(Resource::Gpu, 1, 2, "A100*")), false),
            ("other graphics or none", with(constraint(Resource::Gpu, 0, 2, "A100*")), false),
            ("more of the same", with(constraint(Resource::Gpu, 3, 4, "H100*")), false),
            ("other drives", with(constraint(Resource::Storage, GIB, 9000 * GIB, "/dev/sd*")), false),
            ("any drives", with(constraint(Resource::Storage, GIB, 9000 * GIB, "")), true),
            ("any drives, but larger", with(constraint(Resource::Storage, 3000 * GIB, 9000 * GIB, "")), false),
        ] {
            assert_eq!((overlap(&a, &b), overlap(&b, &a)), (want, want), "{name}");
        }
    }

    fn any_size() -> impl Strategy<Value = Size> {
        let pattern = prop::sample::select(vec!["", "a*", "*b", "ab", "?"]);
        let one = (prop::sample::select(ALL.to_vec()), 0u64..4, 0u64..4, pattern);
        let one = one.prop_map(|(of, min, more, pattern)| constraint(of, min, min + more, pattern));
        prop::collection::vec(one, 0..6).prop_map(|constraints| size("s", constraints))
    }

    fn any_machine() -> impl Strategy<Value = Hardware> {
        let name = || prop::sample::select(vec!["a", "b", "ab", "c"]);
        let cpus = prop::collection::vec((name(), 0u32..3), 0..3);
        let gpus = prop::collection::vec(name(), 0..3);
        let drives = prop::collection::vec((name(), 0u64..3), 0..3);
        (cpus, 0u64..4, gpus, drives).prop_map(|(cpus, memory_bytes, gpus, drives)| Hardware {
            model: None,
            processors: cpus.into_iter().map(|(model, cores)| Processor { model: model.into(), cores }).collect(),
            memory_bytes,
            gpus: gpus.into_iter().map(|model| Gpu { vendor: String::new(), model: model.into() }).collect(),
            drives: drives.into_iter().map(|(device, bytes)| Drive { device: device.into(), bytes }).collect(),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]
        #[test]
        fn no_machine_is_of_two_sizes_that_do_not_overlap(a in any_size(), b in any_size(), machine in any_machine()) {
            if misses(&a, &machine).is_empty() && misses(&b, &machine).is_empty() {
                prop_assert!(overlap(&a, &b));
            }
        }
    }
}
