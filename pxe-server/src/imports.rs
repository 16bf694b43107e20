//! Others' images that this server compiles itself, as `[[import]]` says: each once, in the background, behind everything
//! that machines wait for.
//!
//! It signs them with a key of its own, which nobody needs to hand out: the control API believes it for these images alone.
//! What fails is tried again, and is no reason not to serve.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use drophammer_control::ImportBoard;
use drophammer_images::{PackOptions, Stage, import, inspect};
use drophammer_protocol::api::{ImportState, ImportStatus};
use drophammer_protocol::sign::PublicKey;
use drophammer_protocol::words;
use ed25519_dalek::SigningKey;
use tracing::{error, info};

use crate::config::{ImportOrder, Settings};
use crate::live::Live;

/// In the state directory.
const KEY: &str = "imports.key";
const DOWNLOADS: &str = "imports";
/// After one that failed.
const AGAIN_AFTER: Duration = Duration::from_secs(600);
/// How soon a changed configuration or the server's end is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// nice(2): whatever else wants the processor has it first.
const NICENESS: i32 = 19;

/// Who signs imports, and which they are, for the control API to believe.
pub(crate) fn trusted(settings: &Settings) -> Result<Option<drophammer_control::Imports>> {
    if settings.imports.is_empty() {
        return Ok(None);
    }
    let key = PublicKey::of(&key(&settings.state_dir)?);
    let references = settings.imports.iter().map(|order| order.import.reference()).collect();
    Ok(Some(drophammer_control::Imports { key, references }))
}

/// Made when it's first needed.
fn key(state_dir: &Path) -> Result<SigningKey> {
    let path = state_dir.join(KEY);
    let make = || {
        if !path.exists() {
            drophammer_images::keygen(&path)?;
        }
        drophammer_images::load_key(&path)
    };
    make().context("getting the key that signs imported images")
}

/// Works on a thread of its own until the server ends. One that is cut off in the middle publishes nothing.
pub(crate) fn start(board: ImportBoard, live: Live) -> Result<()> {
    thread::Builder::new()
        .name("imports".into())
        .spawn(move || run(&board, live))
        .context("starting the thread that imports images")?;
    Ok(())
}

fn run(board: &ImportBoard, mut live: Live) {
    // Its helpers, being made by this thread, are as patient.
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        error!("images are imported at the priority of everything else: {error}");
    }
    loop {
        let settings = live.borrow_and_update().settings.clone();
        let again = round(board, &settings).then(|| Instant::now() + AGAIN_AFTER);
        loop {
            thread::sleep(LOOK_EVERY);
            match live.has_changed() {
                Ok(false) if again.is_none_or(|at| Instant::now() < at) => {}
                Ok(_) => break,
                Err(_) => return,
            }
        }
    }
}

/// Imports what isn't there. Whether anything failed.
fn round(board: &ImportBoard, settings: &Settings) -> bool {
    let mut statuses: Vec<ImportStatus> = settings.imports.iter().map(waiting).collect();
    board.put(statuses.clone());
    let mut failed = false;
    for (n, order) in settings.imports.iter().enumerate() {
        let told = Mutex::new(&mut statuses);
        let tell = |state, words: String| {
            let mut statuses = told.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(status) = statuses.get_mut(n).filter(|status| (status.state, &status.words) != (state, &words))
            {
                (status.state, status.words) = (state, words);
                board.put(statuses.clone());
            }
        };
        match one(order, settings, &|stage| tell(ImportState::Working, said(stage))) {
            Ok(()) => tell(ImportState::There, "it is there".into()),
            Err(why) => {
                failed = true;
                let again = words::count(usize::try_from(AGAIN_AFTER.as_secs() / 60).unwrap_or(0), "minute");
                error!(image = order.import.reference(), "image wasn't imported: {why:#}");
                tell(ImportState::Failed, format!("{why:#}; tried again in {again}"));
            }
        }
    }
    failed
}

fn waiting(order: &ImportOrder) -> ImportStatus {
    ImportStatus {
        reference: order.import.reference(),
        url: order.import.from.to_string(),
        state: ImportState::Waiting,
        words: "it is waiting for its turn".into(),
    }
}

fn one(order: &ImportOrder, settings: &Settings, say: &(dyn Fn(Stage) + Sync)) -> Result<()> {
    let (wanted, store) = (&order.import, &settings.images_dir);
    let key = key(&settings.state_dir)?;
    // A version never changes: one that is there needs nobody who could be asked about it.
    let there = inspect(&store.join(wanted.reference()), &[PublicKey::of(&key)]).is_ok_and(|manifest| {
        let from = manifest.source.as_ref().map(|source| source.url.clone());
        from == Some(wanted.from.to_string()) && manifest.boot.cmdline == order.cmdline
    });
    if there {
        return Ok(());
    }
    let options = PackOptions::new(&wanted.name, &wanted.version, &order.cmdline);
    let started = Instant::now();
    let packed = import(wanted, store, &options, &key, &settings.state_dir.join(DOWNLOADS), say)?;
    if !packed.existed {
        let source = packed.manifest.source.as_ref().map(|source| source.words()).unwrap_or_default();
        let took = words::count(usize::try_from(started.elapsed().as_secs()).unwrap_or(usize::MAX), "second");
        info!(image = wanted.reference(), "imported in {took} from {source}");
    }
    Ok(())
}

fn said(stage: Stage) -> String {
    match stage {
        // In whole steps: whoever is told of each chunk hears nothing else.
        Stage::Fetching { bytes, of: Some(of) } if of > 0 => {
            format!("being fetched: {} % of {}", u128::from(bytes) * 100 / u128::from(of), words::bytes(of))
        }
        Stage::Fetching { bytes, .. } => format!("being fetched: {}", words::bytes(bytes)),
        Stage::Checking => "being checked".into(),
        Stage::Packing { bytes } => format!("being compiled: {}", words::bytes(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Config;

    /// A system that UEFI could start.
    fn root() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for name in ["boot/vmlinuz-6.1", "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(4);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1_700_000_000);
            tar.append_data(&mut header, name, &b"test"[..]).expect("written");
        }
        tar.into_inner().expect("a tar")
    }

    #[test]
    fn what_fails_is_said_and_the_rest_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        fs::write(path("good.tar"), root()).expect("written");
        let hash = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(root()));
        let text = format!(
            "state_dir = {:?}\nlisten = [\"127.0.0.1:1\"]\n\
             [[import]]\nurl = {:?}\nname = \"gone\"\nversion = \"1\"\n\
             [[import]]\nurl = {:?}\nname = \"good\"\nversion = \"1\"\nsha256 = \"{hash}\"\n",
            path("state"),
            path("gone.tar"),
            path("good.tar")
        );
        let settings = toml::from_str::<Config>(&text).expect("TOML").check().expect("makes sense");
        fs::create_dir_all(&settings.state_dir).expect("made");
        fs::create_dir_all(&settings.images_dir).expect("made");
        let board = ImportBoard::default();
        assert!(round(&board, &settings), "one failed");
        let statuses = board.read();
        let states: Vec<_> = statuses.iter().map(|status| (status.reference.as_str(), status.state)).collect();
        assert_eq!(states, [("gone/1", ImportState::Failed), ("good/1", ImportState::There)]);
        let words = &statuses[0].words;
        assert!(
            words.contains("nothing says what it should hash to") && words.ends_with("again in 10 minutes"),
            "{words}"
        );

        let trusted = trusted(&settings).expect("a key").expect("imports");
        assert_eq!(trusted.references, ["gone/1", "good/1"]);
        drophammer_images::verify(&settings.images_dir.join("good/1"), &[trusted.key]).expect("signed by that key");
        assert_eq!(super::trusted(&settings).expect("a key"), Some(trusted), "the same after a restart");
        fs::remove_file(path("good.tar")).expect("removed");
        round(&board, &settings);
        assert_eq!(board.read()[1].state, ImportState::There, "what is there needs nothing any more");
    }
}
