//! `PATCH` and `PUT` of one tenant's desired state.

use axum::response::{IntoResponse, Response};

use super::etag::{Conditions, Tags, single};
use super::fields::{Patch, Replacement};
use super::openapi::{Editing, PatchBody, Prefer, ReplacementBody};
use super::problem::Problem;
use super::representation::TenantView;
use super::tenants::{Acting, Location, Named, created, location};
use super::wait::{Subject, Wait, acted_on};
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
        Edited::Done(record) => Ok(settled(&store, &slug, wait, record, None).await),
        Edited::Missing => Err(Problem::no_tenant(slug.as_str())),
        Edited::Leaving => Err(Problem::leaving(slug.as_str())),
        Edited::Unexpected => Err(no_longer(&slug, &conditions)),
    }
}

/// Create or replace a tenant
///
/// For scripts and GitOps: it may be repeated, and what does not differ is no change. Absent fields get their
/// defaults, but for `paused`, which stays as it is: a tenant that was paused in an emergency stays paused when
/// its description is applied again.
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
    let (new, edit) = replacement.of(slug)?;
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
            let location = location(slug.as_str());
            Ok(settled(&store, slug, wait, record, Some(location)).await)
        }
        Conditions { if_match: Some(_), .. } => match change(&store, slug, &edit, &conditions).await? {
            Edited::Done(record) => Ok(settled(&store, slug, wait, record, None).await),
            Edited::Missing => {
                let detail = "If-Match needs a tenant, and there is none";
                Err(Problem::precondition_failed(detail))
            }
            Edited::Leaving => Err(Problem::leaving(slug.as_str())),
            Edited::Unexpected => Err(no_longer(slug, &conditions)),
        },
        Conditions { if_match: None, if_absent: false } => {
            let put = store.put(&new, &edit).await?.ok_or_else(|| Problem::leaving(slug.as_str()))?;
            let location = put.created.then(|| location(slug.as_str()));
            Ok(settled(&store, slug, wait, put.record, location).await)
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

fn no_longer(slug: &Slug, conditions: &Conditions) -> Problem {
    let slug = slug.as_str();
    Problem::precondition_failed(if conditions.if_match.as_ref().is_some_and(Tags::are_weak) {
        format!(
            "If-Match names only weak tags (W/\"…\"), which never match (RFC 9110, section 13.1.1): the tenant \
             {slug:?} was not compared. A proxy that compresses makes tags weak; send the tag without W/"
        )
    } else {
        format!(
            "the tenant {slug:?} is not what If-Match names: it was changed meanwhile. Read it again, and repeat \
             the edit if it is still what you want"
        )
    })
}

/// The answer, at once or when the tenant has settled; with a location if it is new.
async fn settled(
    store: &Store,
    slug: &Slug,
    wait: Wait,
    record: Record,
    new: Option<Location>,
) -> Response {
    let waited = wait.until(store, slug, &Subject::from(&record), acted_on).await;
    let record = waited.record.as_ref().unwrap_or(&record);
    let mut response = match new {
        Some(location) => created(location, record),
        None => single(record).into_response(),
    };
    waited.mark(&mut response);
    response
}
