//! The server's clock, as far as this process knows it: what it makes must bear the server's time, because it is
//! compared with that.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use jiff::Timestamp;

/// Clones are one clock. It is carried forward by the monotonic clock, so that a process whose own wall clock
/// is wrong, or is set, agrees with the others.
#[derive(Clone, Default)]
pub(super) struct Clock(Arc<Mutex<Option<(Timestamp, Instant)>>>);

impl Clock {
    /// The server said that it was `now`.
    pub fn learn(&self, now: Timestamp) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, Instant::now()));
    }

    /// The server's time; before it was ever told, our own.
    pub fn now(&self) -> Timestamp {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.map_or_else(Timestamp::now, |(then, at)| then + at.elapsed())
    }
}
