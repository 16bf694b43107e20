//! What will be erased, and how: facts and order in, plan or refusal out.
//!
//! A method is in a plan only if the drive claims it. A drive that claims nothing gets no plan, and so is never called
//! erased.

use drophammer_protocol::certificate::Method;
use drophammer_protocol::inventory::{Bus, Disk, DiskId};

use crate::sys::nvme_id::{ALL_NAMESPACES, Controller, Sanitize};

/// Why an order isn't carried out. Nothing has been touched.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the order names {0} twice")]
    Twice(DiskId),
    #[error("the order names {0}, which isn't in this machine; order again after a new inventory")]
    Missing(DiskId),
    #[error("the order names {id}, but here it has {found} bytes; order again after a new inventory")]
    OtherSize { id: DiskId, found: u64 },
    #[error("{0} is in this machine more than once; drives that share serial and size can't be told apart")]
    Ambiguous(DiskId),
    #[error("this machine also has {0}, which can hold data and isn't in the order; order all drives or take it out")]
    Unnamed(String),
    #[error(
        "erasing {id} would erase {other} as well, which the order doesn't name: the drive erases all its namespaces at once"
    )]
    Shared { id: DiskId, other: String },
}

/// What an order has to name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coverage {
    /// Every drive that can hold data: the machine goes to somebody else.
    WholeMachine,
    /// What a person named, on a host whose other drives are none of our business.
    NamedDrives,
}

/// The drives of the order, in its order, if they are here and as many as `coverage` asks for.
pub(crate) fn check<'a>(order: &[DiskId], here: &'a [Disk], coverage: Coverage) -> Result<Vec<&'a Disk>, Refusal> {
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
        if (disk.holds_data() || hidden) && !named.iter().any(|other| other.name == disk.name) {
            let serial = disk.serial.as_deref().unwrap_or("none");
            return Err(Refusal::Unnamed(format!("{} (serial {serial}, {} bytes)", disk.name, disk.size_bytes)));
        }
    }
    Ok(named)
}

/// Whether erasing `disk` stays within the order: a drive may erase all its namespaces when told to erase one.
pub(crate) fn check_reach(order: &[DiskId], here: &[Disk], disk: &Disk, nvme: &Nvme) -> Result<(), Refusal> {
    let beside = |other: &&Disk| other.bus == Bus::Nvme && other.name != disk.name && other.serial == disk.serial;
    let unordered = |other: &&Disk| other.id().is_none_or(|id| !order.contains(&id));
    match (here.iter().filter(beside).find(unordered), disk.id()) {
        (Some(other), Some(id)) if nvme.formats_all || nvme.erases_all => {
            Err(Refusal::Shared { id, other: other.name.clone() })
        }
        _ => Ok(()),
    }
}

/// What a drive says it can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Capabilities {
    Nvme(Nvme),
    Other(Bus),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nvme {
    /// OACS bit 1.
    pub(crate) format: bool,
    /// FNA bit 2.
    pub(crate) crypto_erase: bool,
    /// FNA bit 0: a format is for all namespaces at once.
    pub(crate) formats_all: bool,
    /// FNA bit 1: an erase is for all namespaces at once.
    pub(crate) erases_all: bool,
    /// FNA bit 3: a format can't be addressed to all namespaces.
    pub(crate) no_broadcast: bool,
    pub(crate) sanitize: Sanitize,
    /// Namespaces of this drive that have no block device here.
    pub(crate) unseen_namespaces: Vec<u32>,
}

impl Nvme {
    pub(crate) fn of(controller: &Controller, unseen_namespaces: Vec<u32>) -> Self {
        Self {
            format: controller.can_format(),
            crypto_erase: controller.can_crypto_erase(),
            formats_all: controller.formats_all_namespaces(),
            erases_all: controller.erases_all_namespaces(),
            no_broadcast: controller.refuses_broadcast_format(),
            sanitize: controller.sanitize(),
            unseen_namespaces,
        }
    }
}

impl Capabilities {
    /// For the certificate, so that a reader can see what the choice was made from.
    pub(crate) fn words(&self) -> Vec<String> {
        let nvme = match self {
            Self::Other(bus) => return vec![format!("{} drive", bus_name(*bus))],
            Self::Nvme(nvme) => nvme,
        };
        let claims = [
            (nvme.format, "Format NVM"),
            (nvme.crypto_erase, "Format NVM with cryptographic erase"),
            (nvme.formats_all, "formats all namespaces at once"),
            (nvme.erases_all, "erases all namespaces at once"),
            (nvme.sanitize.crypto, "Sanitize, cryptographic (not used by this agent)"),
            (nvme.sanitize.block, "Sanitize, block erase (not used by this agent)"),
            (nvme.sanitize.overwrite, "Sanitize, overwrite (not used by this agent)"),
        ];
        let mut words: Vec<String> =
            claims.into_iter().filter(|(claimed, _)| *claimed).map(|(_, words)| words.to_owned()).collect();
        if !nvme.unseen_namespaces.is_empty() {
            words.push(format!("namespaces without a block device: {}", list(&nvme.unseen_namespaces)));
        }
        words
    }
}

/// Methods in the order in which they're tried; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) methods: Vec<Choice>,
    pub(crate) scope: Scope,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) method: Method,
    pub(crate) because: &'static str,
}

/// To whom Format NVM is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    ThisNamespace,
    AllNamespaces,
}

impl Scope {
    pub(crate) fn nsid(self, own: u32) -> u32 {
        match self {
            Self::ThisNamespace => own,
            Self::AllNamespaces => ALL_NAMESPACES,
        }
    }
}

/// Why there is no way to erase a drive and prove it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unable {
    #[error(
        "this agent has no erase method for {} drives that it can prove; erase it with its maker's tool or take it out",
        bus_name(*.0)
    )]
    Bus(Bus),
    #[error("the drive doesn't offer Format NVM, and this agent has no other erase method that it can prove")]
    NoFormat,
    #[error(
        "the drive has namespaces that can't be reached here ({}), and what is on them would stay; \
         attach or delete them first",
        list(.0)
    )]
    UnseenNamespaces(Vec<u32>),
}

/// The methods that this drive claims, strongest first.
pub(crate) fn plan(capabilities: &Capabilities) -> Result<Plan, Unable> {
    let nvme = match capabilities {
        Capabilities::Other(bus) => return Err(Unable::Bus(*bus)),
        Capabilities::Nvme(nvme) => nvme,
    };
    if !nvme.format {
        return Err(Unable::NoFormat);
    }
    if !nvme.unseen_namespaces.is_empty() {
        return Err(Unable::UnseenNamespaces(nvme.unseen_namespaces.clone()));
    }
    let user_data = |because| Choice { method: Method::NvmeFormatUserData, because };
    let methods = if nvme.crypto_erase {
        vec![
            Choice {
                method: Method::NvmeFormatCrypto,
                because: "the drive claims cryptographic erase (FNA bit 2), the strongest and quickest it has",
            },
            user_data("what every drive with Format NVM has to offer, should the cryptographic erase fail"),
        ]
    } else {
        vec![user_data("the drive claims Format NVM (OACS bit 1) but no cryptographic erase (FNA bit 2)")]
    };
    // Drives that can only format everything want the command addressed to everything, unless they say that they don't.
    // FNA bit 1 alone widens the erase whatever the address, and the format of other namespaces isn't ours to set.
    let scope = if nvme.formats_all && !nvme.no_broadcast { Scope::AllNamespaces } else { Scope::ThisNamespace };
    Ok(Plan { methods, scope })
}

pub(crate) fn bus_name(bus: Bus) -> &'static str {
    match bus {
        Bus::Nvme => "NVMe",
        Bus::Ata => "SATA",
        Bus::Scsi => "SCSI",
        Bus::Virtio => "virtio",
        Bus::Usb => "USB",
        Bus::Other => "unknown",
    }
}

fn list(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use Coverage::{NamedDrives, WholeMachine};
    use Method::{NvmeFormatCrypto, NvmeFormatUserData};
    use Scope::{AllNamespaces, ThisNamespace};
    use drophammer_protocol::fixtures as plain;
    use proptest::prelude::*;

    use super::*;
    use crate::sys::nvme_id::fixtures;

    fn id(serial: &str, size_bytes: u64) -> DiskId {
        DiskId { serial: serial.into(), size_bytes }
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
            let got = check(order, &here, WholeMachine)
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
            assert_eq!(check(order, &two, NamedDrives).map(|disks| disks.len()), want, "{name}");
        }
    }

    #[test]
    fn an_erase_stays_within_its_order() {
        let here = [disk("nvme0n1", Some("A"), 10), disk("nvme0n2", Some("A"), 20), disk("nvme1n1", Some("B"), 30)];
        let one = [id("A", 10)];
        let both = [id("A", 10), id("A", 20)];
        let shared = || Err(Refusal::Shared { id: id("A", 10), other: "nvme0n2".into() });
        let formats = Nvme { formats_all: true, ..Nvme::default() };
        let erases = Nvme { erases_all: true, ..Nvme::default() };
        for (name, order, disk, nvme, want) in [
            ("its own namespace alone", &one[..], &here[0], &Nvme::default(), Ok(())),
            ("formats both, one ordered", &one, &here[0], &formats, shared()),
            ("erases both, one ordered", &one, &here[0], &erases, shared()),
            ("erases both, both ordered", &both, &here[0], &erases, Ok(())),
            ("has but one namespace", &[id("B", 30)], &here[2], &erases, Ok(())),
        ] {
            assert_eq!(check_reach(order, &here, disk, nvme), want, "{name}");
        }
    }

    #[test]
    fn methods_by_what_the_drive_claims() {
        let nvme = |oacs, fna| {
            let controller = Controller::parse(&fixtures::controller("SN-1", oacs, fna)).expect("a whole page");
            Capabilities::Nvme(Nvme::of(&controller, vec![]))
        };
        let format = 1 << 1;
        for (name, capabilities, want) in [
            ("QEMU 7.2", nvme(0x010a, 0), Ok((vec![NvmeFormatUserData], ThisNamespace))),
            ("crypto erase", nvme(format, 0b0100), Ok((vec![NvmeFormatCrypto, NvmeFormatUserData], ThisNamespace))),
            ("formats all", nvme(format, 0b0001), Ok((vec![NvmeFormatUserData], AllNamespaces))),
            ("erases all", nvme(format, 0b0010), Ok((vec![NvmeFormatUserData], ThisNamespace))),
            (
                "everything at once",
                nvme(format, 0b0111),
                Ok((vec![NvmeFormatCrypto, NvmeFormatUserData], AllNamespaces)),
            ),
            (
                "formats all, but not by that address",
                nvme(format, 0b1001),
                Ok((vec![NvmeFormatUserData], ThisNamespace)),
            ),
            ("crypto erase without format", nvme(0, 0b0100), Err(Unable::NoFormat)),
            ("nothing", nvme(0, 0), Err(Unable::NoFormat)),
            (
                "an unattached namespace",
                Capabilities::Nvme(Nvme { format: true, unseen_namespaces: vec![2], ..Nvme::default() }),
                Err(Unable::UnseenNamespaces(vec![2])),
            ),
            ("SATA", Capabilities::Other(Bus::Ata), Err(Unable::Bus(Bus::Ata))),
        ] {
            let got = plan(&capabilities)
                .map(|plan| (plan.methods.iter().map(|choice| choice.method).collect::<Vec<_>>(), plan.scope));
            assert_eq!(got, want, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_plan_holds_nothing_that_was_not_claimed(page in proptest::collection::vec(any::<u8>(), 4096)) {
            let Some(controller) = Controller::parse(&page) else { return Ok(()) };
            match plan(&Capabilities::Nvme(Nvme::of(&controller, vec![]))) {
                Ok(plan) => {
                    prop_assert!(page[256] & 0b10 != 0, "Format NVM isn't claimed");
                    prop_assert!(!plan.methods.is_empty());
                    for choice in plan.methods {
                        prop_assert!(choice.method != NvmeFormatCrypto || page[524] & 0b100 != 0);
                    }
                }
                Err(unable) => prop_assert_eq!((unable, page[256] & 0b10), (Unable::NoFormat, 0)),
            }
        }
    }
}
