//! Which rack a machine is in, as its partition says. Pure.

use drophammer_protocol::glob::glob;
use drophammer_protocol::resource::{Partition, Rack};

use crate::records::Record;

/// The first rack that fits.
pub(crate) fn of<'a>(partition: &'a Partition, record: &Record) -> Option<&'a str> {
    partition.racks.iter().find(|rack| has(rack, record)).map(|rack| rack.name.as_str())
}

fn has(rack: &Rack, record: &Record) -> bool {
    let like = |patterns: &[String], text: &str| {
        let lower = text.to_ascii_lowercase();
        patterns.iter().any(|pattern| glob(pattern.to_ascii_lowercase().as_bytes(), lower.as_bytes()))
    };
    like(&rack.machines, &record.id.to_string())
        || record.serial.as_ref().is_some_and(|serial| like(&rack.machines, serial))
        || record.macs.iter().any(|mac| like(&rack.machines, &mac.to_string()))
        || record.switches.iter().any(|switch| like(&rack.switches, switch))
        || record.address.is_some_and(|address| rack.networks.iter().any(|network| network.contains(&address)))
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
