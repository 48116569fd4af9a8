//! `GET /tenants`: pages of tenants, and what they are filtered by.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::openapi::Listing;
use super::problem::{FieldError, Problem};
use super::representation::TenantView;
use super::upstreams::Upstreams;
use crate::store::{PageQuery, Store};
use crate::tenant::{PerStep, Phase, Reason, StepState, Upstream};

/// Tenants on a page, unless asked otherwise, and at most.
const DEFAULT_LIMIT: u16 = 50;
const MAX_LIMIT: u16 = 500;
/// The longest search text, in characters.
const LONGEST_SEARCH: usize = 100;

/// Filters of a list; all of them must hold. They come as text, so that every mistake can be named in one answer.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListParameters {
    /// Only tenants with this status
    #[param(pattern = "^(pending|active|deleting)$", nullable = false)]
    status: Option<String>,
    /// Only tenants that are as they should be now, or only those that are not
    #[param(pattern = "^(true|false)$", nullable = false)]
    ready: Option<String>,
    /// Only tenants that are not ready for this reason, or of which a step has it, such as `Conflict`
    #[param(nullable = false)]
    reason: Option<String>,
    /// Only tenants whose step is in this state
    #[serde(rename = "step.authentik")]
    #[param(pattern = "^(pending|ok|skipped|error)$", nullable = false)]
    authentik: Option<String>,
    /// Only tenants whose step is in this state
    #[serde(rename = "step.stalwart")]
    #[param(pattern = "^(pending|ok|skipped|error)$", nullable = false)]
    stalwart: Option<String>,
    /// Only tenants whose step is in this state
    #[serde(rename = "step.ocis")]
    #[param(pattern = "^(pending|ok|skipped|error)$", nullable = false)]
    ocis: Option<String>,
    /// Only tenants that have this in their slug, name or domain, in whatever case
    #[param(min_length = 1, max_length = 100, nullable = false)]
    q: Option<String>,
    /// Tenants on a page, at most: what turns out not to be meant is left out
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500, default = 50, nullable = false)]
    limit: Option<String>,
    /// Slugs after this one: the page before says it as `next`
    #[param(nullable = false)]
    after: Option<String>,
}

/// A page of tenants in order of their slugs.
#[derive(Debug, Serialize, ToSchema)]
pub struct List {
    items: Vec<TenantView>,
    /// Give it as `after` for the next page; null on the last.
    next: Option<String>,
}

/// List tenants, in order of their slugs
///
/// `ready=false` is the list of what is wrong. A tenant that no controller has looked at yet is not ready.
#[utoipa::path(get, path = "/tenants", tag = "tenants", operation_id = "listTenants",
    params(ListParameters),
    responses((status = 200, description = "A page", body = List), Listing))]
pub async fn list(
    State(store): State<Store>,
    State(upstreams): State<Upstreams>,
    parameters: Result<Query<ListParameters>, QueryRejection>,
) -> Result<Json<List>, Problem> {
    let Query(parameters) = parameters.map_err(|error| Problem::bad_request(error.body_text()))?;
    let query = parameters.read()?;
    let page = store.list(&query).await?;
    let probes = upstreams.probes();
    let items = page.records.iter().map(|record| TenantView::now(record, &probes));
    let items = items.filter(|tenant| is_meant(tenant, &query)).collect();
    Ok(Json(List { items, next: page.next }))
}

/// Whether what is shown of a tenant is what the list was filtered by: what is recorded of it may be of an earlier
/// desired state.
fn is_meant(tenant: &TenantView, query: &PageQuery) -> bool {
    let is = |wanted: Option<&'static str>, shown: &str| wanted.is_none_or(|wanted| wanted == shown);
    // An invalid document is listed under the status that is recorded in it, and shown as `invalid`.
    let phase = tenant.is_invalid() || is(query.phase.map(Phase::name), tenant.status());
    let ready = query.ready.is_none_or(|ready| ready == tenant.is_ready());
    let reason = query.reason.is_none_or(|reason| tenant.reasons().any(|shown| shown == reason.name()));
    let mut steps = Upstream::ALL.into_iter();
    let steps = steps.all(|step| is(query.steps[step].map(StepState::name), tenant.state(step)));
    phase && ready && reason && steps
}

/// Mistakes in the parameters of a request.
#[derive(Default)]
struct Mistakes(Vec<FieldError>);

impl Mistakes {
    fn wrong(&mut self, field: &str, message: String) {
        self.0.push(FieldError { field: field.into(), message });
    }

    /// The value of that name, out of all that there are.
    fn one_of<T: Copy>(
        &mut self,
        field: &str,
        given: Option<&String>,
        all: &[T],
        name: impl Fn(T) -> &'static str,
    ) -> Option<T> {
        let given = given?;
        let found = all.iter().copied().find(|one| name(*one) == given);
        if found.is_none() {
            let names: Vec<_> = all.iter().map(|one| name(*one)).collect();
            self.wrong(field, format!("must be one of {}", names.join(", ")));
        }
        found
    }
}

impl ListParameters {
    fn read(self) -> Result<PageQuery, Problem> {
        let mut mistakes = Mistakes::default();
        let phase = mistakes.one_of("status", self.status.as_ref(), &Phase::ALL, Phase::name);
        let flag = |on: bool| if on { "true" } else { "false" };
        let ready = mistakes.one_of("ready", self.ready.as_ref(), &[true, false], flag);
        let reason = mistakes.one_of("reason", self.reason.as_ref(), Reason::ALL, Reason::name);
        let steps = PerStep::from_fn(|step| {
            let given = match step {
                Upstream::Authentik => &self.authentik,
                Upstream::Stalwart => &self.stalwart,
                Upstream::Ocis => &self.ocis,
            };
            mistakes.one_of(&format!("step.{step}"), given.as_ref(), &StepState::ALL, StepState::name)
        });
        if self.q.as_ref().is_some_and(|text| text.is_empty() || text.chars().count() > LONGEST_SEARCH) {
            mistakes.wrong("q", format!("must be a text of 1 to {LONGEST_SEARCH} characters"));
        }
        let limit = self.limit.map_or(DEFAULT_LIMIT, |limit| match limit.parse() {
            Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => limit,
            _ => {
                mistakes.wrong("limit", format!("must be a whole number from 1 to {MAX_LIMIT}"));
                DEFAULT_LIMIT
            }
        });
        if !mistakes.0.is_empty() {
            return Err(Problem::invalid(mistakes.0));
        }
        Ok(PageQuery { phase, ready, reason, steps, search: self.q, after: self.after, limit })
    }
}
