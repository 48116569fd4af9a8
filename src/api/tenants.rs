//! `/tenants`: create, list, show, flag for reconcile.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::problem::{FieldError, Problem};
use super::representation::TenantView;
use crate::store::{NewTenant, PageQuery, Record, Store};
use crate::tenant::{DeletionPolicy, Phase, Slug};

/// Tenants on a page, unless asked otherwise, and at most.
const DEFAULT_LIMIT: u16 = 50;
const MAX_LIMIT: u16 = 500;

pub async fn create(State(store): State<Store>, new: NewTenant) -> Result<Response, Problem> {
    let created = store.insert(&new).await?;
    let record = created.ok_or_else(|| Problem::slug_taken(new.slug.as_str()))?;
    let location = format!("/tenants/{}", new.slug);
    let body = Json(TenantView::from(&record));
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], body).into_response())
}

pub async fn show(State(store): State<Store>, Named(slug): Named) -> Result<Json<TenantView>, Problem> {
    let found = store.get(&slug).await?;
    let record = found.ok_or_else(|| Problem::no_tenant(slug.as_str()))?;
    Ok(Json(TenantView::from(&record)))
}

/// Answer to a reconcile request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReconcileRequest {
    slug: String,
    /// Names this request: once the tenant's `lastHandledReconcileAt` equals it (or is later), the
    /// request has been acted on.
    token: Timestamp,
}

pub async fn reconcile(State(store): State<Store>, Named(slug): Named) -> Result<Response, Problem> {
    let requested = store.request_reconcile(&slug).await?;
    let token = requested.ok_or_else(|| Problem::no_tenant(slug.as_str()))?;
    let body = Json(ReconcileRequest { slug: slug.to_string(), token });
    Ok((StatusCode::ACCEPTED, body).into_response())
}

/// What should become of a deleted tenant's resources.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeletionParameters {
    policy: Option<String>,
    purge: Option<String>,
}

impl DeletionParameters {
    fn read(self) -> Result<DeletionPolicy, Problem> {
        let mut errors = Vec::new();
        let mut wrong = |field: &str, message: &str| {
            errors.push(FieldError { field: field.into(), message: message.into() });
        };
        let purge = match self.purge.as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => {
                wrong("purge", "must be true or false");
                false
            }
        };
        let policy = match (self.policy.as_deref(), purge) {
            (None | Some("retain"), false) => DeletionPolicy::Retain,
            (Some("delete"), false) => DeletionPolicy::Delete,
            (Some("delete"), true) => DeletionPolicy::Purge,
            (None | Some("retain"), true) => {
                wrong("purge", "purges what is deleted: it needs policy=delete");
                DeletionPolicy::Retain
            }
            (Some(_), _) => {
                wrong("policy", "must be retain or delete");
                DeletionPolicy::Retain
            }
        };
        if errors.is_empty() { Ok(policy) } else { Err(Problem::invalid(errors)) }
    }
}

/// Asks for a tenant's deletion. It is visible all along, and goes last.
pub async fn delete(
    State(store): State<Store>,
    Named(slug): Named,
    parameters: Result<Query<DeletionParameters>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(parameters) = parameters.map_err(|error| Problem::bad_request(error.body_text()))?;
    let asked = store.request_deletion(&slug, parameters.read()?).await?;
    accepted(&slug, asked)
}

pub async fn undelete(State(store): State<Store>, Named(slug): Named) -> Result<Response, Problem> {
    accepted(&slug, store.undelete(&slug).await?)
}

pub async fn pause(State(store): State<Store>, Named(slug): Named) -> Result<Response, Problem> {
    accepted(&slug, store.set_paused(&slug, true).await?)
}

pub async fn resume(State(store): State<Store>, Named(slug): Named) -> Result<Response, Problem> {
    accepted(&slug, store.set_paused(&slug, false).await?)
}

fn accepted(slug: &Slug, record: Option<Record>) -> Result<Response, Problem> {
    let record = record.ok_or_else(|| Problem::no_tenant(slug.as_str()))?;
    Ok((StatusCode::ACCEPTED, Json(TenantView::from(&record))).into_response())
}

/// Filters of a list. Numbers come as text, so that every mistake can be named in one answer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListParameters {
    status: Option<String>,
    limit: Option<String>,
    after: Option<String>,
}

/// A page of tenants in order of their slugs.
#[derive(Debug, Serialize)]
pub struct List {
    items: Vec<TenantView>,
    /// Give it as `after` for the next page; null on the last.
    next: Option<String>,
}

pub async fn list(
    State(store): State<Store>,
    parameters: Result<Query<ListParameters>, QueryRejection>,
) -> Result<Json<List>, Problem> {
    let Query(parameters) = parameters.map_err(|error| Problem::bad_request(error.body_text()))?;
    let page = store.list(&parameters.read()?).await?;
    Ok(Json(List { items: page.records.iter().map(TenantView::from).collect(), next: page.next }))
}

impl ListParameters {
    fn read(self) -> Result<PageQuery, Problem> {
        let mut errors = Vec::new();
        let mut wrong = |field: &str, message: String| {
            errors.push(FieldError { field: field.into(), message });
        };
        let phase = self.status.and_then(|status| {
            let phase = status.parse::<Phase>();
            if phase.is_err() {
                wrong("status", format!("must be one of {}", Phase::ALL.map(Phase::name).join(", ")));
            }
            phase.ok()
        });
        let limit = self.limit.map_or(DEFAULT_LIMIT, |limit| match limit.parse() {
            Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => limit,
            _ => {
                wrong("limit", format!("must be a whole number from 1 to {MAX_LIMIT}"));
                DEFAULT_LIMIT
            }
        });
        if errors.is_empty() {
            Ok(PageQuery { phase, after: self.after, limit })
        } else {
            Err(Problem::invalid(errors))
        }
    }
}

/// The tenant that the path names. A text that cannot be a slug is no tenant's.
pub struct Named(pub Slug);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| Problem::bad_request(error.body_text()))?;
        text.parse().map(Self).map_err(|_| Problem::no_tenant(&text))
    }
}
