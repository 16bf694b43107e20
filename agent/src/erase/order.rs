//! Whether an order fits this machine. Decided before anything is touched.

use drophammer_protocol::inventory::{Bus, Disk, DiskId};
use drophammer_protocol::order::Kept;

/// Why an order isn't carried out. Nothing has been touched.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the order names {0} twice")]
    Twice(DiskId),
    #[error("the order has {0} erased and kept at once")]
    KeptToo(DiskId),
    #[error("the order names {0}, which isn't in this machine; order again after a new inventory")]
    Missing(DiskId),
    #[error("the order names {id}, but here it has {found} bytes; order again after a new inventory")]
    OtherSize { id: DiskId, found: u64 },
    #[error("{0} is in this machine more than once; drives that share serial and size can't be told apart")]
    Ambiguous(DiskId),
    #[error("this machine also has {0}, which can hold data and isn't in the order; order all drives or take it out")]
    Unnamed(String),
    #[error(
        "{other} is on the same drive as {id}, and the order doesn't name it: a drive is erased with all its namespaces"
    )]
    Shared { id: DiskId, other: String },
}

/// What an order has to name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coverage {
    /// Every drive that can hold data but for those that are kept: the machine goes to somebody else.
    WholeMachine,
    /// What a person named, on a host whose other drives are none of our business.
    NamedDrives,
}

/// The drives of the order, in its order, if they are here and as many as `coverage` asks for.
pub(crate) fn check<'a>(
    order: &[DiskId],
    kept: &Kept,
    here: &'a [Disk],
    coverage: Coverage,
) -> Result<Vec<&'a Disk>, Refusal> {
    if let Some(id) = order.iter().find(|id| kept.has(id)) {
        return Err(Refusal::KeptToo(id.clone()));
    }
    let mut named = Vec::new();
    for (at, id) in order.iter().enumerate() {
        if order.iter().skip(at + 1).any(|other| other == id) {
            return Err(Refusal::Twice(id.clone()));
        }
        let mut matching = here.iter().filter(|disk| disk.id().as_ref() == Some(id));
        match (matching.next(), matching.next()) {
            (Some(disk), None) => named.push(disk),
            (Some(_), Some(_)) => return Err(Refusal::Ambiguous(id.clone())),
            (None, _) => {
                let same_serial = here.iter().filter_map(Disk::id).find(|other| other.serial == id.serial);
                return Err(match same_serial {
                    Some(other) => Refusal::OtherSize { id: id.clone(), found: other.size_bytes },
                    None => Refusal::Missing(id.clone()),
                });
            }
        }
    }
    if coverage == Coverage::NamedDrives {
        return Ok(named);
    }
    for disk in here {
        // A namespace whose format the kernel can't use shows no bytes, and holds some all the same.
        let hidden = disk.bus == Bus::Nvme && disk.size_bytes == 0;
        let is_kept = disk.id().is_some_and(|id| kept.has(&id));
        if (disk.holds_data() || hidden) && !is_kept && !named.iter().any(|other| other.name == disk.name) {
            let serial = disk.serial.as_deref().unwrap_or("none");
            return Err(Refusal::Unnamed(format!("{} (serial {serial}, {} bytes)", disk.name, disk.size_bytes)));
        }
    }
    Ok(named)
}

/// Whether erasing `disk` stays within the order. A drive is erased with all its namespaces: some of its methods, and on
/// many drives all of them, know nothing smaller.
pub(crate) fn check_reach(order: &[DiskId], here: &[Disk], disk: &Disk) -> Result<(), Refusal> {
    let beside = |other: &&Disk| other.bus == Bus::Nvme && other.name != disk.name && other.serial == disk.serial;
    let unordered = |other: &&Disk| other.id().is_none_or(|id| !order.contains(&id));
    match (here.iter().filter(beside).find(unordered), disk.id()) {
        (Some(other), Some(id)) => Err(Refusal::Shared { id, other: other.name.clone() }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use Coverage::{NamedDrives, WholeMachine};
    use drophammer_protocol::fixtures as plain;

    use super::*;

    fn id(serial: &str, size_bytes: u64) -> DiskId {
        DiskId::new(serial, size_bytes)
    }

    fn disk(name: &str, serial: Option<&str>, size_bytes: u64) -> Disk {
        Disk { name: name.into(), serial: serial.map(str::to_owned), ..plain::disk("", size_bytes) }
    }

    #[test]
    fn orders_that_fit_and_orders_that_do_not() {
        let two = vec![disk("nvme0n1", Some("A"), 10), disk("nvme1n1", Some("B"), 20)];
        let with = |extra: Disk| [two.clone(), vec![extra]].concat();
        let both = [id("B", 20), id("A", 10)];
        let unnamed = |words: &str| Err(Refusal::Unnamed(words.into()));
        for (name, order, here, want) in [
            ("all of them", &both[..], two.clone(), Ok(vec!["nvme1n1", "nvme0n1"])),
            ("no drives, none ordered", &[], vec![], Ok(vec![])),
            ("twice", &[id("A", 10), id("B", 20), id("A", 10)], two.clone(), Err(Refusal::Twice(id("A", 10)))),
            ("not here", &[id("A", 10), id("C", 5)], two.clone(), Err(Refusal::Missing(id("C", 5)))),
            (
                "another size",
                &[id("A", 11), id("B", 20)],
                two.clone(),
                Err(Refusal::OtherSize { id: id("A", 11), found: 10 }),
            ),
            ("one left out", &[id("A", 10)], two.clone(), unnamed("nvme1n1 (serial B, 20 bytes)")),
            ("nothing ordered", &[], two.clone(), unnamed("nvme0n1 (serial A, 10 bytes)")),
            ("a twin", &both, with(disk("nvme2n1", Some("B"), 20)), Err(Refusal::Ambiguous(id("B", 20)))),
            ("one without a name", &both, with(disk("nvme2n1", None, 5)), unnamed("nvme2n1 (serial none, 5 bytes)")),
            ("one without a size", &both, with(disk("nvme2n1", Some("C"), 0)), unnamed("nvme2n1 (serial C, 0 bytes)")),
            (
                "a read-only one",
                &both,
                with(Disk { read_only: true, ..disk("nvme2n1", Some("C"), 5) }),
                unnamed("nvme2n1 (serial C, 5 bytes)"),
            ),
            (
                "a memory stick",
                &both,
                with(Disk { bus: Bus::Usb, ..disk("sda", Some("C"), 5) }),
                Ok(vec!["nvme1n1", "nvme0n1"]),
            ),
        ] {
            let got = check(order, &Kept::default(), &here, WholeMachine)
                .map(|disks| disks.iter().map(|d| d.name.as_str()).collect::<Vec<_>>());
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn a_person_names_what_they_want() {
        let two = [disk("nvme0n1", Some("A"), 10), disk("nvme1n1", Some("B"), 20)];
        for (name, order, want) in [
            ("one of two", &[id("B", 20)][..], Ok(1)),
            ("none", &[], Ok(0)),
            ("not here", &[id("C", 5)], Err(Refusal::Missing(id("C", 5)))),
            ("twice", &[id("A", 10), id("A", 10)], Err(Refusal::Twice(id("A", 10)))),
        ] {
            assert_eq!(check(order, &Kept::default(), &two, NamedDrives).map(|disks| disks.len()), want, "{name}");
        }
    }

    #[test]
    fn drives_that_are_kept_are_no_part_of_it() {
        let three = [disk("nvme0n1", Some("A"), 10), disk("nvme1n1", Some("B"), 20), disk("nvme2n1", Some("C"), 30)];
        for (name, order, kept, want) in [
            ("one", vec![id("A", 10), id("C", 30)], vec![id("B", 20)], Ok(2)),
            (
                "one erased as well",
                vec![id("A", 10), id("B", 20)],
                vec![id("B", 20)],
                Err(Refusal::KeptToo(id("B", 20))),
            ),
            (
                "another than meant",
                vec![id("A", 10), id("C", 30)],
                vec![id("B", 21)],
                Err(Refusal::Unnamed("nvme1n1 (serial B, 20 bytes)".into())),
            ),
        ] {
            let kept = Kept { drives: kept.into_iter().map(|id| (String::new(), id)).collect(), ..Kept::default() };
            assert_eq!(check(&order, &kept, &three, WholeMachine).map(|disks| disks.len()), want, "{name}");
        }
    }

    #[test]
    fn an_erase_stays_within_its_order() {
        let here = [disk("nvme0n1", Some("A"), 10), disk("nvme0n2", Some("A"), 20), disk("nvme1n1", Some("B"), 30)];
        let one = [id("A", 10)];
        let both = [id("A", 10), id("A", 20)];
        let shared = || Err(Refusal::Shared { id: id("A", 10), other: "nvme0n2".into() });
        for (name, order, disk, want) in [
            ("one of two namespaces", &one[..], &here[0], shared()),
            ("both", &both, &here[0], Ok(())),
            ("has but one namespace", &[id("B", 30)], &here[2], Ok(())),
        ] {
            assert_eq!(check_reach(order, &here, disk), want, "{name}");
        }
    }
}
