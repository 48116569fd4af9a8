//! `/tenants/{slug}/plan`: what a reconcile would do now. It is read from what is recorded; a caller who wants it
//! fresh has the controller look.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::Readiness;
use super::openapi::Deciding;
use super::problem::Problem;
use super::tenants::Named;
use super::wait::{Subject, Wait};
use crate::auth::{Principal, Role};
use crate::store::{Record, Requested, Store};
use crate::tenant::{Action, PlannedField, Reason, Tenant, Upstream, plan};

/// What a reconcile would do now.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanView {
    slug: String,
    generation: i64,
    /// Steps that something would be done about, as far as that is known.
    changes: usize,
    /// Whether the upstreams were looked at for this answer. Else it is from what was recorded before.
    looked: bool,
    steps: BTreeMap<&'static str, StepPlanView>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct StepPlanView {
    /// What would be done: `none`, `create`, `update`, `switchOff`, `release`, `delete`, `purge`;
    /// `look` where only a look at the upstream can tell.
    action: &'static str,
    /// Why it is not done now: `Paused`, `Stopped`, `ChangeGuard` or `NotConfigured`.
    held_back: Option<&'static str>,
    external_id: Option<String>,
    /// When the upstream was last looked at successfully, or in vain where `message` says so.
    observed_at: Option<Timestamp>,
    fields: Vec<FieldView>,
    /// Why it could not be looked at, or what went wrong.
    message: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct FieldView {
    /// By the upstream's name, where the observation is one that a plan asked for; else by the tenant's.
    field: String,
    /// As it was last observed; null where nothing was.
    observed: Option<String>,
    /// Null where it stays as it is.
    desired: Option<String>,
    /// `keep`, `set` (there is none yet) or `change`.
    action: &'static str,
}

/// Show what a reconcile would do now
///
/// Field by field, from the latest observation. No upstream is asked, unless with `Prefer: wait` by a caller
/// who may reconcile: then the controller looks first, and changes nothing that it would not change anyway.
#[utoipa::path(get, path = "/tenants/{slug}/plan", tag = "tenants", operation_id = "planTenant",
    params(
        ("slug" = String, Path, description = "Of the tenant", example = "acme"),
        ("Prefer" = Option<String>, Header, description = "`wait=10`: have the upstreams looked at, and \
            answer when they were, or after so many seconds, at most 60. `Preference-Applied` says whether \
            it was heeded",
            nullable = false, example = "wait=10"),
    ),
    responses((status = 200, description = "The plan", body = PlanView), Deciding))]
pub async fn show(
    State(store): State<Store>,
    State(readiness): State<Readiness>,
    principal: Option<Extension<Principal>>,
    Named(slug): Named,
    wait: Wait,
) -> Result<Response, Problem> {
    let unknown = || Problem::no_tenant(slug.as_str());
    let sensible = |record: &Record| match record {
        Record::Tenant(_) => Ok(()),
        Record::Invalid(invalid) => Err(Problem::invalid_document(&invalid.to_string())),
    };
    let mut seen = None;
    let mut waited = None;
    // A caller who may only read causes no work.
    let may_ask = principal.is_some_and(|Extension(principal)| principal.may(Role::Operator));
    if may_ask && wait.is_granted() {
        sensible(&store.get(&slug).await?.ok_or_else(unknown)?)?;
        let requested = wait.noted_by(&store).request_observation(&slug).await?;
        let Requested { at, id } = requested.ok_or_else(unknown)?;
        let looked = |tenant: &Tenant| tenant.status.last_handled_reconcile_at >= Some(at);
        let found = wait.until(&store, &slug, &Subject::Id(id), looked).await;
        if found.gone {
            return Err(Problem::removed(slug.as_str()));
        }
        seen.clone_from(&found.record);
        waited = Some(found);
    }
    let record = match seen {
        Some(record) => record,
        None => store.get(&slug).await?.ok_or_else(unknown)?,
    };
    sensible(&record)?;
    let Record::Tenant(tenant) = &record else { return Err(unknown()) };
    let looked = waited.as_ref().is_some_and(|waited| waited.settled);
    let plan = PlanView::new(tenant, looked, &readiness);
    let mut response = Json(plan).into_response();
    if let Some(waited) = waited {
        waited.mark(&mut response);
    }
    Ok(response)
}

impl PlanView {
    fn new(tenant: &Tenant, looked: bool, readiness: &Readiness) -> Self {
        let controls = readiness.controls.borrow();
        let upstreams = readiness.upstreams.borrow();
        let steps: BTreeMap<_, _> = Upstream::ALL
            .into_iter()
            .map(|step| {
                let plan = plan(tenant, step, upstreams[step].is_some(), &controls);
                let view = StepPlanView {
                    action: plan.action.name(),
                    held_back: plan.held_back.map(Reason::name),
                    external_id: tenant.status.steps[step].external_id.clone(),
                    observed_at: plan.observed_at,
                    fields: plan.fields.into_iter().map(FieldView::from).collect(),
                    message: plan.message,
                };
                (step.name(), view)
            })
            .collect();
        let quiet = [Action::Nothing, Action::Look].map(Action::name);
        let changes = steps.values().filter(|step| !quiet.contains(&step.action)).count();
        Self { slug: tenant.slug.to_string(), generation: tenant.generation, changes, looked, steps }
    }
}

impl From<PlannedField> for FieldView {
    fn from(field: PlannedField) -> Self {
        let action = match (&field.observed, field.changes()) {
            (_, false) => "keep",
            (None, true) => "set",
            (Some(_), true) => "change",
        };
        let PlannedField { name, observed, desired } = field;
        Self { field: name.into_owned(), observed, desired, action }
    }
}
