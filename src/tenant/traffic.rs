//! How requests to an upstream fare, as one process sees it, and how its latest sweep ended.

use std::time::Duration;

use jiff::Timestamp;

/// Requests of one process to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Of the latest requests; `None` before the first.
    pub latency: Option<Latency>,
    /// Requests under way now.
    pub under_way: usize,
    /// Requests that wait for their turn now.
    pub waiting: usize,
    /// Requests at once, at most.
    pub at_once: usize,
    /// Requests a minute, at most; `None` is as many as there are.
    pub per_minute: Option<u32>,
    /// How much is left of the pause that the upstream asked for.
    pub paused_for: Option<Duration>,
}

/// How long the latest requests took, from sending them to the end of their answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// How many they are.
    pub requests: usize,
    pub median: Duration,
    pub p95: Duration,
}

impl Latency {
    /// `None` without any.
    pub fn of(mut spans: Vec<Duration>) -> Option<Self> {
        spans.sort_unstable();
        let at = |percent: usize| spans.get((spans.len() * percent).div_ceil(100).max(1) - 1).copied();
        Some(Self { requests: spans.len(), median: at(50)?, p95: at(95)? })
    }
}

/// The latest sweep of an upstream, by whichever process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swept {
    /// By the database's clock.
    pub ended_at: Timestamp,
    pub end: SweepEnd,
    /// When one could last compare.
    pub compared_at: Option<Timestamp>,
    /// What that one saw.
    pub found: Option<SweepFound>,
}

/// How a sweep ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SweepEnd {
    Finished,
    /// So many tenants differed that it was not believed.
    Refused,
    /// The upstream or the database did not answer.
    Failed,
}

impl SweepEnd {
    pub const ALL: [Self; 3] = [Self::Finished, Self::Refused, Self::Failed];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Finished => "ok",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// What a sweep saw of an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SweepFound {
    pub took: Duration,
    /// Resources in the upstream's list.
    pub seen: u64,
    /// Resources that the tenants should have.
    pub expected: u64,
    /// Tenants whose resource differs, or is missing.
    pub differing: u64,
    /// Tenants of which another resource with their mark was newly seen.
    pub second: u64,
    /// Resources of no tenant.
    pub orphans: u64,
    /// Resources that are marked as another fleet's.
    pub foreign: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_95th_percentile_are_of_requests_that_were_made() {
        assert_eq!(Latency::of(Vec::new()), None);
        let millis = Duration::from_millis;
        let one = Latency { requests: 1, median: millis(7), p95: millis(7) };
        assert_eq!(Latency::of(vec![millis(7)]), Some(one));
        let hundred = Latency::of((1..=100).rev().map(millis).collect()).unwrap();
        assert_eq!((hundred.median, hundred.p95), (millis(50), millis(95)));
    }
}
