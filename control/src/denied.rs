//! Why a request isn't answered as asked.

use axum::http::StatusCode;
use drophammer_protocol::faults::Fault;
use drophammer_protocol::id::MachineId;

use crate::lifecycle;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Denied {
    /// By the rules. A sentence for whoever asked; nothing was changed.
    #[error("{detail}")]
    Refused {
        status: StatusCode,
        detail: String,
        /// What is wrong with what was sent, each with its place.
        faults: Vec<Fault>,
    },
    /// Something of the server's own doesn't work.
    #[error(transparent)]
    Broken(#[from] anyhow::Error),
}

impl Denied {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self::Refused { status, detail: detail.into(), faults: vec![] }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND, .. })
    }

    pub(crate) fn no_machine(machine: MachineId) -> Self {
        Self::not_found(format!("there is no machine {machine}"))
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// Whoever this is, nothing says so.
    pub(crate) fn stranger(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, detail)
    }

    pub(crate) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    /// For an agent whose boot's time is over.
    pub(crate) fn gone(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, detail)
    }
}

impl From<lifecycle::Refused> for Denied {
    fn from(refused: lifecycle::Refused) -> Self {
        Self::conflict(refused.to_string())
    }
}
