//! What concerns the whole fleet: stops, change guards, orphans.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::openapi::{Changing, Deciding, Finding, Reading};
use super::problem::{FieldError, Problem};
use super::tenants::Acting;
use crate::store::{Asked, Drifted, Scope, Store};
use crate::tenant::{ChangeGuard, Controls, InvalidSlug, Slug, Upstream};

/// How long a lifted guard leaves repairs without bounds, unless a sweep finds the upstream sane before.
const LIFTED: Duration = Duration::from_secs(3600);

/// Stops in force.
#[derive(Debug, Serialize, ToSchema)]
pub struct Stops {
    /// Everything is stopped.
    all: bool,
    /// Single upstreams that are.
    upstreams: BTreeMap<&'static str, bool>,
}

impl From<&Controls> for Stops {
    fn from(controls: &Controls) -> Self {
        let each = Upstream::ALL.map(|step| (step.name(), controls.stopped_upstreams[step]));
        Self { all: controls.stopped, upstreams: each.into() }
    }
}

/// One upstream's change guard.
#[derive(Debug, Serialize, ToSchema)]
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

impl From<&ChangeGuard> for GuardView {
    fn from(guard: &ChangeGuard) -> Self {
        let (since, until, message) = match guard {
            ChangeGuard::Armed => (None, None, None),
            ChangeGuard::Tripped { at, message } => (Some(*at), None, Some(message.clone())),
            ChangeGuard::Lifted { until } => (None, Some(*until), None),
        };
        Self { state: guard.name(), since, until, message }
    }
}

pub fn guards_of(controls: &Controls) -> BTreeMap<&'static str, GuardView> {
    Upstream::ALL.map(|step| (step.name(), GuardView::from(&controls.guards[step]))).into()
}

/// A resource that is marked for a tenant that does not exist.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrphanView {
    upstream: &'static str,
    external_id: String,
    name: String,
    tenant_id: String,
    first_seen_at: Timestamp,
    last_seen_at: Timestamp,
    /// Set while it is to be released.
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<ReleaseView>,
}

/// That an orphan is to be released.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReleaseView {
    /// Why it has not been done yet, where that is known.
    message: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ReleaseParameters {
    /// Of the tenant that may adopt it; by default the slug that its tenant had, where that is known
    #[param(example = "acme")]
    slug: Option<String>,
}

/// What the latest sweeps found.
#[derive(Debug, Serialize, ToSchema)]
pub struct Orphans {
    items: Vec<OrphanView>,
}

/// Show what is stopped
#[utoipa::path(get, path = "/stops", tag = "fleet", operation_id = "showStops",
    responses((status = 200, description = "Stops in force", body = Stops), Reading))]
pub async fn stops(State(store): State<Store>) -> Result<Json<Stops>, Problem> {
    Ok(Json(Stops::from(&store.controls().await?)))
}

/// Stop everything, or one upstream
///
/// Tenants are still observed, and nothing is changed until it is started again; a restart does not start it.
#[utoipa::path(put, path = "/stops/{what}", tag = "fleet", operation_id = "stop",
    params(("what" = String, Path, description = "`all`, `authentik`, `stalwart` or `ocis`",
        example = "stalwart")),
    responses((status = 200, description = "Stops in force", body = Stops), Finding))]
pub async fn stop(Acting(store): Acting, Path(what): Path<String>) -> Result<Json<Stops>, Problem> {
    store.stop(scope(&what)?).await?;
    stops(State(store)).await
}

/// Start it again
///
/// What was held back goes on in the background, a thousand tenants at a time.
#[utoipa::path(delete, path = "/stops/{what}", tag = "fleet", operation_id = "start",
    params(("what" = String, Path, description = "`all`, `authentik`, `stalwart` or `ocis`",
        example = "stalwart")),
    responses((status = 200, description = "Stops in force", body = Stops), Finding))]
pub async fn start(Acting(store): Acting, Path(what): Path<String>) -> Result<Json<Stops>, Problem> {
    store.start(scope(&what)?).await?;
    stops(State(store)).await
}

/// Show the change guards
///
/// One per upstream. A tripped guard leaves missing resources missing until a person lifts it, or a sweep
/// finds the upstream sane.
#[utoipa::path(get, path = "/guards", tag = "fleet", operation_id = "showGuards",
    responses((status = 200, description = "By upstream", body = BTreeMap<String, GuardView>), Reading))]
pub async fn guards(
    State(store): State<Store>,
) -> Result<Json<BTreeMap<&'static str, GuardView>>, Problem> {
    Ok(Json(guards_of(&store.controls().await?)))
}

/// A tenant whose resource differs from what was recorded of it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DriftView {
    tenant_id: String,
    slug: String,
    /// What was seen of its resource.
    seen: String,
    seen_at: Timestamp,
}

impl From<Drifted> for DriftView {
    fn from(drifted: Drifted) -> Self {
        let Drifted { tenant, slug, seen, seen_at } = drifted;
        Self { tenant_id: tenant.to_string(), slug, seen, seen_at }
    }
}

/// A change guard, and the tenants concerned.
#[derive(Debug, Serialize, ToSchema)]
pub struct GuardDetail {
    #[serde(flatten)]
    guard: GuardView,
    /// How many tenants are recorded; of more than 100,000 the others are not.
    tenants: u64,
    /// In order of their ids.
    items: Vec<DriftView>,
    /// What to give as `after` for the next page, if there is one.
    next: Option<String>,
}

/// A page of the tenants concerned.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GuardParameters {
    /// Tenants after this one, by `tenantId`.
    after: Option<String>,
    /// At most so many tenants
    #[param(value_type = Option<u16>, minimum = 1, maximum = 1000, default = 100, nullable = false)]
    limit: Option<u32>,
}

const PAGE: u32 = 100;
const LARGEST_PAGE: u32 = 1_000;

/// Show a change guard and what it holds back
///
/// The tenants whose resources differ, as sweeps and reconciles saw them in the last day, and what was seen of
/// each: so that a person can judge.
#[utoipa::path(get, path = "/guards/{upstream}", tag = "fleet", operation_id = "showGuard",
    params(("upstream" = String, Path, description = "`authentik`, `stalwart` or `ocis`",
        example = "authentik"), GuardParameters),
    responses((status = 200, description = "The guard", body = GuardDetail), Finding))]
pub async fn guard(
    State(store): State<Store>,
    Path(upstream): Path<String>,
    parameters: Result<Query<GuardParameters>, QueryRejection>,
) -> Result<Json<GuardDetail>, Problem> {
    let step = upstream_named(&upstream)?;
    let Query(page) = parameters.map_err(|error| Problem::bad_request(error.body_text()))?;
    let after = page.after.map(|after| after.parse()).transpose();
    let after = after.map_err(|_| Problem::bad_request("after: must be a tenant's id".to_owned()))?;
    let limit = page.limit.unwrap_or(PAGE);
    if !(1..=LARGEST_PAGE).contains(&limit) {
        let message = format!("limit: must be a whole number from 1 to {LARGEST_PAGE}");
        return Err(Problem::bad_request(message));
    }
    let found = store.drift(step, after, limit).await?;
    let full = found.len() == limit as usize;
    let next = found.last().filter(|_| full).map(|last| last.tenant.to_string());
    Ok(Json(GuardDetail {
        guard: GuardView::from(&store.controls().await?.guards[step]),
        tenants: store.count_drift(step).await?,
        items: found.into_iter().map(DriftView::from).collect(),
        next,
    }))
}

/// Lift a change guard
///
/// The repairs of the upstream begin at once, paced, and go on without bounds for an hour or until a sweep finds
/// it sane.
#[utoipa::path(post, path = "/guards/{upstream}/lift", tag = "fleet", operation_id = "liftGuard",
    params(("upstream" = String, Path, description = "`authentik`, `stalwart` or `ocis`",
        example = "authentik")),
    responses((status = 200, description = "The guard", body = GuardView), Deciding))]
pub async fn lift(Acting(store): Acting, Path(upstream): Path<String>) -> Result<Response, Problem> {
    let step = upstream_named(&upstream)?;
    if !store.lift_guard(step, LIFTED).await? {
        return Err(Problem::guard_not_tripped(step.name()));
    }
    let guard = store.controls().await?.guards[step].clone();
    Ok((StatusCode::OK, Json(GuardView::from(&guard))).into_response())
}

/// List orphans
///
/// Resources that are marked as a tenant's where there is no such tenant, as the latest sweeps saw them.
/// Nothing is done to them.
#[utoipa::path(get, path = "/orphans", tag = "fleet", operation_id = "listOrphans",
    responses((status = 200, description = "All of them", body = Orphans), Reading))]
pub async fn orphans(State(store): State<Store>) -> Result<Json<Orphans>, Problem> {
    let found = store.orphans().await?;
    let items = found.into_iter().map(|orphan| OrphanView {
        upstream: orphan.upstream.name(),
        external_id: orphan.external_id,
        name: orphan.name,
        tenant_id: orphan.tenant.to_string(),
        first_seen_at: orphan.first_seen_at,
        last_seen_at: orphan.last_seen_at,
        release: orphan.release.map(|message| ReleaseView { message }),
    });
    Ok(Json(Orphans { items: items.collect() }))
}

/// Release an orphan
///
/// Its tenant's document is lost, and it is marked as in use. Once it is released, a new tenant with
/// `"adopt": true` may take it over. The controller does that; until then it is listed with `release`.
#[utoipa::path(post, path = "/orphans/{upstream}/{id}/release", tag = "fleet",
    operation_id = "releaseOrphan",
    params(
        ("upstream" = String, Path, description = "`authentik`, `stalwart` or `ocis`", example = "ocis"),
        ("id" = String, Path, description = "Its `externalId`", example = "b"),
        ReleaseParameters,
    ),
    responses((status = 202, description = "It will be released"), Changing))]
pub async fn release_orphan(
    Acting(store): Acting,
    Path((upstream, id)): Path<(String, String)>,
    parameters: Result<Query<ReleaseParameters>, QueryRejection>,
) -> Result<StatusCode, Problem> {
    let step = upstream_named(&upstream)?;
    let Query(parameters) = parameters.map_err(|error| Problem::bad_request(error.body_text()))?;
    let invalid = |message: String| Problem::invalid(vec![FieldError { field: "slug".into(), message }]);
    let slug = parameters.slug.map(|slug| slug.parse()).transpose();
    let slug: Option<Slug> = slug.map_err(|error: InvalidSlug| invalid(error.to_string()))?;
    match store.ask_for_release(step, &id, slug.as_ref()).await? {
        Asked::Done => Ok(StatusCode::ACCEPTED),
        Asked::Missing => Err(Problem::no_orphan(step.name(), &id)),
        Asked::HasTenant => Err(Problem::has_tenant(&id)),
        Asked::NeedsSlug => {
            Err(invalid("is required: no history tells which slug the lost tenant had".to_owned()))
        }
    }
}

fn upstream_named(name: &str) -> Result<Upstream, Problem> {
    let step = Upstream::ALL.into_iter().find(|step| step.name() == name);
    step.ok_or_else(|| Problem::no_upstream(name))
}

fn scope(what: &str) -> Result<Scope, Problem> {
    if what == "all" {
        return Ok(Scope::Everything);
    }
    upstream_named(what).map(Scope::Upstream)
}
