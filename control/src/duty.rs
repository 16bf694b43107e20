//! Work that one of several servers on the same store does: whoever holds the duty.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::store::{Hold, Store};

/// What each server on a store that can be shared holds for as long as it lives, with its own id behind.
pub(crate) const SERVING: &str = "serving/";

/// A server that is gone for as long is replaced.
pub(crate) const LIFE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Duty {
    store: Store,
    name: String,
    who: String,
    held: Mutex<Option<Box<dyn Hold>>>,
}

impl Duty {
    pub(crate) fn new(store: Store, name: &str, who: String) -> Self {
        Self { store, name: name.into(), who, held: Mutex::default() }
    }

    /// Whether it's this server's. To be asked before each piece of work; it may have to wait for the store.
    pub(crate) fn is_mine(&self) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_some_and(|hold| hold.is_held()) {
            return true;
        }
        *held = None;
        match self.store.hold(&self.name, &self.who, LIFE) {
            Ok(hold) => *held = hold,
            Err(error) => tracing::warn!(duty = self.name, "asking whose duty it is: {error:#}"),
        }
        held.is_some()
    }
}
