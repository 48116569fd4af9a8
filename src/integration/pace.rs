//! The pause that an upstream asked for (`Retry-After`), which all its requests keep.
//!
//! A short one is waited for where a request is ready to go, and nothing is told of it. For a long one the
//! run is given back, so that it does not keep a worker from the tenant's other steps and from other
//! tenants: the step waits its turn, which is no failure.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::circuit::LONGEST_PAUSE;

/// The longest pause that a request waits for.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A server that has answered nothing but "not now" for so long is down.
const OUTAGE: Duration = Duration::from_secs(60);

/// What an upstream asked for.
#[derive(Default)]
pub(super) struct Pace(Mutex<Pause>);

#[derive(Default)]
struct Pause {
    until: Option<Instant>,
    /// The first of those that came in a row, without an answer in between.
    since: Option<Instant>,
}

impl Pace {
    /// The upstream wants a pause. It gets one, but not longer than the longest.
    pub fn slow_down(&self, asked: Duration) {
        let now = Instant::now();
        let mut pause = self.lock();
        pause.since.get_or_insert(now);
        pause.until = pause.until.max(Some(now + asked.min(LONGEST_PAUSE)));
    }

    /// The upstream answered without asking for a pause.
    pub fn answered(&self) {
        let mut pause = self.lock();
        if pause.until.is_none_or(|until| until <= Instant::now()) {
            *pause = Pause::default();
        }
    }

    /// Whether it has asked for nothing but pauses for so long that it is rather down.
    pub fn is_an_outage(&self) -> bool {
        self.lock().since.is_some_and(|since| since.elapsed() >= OUTAGE)
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// How long the pause is, if it is too long to be waited for.
    pub async fn turn(&self) -> Result<(), Duration> {
        loop {
            let wait = self.left();
            if wait.is_zero() {
                return Ok(());
            }
            if wait > PATIENCE {
                return Err(wait);
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// What is left of the pause.
    pub fn left(&self) -> Duration {
        let until = self.lock().until;
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    fn lock(&self) -> MutexGuard<'_, Pause> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pause_is_bounded_and_a_long_one_is_not_waited_for() {
        let pace = Pace::default();
        pace.slow_down(Duration::from_secs(86_400));
        let left = pace.turn().await.unwrap_err();
        assert!(left <= LONGEST_PAUSE && left > LONGEST_PAUSE - Duration::from_secs(5), "{left:?}");
    }

    #[tokio::test]
    async fn a_short_pause_is_waited_for_by_all_and_a_later_shorter_one_does_not_cut_it() {
        let pace = Pace::default();
        let begun = Instant::now();
        pace.slow_down(Duration::from_millis(80));
        pace.slow_down(Duration::ZERO);
        let (one, other) = tokio::join!(pace.turn(), pace.turn());
        assert_eq!((one, other), (Ok(()), Ok(())));
        assert!(begun.elapsed() >= Duration::from_millis(80), "{:?}", begun.elapsed());
    }

    #[test]
    fn nothing_but_pauses_for_a_minute_is_an_outage_until_it_answers() {
        let pace = Pace::default();
        pace.slow_down(Duration::ZERO);
        assert!(!pace.is_an_outage());
        pace.lock().since = Instant::now().checked_sub(OUTAGE);
        pace.slow_down(Duration::ZERO);
        assert!(pace.is_an_outage());
        pace.answered();
        assert!(!pace.is_an_outage());
    }
}
