//! `/metrics` and `/log-level`, on an address of their own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::Mutex;

use super::admission::Admission;
use super::problem::{FieldError, Problem};
use super::serve::Peer;
use super::{envelope, health, problem};
use crate::auth::Role;
use crate::metrics::{Format, Metrics, ReadyStatus};
use crate::store::{Census, Counting, Store, StoreError};
use crate::telemetry::{self as logs, LogFilter};
use crate::tenant::{Phase, Reason, StepState, Upstream};

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
    guard: Admission,
    /// From when on another census may be taken; held while one is.
    rests: Arc<Mutex<Option<Instant>>>,
}

impl Telemetry {
    pub fn new(metrics: Arc<Metrics>, store: Store, guard: Admission) -> Self {
        Self { metrics, store, guard, rests: Arc::default() }
    }

    pub fn router(self) -> Router {
        Router::new()
            .route("/metrics", get(scrape))
            .route("/livez", get(health::live))
            .route("/log-level", get(log_level).put(set_log_level))
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
        for step in Upstream::ALL {
            for (state, count) in StepState::ALL.into_iter().zip(census.steps[step]) {
                self.metrics.steps.of((step, state)).set(gauge(count));
            }
        }
    }
}

/// The longest level that is understood, in bytes: a level for each of many modules.
const LONGEST_LEVEL: usize = 2 << 10;

/// Who asks: where from, and with what.
type Asking = (Option<Extension<Peer>>, HeaderMap);

/// Which lines are logged: the form of `LOG_LEVEL`.
async fn log_level(
    State(telemetry): State<Telemetry>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Result<String, Problem> {
    telemetry.may_set_level((peer, headers)).await?;
    Ok(format!("{}\n", logs::filter().unwrap_or_default()))
}

/// Logs other lines until the process ends.
async fn set_log_level(
    State(telemetry): State<Telemetry>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<String, Problem> {
    telemetry.may_set_level((peer, headers)).await?;
    if body.len() > LONGEST_LEVEL {
        return Err(Problem::too_large(LONGEST_LEVEL));
    }
    let wrong = |message| Problem::invalid(vec![FieldError { field: "log-level".into(), message }]);
    let filter = String::from_utf8_lossy(&body).trim().parse::<LogFilter>();
    let filter = filter.map_err(|error| wrong(error.to_string()))?;
    let before = logs::filter().unwrap_or_default();
    if !logs::set_filter(filter.clone()) {
        return Err(Problem::unavailable(
            "this process logs in a way of its own, which cannot be changed",
        ));
    }
    tracing::warn!(%before, now = %filter, "the log level was changed until the process ends");
    Ok(format!("{filter}\n"))
}

impl Telemetry {
    /// From the machine itself, or by an administrator.
    async fn may_set_level(&self, (peer, headers): Asking) -> Result<(), Problem> {
        if peer.is_some_and(|Extension(peer)| peer.address.is_loopback()) {
            return Ok(());
        }
        self.guard.admits(&headers, Role::Admin).await
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
