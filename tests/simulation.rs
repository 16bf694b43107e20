//! The simulator, in small: thirty machines with everything that can befall them, against a real server.

use std::process::Command;

use crate::common;
use drophammer_lab::simulate::Report;

#[test]
fn thirty_machines_come_to_where_they_should_be() {
    let arguments =
        "lab simulate --machines 30 --arrival 1 --failures 20 --reboots 10 --allocate 40 --clients 5 --json";
    let output = Command::new(common::DROPHAMMER).args(arguments.split(' ')).output().expect("started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Report = serde_json::from_slice(&output.stdout).expect("a report");
    let ended: Vec<(&str, usize)> = report.ended.iter().map(|(stage, many)| (stage.as_str(), *many)).collect();
    assert_eq!(ended, [("quarantined", 2), ("running", 12), ("waiting", 16)]);
    assert_eq!(report.discrepancies, [""; 0]);
    let count = |name: &str| report.calls.iter().find(|call| call.call == name).map(|call| call.count);
    // Two vanish in the middle of their erase, and two lose their power when it's done; the third would have been quarantined.
    for (call, many) in [("enrol", 34), ("inventory", 34), ("erase outcome", 32), ("allocate", 12), ("phone home", 12)]
    {
        assert_eq!(count(call), Some(many), "{call}");
    }
    assert!(report.server.resident_mb > 0.0 && report.server.cpu_s > 0.0);
}

#[test]
fn a_simulation_that_makes_no_sense_says_so() {
    for (arguments, words) in [
        ("--machines 0", "--machines is 1 to 50000, and not 0"),
        ("--failures 101", "--failures is in percent"),
        ("--clients 0", "--clients is 1 to 1000"),
    ] {
        let arguments = format!("lab simulate {arguments}");
        let output = Command::new(common::DROPHAMMER).args(arguments.split(' ')).output().expect("started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{arguments}: {said}");
    }
}
