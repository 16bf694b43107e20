//! Which rack a machine is in, as its partition says. Pure.

use std::net::IpAddr;

use drophammer_protocol::glob::glob;
use drophammer_protocol::resource::{Partition, Rack};

use crate::records::Record;

/// The first rack that fits.
pub(crate) fn of<'a>(partition: &'a Partition, record: &Record) -> Option<&'a str> {
    let known = KnownBy::of(record);
    partition.racks.iter().find(|rack| known.is_in(rack)).map(|rack| rack.name.as_str())
}

/// What patterns are held against, in small letters: once for all racks, of which a partition may have hundreds.
struct KnownBy {
    names: Vec<String>,
    switches: Vec<String>,
    address: Option<IpAddr>,
}

impl KnownBy {
    fn of(record: &Record) -> Self {
        let names = [record.id.to_string()].into_iter().chain(record.serial.clone());
        let names = names.chain(record.macs.iter().map(ToString::to_string));
        Self {
            names: names.map(|name| name.to_ascii_lowercase()).collect(),
            switches: record.switches.iter().map(|switch| switch.to_ascii_lowercase()).collect(),
            address: record.address,
        }
    }

    fn is_in(&self, rack: &Rack) -> bool {
        let like = |patterns: &[String], texts: &[String]| {
            patterns.iter().any(|pattern| {
                let pattern = pattern.to_ascii_lowercase();
                texts.iter().any(|text| glob(pattern.as_bytes(), text.as_bytes()))
            })
        };
        like(&rack.machines, &self.names)
            || like(&rack.switches, &self.switches)
            || self.address.is_some_and(|address| rack.networks.iter().any(|network| network.contains(&address)))
    }
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::id::{Mac, MachineId};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn by_what_a_rack_is_known() {
        let mut record = Record::discovered(MachineId(Uuid::from_u128(7)), Mac([2, 0, 0, 0, 0, 0xab]), 0);
        record.serial = Some("CZ1234".into());
        record.switches = vec!["leaf1.row2".into()];
        record.address = Some([10, 0, 3, 17].into());
        let rack = |machines: &[&str], switches: &[&str], networks: &[&str]| {
            let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
            let networks = networks.iter().map(|network| network.parse().expect("a network")).collect();
            Rack { name: "r".into(), machines: texts(machines), switches: texts(switches), networks }
        };
        for (name, rack, want) in [
            ("its serial", rack(&["cz12*"], &[], &[]), true),
            ("its MAC", rack(&["02:00:00:00:00:AB"], &[], &[]), true),
            ("its id", rack(&["00000000-0000-0000-0000-000000000007"], &[], &[]), true),
            ("its switch", rack(&[], &["leaf1.*"], &[]), true),
            ("its network", rack(&[], &[], &["10.0.3.0/24"]), true),
            ("somebody else", rack(&["CZ9*"], &["leaf2.*"], &["10.0.4.0/24"]), false),
        ] {
            let partition = Partition { name: "p".into(), racks: vec![rack], ..Partition::default() };
            assert_eq!(of(&partition, &record).is_some(), want, "{name}");
        }
    }
}
