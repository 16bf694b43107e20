//! The power hook: the operator's own program that power-cycles a machine into network boot.
//!
//! `HOOK cycle MACHINE_ID MACHINE_NAME` runs beside everything else. That it's due is in the machine's record until it
//! has ended, so a server that dies meanwhile runs it again when it's back.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use drophammer_protocol::event::{Phase, Step};
use drophammer_protocol::id::MachineId;
use drophammer_protocol::machine::State;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::records::Record;
use crate::store::Store;
use crate::timeline::{self, Said};
use crate::unix_ms;
use crate::wake::Wakes;

/// Management controllers are slow; the ones that need longer than this have hung.
const PATIENCE: Duration = Duration::from_secs(120);
const AT_ONCE: usize = 16;
const STDERR_TAIL: usize = 2048;
/// A child of the hook may hold its stderr open after it has ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Power {
    jobs: mpsc::UnboundedSender<(MachineId, String)>,
    /// Dropped to end the runner.
    open: Option<oneshot::Sender<()>>,
    cycling: Arc<Mutex<HashSet<MachineId>>>,
    runner: Option<JoinHandle<()>>,
}

impl Power {
    pub(crate) fn start(hook: PathBuf, store: Store, wakes: Arc<Wakes>) -> Result<Self> {
        let (jobs, mut queue) = mpsc::unbounded_channel::<(MachineId, String)>();
        let cycling: Arc<Mutex<HashSet<MachineId>>> = Arc::default();
        let busy = Arc::clone(&cycling);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting the runtime that the power hook runs on")?;
        let serve = async move {
            let slots = Arc::new(Semaphore::new(AT_ONCE));
            while let Some((machine, name)) = queue.recv().await {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
                let (hook, store, wakes, busy) = (hook.clone(), store.clone(), Arc::clone(&wakes), Arc::clone(&busy));
                tokio::spawn(async move {
                    let _slot = slot;
                    let ended = cycle(&hook, machine, &name, PATIENCE).await;
                    busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&machine);
                    match keep(&store, machine, &ended) {
                        Ok(()) => wakes.wake(machine),
                        Err(e) => tracing::error!(%machine, "storing how the power hook ended ({ended:?}): {e:#}"),
                    }
                });
            }
        };
        let (open, closed) = oneshot::channel::<()>();
        let runner = thread::Builder::new()
            .name("power".into())
            // The runtime ends here, and with it hooks that still run: they are due again at the next start.
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! { () = serve => {}, _ = closed => {} }
                })
            })
            .context("starting the thread that the power hook runs on")?;
        Ok(Self { jobs, open: Some(open), cycling, runner: Some(runner) })
    }

    /// Power-cycles the machine unless that is under way already.
    pub(crate) fn cycle(&self, machine: MachineId, name: String) {
        let fresh = self.cycling.lock().unwrap_or_else(PoisonError::into_inner).insert(machine);
        if fresh && self.jobs.send((machine, name)).is_err() {
            tracing::error!(%machine, "the power hook can't run: its thread is gone; restart the server");
        }
    }
}

impl Drop for Power {
    fn drop(&mut self) {
        self.open = None;
        if let Some(runner) = self.runner.take()
            && runner.join().is_err()
        {
            tracing::error!("the thread that power hooks run on panicked");
        }
    }
}

async fn cycle(hook: &Path, machine: MachineId, name: &str, patience: Duration) -> Result<(), String> {
    let mut child = Command::new(hook)
        .args(["cycle", &machine.to_string(), name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| format!("{} could not be started: {e}", hook.display()))?;
    let said = tokio::spawn(tail(child.stderr.take()));
    let ended = match timeout(patience, child.wait()).await {
        Ok(ended) => ended.map_err(|e| format!("{} can't be waited for: {e}", hook.display()))?,
        // Dropping the child kills it.
        Err(_) => return Err(format!("{} didn't end within {} s", hook.display(), patience.as_secs())),
    };
    if ended.success() {
        return Ok(());
    }
    let said = timeout(LAST_WORDS, said).await.ok().and_then(Result::ok).unwrap_or_default();
    let said = if said.is_empty() { "and said nothing on stderr".into() } else { format!("and said: {said}") };
    Err(format!("{} ended with {ended} {said}", hook.display()))
}

/// The end of what a stream says, read to its end so that the writer never blocks.
async fn tail(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        kept.extend(buffer.iter().take(n));
        let excess = kept.len().saturating_sub(STDERR_TAIL);
        kept.drain(..excess);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

fn keep(store: &Store, machine: MachineId, ended: &Result<(), String>) -> Result<()> {
    let now = unix_ms();
    store.transact(|txn| {
        let Some(mut record) = Record::load(txn, machine)? else { return Ok(()) };
        record.cycle_due = false;
        let (step, message) = match ended {
            Ok(()) => (Step::Done, "power-cycled by the power hook".to_owned()),
            Err(why) => {
                (Step::Failed, format!("the power hook failed: {why}. Reboot the machine by hand into network boot"))
            }
        };
        if record.state == State::Releasing {
            record.reason = Some(match ended {
                Ok(()) => "power-cycled; waiting for its agent".into(),
                Err(_) => message.clone(),
            });
        }
        record.save(txn)?;
        timeline::append(txn, machine, [Said::new(now, record.boot, Phase::Lifecycle, step, message)])
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_hook_is_told_whom_and_its_failure_is_told_on() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let machine = MachineId(Uuid::from_u128(1));
        let hook = |name: &str, script: &str| {
            let path = dir.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("writes");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("makes it a program");
            path
        };
        let ok = format!("[ \"$*\" = \"cycle {machine} rack 7\" ]");
        for (name, path, want) in [
            ("its arguments", hook("ok", &ok), Ok(())),
            (
                "a failure with words",
                hook("fails", "echo no route to BMC >&2; exit 3"),
                Err("exit status: 3 and said: no route to BMC"),
            ),
            ("a silent failure", hook("silent", "exit 1"), Err("exit status: 1 and said nothing")),
            ("a flood", hook("flood", "yes | head -c 300000 >&2; echo end >&2; exit 1"), Err("end")),
            ("no such program", dir.path().join("none"), Err("could not be started")),
            ("one that hangs", hook("hangs", "exec sleep 60"), Err("didn't end within")),
        ] {
            let patience = if name == "one that hangs" { Duration::from_millis(50) } else { PATIENCE };
            let ended = runtime.block_on(cycle(&path, machine, "rack 7", patience));
            match want {
                Ok(()) => assert_eq!(ended, Ok(()), "{name}"),
                Err(part) => {
                    let why = ended.expect_err(name);
                    assert!(why.contains(part) && why.len() < 3000, "{name}: {why}");
                }
            }
        }
    }
}
