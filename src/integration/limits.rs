//! How much of an upstream we use at once, and how fast.

use std::num::NonZeroU32;
use std::sync::Arc;

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
    places: Arc<Semaphore>,
    rate: Option<DefaultDirectRateLimiter>,
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
        let places = limits.concurrent.clamp(1, Semaphore::MAX_PERMITS);
        Self { places: Arc::new(Semaphore::new(places)), rate }
    }

    /// Waits for a turn; the place is held until the permit is dropped.
    pub async fn admit(&self) -> Option<OwnedSemaphorePermit> {
        if let Some(rate) = &self.rate {
            rate.until_ready().await;
        }
        // Nobody closes it.
        Arc::clone(&self.places).acquire_owned().await.ok()
    }
}
