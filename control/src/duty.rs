//! Work that one of several servers on the same store does: whoever holds the duty.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::store::{Hold, Store};

/// A server that is gone for as long is replaced.
const LIFE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Duty {
    store: Store,
    name: &'static str,
    who: String,
    held: Mutex<Option<Box<dyn Hold>>>,
}

impl Duty {
    pub(crate) fn new(store: Store, name: &'static str, who: String) -> Self {
        Self { store, name, who, held: Mutex::default() }
    }

    /// Whether it's this server's. To be asked before each piece of work; it may have to wait for the store.
    pub(crate) fn is_mine(&self) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_some_and(|hold| hold.is_held()) {
            return true;
        }
        *held = None;
        match self.store.hold(self.name, &self.who, LIFE) {
            Ok(hold) => *held = hold,
            Err(error) => tracing::warn!(duty = self.name, "asking whose duty it is: {error:#}"),
        }
        held.is_some()
    }
}
