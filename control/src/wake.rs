//! Who waits for news of which machine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use drophammer_protocol::id::MachineId;
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(crate) struct Wakes(Mutex<HashMap<MachineId, Arc<Notify>>>);

impl Wakes {
    /// Wakes everybody who waits for this machine.
    pub(crate) fn wake(&self, machine: MachineId) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notify) = waiting.get(&machine) {
            notify.notify_waiters();
            if Arc::strong_count(notify) == 1 {
                waiting.remove(&machine);
            }
        }
    }

    pub(crate) fn wake_all(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().for_each(|notify| notify.notify_waiters());
    }

    /// Enable a `notified()` of it before looking at the state, so that nothing falls in between.
    pub(crate) fn of(&self, machine: MachineId) -> Arc<Notify> {
        Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(machine).or_default())
    }
}
