//! `/tenants`: create, list, show, flag for reconcile.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRef, FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::etag::{single, single_now};
use super::fields::Steps;
use super::openapi::{Changing, Creating, Editing, Finding, NewTenantBody, Prefer, StepsBody};
use super::problem::{FieldError, Problem};
use super::representation::TenantView;
use super::upstreams::Upstreams;
use super::wait::{Subject, Wait, acted_on, handled};
use crate::auth::Principal;
use crate::store::{IdempotencyKey, Inserted, NewTenant, Record, Requested, Store};
use crate::tenant::{DeletionPolicy, Slug};

/// Create a tenant
///
/// It begins as `pending`, and becomes `active` once every service was observed to match.
#[utoipa::path(post, path = "/tenants", tag = "tenants", operation_id = "createTenant",
    params(("Idempotency-Key" = Option<String>, Header, description = "Names this creation, so that it \
        may be repeated: the same key and body give the same answer. It holds as long as the tenant",
        nullable = false, min_length = 1, max_length = 128, pattern = "^[!-~]+$"),
        Prefer),
    request_body = NewTenantBody,
    responses(
        (status = 201, description = "The tenant", body = TenantView,
            headers(("Location" = String), ("ETag" = String, description = "Version of its desired state"))),
        Creating,
    ))]
pub async fn create(
    Acting(store): Acting,
    OnlyOnce(key): OnlyOnce,
    wait: Wait,
    new: NewTenant,
) -> Result<Response, Problem> {
    let store = wait.noted_by(&store);
    let taken = || Problem::slug_taken(new.slug.as_str());
    let record = match key {
        None => store.insert(&new).await?.ok_or_else(taken)?,
        Some(key) => match store.insert_once(&new, &key).await? {
            Inserted::Created(record) | Inserted::Repeated(record) => record,
            Inserted::KeyReused => return Err(Problem::key_reused()),
            Inserted::SlugTaken => return Err(taken()),
        },
    };
    let waited = wait.until(&store, &new.slug, &Subject::from(&record), acted_on).await;
    let location = location(&format!("tenants/{}", new.slug));
    let mut response = created(location, waited.record.as_ref().unwrap_or(&record));
    waited.mark(&mut response);
    Ok(response)
}

/// Where a new tenant is.
pub type Location = [(HeaderName, String); 1];

/// Relative to the address that was asked (RFC 9110, section 10.2.2): a proxy may have taken a prefix off the
/// path, and only the client knows it.
pub fn location(relative: &str) -> Location {
    [(header::LOCATION, relative.to_owned())]
}

/// The answer to a creation.
pub fn created(location: Location, record: &Record) -> Response {
    (StatusCode::CREATED, location, single(record)).into_response()
}

/// Show a tenant
///
/// With the state of each step, and whether it matches its desired state now.
#[utoipa::path(get, path = "/tenants/{slug}", tag = "tenants", operation_id = "showTenant",
    params(("slug" = String, Path, description = "Of the tenant", example = "acme")),
    responses(
        (status = 200, description = "The tenant", body = TenantView,
            headers(("ETag" = String, description = "Version of its desired state"))),
        Finding,
    ))]
pub async fn show(
    State(store): State<Store>,
    State(upstreams): State<Upstreams>,
    Named(slug): Named,
) -> Result<Response, Problem> {
    let found = store.get(&slug).await?;
    let record = found.ok_or_else(|| Problem::no_tenant(slug.as_str()))?;
    Ok(single_now(&record, &upstreams.probes()).into_response())
}

/// Answer to a reconcile request.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReconcileRequest {
    slug: String,
    /// Names this request: once the tenant's `lastHandledReconcileAt` equals it (or is later), the
    /// request has been acted on.
    token: Timestamp,
}

/// Ask for a reconcile now
///
/// Of all steps, or of those that the body names.
#[utoipa::path(post, path = "/tenants/{slug}/reconcile", tag = "tenants", operation_id = "reconcileTenant",
    params(
        ("slug" = String, Path, description = "Of the tenant", example = "acme"),
        Prefer,
    ),
    request_body = Option<StepsBody>,
    responses(
        (status = 202, description = "It will be done", body = ReconcileRequest),
        (status = 200, description = "It was done while the request waited: the tenant", body = TenantView),
        Editing,
    ))]
pub async fn reconcile(
    Acting(store): Acting,
    Named(slug): Named,
    wait: Wait,
    Steps(steps): Steps,
) -> Result<Response, Problem> {
    let requested = wait.noted_by(&store).request_reconcile_of(&slug, &steps).await?;
    let Requested { at: token, id } = requested.ok_or_else(|| Problem::no_tenant(slug.as_str()))?;
    let waited = wait.until(&store, &slug, &Subject::Id(id), |tenant| handled(tenant, token)).await;
    if waited.gone {
        return Err(Problem::removed(slug.as_str()));
    }
    let mut response = match &waited.record {
        Some(record) if waited.settled => single(record).into_response(),
        _ => {
            let body = Json(ReconcileRequest { slug: slug.to_string(), token });
            (StatusCode::ACCEPTED, body).into_response()
        }
    };
    waited.mark(&mut response);
    Ok(response)
}

/// What should become of a deleted tenant's resources.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct DeletionParameters {
    /// `retain` releases the resources, which then belong to no tenant; `delete` removes them
    #[param(pattern = "^(retain|delete)$", default = "retain", nullable = false)]
    policy: Option<String>,
    /// With `policy=delete`: also remove what still holds people's data
    #[param(value_type = Option<bool>, default = false, nullable = false)]
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

/// Delete a tenant
///
/// Its resources go first, or are released; the tenant is visible all along as `deleting`, and goes last. Who
/// waits for it (`Prefer: wait`) is answered as soon as it is gone, or cannot go yet.
#[utoipa::path(delete, path = "/tenants/{slug}", tag = "tenants", operation_id = "deleteTenant",
    params(
        ("slug" = String, Path, description = "Of the tenant", example = "acme"),
        DeletionParameters,
        Prefer,
    ),
    responses(
        (status = 202, description = "It will be done", body = TenantView),
        (status = 204, description = "It was done while the request waited: the tenant is gone"),
        Changing,
    ))]
pub async fn delete(
    Acting(store): Acting,
    Named(slug): Named,
    wait: Wait,
    parameters: Result<Query<DeletionParameters>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(parameters) = parameters.map_err(|error| Problem::bad_request(error.body_text()))?;
    let store = wait.noted_by(&store);
    let asked = store.request_deletion(&slug, parameters.read()?).await?;
    let record = asked.ok_or_else(|| Problem::no_tenant(slug.as_str()))?;
    if let Record::Invalid(invalid) = &record {
        return Err(Problem::not_deletable(&invalid.id));
    }
    let waited = wait.until(&store, &slug, &Subject::from(&record), acted_on).await;
    let mut response = if waited.gone {
        StatusCode::NO_CONTENT.into_response()
    } else {
        let record = waited.record.as_ref().unwrap_or(&record);
        (StatusCode::ACCEPTED, Json(TenantView::from(record))).into_response()
    };
    waited.mark(&mut response);
    Ok(response)
}

/// Keep a tenant that was to be deleted
///
/// What was removed already is made again, empty; what was released is taken back.
#[utoipa::path(post, path = "/tenants/{slug}/undelete", tag = "tenants", operation_id = "undeleteTenant",
    params(("slug" = String, Path, description = "Of the tenant", example = "acme")),
    responses((status = 202, description = "It will be done", body = TenantView), Changing))]
pub async fn undelete(Acting(store): Acting, Named(slug): Named) -> Result<Response, Problem> {
    accepted(&slug, store.undelete(&slug).await?)
}

/// Pause a tenant
///
/// It is still observed, and nothing is changed.
#[utoipa::path(post, path = "/tenants/{slug}/pause", tag = "tenants", operation_id = "pauseTenant",
    params(("slug" = String, Path, description = "Of the tenant", example = "acme")),
    responses((status = 202, description = "It will be done", body = TenantView), Changing))]
pub async fn pause(Acting(store): Acting, Named(slug): Named) -> Result<Response, Problem> {
    accepted(&slug, store.set_paused(&slug, true).await?)
}

/// Resume a paused tenant
#[utoipa::path(post, path = "/tenants/{slug}/resume", tag = "tenants", operation_id = "resumeTenant",
    params(("slug" = String, Path, description = "Of the tenant", example = "acme")),
    responses((status = 202, description = "It will be done", body = TenantView), Changing))]
pub async fn resume(Acting(store): Acting, Named(slug): Named) -> Result<Response, Problem> {
    accepted(&slug, store.set_paused(&slug, false).await?)
}

fn accepted(slug: &Slug, record: Option<Record>) -> Result<Response, Problem> {
    let record = record.ok_or_else(|| Problem::no_tenant(slug.as_str()))?;
    Ok((StatusCode::ACCEPTED, Json(TenantView::from(&record))).into_response())
}

/// The store, in the name of the caller.
pub struct Acting(pub Store);

impl<S: Send + Sync> FromRequestParts<S> for Acting
where
    Store: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let who = parts.extensions.get::<Principal>().and_then(Principal::label);
        Ok(Self(Store::from_ref(state).on_behalf_of(who)))
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

/// The request's `Idempotency-Key`, if it has one.
pub struct OnlyOnce(Option<IdempotencyKey>);

impl<S: Send + Sync> FromRequestParts<S> for OnlyOnce {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut given = parts.headers.get_all("idempotency-key").iter();
        let Some(key) = given.next() else { return Ok(Self(None)) };
        let key = key.to_str().ok().filter(|_| given.next().is_none()).map(str::parse);
        match key {
            Some(Ok(key)) => Ok(Self(Some(key))),
            Some(Err(error)) => Err(Problem::bad_request(format!("Idempotency-Key {error}"))),
            None => Err(Problem::bad_request("Idempotency-Key must be one key, in visible ASCII")),
        }
    }
}
