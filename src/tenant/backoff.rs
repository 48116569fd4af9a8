//! How long to wait after a failure.
//!
//! The `backoff` crate is no longer maintained (RUSTSEC-2025-0012); nothing but its policy type is
//! used, and nowhere but here.

use std::time::Duration;

use ::backoff::ExponentialBackoff;
use ::backoff::backoff::Backoff as _;

/// A number in `0.0..1.0` that spreads delays; drawn outside, so that this room stays deterministic.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Jitter(f64);

impl Jitter {
    pub const NONE: Self = Self(0.5);

    /// Values outside `0.0..=1.0` are clamped.
    pub fn new(value: f64) -> Self {
        Self(if value.is_nan() { 0.5 } else { value.clamp(0.0, 1.0) })
    }

    /// `span` stretched or shrunk by up to `fraction` of itself.
    pub fn spread(self, span: Duration, fraction: f64) -> Duration {
        span.mul_f64(1.0 + fraction * (2.0 * self.0 - 1.0))
    }
}

/// Exponential backoff: `initial`, doubled after every failed attempt, never above `max`, each delay
/// spread by ±50 % (and still never above `max`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    pub initial: Duration,
    pub max: Duration,
}

impl Backoff {
    const SPREAD: f64 = 0.5;
    /// Doublings after which any delay has reached any sensible maximum.
    const MAX_DOUBLINGS: u32 = 64;

    /// The delay after `attempts` failures in a row (1 or more), before jitter.
    pub fn interval(&self, attempts: u32) -> Duration {
        let mut policy = ExponentialBackoff {
            current_interval: self.initial,
            initial_interval: self.initial,
            multiplier: 2.0,
            max_interval: self.max,
            max_elapsed_time: None,
            // The crate would draw its own random numbers; see `Jitter`.
            randomization_factor: 0.0,
            ..ExponentialBackoff::default()
        };
        let mut interval = self.initial;
        for _ in 0..attempts.clamp(1, Self::MAX_DOUBLINGS) {
            interval = policy.next_backoff().unwrap_or(self.max);
            if interval >= self.max {
                break;
            }
        }
        interval.min(self.max)
    }

    /// The delay after `attempts` failures in a row, with jitter.
    pub fn delay(&self, attempts: u32, jitter: Jitter) -> Duration {
        jitter.spread(self.interval(attempts), Self::SPREAD).min(self.max)
    }
}
