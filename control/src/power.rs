//! The power hook: the operator's own program that power-cycles a machine into network boot.
//!
//! `HOOK cycle MACHINE_ID MACHINE_NAME` runs beside everything else. That it's due is in the machine's record until it
//! has ended, so a server that dies meanwhile runs it again when it's back.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use drophammer_protocol::event::{Phase, Step};
use drophammer_protocol::id::MachineId;
use drophammer_protocol::machine::State;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::duty::Duty;
use crate::pool::Pool;
use crate::records::Record;
use crate::store::Store;
use crate::timeline::{self, Said};
use crate::unix_ms;

/// Management controllers are slow; the ones that need longer than this have hung.
const PATIENCE: Duration = Duration::from_secs(120);
const AT_ONCE: usize = 16;
const BETWEEN_LOOKS: Duration = Duration::from_secs(3);
const STDERR_TAIL: usize = 2048;
/// A child of the hook may hold its stderr open after it has ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Power {
    /// Dropped to end the runner.
    open: Option<oneshot::Sender<()>>,
    runner: Option<JoinHandle<()>>,
}

impl Power {
    /// Runs the hook for all machines for which it's due, as long as that is this server's duty.
    pub(crate) fn start(hook: PathBuf, store: Store, pool: Arc<Pool>, duty: Duty) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting the runtime that the power hook runs on")?;
        let (open, closed) = oneshot::channel::<()>();
        let runner = thread::Builder::new()
            .name("power".into())
            // The runtime ends here, and with it hooks that still run: they are due again at the next start.
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! { () = serve(hook, store, &pool, duty) => {}, _ = closed => {} }
                })
            })
            .context("starting the thread that the power hook runs on")?;
        Ok(Self { open: Some(open), runner: Some(runner) })
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

async fn serve(hook: PathBuf, store: Store, pool: &Pool, duty: Duty) {
    let duty = Arc::new(duty);
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let cycling: Arc<Mutex<HashSet<MachineId>>> = Arc::default();
    loop {
        let mut news = pin!(pool.due().notified());
        news.as_mut().enable();
        let due: Vec<(MachineId, String)> = {
            let tables = pool.read();
            let named = |id| tables.machines.get(id).map(|known| (*id, known.record.name.clone()));
            tables.due.iter().filter_map(named).collect()
        };
        let asked = Arc::clone(&duty);
        let is_mine = !due.is_empty() && tokio::task::spawn_blocking(move || asked.is_mine()).await.unwrap_or(false);
        for (machine, name) in due.into_iter().filter(|_| is_mine) {
            if !lock(&cycling).insert(machine) {
                continue;
            }
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let (hook, store, cycling) = (hook.clone(), store.clone(), Arc::clone(&cycling));
            tokio::spawn(async move {
                let _slot = slot;
                let ended = cycle(&hook, machine, &name, PATIENCE).await;
                let kept = tokio::task::spawn_blocking(move || keep(&store, machine, &ended)).await;
                match kept {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::error!(%machine, "storing how the power hook ended: {error:#}"),
                    Err(error) => tracing::error!(%machine, "storing how the power hook ended: {error}"),
                }
                lock(&cycling).remove(&machine);
            });
        }
        // It may become this server's duty without any other news.
        let _ = timeout(BETWEEN_LOOKS, news).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
