//! Backups, and what a state of the past may do.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use drophammer_control::backup::{self, Contents, Destination, Key};
use drophammer_control::{Config, Control, EtcdAt, StateAt};
use drophammer_lab::etcd::Etcd;
use drophammer_protocol::api::{BACKUP, MACHINES};
use drophammer_protocol::machine::{State, TakeBack};
use drophammer_protocol::order::Task;
use drophammer_protocol::ticket::BootDecision;
use reqwest::Method as Verb;

use super::rig::*;

fn key() -> Key {
    Key::Passphrase("four words in a row".into())
}

/// Takes one from a running server.
fn taken(rig: &Rig, name: &str) -> PathBuf {
    let path = rig.path().join(name);
    let contents = backup::create(&path, &key(), |to| rig.operator().backup(to)).expect("makes a backup");
    assert_eq!(contents, backup::verify(&path, &key()).expect("is whole"));
    assert_eq!(contents.machines, u64::try_from(rig.operator().machines().expect("lists").len()).expect("few"));
    path
}

fn restore(path: &Path, config: &Config, replace: bool, nothing_happened_since: bool) -> anyhow::Result<Contents> {
    let destination =
        Destination { state_dir: &config.state_dir, state: &config.state, replace, nothing_happened_since };
    backup::restore(|| backup::read(path, &key()), &destination)
}

impl Rig {
    /// A server that doesn't run yet, without state: of the same engine, or of the other.
    fn elsewhere(&self, same_engine: bool) -> Self {
        static PLACES: AtomicUsize = AtomicUsize::new(0);
        let dir = tempfile::tempdir().expect("temporary directory");
        let (state, etcd) = if self.is_a_file() == same_engine {
            (StateAt::File, None)
        } else {
            let etcd = Etcd::shared().expect("etcd runs");
            let prefix = format!("/restored{}", PLACES.fetch_add(1, Ordering::Relaxed));
            (StateAt::Etcd(EtcdAt { endpoints: etcd.endpoints(), prefix, tls: None, login: None }), Some(etcd))
        };
        let config = Config { state_dir: dir.path().join("state"), state, ..self.config.clone() };
        Self { dir, config, running: None, _etcd: etcd }
    }

    fn is_not_erased(&self, n: u8) {
        let BootDecision::Agent(_) = self.net_boot(n) else { return };
        let agent = self.enrolled(n);
        agent.inventory(self).expect("takes the inventory");
        assert_eq!(agent.order(self, 0).expect("answers"), None, "machine {n}");
        assert_eq!(self.state(n), State::Quarantined, "machine {n}");
        let reason = self.machine(n).reason.unwrap_or_default();
        assert!(reason.contains("restored from a backup of"), "machine {n}: {reason}");
    }
}

#[test]
fn a_state_moves_to_the_other_engine() {
    for same_engine in [true, false] {
        let mut rig = Rig::new();
        let waiting = rig.waiting(1);
        let (_, install) = rig.booting(2);
        rig.operator().keep_psid("A", &"X".repeat(32).parse().expect("a PSID")).expect("keeps");
        let token = rig.token("admin");
        let machines = |rig: &Rig| {
            let mut machines = rig.operator().machines().expect("lists");
            // What is heard of them is only in memory.
            machines.iter_mut().for_each(|m| (m.liveliness, m.last_seen_ms) = Default::default());
            machines
        };
        let (before, path) = (machines(&rig), taken(&rig, "a.backup"));
        let certificates = rig.operator().certificates("SN-1").expect("lists");
        rig.stop();
        let mut there = rig.elsewhere(same_engine);
        restore(&path, &there.config, false, true).expect("restores");
        there.restart();
        assert_eq!(machines(&there), before);
        assert_eq!(there.operator().certificates("SN-1").expect("lists").certificates, certificates.certificates);
        assert_eq!(there.operator().psids().expect("lists"), ["A"]);
        assert_eq!(there.token("admin"), token);
        there.operator_raw(Verb::GET, MACHINES, Some(&token)).expect("knows the token");
        // Those that were in the middle of something go on.
        phone_home(&there, 2, &install.phone_home.token).expect("is expected");
        there.allocate(1).expect("allocates");
        let order = waiting.order(&there, 0).expect("answers").expect("an order");
        assert!(matches!(order.task, Task::Install(_)));
        assert_eq!(there.operator().backup_status().expect("answers").restored, None);
    }
}

/// Yesterday's backup, while machines moved on.
#[test]
fn nothing_is_erased_because_of_a_restore() {
    let mut rig = Rig::new();
    rig.waiting(1);
    let (_, installed) = rig.booting(2);
    phone_home(&rig, 2, &installed.phone_home.token).expect("is expected");
    let (erasing, order) = rig.erasing(4);
    let path = taken(&rig, "yesterday.backup");
    // One that waited gets a tenant, and so does one that wasn't there.
    rig.allocate(1).expect("allocates");
    let (_, new) = rig.booting(3);
    phone_home(&rig, 3, &new.phone_home.token).expect("is expected");
    rig.stop();
    restore(&path, &rig.config, true, false).expect("restores");
    rig.restart();
    assert!(rig.operator().backup_status().expect("answers").restored.is_some());
    // The agent of then is told to reboot, whatever it says that it did.
    let refused = erasing.outcome(&rig, order.id, &erasing.erased(&order)).expect_err("is of a time that is gone");
    assert_eq!(refused.status, 401, "{refused:?}");
    (1..=4).for_each(|n| rig.is_not_erased(n));
    assert_eq!(rig.net_boot(2), BootDecision::LocalDisk, "whoever had it, may have it");
    for refused in [
        rig.operator().release("SN-2", TakeBack::default()),
        rig.operator().reprovision("SN-2", TakeBack::default()),
        rig.operator().release("SN-1", TakeBack::default()),
        rig.operator().release(&machine(3).to_string(), TakeBack::default()),
    ] {
        let why = refused.expect_err("isn't sure").to_string();
        assert!(why.contains("--despite-quarantine"), "{why}");
    }
    assert!(rig.allocate(1).is_err(), "it may be somebody's");
    // Looked at, and erased again though it had been proven.
    rig.operator().release("SN-1", TakeBack { despite_quarantine: true }).expect("somebody looked");
    let (agent, order) = rig.erasing(1);
    assert!(erase_task(&order).fresh.is_empty(), "somebody may have written to it since");
    agent.outcome(&rig, order.id, &agent.erased(&order)).expect("takes the proof");
    assert_eq!(rig.state(1), State::Waiting);
    rig.operator().settle().expect("settles");
    rig.operator().settle().expect_err("is settled");
    assert_eq!(rig.operator().backup_status().expect("answers").restored, None);
    rig.erasing(5);
    rig.operator().release("SN-2", TakeBack::default()).expect("is as it's listed");
    let why = rig.operator().release("SN-4", TakeBack::default()).expect_err("stays in quarantine").to_string();
    assert!(why.contains("despite-quarantine"), "{why}");
}

#[test]
fn a_restore_that_was_cut_off_is_begun_again() {
    let mut rig = Rig::new();
    rig.waiting(1);
    let path = taken(&rig, "a.backup");
    rig.stop();
    let there = rig.elsewhere(true);
    let reads = AtomicUsize::new(0);
    let cut = || {
        let whole = backup::read(&path, &key())?;
        // Looked at as a whole, and then the disk that it's on fails.
        let limit = if reads.fetch_add(1, Ordering::Relaxed) < 2 { u64::MAX } else { 3000 };
        Ok(whole.take(limit))
    };
    let destination = Destination {
        state_dir: &there.config.state_dir,
        state: &there.config.state,
        replace: false,
        nothing_happened_since: true,
    };
    backup::restore(cut, &destination).expect_err("is cut off");
    let refused = format!("{:#}", Control::open(there.config.clone()).map(drop).expect_err("is half a state"));
    assert!(refused.contains("run `drophammer backup restore` again"), "{refused}");
    let refused = backup::create(&there.path().join("half.backup"), &key(), |to| {
        backup::take_offline(&there.config.state_dir, &there.config.state, to).map(drop)
    });
    refused.expect_err("nobody wants a backup of that");
    restore(&path, &there.config, false, true).expect("restores");
    Control::open(there.config.clone()).expect("opens");
}

#[test]
fn what_is_there_is_not_lost_by_a_slip() {
    let mut rig = Rig::new();
    rig.waiting(1);
    let path = taken(&rig, "a.backup");
    rig.waiting(2);
    let why = format!("{:#}", restore(&path, &rig.config, true, false).expect_err("a server works on it"));
    assert!(why.contains("another server uses it") || why.contains("working server"), "{why}");
    rig.stop();
    let why = format!("{:#}", restore(&path, &rig.config, false, false).expect_err("there is a state"));
    assert!(why.contains("--replace"), "{why}");
    let there = rig.elsewhere(true);
    fs::create_dir(&there.config.state_dir).expect("makes it");
    fs::write(there.config.state_dir.join("ca.key"), "another").expect("writes");
    let why = format!("{:#}", restore(&path, &there.config, false, false).expect_err("there is a key"));
    assert!(why.contains("ca.key") && why.contains("--replace"), "{why}");
    let damaged = rig.path().join("damaged.backup");
    let mut bytes = fs::read(&path).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).expect("writes");
    restore(&damaged, &rig.config, true, false).expect_err("is damaged");
    // Nothing was touched by any of it.
    rig.restart();
    assert_eq!((rig.state(1), rig.state(2)), (State::Waiting, State::Waiting));
}

#[test]
fn a_backup_is_for_admins() {
    let rig = Rig::new();
    rig.operator_raw(Verb::GET, BACKUP, None).expect_err("nobody");
    let refused = rig.operator_raw(Verb::GET, BACKUP, Some(&rig.token("viewer"))).expect_err("only looks");
    assert_eq!(refused.status, 403, "{refused:?}");
    let path = taken(&rig, "a.backup");
    let bytes = fs::read(&path).expect("reads");
    for secret in [rig.token("admin"), fs::read_to_string(rig.path().join("state/server.key")).expect("a key")] {
        let secret = secret.trim().as_bytes();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret), "it lies about encrypted");
    }
    let audit = rig.operator().audit().expect("lists");
    assert!(audit.iter().any(|entry| entry.action == "backup"), "{audit:?}");
}
