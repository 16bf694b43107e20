//! What can befall a control API, as `control/README.md` has it: simulated machines come and are allocated meanwhile, and
//! in the end everything is where it should be.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common;
use drophammer_lab::simulate::Report;

const DRILLS: &str = include_str!("../control/README.md");

fn drill(arguments: &str) {
    let arguments = format!("lab simulate --machines 60 --arrival 6 --allocate 50 --json --drill {arguments}");
    let output = Command::new(common::DROPHAMMER).args(arguments.split(' ')).output().expect("started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments}: {said}");
    let report: Report = serde_json::from_slice(&output.stdout).expect("a report");
    let ended = |stage| report.ended.get(stage).copied().unwrap_or_default();
    assert_eq!(ended("running") + ended("waiting"), 60, "{arguments}: {:?}", report.ended);
    // Those whose answer was lost may have been allocated or not.
    assert!(ended("running") > 10, "{arguments}: {:?}", report.ended);
}

#[test]
fn the_server_is_killed() {
    drill("server-killed");
    drill("server-killed --etcd");
}

#[test]
fn the_leader_of_etcd_is_killed() {
    drill("leader-killed --etcd");
}

#[test]
fn a_member_of_etcd_is_cut_off() {
    drill("member-cut-off --etcd");
}

#[test]
fn etcd_loses_its_quorum() {
    drill("quorum-lost --etcd");
}

#[test]
fn the_clock_jumps() {
    drill("clock-jumps");
}

#[test]
fn each_drill_that_is_written_down_is_a_test() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = 0;
    for row in DRILLS.lines().filter(|line| line.starts_with("| ") && line.contains(".rs` `")) {
        let last = row.trim_end_matches(" |").rsplit(" | ").next().expect("a test");
        let mut quoted = last.split('`').skip(1).step_by(2);
        let (file, test) = quoted.next().zip(quoted.next()).expect("a file and its test");
        let text = fs::read_to_string(repository.join(file)).expect(file);
        assert!(
            text.contains(&format!("#[test]\nfn {test}()")) || text.contains(&format!("#[test]\n    fn {test}()")),
            "{row}"
        );
        found += 1;
    }
    assert_eq!(found, DRILLS.lines().filter(|line| line.starts_with("| ")).count() - 1, "each row but the first");
}
