//! `/livez` and `/readyz`, for probes. They say nothing secret.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use super::Readiness;
use super::fleet::{GuardView, Stops, guards_of};
use super::problem::Problem;
use crate::auth::{Principal, Role};
use crate::store::{Rejection, Store};
use crate::tenant::{Reason, Upstream, UpstreamHealth, lacking};

/// How long the database may take to answer a probe.
const PING: Duration = Duration::from_secs(2);

/// The process runs
#[utoipa::path(get, path = "/livez", tag = "health", security(()), operation_id = "live",
    responses((status = 200, description = "It does", body = String, content_type = "text/plain")))]
pub async fn live() -> &'static str {
    "ok\n"
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ready {
    ready: bool,
    /// Whether the database answers.
    store: bool,
    /// Whether changes are being watched.
    watch: bool,
    /// Whether the process is shutting down.
    draining: bool,
    /// What the collection's validator, which another program made, refuses of what tenantry writes. The process
    /// is not ready if no tenant can converge for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    validator: Option<String>,
    /// What only those may know who may see tenants.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    detail: Option<Detail>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Detail {
    /// Each upstream that is configured, or that the fleet has (`NotConfigured`); they do not make the process unready.
    upstreams: BTreeMap<&'static str, UpstreamHealthView>,
    /// What people have stopped.
    stops: Stops,
    guards: BTreeMap<&'static str, GuardView>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Upstream)]
pub struct UpstreamHealthView {
    /// `null` while it was not asked yet.
    reachable: Option<bool>,
    authenticated: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// Permissions that our account lacks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    lacks: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// What is wrong, and what to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

impl UpstreamHealthView {
    /// The fleet has it, and this process cannot reach it.
    fn lacking(step: Upstream) -> Self {
        let problem = Some((Reason::NotConfigured, lacking(step)));
        UpstreamHealth { problem, ..UpstreamHealth::default() }.into()
    }
}

impl From<UpstreamHealth> for UpstreamHealthView {
    fn from(health: UpstreamHealth) -> Self {
        let UpstreamHealth { reachable, authenticated, version, lacks, problem, .. } = health;
        let (reason, message) = problem.map(|(reason, message)| (reason.name(), message)).unzip();
        Self { reachable, authenticated, version, lacks, reason, message }
    }
}

/// Nothing while it is not known.
async fn rejection(store: &Store) -> Option<Rejection> {
    tokio::time::timeout(PING, store.rejection()).await.ok()?.ok()?
}

/// Whether requests and work should be sent here
#[utoipa::path(get, path = "/readyz", tag = "health", security(()), operation_id = "ready", responses(
    (status = 200, description = "They should", body = Ready),
    (status = 503, description = "Not now", content(
        (Ready = "application/json"), (Problem = "application/problem+json"),
    )),
))]
pub async fn ready(
    State(store): State<Store>,
    State(readiness): State<Readiness>,
    asking: Option<Extension<Principal>>,
) -> Response {
    let draining = readiness.draining.is_cancelled();
    let watch = *readiness.watch_open.borrow();
    let ping = tokio::time::timeout(PING, store.ping());
    let answers = !draining && ping.await.is_ok_and(|answer| answer.is_ok());
    let rejection = if answers { rejection(&store).await } else { None };
    let stuck = rejection.as_ref().is_some_and(|rejection| rejection.all);
    let ready = answers && watch && !draining && !stuck;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let may_see = asking.is_some_and(|Extension(asking)| asking.may(Role::Reader));
    let detail = may_see.then(|| {
        let upstreams = readiness.upstreams.borrow().clone();
        let steps = Upstream::ALL.into_iter();
        let controls = readiness.controls.borrow().clone();
        let of = |step: Upstream| match upstreams[step].clone() {
            Some(health) => Some((step.name(), UpstreamHealthView::from(health))),
            None => controls.fleet_has(step).then(|| (step.name(), UpstreamHealthView::lacking(step))),
        };
        let upstreams = steps.filter_map(of).collect();
        Detail { upstreams, stops: Stops::from(&controls), guards: guards_of(&controls) }
    });
    let validator = rejection.map(|rejection| rejection.to_string());
    (status, Json(Ready { ready, store: answers, watch, draining, validator, detail })).into_response()
}
