//! How long the latest requests to an upstream took: a few of them, whatever they were.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::tenant::Latency;

/// Requests that are kept.
const KEPT: usize = 128;

/// See the module.
#[derive(Default)]
pub(super) struct Recent(Mutex<VecDeque<Duration>>);

impl Recent {
    pub fn note(&self, took: Duration) {
        let mut kept = self.lock();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(took);
    }

    pub fn latency(&self) -> Option<Latency> {
        Latency::of(self.lock().iter().copied().collect())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Duration>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_latest_requests_count_and_no_more_are_kept() {
        let recent = Recent::default();
        assert_eq!(recent.latency(), None);
        for seconds in 0..2 * KEPT as u64 {
            recent.note(Duration::from_secs(seconds));
        }
        let latency = recent.latency().unwrap();
        assert_eq!(latency.requests, KEPT);
        assert_eq!(latency.median, Duration::from_secs(KEPT as u64 + KEPT as u64 / 2 - 1));
    }
}
