//! Something that is done every so often, until whoever began it drops it.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

#[derive(Debug)]
pub(crate) struct Every {
    name: &'static str,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Every {
    /// For the first time when `pause` is over.
    pub(crate) fn start(name: &'static str, pause: Duration, mut work: impl FnMut() + Send + 'static) -> Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let run = move || {
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                work();
            }
        };
        let thread = thread::Builder::new().name(name.into()).spawn(run);
        let thread = thread.with_context(|| format!("starting the thread {name}"))?;
        Ok(Self { name, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Every {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread {} panicked", self.name);
        }
    }
}
