//! The delay between tries that fail: each is twice as long as the one before, up to the longest.
//!
//! For a step of a tenant, whose delay is recorded and spread, see `tenant::Backoff`.

use std::time::Duration;

/// What a loop waits between two tries.
#[derive(Debug, Clone)]
pub struct GrowingDelay {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl GrowingDelay {
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// How long the next one is.
    pub const fn upcoming(&self) -> Duration {
        self.next
    }

    /// The next one; the one after it is longer.
    pub fn grow(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.longest);
        now
    }

    /// Waits for the next one. Cancel-safe: a wait that is dropped counts.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.grow()).await;
    }

    /// Begins anew, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_doubles_up_to_the_longest_and_begins_anew() {
        let seconds = Duration::from_secs;
        let mut delay = GrowingDelay::new(seconds(1), seconds(5));
        let delays: Vec<_> = (0..5).map(|_| delay.grow()).collect();
        assert_eq!(delays, [1, 2, 4, 5, 5].map(seconds));
        delay.reset();
        assert_eq!(
            (delay.upcoming(), delay.grow(), delay.upcoming()),
            (seconds(1), seconds(1), seconds(2))
        );
    }
}
