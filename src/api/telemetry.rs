//! `/metrics`, on an address of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::Mutex;

use super::{envelope, health, problem};
use crate::metrics::{Format, Metrics, ReadyStatus};
use crate::store::{Census, Counting, Store, StoreError};
use crate::tenant::{Phase, Reason, StepKind, StepState};

/// The census reads every document, so it is taken only if the metrics are read, and no sooner after the one
/// before than this many times what that took; within bounds.
const CENSUS_REST: u32 = 50;
const LEAST_REST: Duration = Duration::from_secs(5);
const MOST_REST: Duration = Duration::from_secs(60);
/// A scrape does not wait longer for it; the gauges then have their last values.
const CENSUS_WAIT: Duration = Duration::from_secs(3);

/// The telemetry listener's state.
#[derive(Clone)]
pub struct Telemetry {
    metrics: Arc<Metrics>,
    store: Store,
    /// From when on another census may be taken; held while one is.
    rests: Arc<Mutex<Option<Instant>>>,
}

impl Telemetry {
    pub fn new(metrics: Arc<Metrics>, store: Store) -> Self {
        Self { metrics, store, rests: Arc::default() }
    }

    pub fn router(self) -> Router {
        Router::new()
            .route("/metrics", get(scrape))
            .route("/livez", get(health::live))
            .fallback(problem::unknown_path)
            .method_not_allowed_fallback(problem::unknown_method)
            .layer(middleware::from_fn(envelope::wrap))
            .with_state(self)
    }

    /// Begins a census if it is time for one, and waits for it a little.
    async fn refresh_census(&self) {
        let Ok(mut rests) = Arc::clone(&self.rests).try_lock_owned() else { return };
        if rests.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let telemetry = self.clone();
        let census = tokio::spawn(async move {
            let begun = Instant::now();
            if let Err(error) = telemetry.take_census().await {
                tracing::warn!(%error, "cannot count the tenants for the metrics");
            }
            let rest = (begun.elapsed() * CENSUS_REST).clamp(LEAST_REST, MOST_REST);
            *rests = Some(Instant::now() + rest);
        });
        // It goes on without us.
        let _ = tokio::time::timeout(CENSUS_WAIT, census).await;
    }

    async fn take_census(&self) -> Result<(), StoreError> {
        let mut counting = Counting::default();
        loop {
            let asked = Instant::now();
            match self.store.count(&mut counting).await {
                Ok(true) => break,
                // The next slice is smaller.
                Ok(false) | Err(StoreError::Late { .. }) => {}
                Err(error) => return Err(error),
            }
            // At most half the time: others use the database too.
            tokio::time::sleep(asked.elapsed()).await;
        }
        self.show(&counting.census);
        Ok(())
    }

    fn show(&self, census: &Census) {
        let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        for (phase, count) in Phase::ALL.into_iter().zip(census.phases) {
            self.metrics.tenants.of(phase).set(gauge(count));
        }
        for reason in Reason::ALL.iter().copied() {
            for (ready, status) in [(true, ReadyStatus::True), (false, ReadyStatus::False)] {
                let count = census.ready.get(&(ready, reason.name())).copied().unwrap_or_default();
                self.metrics.tenants_by_ready.of((status, reason)).set(gauge(count));
            }
        }
        self.metrics.tenants_failing_long.set(gauge(census.failing_long));
        self.metrics.tenants_due.set(gauge(census.due));
        self.metrics.oldest_due_age_seconds.set(census.oldest_due.as_secs_f64());
        for step in StepKind::ALL {
            for (state, count) in StepState::ALL.into_iter().zip(census.steps[step]) {
                self.metrics.steps.of((step, state)).set(gauge(count));
            }
        }
    }
}

async fn scrape(State(telemetry): State<Telemetry>, headers: HeaderMap) -> Response {
    telemetry.refresh_census().await;
    telemetry.metrics.mongodb_up.set(i64::from(telemetry.store.is_up()));
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::of(accept);
    let text = telemetry.metrics.render_as(format);
    ([(header::CONTENT_TYPE, format.content_type())], text).into_response()
}
