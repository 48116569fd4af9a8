//! The HTTP layer. It validates, writes MongoDB and reads MongoDB; it never calls an upstream and
//! decides nothing about tenants.

mod access;
mod admission;
mod edit;
mod envelope;
mod etag;
mod events;
mod fields;
mod fleet;
mod health;
mod hub;
mod list;
mod measure;
pub mod openapi;
mod plan;
mod problem;
mod rates;
mod representation;
mod serve;
mod stream;
mod telemetry;
mod tenants;
mod upstreams;
mod wait;
mod whoami;

pub use admission::{Admission, Limits, Place};
pub use envelope::RequestId;
pub use hub::Hub;
pub use serve::{Patience, serve};
pub use telemetry::Telemetry;
pub use upstreams::{CheckAnswer, CheckRequest, Upstreams};

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRef, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post, put};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::problem::Problem;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::tenant::{Controls, PerStep, UpstreamHealth};

/// The longest request body, in bytes.
pub const MAX_BODY: usize = 64 << 10;

/// What the handlers need.
#[derive(Clone, FromRef)]
pub struct Api {
    pub store: Store,
    pub metrics: Arc<Metrics>,
    /// Tells what becomes of tenants.
    pub hub: Hub,
    /// The longest that a request may take.
    pub timeout: RequestTimeout,
    pub readiness: Readiness,
    pub upstreams: Upstreams,
    /// Who may ask for what, and how much.
    pub guard: Admission,
}

#[derive(Clone, Copy)]
pub struct RequestTimeout(pub Duration);

/// What `/readyz` looks at beside the store.
#[derive(Clone)]
pub struct Readiness {
    /// Whether the controller has a change stream open.
    pub watch_open: watch::Receiver<bool>,
    /// How the upstreams are. They do not make the process unready: tenants can be written all the same.
    pub upstreams: watch::Receiver<PerStep<Option<UpstreamHealth>>>,
    /// What stops and guards there are.
    pub controls: watch::Receiver<Controls>,
    /// Cancelled when the process begins to shut down.
    pub draining: CancellationToken,
}

impl Api {
    /// The public routes.
    pub fn router(self) -> Router {
        let cross_origin = self.guard.cross_origin();
        let router = Router::new()
            .route("/tenants", post(tenants::create).get(list::list))
            .route("/tenants/watch", get(stream::watch))
            .route(
                "/tenants/{slug}",
                get(tenants::show).put(edit::put).patch(edit::patch).delete(tenants::delete),
            )
            .route("/tenants/{slug}/undelete", post(tenants::undelete))
            .route("/tenants/{slug}/pause", post(tenants::pause))
            .route("/tenants/{slug}/resume", post(tenants::resume))
            .route("/tenants/{slug}/reconcile", post(tenants::reconcile))
            .route("/tenants/{slug}/events", get(events::list))
            .route("/tenants/{slug}/plan", get(plan::show))
            .route("/events", get(events::of_fleet))
            .route("/orphans", get(fleet::orphans))
            .route("/orphans/{upstream}/{id}/release", post(fleet::release_orphan))
            .route("/guards", get(fleet::guards))
            .route("/guards/{upstream}", get(fleet::guard))
            .route("/guards/{upstream}/lift", post(fleet::lift))
            .route("/stops", get(fleet::stops))
            .route("/stops/{what}", put(fleet::stop).delete(fleet::start))
            .route("/upstreams", get(upstreams::list))
            .route("/upstreams/{upstream}/check", post(upstreams::check))
            .route("/upstreams/{upstream}/retire", post(upstreams::retire))
            .route("/whoami", get(whoami::show))
            .route("/livez", get(health::live))
            .route("/readyz", get(health::ready))
            .merge(openapi::routes())
            .fallback(problem::unknown_path)
            .method_not_allowed_fallback(problem::unknown_method)
            .layer(middleware::from_fn_with_state(self.timeout, in_time))
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .layer(middleware::from_fn_with_state(self.guard.clone(), admission::admit))
            .layer(tower_http::catch_panic::CatchPanicLayer::custom(problem::panicked));
        match cross_origin {
            Some(cross_origin) => router.layer(cross_origin),
            None => router,
        }
        .layer(middleware::from_fn_with_state(Arc::clone(&self.metrics), measure::measure))
        .layer(middleware::from_fn(envelope::wrap))
        .with_state(self)
    }
}

/// Answers in time, whatever happens behind. What the client itself would wait comes on top.
async fn in_time(
    State(RequestTimeout(limit)): State<RequestTimeout>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let limit = limit + wait::asked(request.headers()).unwrap_or_default();
    tokio::time::timeout(limit, next.run(request)).await.map_err(|_| Problem::too_slow(limit))
}
