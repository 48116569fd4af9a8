//! How much of an upstream we use at once, and how fast.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds for all requests of this process to one upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests at once, 1 or more.
    pub concurrent: usize,
    /// Requests a minute; `None` is as many as there are.
    pub per_minute: Option<NonZeroU32>,
}

impl Limits {
    /// What an upstream without limits of its own can take.
    pub const GENEROUS: Self = Self { concurrent: 64, per_minute: None };
}

/// Lets requests through as [`Limits`] allow, in order of arrival.
pub(super) struct Limiter {
    limits: Limits,
    places: Arc<Semaphore>,
    rate: Option<DefaultDirectRateLimiter>,
    waiting: AtomicUsize,
}

/// A request that waits for its turn, until this is dropped.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Part of a minute's requests that may come at once after a pause. Together with a full minute's they
/// must stay below what a server counts in a fixed window.
const BURST: u32 = 20;

impl Limiter {
    pub fn new(limits: Limits) -> Self {
        let rate = limits.per_minute.map(|per_minute| {
            let burst = NonZeroU32::new(per_minute.get() / BURST).unwrap_or(NonZeroU32::MIN);
            RateLimiter::direct(Quota::per_minute(per_minute).allow_burst(burst))
        });
        let limits = Limits { concurrent: limits.concurrent.clamp(1, Semaphore::MAX_PERMITS), ..limits };
        let places = Arc::new(Semaphore::new(limits.concurrent));
        Self { limits, places, rate, waiting: AtomicUsize::new(0) }
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Requests that wait, and those that were let through and are under way.
    pub fn now(&self) -> (usize, usize) {
        let under_way = self.limits.concurrent.saturating_sub(self.places.available_permits());
        (self.waiting.load(Ordering::Relaxed), under_way)
    }

    /// Waits for a turn; the place is held until the permit is dropped.
    pub async fn admit(&self) -> Option<OwnedSemaphorePermit> {
        let _waits = Waits::new(&self.waiting);
        if let Some(rate) = &self.rate {
            rate.until_ready().await;
        }
        // It is never closed.
        Arc::clone(&self.places).acquire_owned().await.ok()
    }
}
