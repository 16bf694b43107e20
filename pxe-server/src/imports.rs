//! Images that this server gets by itself, as `[[import]]` and image sources say: in the background, behind everything that
//! machines wait for.
//!
//! | file | what it is about |
//! |---|---|
//! | `imports` | when, and what is said of it |
//! | `order` | what is to be got, from where. Pure |
//! | `mirror` | what others published |
//!
//! What it compiles it signs with a key of its own, which nobody needs to hand out: the control API believes it for these
//! images alone. What fails is tried again, and is no reason not to serve.

mod mirror;
mod order;

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use drophammer_control::ImportBoard;
use drophammer_images::{Hash, PackOptions, Stage, import, inspect};
use drophammer_protocol::api::{ImportState, ImportStatus};
use drophammer_protocol::manifest::Checked;
use drophammer_protocol::sign::PublicKey;
use drophammer_protocol::words;
use ed25519_dalek::SigningKey;
use tracing::{error, info};

use self::order::{Order, Work};
use crate::config::{ImportOrder, Settings};
use crate::live::{Live, Loaded};

/// In the state directory.
const KEY: &str = "imports.key";
const DOWNLOADS: &str = "imports";
/// After one that failed.
const AGAIN_AFTER: Duration = Duration::from_secs(600);
/// How often stores are asked for newer images, and for what they revoked.
const NEWS_AFTER: Duration = Duration::from_secs(3600);
/// How soon a changed configuration or the server's end is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// nice(2): whatever else wants the processor has it first.
const NICENESS: i32 = 19;

/// Who signs imports, and which the configuration has, for the control API to believe. It's told even if there are none:
/// machines are given the key when they boot, and one that is declared later is for them as well.
pub(crate) fn trusted(settings: &Settings) -> Result<drophammer_control::Imports> {
    let key = PublicKey::of(&key(&settings.state_dir)?);
    let references = settings.imports.iter().map(|order| order.import.reference()).collect();
    Ok(drophammer_control::Imports { key, references })
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
        let loaded = live.borrow_and_update().clone();
        let again = round(board, &loaded, &|| live.has_changed().unwrap_or(true)).map(|pause| Instant::now() + pause);
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

/// Gets what isn't there, until something else is wanted. After which pause there is more to do.
fn round(board: &ImportBoard, loaded: &Loaded, is_over: &dyn Fn() -> bool) -> Option<Duration> {
    let settings = &loaded.settings;
    let orders = order::all(settings, &loaded.declared.images);
    let before = board.read();
    let mut statuses: Vec<ImportStatus> = orders.iter().map(|order| first_status(order, &before)).collect();
    board.put(statuses.clone());
    let mut pause = orders.iter().any(|order| matches!(order.work, Ok(Work::Mirror(_)))).then_some(NEWS_AFTER);
    for (n, order) in orders.iter().enumerate() {
        if is_over() {
            break;
        }
        let told = Mutex::new(&mut statuses);
        let tell = |state, words: String| {
            let mut statuses = told.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(status) = statuses.get_mut(n).filter(|status| (status.state, &status.words) != (state, &words))
            {
                (status.state, status.words) = (state, words);
                board.put(statuses.clone());
            }
        };
        let say = |stage| tell(ImportState::Working, said(stage));
        let done = match &order.work {
            Ok(Work::Compile(order)) => compile(order, settings, &say),
            Ok(Work::Mirror(store)) => mirror::bring(store, &order.image, settings, &say),
            Err(why) => Err(anyhow::Error::msg(why.clone())),
        };
        match done {
            Ok(words) => tell(ImportState::There, words),
            Err(why) => {
                pause = Some(AGAIN_AFTER);
                let again = words::count(usize::try_from(AGAIN_AFTER.as_secs() / 60).unwrap_or(0), "minute");
                error!(image = order.image, "image isn't here: {why:#}");
                tell(ImportState::Failed, format!("{why:#}; tried again in {again}"));
            }
        }
    }
    pause
}

/// What was there before is looked at again, and not waited for.
fn first_status(order: &Order, before: &[ImportStatus]) -> ImportStatus {
    let there = |status: &&ImportStatus| {
        status.state == ImportState::There && (&status.reference, &status.url) == (&order.image, &order.from)
    };
    before.iter().find(there).cloned().unwrap_or_else(|| ImportStatus {
        reference: order.image.clone(),
        url: order.from.clone(),
        state: ImportState::Waiting,
        words: "it is waiting for its turn".into(),
    })
}

/// Somebody's tarball. In words, what came of it.
fn compile(order: &ImportOrder, settings: &Settings, say: &(dyn Fn(Stage) + Sync)) -> Result<String> {
    const THERE: &str = "it is there";
    let (wanted, store) = (&order.import, &settings.images_dir);
    let key = key(&settings.state_dir)?;
    // A version never changes: one that is there needs nobody who could be asked about it.
    let there = inspect(&store.join(wanted.reference()), &[PublicKey::of(&key)]).is_ok_and(|manifest| {
        let is_it = manifest.source.as_ref().is_some_and(|source| {
            let checked = match &wanted.hash {
                Hash::Sha256(digest) => (source.checked, &source.digest) == (Checked::Sha256, digest),
                Hash::Beside | Hash::None => true,
            };
            source.url == wanted.from.to_string() && checked
        });
        is_it && manifest.boot.cmdline == order.cmdline
    });
    if there {
        return Ok(THERE.into());
    }
    let options = PackOptions::new(&wanted.name, &wanted.version, &order.cmdline);
    let started = Instant::now();
    let packed = import(wanted, store, &options, &key, &settings.state_dir.join(DOWNLOADS), say)?;
    if !packed.existed {
        let source = packed.manifest.source.as_ref().map(|source| source.words()).unwrap_or_default();
        let took = words::count(usize::try_from(started.elapsed().as_secs()).unwrap_or(usize::MAX), "second");
        info!(image = wanted.reference(), "imported in {took} from {source}");
    }
    Ok(THERE.into())
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
    use crate::declared::Declared;
    use crate::tftp;

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
        let loaded = Loaded { settings, files: tftp::Files::none(), declared: Declared::default() };
        let settings = &loaded.settings;
        assert_eq!(round(&board, &loaded, &|| false), Some(AGAIN_AFTER), "one failed");
        let statuses = board.read();
        let states: Vec<_> = statuses.iter().map(|status| (status.reference.as_str(), status.state)).collect();
        assert_eq!(states, [("gone/1", ImportState::Failed), ("good/1", ImportState::There)]);
        let words = &statuses[0].words;
        assert!(
            words.contains("nothing says what it should hash to") && words.ends_with("again in 10 minutes"),
            "{words}"
        );

        let trusted = trusted(settings).expect("a key");
        assert_eq!(trusted.references, ["gone/1", "good/1"]);
        drophammer_images::verify(&settings.images_dir.join("good/1"), &[trusted.key]).expect("signed by that key");
        assert_eq!(super::trusted(settings).expect("a key"), trusted, "the same after a restart");
        fs::remove_file(path("good.tar")).expect("removed");
        round(&board, &loaded, &|| false);
        assert_eq!(board.read()[1].state, ImportState::There, "what is there needs nothing any more");
    }
}
