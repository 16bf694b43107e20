//! So many words in so much time, whatever strangers do.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Pace {
    most: u32,
    per: Duration,
    since: Instant,
    said: u32,
    unsaid: u64,
}

impl Pace {
    pub(super) fn new(most: u32, per: Duration, now: Instant) -> Self {
        Self { most, per, since: now, said: 0, unsaid: 0 }
    }

    /// Whether this may be said, and then how much was left unsaid before it.
    pub(super) fn allows(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.since) >= self.per {
            (self.since, self.said) = (now, 0);
        }
        if self.said < self.most {
            self.said += 1;
            Some(std::mem::take(&mut self.unsaid))
        } else {
            self.unsaid = self.unsaid.saturating_add(1);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_is_said_in_few_words() {
        let start = Instant::now();
        let mut pace = Pace::new(2, Duration::from_secs(10), start);
        for (second, want) in
            [(0, Some(0)), (1, Some(0)), (2, None), (9, None), (10, Some(2)), (11, Some(0)), (12, None)]
        {
            assert_eq!(pace.allows(start + Duration::from_secs(second)), want, "after {second} s");
        }
    }
}
