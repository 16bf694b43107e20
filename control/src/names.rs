//! What machines answer to. Pure.

use axum::http::StatusCode;
use drophammer_protocol::id::{Mac, MachineId};

use crate::denied::Denied;
use crate::records::Record;

/// The beginning of an id counts from this many characters on.
const MIN_ID_PREFIX: usize = 8;

/// The one machine that `reference` can mean: an id or its beginning, a name, a serial, a MAC or a hostname.
pub(crate) fn pick<'a>(records: impl IntoIterator<Item = &'a Record>, reference: &str) -> Result<MachineId, Denied> {
    let reference = reference.trim();
    let lower = reference.to_ascii_lowercase();
    let mac: Option<Mac> = reference.parse().ok();
    let is = |text: &str| text.eq_ignore_ascii_case(reference);
    let meant: Vec<&Record> = records
        .into_iter()
        .filter(|r| {
            let id = r.id.to_string();
            (lower.len() >= MIN_ID_PREFIX && id.starts_with(&lower))
                || is(&r.name)
                || r.serial.as_deref().is_some_and(is)
                || mac.is_some_and(|mac| r.macs.contains(&mac))
                || r.allocation.as_ref().is_some_and(|a| is(&a.system.hostname))
        })
        .collect();
    match meant.as_slice() {
        [one] => Ok(one.id),
        [] => Err(Denied::new(
            StatusCode::NOT_FOUND,
            format!("no machine is called {reference:?}; `drophammer machine list` shows what they are called"),
        )),
        // An id is never ambiguous, even if somebody called another machine by it.
        several => match several.iter().find(|r| r.id.to_string() == lower) {
            Some(exact) => Ok(exact.id),
            None => {
                let names: Vec<String> = several.iter().map(|r| format!("{} ({})", r.name, r.id)).collect();
                Err(Denied::conflict(format!("{reference:?} can mean {}; use the id", names.join(", "))))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use drophammer_protocol::machine::Allocation;
    use drophammer_protocol::system::System;
    use uuid::Uuid;

    use super::*;

    fn record(id: u128, mac: u8, serial: &str, hostname: Option<&str>) -> Record {
        let mut record = Record::discovered(MachineId(Uuid::from_u128(id)), Mac([2, 0, 0, 0, 0, mac]), 0);
        record.name = serial.into();
        record.serial = Some(serial.into());
        record.allocation = hostname.map(|h| Allocation {
            image: "i".into(),
            system: System { hostname: h.into(), ..System::default() },
            ..Allocation::default()
        });
        record
    }

    #[test]
    fn a_machine_answers_to_several_names_but_only_to_its_own() {
        let one = 0x1111_1111_0000_0000_0000_0000_0000_0001;
        let two = 0x1111_1111_0000_0000_0000_0000_0000_0002;
        let three = 0x3333_3333_0000_0000_0000_0000_0000_0003;
        let machines = [
            record(one, 1, "SN1", Some("web")),
            record(two, 2, "SN2", Some("db")),
            record(three, 3, "SN3", Some("web")),
        ];
        for (name, reference, want) in [
            ("an id", "11111111-0000-0000-0000-000000000001", Ok(one)),
            ("its beginning", "33333333", Ok(three)),
            ("in capitals", "11111111-0000-0000-0000-000000000002", Ok(two)),
            ("too short a beginning", "3333333", Err("no machine is called")),
            ("a beginning of two", "11111111-", Err("can mean SN1")),
            ("a serial", "SN2", Ok(two)),
            ("with spaces around it", " sn2 ", Ok(two)),
            ("a MAC", "02:00:00:00:00:03", Ok(three)),
            ("a MAC in another style", "02-00-00-00-00-03", Ok(three)),
            ("a hostname", "db", Ok(two)),
            ("a hostname of two", "web", Err("SN3")),
            ("nothing", "", Err("no machine is called")),
            ("something else", "other", Err("no machine is called")),
        ] {
            match (pick(&machines, reference), want) {
                (Ok(got), Ok(want)) => assert_eq!(got.0.as_u128(), want, "{name}"),
                (Err(got), Err(part)) => assert!(got.to_string().contains(part), "{name}: {got}"),
                (got, want) => panic!("{name}: got {got:?}, want {want:?}"),
            }
        }
    }
}
