//! Several servers on one store act as one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use drophammer_control::{Config, Control};
use drophammer_protocol::boot_server::{NetworkSummary, Registration};
use drophammer_protocol::machine::{State, TakeBack};
use drophammer_protocol::order::Task;

use crate::api::rig::*;

impl Rig {
    /// Another server with the same state, which has these files of this one's.
    pub(crate) fn beside(&self, files: &[&str]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let config = Config { state_dir: dir.path().join("state"), ..self.config.clone() };
        fs::create_dir(&config.state_dir)?;
        for file in files {
            fs::copy(self.config.state_dir.join(file), config.state_dir.join(file))?;
        }
        let mut rig = Self { dir, config, running: None, _etcd: self._etcd.clone() };
        rig.start_with(Control::open(rig.config.clone())?);
        Ok(rig)
    }
}

const KEYS: &[&str] = &["ca.key", "ca.pem", "certificate.key", "server.key", "admin.token"];

#[test]
fn an_agent_at_one_hears_what_is_ordered_at_the_other() {
    let a = Rig::new();
    let b = a.beside(KEYS).expect("has the keys");
    // Each step at the other server than the one before.
    let agent = a.enrolled(1);
    agent.inventory(&b).expect("takes the inventory");
    let order = agent.order(&a, 0).expect("answers").expect("an erase order");
    agent.outcome(&b, order.id, &agent.erased(&order)).expect("takes the proof");
    assert_eq!((a.state(1), b.state(1)), (State::Waiting, State::Waiting));
    thread::scope(|s| {
        let waiting = s.spawn(|| agent.order(&a, 60).expect("answers"));
        // It's most likely waiting by now; the test is as good if it isn't.
        thread::sleep(Duration::from_millis(300));
        b.allocate(1).expect("allocates");
        let order = waiting.join().expect("no panic").expect("before its time was over");
        assert!(matches!(order.task, Task::Install(_)));
    });
    assert_eq!(b.operator().machines().expect("lists").len(), 1);
    let seen = a.machine(1).last_seen_ms;
    await_that(|| b.machine(1).last_seen_ms >= seen);
}

#[test]
fn a_server_with_other_keys_is_no_part_of_it() {
    let a = Rig::new();
    for missing in ["ca.key", "certificate.key", "server.key"] {
        let some: Vec<_> = KEYS.iter().copied().filter(|file| *file != missing && *file != "ca.pem").collect();
        let refused = a.beside(&some).map(drop).expect_err("has other keys");
        assert!(refused.to_string().contains("copy ca.key, ca.pem, certificate.key and server.key"), "{refused:#}");
    }
}

#[test]
fn the_power_hook_runs_at_one_of_them_and_goes_on_at_another() {
    let mut a = Rig::with(|config, dir| {
        let hook = dir.join("hook");
        let script = format!("#!/bin/sh\ncd {}\necho \"$2\" >> cycled\nsleep 0.2\n", dir.display());
        fs::write(&hook, script).expect("writes");
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("makes it a program");
        config.power_hook = Some(hook);
    });
    let b = a.beside(KEYS).expect("has the keys");
    let cycled = |dir: &std::path::Path| fs::read_to_string(dir.join("cycled")).unwrap_or_default().lines().count();
    let done = |n: u8| b.machine(n).reason.is_some_and(|reason| reason.starts_with("power-cycled"));
    for n in 1..=4 {
        a.waiting(n);
        let at = if n % 2 == 0 { &a } else { &b };
        at.operator().release(&format!("SN-{n}"), TakeBack::default()).expect("releases");
    }
    await_that(|| (1..=4).all(done));
    assert_eq!(cycled(a.path()), 4, "each once");
    a.waiting(5);
    let dir = a.path().to_owned();
    a.stop();
    b.operator().release("SN-5", TakeBack::default()).expect("releases");
    await_that(|| done(5));
    assert_eq!(cycled(&dir), 5);
}

#[test]
fn no_address_is_given_out_by_two() {
    let a = Rig::new();
    let b = a.beside(KEYS).expect("has the keys");
    let registration = |share| Registration {
        name: "b".into(),
        partition: "p".into(),
        version: String::new(),
        networks: vec![NetworkSummary {
            name: "rack".into(),
            address: [10, 0, 0, 1].into(),
            subnet: "10.0.0.0/24".parse().expect("a subnet"),
            dhcp: "server".into(),
            relayed: false,
            pool: vec![([10, 0, 0, 100].into(), [10, 0, 0, 199].into())],
            share,
        }],
    };
    a.control().register_embedded(&registration(None)).expect("the first");
    let refused = b.control().register_embedded(&registration(None)).expect_err("the same pool");
    assert!(refused.to_string().contains("give each a share"), "{refused:#}");
    a.control().register_embedded(&registration(Some((1, 2)))).expect("its half");
    b.control().register_embedded(&registration(Some((2, 2)))).expect("the other half");
    let known = a.operator().boot_servers().expect("lists");
    assert!(known.len() == 2 && known.iter().all(|server| server.embedded), "{known:?}");
}
