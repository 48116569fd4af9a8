//! `/tenants/{slug}/events`: what happened to a tenant, also after it is gone; `/events`: to the fleet.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::openapi::{Listing, Searching};
use super::problem::{FieldError, Problem};
use super::tenants::Named;
use crate::store::{KEPT, Store};
use crate::tenant::{Event, EventKind, Reason, Upstream};

const DEFAULT_LIMIT: usize = 50;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct EventParameters {
    /// Events at most
    #[param(value_type = Option<u16>, minimum = 1, maximum = 100, default = 50, nullable = false)]
    limit: Option<String>,
}

/// One entry of a history.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventView {
    at: Timestamp,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    message: String,
    /// Who asked for it, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
}

/// The newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct Events {
    items: Vec<EventView>,
}

/// List what happened to a tenant
///
/// Also after it is gone.
#[utoipa::path(get, path = "/tenants/{slug}/events", tag = "tenants", operation_id = "listEvents",
    params(("slug" = String, Path, description = "Of the tenant", example = "acme"), EventParameters),
    responses((status = 200, description = "The newest first", body = Events), Searching))]
pub async fn list(
    State(store): State<Store>,
    Named(slug): Named,
    parameters: Result<Query<EventParameters>, QueryRejection>,
) -> Result<Json<Events>, Problem> {
    let events = store.events(&slug, limit(parameters)?).await?;
    if events.is_empty() && store.get(&slug).await?.is_none() {
        return Err(Problem::no_tenant(slug.as_str()));
    }
    Ok(Json(Events::from(events)))
}

/// List what happened to the fleet
///
/// Stops, change guards, orphans.
#[utoipa::path(get, path = "/events", tag = "fleet", operation_id = "listFleetEvents",
    params(EventParameters),
    responses((status = 200, description = "The newest first", body = Events), Listing))]
pub async fn of_fleet(
    State(store): State<Store>,
    parameters: Result<Query<EventParameters>, QueryRejection>,
) -> Result<Json<Events>, Problem> {
    Ok(Json(Events::from(store.fleet_events(limit(parameters)?).await?)))
}

fn limit(parameters: Result<Query<EventParameters>, QueryRejection>) -> Result<usize, Problem> {
    let Query(parameters) = parameters.map_err(|error| Problem::bad_request(error.body_text()))?;
    let most = usize::try_from(KEPT).unwrap_or(DEFAULT_LIMIT);
    match parameters.limit.map(|limit| limit.parse::<usize>()) {
        None => Ok(DEFAULT_LIMIT),
        Some(Ok(limit)) if (1..=most).contains(&limit) => Ok(limit),
        Some(_) => {
            let message = format!("must be a whole number from 1 to {most}");
            Err(Problem::invalid(vec![FieldError { field: "limit".into(), message }]))
        }
    }
}

impl From<Vec<Event>> for Events {
    fn from(events: Vec<Event>) -> Self {
        Self { items: events.into_iter().map(EventView::from).collect() }
    }
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        Self {
            at: event.at,
            r#type: EventKind::name(event.kind),
            step: event.step.map(Upstream::name),
            reason: event.reason.map(Reason::name),
            message: event.message,
            by: event.by,
        }
    }
}
