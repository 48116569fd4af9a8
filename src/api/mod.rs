//! The HTTP layer. It validates, writes MongoDB and reads MongoDB; it never calls an upstream and
//! decides nothing about tenants.

mod edit;
mod etag;
mod fields;
mod health;
mod hub;
pub mod openapi;
mod problem;
mod representation;
mod stream;
mod telemetry;
mod tenants;
mod wait;

pub use hub::Hub;
pub use telemetry::Telemetry;

use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRef, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::problem::Problem;
use crate::store::Store;
use crate::tenant::{PerStep, UpstreamHealth};

/// The longest request body, in bytes.
pub const MAX_BODY: usize = 64 << 10;

/// What the handlers need.
#[derive(Clone, FromRef)]
pub struct Api {
    pub store: Store,
    /// Tells what becomes of tenants.
    pub hub: Hub,
    /// The longest that a request may take.
    pub timeout: RequestTimeout,
    pub readiness: Readiness,
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
    /// Cancelled when the process begins to shut down.
    pub draining: CancellationToken,
}

impl Api {
    /// The public routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/tenants", post(tenants::create).get(tenants::list))
            .route("/tenants/watch", get(stream::watch))
            .route("/tenants/{slug}", get(tenants::show).put(edit::put).patch(edit::patch))
            .route("/tenants/{slug}/reconcile", post(tenants::reconcile))
            .route("/livez", get(health::live))
            .route("/readyz", get(health::ready))
            .merge(openapi::routes())
            .fallback(problem::unknown_path)
            .method_not_allowed_fallback(problem::unknown_method)
            .layer(middleware::from_fn_with_state(self.timeout, in_time))
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .layer(tower_http::catch_panic::CatchPanicLayer::custom(problem::panicked))
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
