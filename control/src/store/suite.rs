//! What is promised of every engine, of each engine.

use std::collections::BTreeMap;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use anyhow::{Result, ensure};
use drophammer_lab::etcd::{Certificates, Etcd};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster that there is for as long as somebody holds it, with a prefix of one's own.
fn etcd() -> (Arc<Etcd>, etcd::At) {
    static TESTS: AtomicUsize = AtomicUsize::new(0);
    let etcd = Etcd::shared().expect("etcd runs");
    let prefix = format!("/test{}", TESTS.fetch_add(1, Ordering::Relaxed));
    let at = etcd::At { endpoints: etcd.endpoints(), prefix, tls: None, login: None };
    (etcd, at)
}

/// A store on each engine, and another one on the same state where that can be.
fn each(test: impl Fn(&str, Store, Option<Store>)) {
    let dir = TempDir::new().expect("temporary directory");
    test("redb", Store::open(&dir.path().join("state")).expect("opens"), None);
    let (_etcd, at) = etcd();
    test("etcd", Store::connect(&at).expect("connects"), Some(Store::connect(&at).expect("connects")));
}

fn commit(store: &Store, expect: &[(&str, Revision)], changes: &[(&str, Option<&str>)]) -> Committed {
    let bytes = |text: &str| text.as_bytes().to_vec();
    let expect = expect.iter().map(|(key, revision)| (bytes(key), *revision)).collect();
    let changes = changes.iter().map(|(key, value)| (bytes(key), value.map(bytes))).collect();
    store.engine.commit(expect, changes).expect("commits or conflicts")
}

fn revision(committed: Committed) -> Revision {
    match committed {
        Committed::Durable(revision) => revision,
        Committed::Conflict => panic!("a conflict"),
    }
}

fn value(store: &Store, key: &str) -> Option<(String, Revision)> {
    let entry = store.engine.get(key.as_bytes()).expect("reads")?;
    Some((String::from_utf8(entry.value).expect("text"), entry.revision))
}

#[test]
fn a_commit_happens_only_if_what_was_read_is_still_so() {
    each(|engine, store, _| {
        let first = revision(commit(&store, &[("k", 0)], &[("k", Some("one")), ("other", Some("x"))]));
        assert_eq!(commit(&store, &[("k", 0)], &[("k", Some("two"))]), Committed::Conflict, "{engine}");
        assert_eq!(value(&store, "k"), Some(("one".into(), first)), "{engine}");
        let second = revision(commit(&store, &[("k", first), ("none", 0)], &[("k", Some("two")), ("other", None)]));
        assert!(second > first, "{engine}");
        assert_eq!((value(&store, "k"), value(&store, "other")), (Some(("two".into(), second)), None), "{engine}");
        assert_eq!(commit(&store, &[("other", first)], &[("k", None)]), Committed::Conflict, "{engine}: deleted");
        revision(commit(&store, &[("other", 0)], &[("k", None)]));
        assert_eq!(value(&store, "k"), None, "{engine}");
    });
}

#[test]
fn concurrent_transactions_lose_no_update() {
    each(|engine, store, other| {
        let other = other.unwrap_or_else(|| store.clone());
        thread::scope(|s| {
            for store in [&store, &store, &other, &other] {
                s.spawn(|| {
                    for _ in 0..25 {
                        let added: Result<()> = store.transact(|t| {
                            let n: u64 = t.get("n")?.unwrap_or(0);
                            t.put("n", &(n + 1))
                        });
                        added.expect("counts");
                    }
                });
            }
        });
        assert_eq!(store.get::<u64>("n").expect("reads"), Some(100), "{engine}");
    });
}

#[test]
fn a_failed_transaction_writes_nothing() {
    each(|engine, store, _| {
        let failed: Result<()> = store.transact(|t| {
            t.put("a", &1)?;
            Err(anyhow!("changed my mind"))
        });
        assert_eq!(failed.expect_err("fails").to_string(), "changed my mind", "{engine}");
        assert_eq!(store.get::<u64>("a").expect("reads"), None, "{engine}");
    });
}

#[test]
fn lists_are_ordered_and_stay_in_their_prefix() {
    each(|engine, store, _| {
        let written: Result<()> =
            store.transact(|t| ["a/1", "a/2", "a/3", "b/1"].iter().try_for_each(|key| t.put(key, key)));
        written.expect("writes");
        for (name, prefix, after, want) in [
            ("all", "a/", None, vec!["a/1", "a/2", "a/3"]),
            ("after one", "a/", Some("a/1"), vec!["a/2", "a/3"]),
            ("after one that isn't there", "a/", Some("a/15"), vec!["a/2", "a/3"]),
            ("after the last", "a/", Some("a/3"), vec![]),
            ("before the prefix", "b/", Some("a/1"), vec!["b/1"]),
            ("none", "c/", None, vec![]),
            ("everything", "", None, vec!["a/1", "a/2", "a/3", "b/1"]),
        ] {
            assert_eq!(store.list::<String>(prefix, after).expect("lists"), want, "{engine}: {name}");
        }
        let left: Result<Vec<String>> = store.transact(|t| {
            t.delete("a/1");
            t.keys("a/", 1)
        });
        assert_eq!(left.expect("keys"), ["a/2"], "{engine}: what is deleted here is not seen");
    });
}

#[test]
fn much_and_large_comes_back_as_it_was() {
    each(|engine, store, _| {
        for hundred in 0..25 {
            let keys: Vec<String> = (0..100).map(|i| format!("many/{:05}", hundred * 100 + i)).collect();
            let written: Result<()> = store.transact(|t| keys.iter().try_for_each(|key| t.put(key, key)));
            written.expect("writes");
        }
        let many: Vec<String> = store.list("many/", None).expect("lists");
        assert_eq!((many.len(), many.is_sorted()), (2500, true), "{engine}");
        // More than etcd takes at once, and as repetitive as what is written about hundreds of drives.
        let large = "a drive that is like the one before; ".repeat(100_000);
        let written: Result<()> = store.transact(|t| t.put("large", &large));
        written.expect("writes");
        assert_eq!(store.get::<String>("large").expect("reads"), Some(large), "{engine}");
    });
}

/// What somebody who watches has seen.
struct Seen(mpsc::Receiver<News>);

impl Seen {
    fn of(store: &Store, after: Revision) -> Self {
        let (sender, receiver) = mpsc::channel();
        store.engine.watch(after, Box::new(move |news| sender.send(news).is_ok())).expect("watches");
        Self(receiver)
    }

    /// Everything up to a revision, each key once.
    fn until(&self, revision: Revision) -> BTreeMap<String, Option<String>> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        let mut all = BTreeMap::new();
        loop {
            match self.0.recv_timeout(PATIENCE).expect("news") {
                News::Changed { revision: now, changes } => {
                    all.extend(changes.into_iter().map(|(key, value)| (text(key), value.map(text))));
                    if now >= revision {
                        return all;
                    }
                }
                News::Lost => panic!("lost"),
            }
        }
    }
}

#[test]
fn whoever_watches_hears_of_everything_since_then() {
    let said = |all: &[(&str, Option<&str>)]| -> BTreeMap<String, Option<String>> {
        all.iter().map(|(key, value)| ((*key).into(), value.map(Into::into))).collect()
    };
    each(|engine, store, other| {
        let writer = other.unwrap_or_else(|| store.clone());
        let first = revision(commit(&writer, &[], &[("a", Some("1"))]));
        let second = revision(commit(&writer, &[], &[("b", Some("2"))]));
        let third = revision(commit(&writer, &[], &[("a", None), ("c", Some("3"))]));
        let late = Seen::of(&store, first);
        assert_eq!(late.until(third), said(&[("a", None), ("b", Some("2")), ("c", Some("3"))]), "{engine}");
        let now = Seen::of(&store, third);
        let (_, revision_now) = store.engine.range(b"", b"", 1).expect("reads");
        assert!(revision_now >= third && second < third, "{engine}");
        let fourth = revision(commit(&writer, &[], &[("d", Some("4"))]));
        for seen in [&late, &now] {
            assert_eq!(seen.until(fourth), said(&[("d", Some("4"))]), "{engine}");
        }
        drop(late);
        let fifth = revision(commit(&writer, &[], &[("e", Some("5"))]));
        assert_eq!(now.until(fifth), said(&[("e", Some("5"))]), "{engine}: another one went away");
    });
}

#[test]
fn who_asks_for_what_is_forgotten_hears_that_it_is() {
    each(|engine, store, other| {
        let first = revision(commit(&store, &[], &[("a", Some("1"))]));
        match other {
            None => {
                // Another file's future, as after a restore.
                let seen = Seen::of(&store, first + 7);
                assert_eq!(seen.0.recv_timeout(PATIENCE), Ok(News::Lost), "{engine}");
            }
            Some(_) => {
                let second = revision(commit(&store, &[], &[("a", Some("2"))]));
                let ctl =
                    ["--endpoints", &etcd().1.endpoints.join(","), "compaction", &second.to_string()].map(String::from);
                let done = std::process::Command::new("etcdctl").env("ETCDCTL_API", "3").args(ctl).output();
                assert!(done.expect("etcdctl").status.success());
                let seen = Seen::of(&store, first - 1);
                assert_eq!(seen.0.recv_timeout(PATIENCE), Ok(News::Lost), "{engine}");
            }
        }
    });
}

#[test]
fn all_is_of_one_moment() {
    const KEYS: usize = 2_100;
    each(|engine, store, _| {
        let key = |n: usize| format!("k{n:05}");
        for from in (0..KEYS).step_by(100) {
            let filled = store.transact(|txn| (from..from + 100).try_for_each(|n| txn.put(&key(n), &0)));
            filled.unwrap_or_else(|e: anyhow::Error| panic!("{engine}: {e:#}"));
        }
        let stop = AtomicBool::new(false);
        thread::scope(|s| {
            // The first and the last are always the same.
            s.spawn(|| {
                for n in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let both = store.transact(|txn| -> Result<()> {
                        txn.put(&key(0), &n)?;
                        txn.put(&key(KEYS - 1), &n)
                    });
                    both.expect("commits");
                }
            });
            for _ in 0..5 {
                let mut found = Vec::new();
                let read = store.all(&mut |entry| {
                    found.push(entry);
                    Ok(())
                });
                read.expect("reads");
                assert_eq!(found.len(), KEYS, "{engine}");
                assert!(found.is_sorted_by_key(|entry| entry.key.clone()), "{engine}");
                let ends = (found.first().map(|e| e.value.clone()), found.last().map(|e| e.value.clone()));
                assert_eq!(ends.0, ends.1, "{engine}");
            }
            stop.store(true, Ordering::Relaxed);
        });
        let stopped = store.all(&mut |_| anyhow::bail!("enough"));
        assert!(format!("{:#}", stopped.expect_err("is stopped")).contains("enough"), "{engine}");
    });
}

#[test]
fn what_is_held_is_held_by_one() {
    each(|engine, store, other| {
        let other = other.unwrap_or_else(|| store.clone());
        let life = Duration::from_secs(2);
        let hold = |store: &Store, name: &str| store.engine.hold(name, "me", life).expect("answers");
        let first = hold(&store, "duty").expect("free");
        assert!(first.is_held(), "{engine}");
        assert!(hold(&other, "duty").is_none() && hold(&store, "duty").is_none(), "{engine}");
        assert!(hold(&other, "another duty").is_some(), "{engine}");
        thread::sleep(2 * life);
        assert!(first.is_held() && hold(&other, "duty").is_none(), "{engine}: longer than its life");
        drop(first);
        let since = std::time::Instant::now();
        while hold(&other, "duty").is_none() {
            assert!(since.elapsed() < PATIENCE, "{engine}: never free again");
        }
    });
}

/// What both engines have to agree on: random commits, and what is there after each.
#[test]
fn both_engines_are_the_same_store() {
    let key = || prop::sample::select(vec!["a", "b", "b/1", "c"]);
    let change = || (key(), prop::option::of("[a-z]{0,3}"));
    // Whether it expects what is there, or what was there at first.
    let step = (prop::collection::btree_map(key(), any::<bool>(), 0..3), prop::collection::vec(change(), 1..4));
    let dir = TempDir::new().expect("temporary directory");
    let (_etcd, at) = etcd();
    let cluster = Store::connect(&at).expect("connects");
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let runs = AtomicUsize::new(0);
    runner
        .run(&prop::collection::vec(step, 1..12), |steps| {
            let run = runs.fetch_add(1, Ordering::Relaxed);
            let file = Store::open(&dir.path().join(run.to_string())).expect("opens");
            let named = |key: &str| format!("{run}/{key}");
            for (expected, changes) in steps {
                let outcomes = [&file, &cluster].map(|store| {
                    let expect: Vec<(String, Revision)> = expected
                        .iter()
                        .map(|(key, is_fresh)| {
                            let there = value(store, &named(key)).map_or(0, |(_, revision)| revision);
                            (named(key), if *is_fresh { there } else { 0 })
                        })
                        .collect();
                    let expect: Vec<_> = expect.iter().map(|(key, revision)| (key.as_str(), *revision)).collect();
                    let changes: BTreeMap<String, Option<String>> =
                        changes.iter().map(|(key, value)| (named(key), value.clone())).collect();
                    let changes: Vec<_> = changes.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
                    let is_in = commit(store, &expect, &changes) != Committed::Conflict;
                    let (entries, _) = store.engine.range(named("").as_bytes(), b"", usize::MAX).expect("reads");
                    (is_in, entries.into_iter().map(|entry| (entry.key, entry.value)).collect::<Vec<_>>())
                });
                prop_assert_eq!(&outcomes[0], &outcomes[1]);
            }
            Ok(())
        })
        .expect("the same");
}

/// Adds one, over and over, until `stop`; as often as it was told that it's done.
fn count_up(store: &Store, key: &str, stop: &AtomicBool) -> u64 {
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        let added: Result<()> = store.transact(|t| {
            let n: u64 = t.get(key)?.unwrap_or(0);
            t.put(key, &(n + 1))
        });
        added.expect("counts, however long it takes");
        done += 1;
    }
    done
}

#[test]
fn a_leader_that_dies_takes_nothing_along() {
    let mut etcd = Etcd::start(3).expect("etcd runs");
    let at = etcd::At { endpoints: etcd.endpoints(), prefix: "/leader".into(), tls: None, login: None };
    let stores = [Store::connect(&at).expect("connects"), Store::connect(&at).expect("connects")];
    let seen = Seen::of(&stores[1], 0);
    let held = stores[0].engine.hold("duty", "me", Duration::from_secs(30)).expect("answers").expect("free");
    let stop = AtomicBool::new(false);
    let done: u64 = thread::scope(|s| {
        let counting: Vec<_> = stores
            .iter()
            .flat_map(|store| [store, store])
            .map(|store| s.spawn(|| count_up(store, "n", &stop)))
            .collect();
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(500));
            let leader = etcd.leader().expect("a leader");
            etcd.kill(leader);
            thread::sleep(Duration::from_secs(2));
            etcd.run(leader).expect("runs again");
            etcd.wait_until_ready().expect("ready");
        }
        stop.store(true, Ordering::Relaxed);
        counting.into_iter().map(|thread| thread.join().expect("counted")).sum()
    });
    let (counted, revision) = value(&stores[0], "n").expect("there");
    assert_eq!(counted, done.to_string());
    assert!(held.is_held() && stores[1].engine.hold("duty", "you", Duration::from_secs(1)).expect("answers").is_none());
    assert_eq!(seen.until(revision).remove("n"), Some(Some(counted)), "the watch went on with another member");
}

/// Lies before an etcd member and cuts every connection in mid-word, again and again.
fn cutting(upstream: &str) -> String {
    let upstream = upstream.trim_start_matches("http://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        for (number, client) in (0_u64..).zip(listener.incoming()) {
            let client = client.expect("a connection");
            let server = TcpStream::connect(&upstream).expect("etcd is there");
            let both = [(&client, &server), (&server, &client)]
                .map(|(from, to)| (from.try_clone().expect("a socket"), to.try_clone().expect("a socket")));
            for (mut from, mut to) in both {
                thread::spawn(move || std::io::copy(&mut from, &mut to));
            }
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(60 + number * 37 % 90));
                // Each may have ended by itself.
                drop((client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both)));
            });
        }
    });
    address
}

#[test]
fn a_commit_whose_answer_is_lost_happens_once() {
    let (_etcd, at) = etcd();
    let bad = etcd::At { endpoints: at.endpoints.iter().map(|member| cutting(member)).collect(), ..at.clone() };
    let store = Store::connect(&bad).expect("connects");
    let stop = AtomicBool::new(false);
    let done = thread::scope(|s| {
        let counting: Vec<_> = (0..4)
            .map(|n| {
                s.spawn({
                    let (store, stop) = (&store, &stop);
                    move || count_up(store, &format!("n{}", n % 2), stop)
                })
            })
            .collect();
        thread::sleep(Duration::from_secs(6));
        stop.store(true, Ordering::Relaxed);
        counting.into_iter().map(|thread| thread.join().expect("counted")).sum::<u64>()
    });
    let store = Store::connect(&at).expect("connects");
    let counted = ["n0", "n1"].map(|key| store.get::<u64>(key).expect("reads").unwrap_or(0));
    assert_eq!(counted.iter().sum::<u64>(), done);
    assert!(done > 20, "{done} in all: nothing could be lost");
}

#[test]
fn etcd_may_want_to_know_who_comes() {
    let dir = TempDir::new().expect("temporary directory");
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).expect("signs").pem();
    let key = KeyPair::generate().expect("a key");
    let own = CertificateParams::new(vec!["127.0.0.1".into()]).expect("parameters");
    let own_pem = own.signed_by(&key, &Issuer::new(ca, ca_key)).expect("signs").pem();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("writes");
        path
    };
    let secure = Etcd::start_secure(&Certificates {
        ca: write("ca", &ca_pem),
        certificate: write("certificate", &own_pem),
        key: write("key", &key.serialize_pem()),
    })
    .expect("etcd runs");
    let endpoints = secure.endpoints();
    for args in [
        "user add root:secret",
        "user grant-role root root",
        "role add ours",
        "role grant-permission ours --prefix=true readwrite /ours/",
        "user add us:word",
        "user grant-role us ours",
        "auth enable",
    ] {
        let args: Vec<&str> = ["--endpoints", &endpoints[0]].into_iter().chain(args.split(' ')).collect();
        secure.ctl(&args).expect("sets up");
    }
    let at = |prefix: &str, identity: bool, password: &str| etcd::At {
        endpoints: endpoints.clone(),
        prefix: prefix.into(),
        tls: Some(etcd::Tls { ca: ca_pem.clone(), identity: identity.then(|| (own_pem.clone(), key.serialize_pem())) }),
        login: Some(etcd::Login { user: "us".into(), password: password.into() }),
    };
    for (name, at, want) in [
        ("as it should be", at("/ours", true, "word"), None),
        ("another password", at("/ours", true, "wrong"), Some("authentication failed")),
        ("another's keys", at("/theirs", true, "word"), Some("permission denied")),
    ] {
        let done = Store::connect(&at).and_then(|store| {
            store.transact(|t| t.put("a", &1))?;
            ensure!(store.get::<u32>("a")? == Some(1));
            Ok(())
        });
        match (done, want) {
            (Ok(()), None) => {}
            (Err(error), Some(want)) => assert!(format!("{error:#}").contains(want), "{name}: {error:#}"),
            (done, _) => panic!("{name}: {done:?}"),
        }
    }
}
