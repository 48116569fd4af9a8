//! `PATCH` and `PUT` of one tenant's desired state.

use axum::response::{IntoResponse, Response};

use super::etag::{Conditions, Tags, single};
use super::fields::{Patch, Replacement};
use super::openapi::{Editing, PatchBody, Prefer, ReplacementBody};
use super::problem::Problem;
use super::representation::TenantView;
use super::tenants::{Acting, Named, created};
use super::wait::{Wait, acted_on};
use crate::store::{Edit, Edited, Record, Store};
use crate::tenant::Slug;

/// Edit a tenant
///
/// A JSON merge patch (RFC 7396): fields that it does not name stay, `null` removes. `generation` counts
/// up if that changes anything.
#[utoipa::path(patch, path = "/tenants/{slug}", tag = "tenants", operation_id = "editTenant",
    params(
        ("slug" = String, Path, description = "Of the tenant", example = "acme"),
        Prefer,
        ("If-Match" = Option<String>, Header, description = "Only if it is still this version (`ETag`)",
            nullable = false, pattern = r#"^(\*|(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*)$"#),
    ),
    request_body(content((PatchBody = "application/merge-patch+json"), (PatchBody = "application/json"))),
    responses(
        (status = 200, description = "The tenant", body = TenantView,
            headers(("ETag" = String, description = "Version of its desired state"))),
        Editing,
    ))]
pub async fn patch(
    Acting(store): Acting,
    Named(slug): Named,
    conditions: Conditions,
    wait: Wait,
    Patch(edit): Patch,
) -> Result<Response, Problem> {
    if conditions.if_absent {
        return Err(Problem::bad_request("If-None-Match: * is for PUT; a PATCH needs a tenant"));
    }
    let store = wait.noted_by(&store);
    match change(&store, &slug, &edit, &conditions).await? {
        Edited::Done(record) => Ok(settled(&store, &slug, wait, record, false).await),
        Edited::Missing => Err(Problem::no_tenant(slug.as_str())),
        Edited::Leaving => Err(Problem::leaving(slug.as_str())),
        Edited::Unexpected => Err(no_longer(&slug)),
    }
}

/// Create or replace a tenant
///
/// For scripts and GitOps: it may be repeated, and what does not differ is no change.
#[utoipa::path(put, path = "/tenants/{slug}", tag = "tenants", operation_id = "putTenant",
    params(
        ("slug" = String, Path, description = "Of the tenant", example = "acme",
            max_length = 63, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
        Prefer,
        ("If-Match" = Option<String>, Header, description = "Only if it is still this version (`ETag`)",
            nullable = false, pattern = r#"^(\*|(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*)$"#),
        ("If-None-Match" = Option<String>, Header, description = "`*`: only if there is none yet",
            nullable = false, pattern = r"^\*$"),
    ),
    request_body = ReplacementBody,
    responses(
        (status = 200, description = "The tenant, which was there", body = TenantView,
            headers(("ETag" = String, description = "Version of its desired state"))),
        (status = 201, description = "The tenant, which is new", body = TenantView,
            headers(("Location" = String), ("ETag" = String, description = "Version of its desired state"))),
        Editing,
    ))]
pub async fn put(
    Acting(store): Acting,
    Named(slug): Named,
    conditions: Conditions,
    wait: Wait,
    replacement: Replacement,
) -> Result<Response, Problem> {
    let new = replacement.of(slug)?;
    let slug = &new.slug;
    let store = wait.noted_by(&store);
    match &conditions {
        Conditions { if_match: Some(_), if_absent: true } => {
            Err(Problem::bad_request("If-Match and If-None-Match: * contradict each other"))
        }
        Conditions { if_absent: true, .. } => {
            let present = || {
                Problem::precondition_failed(format!("there is a tenant {:?} already", slug.as_str()))
            };
            let record = store.insert(&new).await?.ok_or_else(present)?;
            Ok(settled(&store, slug, wait, record, true).await)
        }
        Conditions { if_match: Some(_), .. } => {
            let edit = Edit::replace(&new.desired);
            match change(&store, slug, &edit, &conditions).await? {
                Edited::Done(record) => Ok(settled(&store, slug, wait, record, false).await),
                Edited::Missing => {
                    let detail = "If-Match needs a tenant, and there is none";
                    Err(Problem::precondition_failed(detail))
                }
                Edited::Leaving => Err(Problem::leaving(slug.as_str())),
                Edited::Unexpected => Err(no_longer(slug)),
            }
        }
        Conditions { if_match: None, if_absent: false } => {
            let put = store.put(&new).await?.ok_or_else(|| Problem::leaving(slug.as_str()))?;
            Ok(settled(&store, slug, wait, put.record, put.created).await)
        }
    }
}

async fn change(
    store: &Store,
    slug: &Slug,
    edit: &Edit,
    conditions: &Conditions,
) -> Result<Edited, Problem> {
    Ok(match &conditions.if_match {
        // That it must exist goes without saying.
        None | Some(Tags::Any) => store.edit(slug, edit).await?,
        Some(tags) => store.edit_if(slug, edit, |record| tags.hold(record)).await?,
    })
}

fn no_longer(slug: &Slug) -> Problem {
    Problem::precondition_failed(format!(
        "the tenant {:?} is not what If-Match names: somebody changed it. Read it again, and repeat the \
         edit if it is still what you want",
        slug.as_str()
    ))
}

/// The answer, at once or when the tenant has settled.
async fn settled(store: &Store, slug: &Slug, wait: Wait, record: Record, new: bool) -> Response {
    let waited = wait.until(store, slug, Some(&record), acted_on).await;
    let record = waited.record.as_ref().unwrap_or(&record);
    let mut response = if new { created(slug, record) } else { single(record).into_response() };
    waited.mark(&mut response);
    response
}
