//! What concerns the whole fleet: stops, change guards, orphans.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Serialize;

use super::problem::Problem;
use crate::store::{Scope, Store};
use crate::tenant::{Controls, Guard, StepKind};

/// How long a lifted guard leaves repairs without bounds, unless a sweep finds the upstream sane before.
const LIFTED: Duration = Duration::from_secs(3600);

/// Stops in force.
#[derive(Debug, Serialize)]
pub struct Stops {
    /// Everything is stopped.
    all: bool,
    /// Single upstreams that are.
    upstreams: BTreeMap<&'static str, bool>,
}

impl From<&Controls> for Stops {
    fn from(controls: &Controls) -> Self {
        let each = StepKind::ALL.map(|step| (step.name(), controls.stopped_upstreams[step]));
        Self { all: controls.stopped, upstreams: each.into() }
    }
}

/// One upstream's change guard.
#[derive(Debug, Serialize)]
pub struct GuardView {
    /// armed, tripped or lifted
    state: &'static str,
    /// When it tripped.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    /// Until when it is lifted.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
    /// What was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

impl From<&Guard> for GuardView {
    fn from(guard: &Guard) -> Self {
        let (since, until, message) = match guard {
            Guard::Armed => (None, None, None),
            Guard::Tripped { at, message } => (Some(*at), None, Some(message.clone())),
            Guard::Lifted { until } => (None, Some(*until), None),
        };
        Self { state: guard.name(), since, until, message }
    }
}

pub fn guards_of(controls: &Controls) -> BTreeMap<&'static str, GuardView> {
    StepKind::ALL.map(|step| (step.name(), GuardView::from(&controls.guards[step]))).into()
}

/// A resource that is marked for a tenant that does not exist.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OrphanView {
    upstream: &'static str,
    external_id: String,
    name: String,
    tenant_id: String,
    first_seen_at: Timestamp,
    last_seen_at: Timestamp,
}

/// What the latest sweeps found.
#[derive(Debug, Serialize)]
pub struct Orphans {
    items: Vec<OrphanView>,
}

pub async fn stops(State(store): State<Store>) -> Result<Json<Stops>, Problem> {
    Ok(Json(Stops::from(&store.controls().await?)))
}

pub async fn stop(State(store): State<Store>, Path(what): Path<String>) -> Result<Json<Stops>, Problem> {
    store.stop(scope(&what)?).await?;
    stops(State(store)).await
}

pub async fn start(
    State(store): State<Store>,
    Path(what): Path<String>,
) -> Result<Json<Stops>, Problem> {
    store.start(scope(&what)?).await?;
    stops(State(store)).await
}

pub async fn guards(
    State(store): State<Store>,
) -> Result<Json<BTreeMap<&'static str, GuardView>>, Problem> {
    Ok(Json(guards_of(&store.controls().await?)))
}

/// Lets the repairs of an upstream go on, without bounds, for an hour or until a sweep finds it sane.
pub async fn lift(
    State(store): State<Store>,
    Path(upstream): Path<String>,
) -> Result<Response, Problem> {
    let Scope::Upstream(step) = scope(&upstream)? else {
        return Err(Problem::no_upstream(&upstream));
    };
    if !store.lift_guard(step, LIFTED).await? {
        return Err(Problem::guard_not_tripped(step.name()));
    }
    let guard = store.controls().await?.guards[step].clone();
    Ok((StatusCode::OK, Json(GuardView::from(&guard))).into_response())
}

pub async fn orphans(State(store): State<Store>) -> Result<Json<Orphans>, Problem> {
    let found = store.orphans().await?;
    let items = found.into_iter().map(|orphan| OrphanView {
        upstream: orphan.upstream.name(),
        external_id: orphan.external_id,
        name: orphan.name,
        tenant_id: orphan.tenant.to_string(),
        first_seen_at: orphan.first_seen_at,
        last_seen_at: orphan.last_seen_at,
    });
    Ok(Json(Orphans { items: items.collect() }))
}

fn scope(what: &str) -> Result<Scope, Problem> {
    if what == "all" {
        return Ok(Scope::Everything);
    }
    let step = StepKind::ALL.into_iter().find(|step| step.name() == what);
    step.map(Scope::Upstream).ok_or_else(|| Problem::no_upstream(what))
}
