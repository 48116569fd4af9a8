//! `/metrics`, on an address of its own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::{envelope, health, problem};
use crate::metrics::Metrics;
use crate::store::{Census, Store};
use crate::tenant::{Phase, StepKind, StepState};

/// The census reads every document, so it is taken at most this often, and only if somebody looks.
const CENSUS_AGE: Duration = Duration::from_secs(60);
/// A scrape does not wait longer for it; the gauges then have their last values.
const CENSUS_WAIT: Duration = Duration::from_secs(3);
/// A census that takes longer is given up, and tried again as late as any.
const CENSUS_LIMIT: Duration = Duration::from_secs(60);

/// The telemetry listener's state.
#[derive(Clone)]
pub struct Telemetry {
    metrics: Arc<Metrics>,
    store: Store,
    /// When the latest census was begun.
    begun: Arc<Mutex<Option<Instant>>>,
}

impl Telemetry {
    pub fn new(metrics: Arc<Metrics>, store: Store) -> Self {
        Self { metrics, store, begun: Arc::default() }
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
        {
            let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
            if begun.is_some_and(|at| at.elapsed() < CENSUS_AGE) {
                return;
            }
            *begun = Some(Instant::now());
        }
        let telemetry = self.clone();
        let census = tokio::spawn(async move {
            match telemetry.store.census(CENSUS_LIMIT).await {
                Ok(census) => telemetry.show(&census),
                Err(error) => tracing::warn!(%error, "cannot count the tenants for the metrics"),
            }
        });
        // It goes on without us.
        let _ = tokio::time::timeout(CENSUS_WAIT, census).await;
    }

    fn show(&self, census: &Census) {
        let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        for (phase, count) in Phase::ALL.into_iter().zip(census.phases) {
            self.metrics.tenants.with_label_values(&[phase.name()]).set(gauge(count));
        }
        for step in StepKind::ALL {
            for (state, count) in StepState::ALL.into_iter().zip(census.steps[step]) {
                let labels = [step.name(), state.name()];
                self.metrics.steps.with_label_values(&labels).set(gauge(count));
            }
        }
    }
}

async fn scrape(State(telemetry): State<Telemetry>) -> Response {
    telemetry.refresh_census().await;
    let text = telemetry.metrics.render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
