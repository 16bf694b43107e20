use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::*;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 66);

/// One event a second.
fn timeline(events: &[(Phase, Step, &str, Option<Sight>)]) -> Vec<Recorded> {
    let recorded = |(n, (phase, step, message, sight)): (u64, &(Phase, Step, &str, Option<Sight>))| Recorded {
        position: n + 1,
        at_ms: n * 1000,
        boot: None,
        phase: *phase,
        step: *step,
        message: (*message).to_owned(),
        progress: None,
        sight: sight.clone(),
    };
    (0..).zip(events).map(recorded).collect()
}

fn saw(phase: Phase, sight: Sight) -> (Phase, Step, &'static str, Option<Sight>) {
    (phase, Step::Note, "", Some(sight))
}

fn offered(by: Asker) -> (Phase, Step, &'static str, Option<Sight>) {
    saw(Phase::Dhcp, Sight::Offered { by, address: ADDRESS })
}

fn led(by: Asker, to: Leads) -> (Phase, Step, &'static str, Option<Sight>) {
    saw(Phase::Dhcp, Sight::Led { by, to })
}

fn fetched(file: File, end: End) -> (Phase, Step, &'static str, Option<Sight>) {
    saw(if file == File::Loader { Phase::Tftp } else { Phase::Http }, Sight::Fetched { file, end })
}

fn told(own_disk: bool) -> (Phase, Step, &'static str, Option<Sight>) {
    saw(Phase::Http, Sight::Told { own_disk })
}

fn agent(phase: Phase, step: Step, message: &'static str) -> (Phase, Step, &'static str, Option<Sight>) {
    (phase, step, message, None)
}

/// As far as iPXE's script, by BIOS.
fn to_ipxe() -> Vec<(Phase, Step, &'static str, Option<Sight>)> {
    vec![
        offered(Asker::Bios),
        led(Asker::Bios, Leads::Tftp),
        fetched(File::Loader, End::Complete),
        offered(Asker::Ipxe),
        led(Asker::Ipxe, Leads::Script),
    ]
}

fn after<T: Clone>(before: &[T], more: &[T]) -> Vec<T> {
    [before, more].concat()
}

#[test]
fn every_way_to_fail_has_its_explanation() {
    use Asker::{Bios, Ipxe, Uefi, UefiHttp};
    let script = to_ipxe();
    let loader = &script[..3];
    let told_agent = after(&script, &[told(false)]);
    let up = after(
        &told_agent,
        &[
            fetched(File::Kernel, End::Complete),
            fetched(File::Initramfs, End::Complete),
            agent(Phase::Enrol, Step::Note, "an agent enrolled"),
        ],
    );
    let discovered = State::Discovered;
    let mut explained = BTreeSet::new();
    for (name, state, events, rule, part) in [
        ("nothing at all", discovered, vec![], "never-seen", "no boot server has seen it"),
        (
            "an operator's doing is no boot",
            State::Releasing,
            vec![agent(Phase::Lifecycle, Step::Note, "released")],
            "never-seen",
            "VLAN",
        ),
        ("the pool is full", discovered, vec![saw(Phase::Dhcp, Sight::NoAddress { by: Bios })], "no-address", "larger"),
        (
            "an architecture without a boot loader",
            discovered,
            vec![saw(Phase::Dhcp, Sight::Unbootable { by: Uefi })],
            "no-loader",
            "boot_dir",
        ),
        ("offers that nobody takes", discovered, vec![offered(Bios); 4], "offer-lost", "spanning tree"),
        (
            "another server's offer is taken",
            discovered,
            vec![offered(Bios), saw(Phase::Dhcp, Sight::TookOther { by: Bios, server: OTHER })],
            "another-server",
            "10.0.0.66",
        ),
        ("led, and silent", discovered, script[..2].to_vec(), "loader-unasked", "UDP 69"),
        (
            "the same by HTTP",
            discovered,
            vec![offered(UefiHttp), led(UefiHttp, Leads::Http)],
            "loader-unasked",
            "TCP 80",
        ),
        (
            "a boot file asked for and never acknowledged",
            discovered,
            after(&script[..2], &[fetched(File::Loader, End::Unanswered)]),
            "loader-unanswered",
            "firewall",
        ),
        (
            "a transfer that stops",
            discovered,
            after(&script[..2], &[fetched(File::Loader, End::Stopped)]),
            "loader-stopped",
            "error counters",
        ),
        (
            "a transfer that the machine gives up",
            discovered,
            after(&script[..2], &[fetched(File::Loader, End::GivenUp)]),
            "loader-stopped",
            "broke off",
        ),
        ("iPXE, then silence", discovered, loader.to_vec(), "loader-silent", "LACP"),
        (
            "iPXE on UEFI, then silence",
            discovered,
            vec![offered(Uefi), led(Uefi, Leads::Tftp), fetched(File::Loader, End::Complete)],
            "loader-silent",
            "Secure Boot",
        ),
        ("iPXE's offers are lost", discovered, script[..4].to_vec(), "ipxe-offer-lost", "portfast"),
        (
            "iPXE takes another server's",
            discovered,
            after(&script[..4], &[saw(Phase::Dhcp, Sight::TookOther { by: Ipxe, server: OTHER })]),
            "ipxe-offer-lost",
            "10.0.0.66",
        ),
        ("no script asked for", discovered, script.clone(), "script-unreached", "HTTP port"),
        (
            "the server can't decide",
            discovered,
            after(&script, &[saw(Phase::Http, Sight::Undecided)]),
            "no-decision",
            "full or failing disk",
        ),
        (
            "told, and nothing fetched",
            discovered,
            told_agent.clone(),
            "nothing-downloaded",
            "never asked for the kernel",
        ),
        (
            "only the kernel fetched",
            discovered,
            after(&told_agent, &[fetched(File::Kernel, End::Complete)]),
            "nothing-downloaded",
            "never asked for the initramfs",
        ),
        (
            "a download stops",
            discovered,
            after(&told_agent, &[fetched(File::Kernel, End::Complete), fetched(File::Initramfs, End::Stopped)]),
            "download-stopped",
            "MTU",
        ),
        (
            "everything fetched, and no agent",
            discovered,
            up[..up.len() - 1].to_vec(),
            "kernel-silent",
            "driver for its network card",
        ),
        (
            "an image that Secure Boot refuses",
            discovered,
            vec![offered(UefiHttp), led(UefiHttp, Leads::Http), fetched(File::Uki, End::Complete)],
            "image-refused",
            "--sign-key",
        ),
        (
            "an agent that fails",
            State::Enrolled,
            after(&up, &[agent(Phase::Inventory, Step::Failed, "no drives")]),
            "agent-failed",
            "failed at inventory",
        ),
        (
            "an agent that is silent",
            State::Erasing,
            after(&up, &[agent(Phase::Erase, Step::Started, "")]),
            "agent-silent",
            "silent after erase",
        ),
        (
            "a system that doesn't phone home",
            State::Booting,
            after(&up, &[agent(Phase::Kexec, Step::Started, "")]),
            "agent-silent",
            "drophammer-phone-home",
        ),
        ("a machine that waits", State::Waiting, up.clone(), "as-it-should-be", "waits to be allocated"),
        ("a machine that runs", State::Running, up.clone(), "as-it-should-be", "said that it's up"),
        (
            "a tenant's machine that was rebooted",
            State::Running,
            after(&up, &after(&script, &[told(true)])),
            "own-disk",
            "boot entry",
        ),
        ("a quarantined one", State::Quarantined, up.clone(), "quarantined", "three times in a row"),
        (
            "the best of several attempts",
            discovered,
            after(&script, &[offered(UefiHttp), offered(UefiHttp)]),
            "script-unreached",
            "HTTP port",
        ),
        (
            "an attempt that worked is history",
            State::Releasing,
            after(&up, &[offered(Bios), offered(Bios)]),
            "offer-lost",
            "spanning tree",
        ),
    ] {
        let events = timeline(&events);
        let reason = (state == State::Quarantined).then_some("three times in a row");
        let now_ms = events.last().map_or(0, |last| last.at_ms) + 60_000;
        let got = explain(&Case { state, reason, events: &events, now_ms });
        assert_eq!(got.rule, rule, "{name}: {got:?}");
        let text = format!("{} {}", got.verdict, got.advice.join(" "));
        assert!(text.contains(part), "{name}: {text}");
        explained.insert(got.rule);
    }
    let now_ms = 5_000;
    let events = timeline(&script);
    let got = explain(&Case { state: discovered, reason: None, events: &events, now_ms });
    assert_eq!(got.rule, "under-way", "heard of just now");
    explained.insert(got.rule);
    let all: BTreeSet<_> = RULES.iter().map(|(name, _)| (*name).to_owned()).chain(["never-seen".into()]).collect();
    assert_eq!(explained, all, "every rule has a case");
}
