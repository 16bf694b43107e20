//! How often one caller may ask, so that one that runs wild leaves room for the others.

use std::num::NonZeroU32;

use axum::http::StatusCode;
use governor::{DefaultKeyedRateLimiter, Quota};

use crate::audit::Who;
use crate::denied::Denied;

#[derive(Debug)]
pub(crate) struct Limits(DefaultKeyedRateLimiter<String>);

/// Callers that are remembered before those that are quiet are forgotten.
const MANY: usize = 10_000;

impl Limits {
    pub(crate) fn new(per_second: NonZeroU32) -> Self {
        Self(DefaultKeyedRateLimiter::keyed(Quota::per_second(per_second)))
    }

    pub(crate) fn check(&self, who: &Who) -> Result<(), Denied> {
        if self.0.len() > MANY {
            self.0.retain_recent();
        }
        self.0.check_key(&who.to_string()).map_err(|_| {
            let detail = format!("{who} asks too often; wait a second, or ask for more at once (POST /v1/bulk)");
            Denied::new(StatusCode::TOO_MANY_REQUESTS, detail)
        })
    }
}
