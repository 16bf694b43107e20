//! Backups that a server makes by itself.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use drophammer_control::backup::{Key, verify};
use drophammer_control::client::Client;
use drophammer_protocol::api::BackupStatus;
use drophammer_pxe_server::{Settings, serve_reloading};
use tokio::sync::{mpsc, oneshot};

use common::{Server, configure, in_a_network};

const KEY: &str = "abababababababababababababababababababababababababababababababab";

#[test]
fn backups_are_made_checked_and_kept_in_number() {
    in_a_network("backups_are_made_checked_and_kept_in_number", || {}, inside());
}

async fn inside() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let dir = dir.path();
    let there = dir.join("backups");
    fs::create_dir(&there).expect("made");
    fs::write(dir.join("key"), KEY).expect("written");
    let old = ["drophammer-20250101T000000Z.backup", "drophammer-20250102T000000Z.backup", "drophammer.toml"];
    old.iter().for_each(|name| fs::write(there.join(name), "old").expect("written"));

    let server = start(&settings(dir, "backups")).await;
    let made = until(dir, |status| status.last.is_some()).await.last.expect("made");
    let names = names(&there);
    assert_eq!(names.len(), 3, "the oldest went: {names:?}");
    assert_eq!((names[0].as_str(), names[2].as_str()), (old[1], old[2]), "and nothing of anybody else's");
    assert_eq!(made.at, there.join(&names[1]).display().to_string());
    verify(&there.join(&names[1]), &Key::read(KEY).expect("a key")).expect("is whole");

    // A file in the place of the directory; then one that can be used.
    fs::write(dir.join("blocked"), "").expect("written");
    server.reload.send(settings(dir, "blocked")).await.expect("is taken");
    let failed = until(dir, |status| status.failed.is_some()).await;
    let why = failed.failed.expect("failed").why;
    assert!(why.contains("blocked") && failed.last == Some(made), "{why}");
    server.reload.send(settings(dir, "elsewhere")).await.expect("is taken");
    until(dir, |status| status.failed.is_none()).await;
    server.stop().await;
    assert!(!dir.join("state/backup.draft").exists());

    // It isn't time again yet.
    let server = start(&settings(dir, "backups")).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.stop().await;
    assert_eq!(self::names(&there), names);
}

fn settings(dir: &Path, to: &str) -> Settings {
    let (to, key) = (dir.join(to), dir.join("key"));
    let text = format!(
        "listen = [\"127.0.0.1:8443\"]\n[backup]\nto = {to:?}\nkey_file = {key:?}\nevery_hours = 1\nkeep = 2\n"
    );
    configure(dir, &[], &text)
}

async fn start(settings: &Settings) -> Server {
    let (stop, stopped) = oneshot::channel::<()>();
    let (reload, reloads) = mpsc::channel(1);
    let server = tokio::spawn(serve_reloading(settings.clone(), reloads, async { drop(stopped.await) }));
    Server { stop, server, reload }
}

/// What the server says of its backups, once it's this.
async fn until(dir: &Path, is_so: impl Fn(&BackupStatus) -> bool) -> BackupStatus {
    let socket = format!("unix:{}", dir.join("state/control.sock").display());
    for _ in 0..600 {
        let socket = socket.clone();
        let ask = move || Client::connect(&socket, None, None)?.backup_status();
        match tokio::task::spawn_blocking(ask).await.expect("no panic") {
            Ok(status) if is_so(&status) => return status,
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    panic!("it doesn't come to that");
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("lists").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().expect("text")).collect();
    names.sort();
    names
}
