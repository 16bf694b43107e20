//! Promise 6: machines boot when the control API is down.

use crate::common::{self, Rig};
use drophammer_lab::qemu::Firmware;
use drophammer_lab::server::ServerSpec;
use drophammer_protocol::event::{Phase, Step};
use drophammer_protocol::machine::State;

#[test]
fn machines_boot_and_nothing_is_lost_while_the_control_api_is_gone() {
    let rig = Rig::of(2, ServerSpec { alone: true, ..common::server() });
    let tenant = rig.running(1, Firmware::Bios);
    let [server] = &rig.client.boot_servers().expect("boot servers")[..] else { panic!("one boot server") };
    assert!(server.up && !server.embedded, "{server:?}");
    assert_eq!((server.registration.name.as_str(), server.registration.networks.len()), ("lab", 1));

    let mirrored = rig.lab.dir().join("state/images/tiny");
    common::until(rig.limit(60), "the image is kept by the boot server", || mirrored.is_dir());

    let before = rig.position(&tenant);
    rig.lab.server.kill_control();
    // Decisions and reports are on its disk.
    rig.lab.server.restart().expect("the boot server starts without its control API");
    tenant.power_cycle().expect("off and on, network first");
    tenant.wait_console("tiny: up m1-host", rig.limit(60)).expect("the tenant's system");
    let stranger = rig.machine(2, Firmware::Uefi);
    stranger.power_on().expect("switched on");
    stranger.wait_console("doesn't answer", rig.limit(90)).expect("an agent that waits for the control API");

    rig.lab.server.restart_control().expect("the control API is back");
    rig.wait_state(&stranger, State::Waiting);
    let story: Vec<_> = rig.events(&tenant).into_iter().filter(|event| event.position > before).collect();
    let at = |part: &str| story.iter().position(|event| event.message.contains(part));
    let (offered, asked) = (at("offered"), at("asked what to boot: its own disk"));
    assert!(offered.is_some() && offered < asked, "{}", rig.story(&tenant));
    assert!(story.is_sorted_by_key(|event| event.at_ms), "{}", rig.story(&tenant));
    assert_eq!(rig.show(&tenant).map(|m| m.state), Some(State::Running), "{}", rig.story(&tenant));
    let seen: Vec<_> = rig.events(&stranger).into_iter().filter(|event| event.phase == Phase::Tftp).collect();
    assert!(seen.iter().any(|event| event.step == Step::Done), "{}", rig.story(&stranger));

    common::until(rig.limit(60), "everything is delivered", || {
        let servers = rig.client.boot_servers().expect("boot servers");
        servers[0].health.as_ref().is_some_and(|health| health.reports_waiting == 0 && health.problems.is_empty())
    });
}
