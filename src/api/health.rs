//! `/livez` and `/readyz`, for probes. They say nothing secret.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Readiness;
use crate::store::Store;

/// How long the database may take to answer a probe.
const PING: Duration = Duration::from_secs(2);

/// The process runs.
pub async fn live() -> &'static str {
    "ok\n"
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ready {
    ready: bool,
    /// Whether the database answers.
    store: bool,
    /// Whether changes are being watched.
    watch: bool,
    /// Whether the process is shutting down.
    draining: bool,
}

/// Whether requests and work should be sent here.
pub async fn ready(State(store): State<Store>, State(readiness): State<Readiness>) -> Response {
    let draining = readiness.draining.is_cancelled();
    let watch = *readiness.watch_open.borrow();
    let ping = tokio::time::timeout(PING, store.ping());
    let store = !draining && ping.await.is_ok_and(|answer| answer.is_ok());
    let ready = store && watch && !draining;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready, store, watch, draining })).into_response()
}
