//! A tenant as the API shows it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::store::{InvalidDocument, Record};
use crate::tenant::{
    Origin, OtherResource, PerStep, Phase, Reason, StepState, StepStatus, Tenant, Upstream,
};

/// One tenant, whether its document makes sense or not.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum TenantView {
    Tenant(Box<ValidTenant>),
    Invalid(InvalidTenant),
}

/// Names and meanings are the document's (see docs/document.md); times are RFC 3339 in UTC.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ValidTenant {
    id: String,
    slug: String,
    name: String,
    domain: Option<String>,
    quota: Quota,
    services: BTreeMap<&'static str, bool>,
    /// Whether it is only looked at.
    paused: bool,
    /// Whether it may take over what was not made for it; null leaves that to the setting ADOPT_UNMARKED.
    adopt: Option<bool>,
    /// Set while the tenant is to go.
    #[serde(skip_serializing_if = "Option::is_none")]
    deletion: Option<DeletionView>,
    status: &'static str,
    provisioning_status: BTreeMap<&'static str, &'static str>,
    provisioning_errors: BTreeMap<&'static str, String>,
    steps: BTreeMap<&'static str, StepView>,
    conditions: Vec<ConditionView>,
    generation: i64,
    observed_generation: Option<i64>,
    reconcile_requested_at: Option<Timestamp>,
    last_handled_reconcile_at: Option<Timestamp>,
    /// Absent while the tenant is due.
    next_reconcile_at: Option<Timestamp>,
    created_at: Timestamp,
    updated_at: Option<Timestamp>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Quota {
    /// Bytes; 0 is unlimited; null is no quota of ours.
    storage_bytes: Option<i64>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct DeletionView {
    policy: &'static str,
    requested_at: Option<Timestamp>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct StepView {
    state: &'static str,
    reason: Option<&'static str>,
    message: Option<String>,
    external_id: Option<String>,
    /// How the resource came to be the tenant's: `created` or `adopted`.
    origin: Option<&'static str>,
    /// What an adopted resource said before, by field; it says that again once it is let go.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<BTreeMap<String, Option<String>>>,
    /// Other resources that carry the tenant's mark as in use, as the latest sweep saw them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    others: Vec<OtherView>,
    attempts: u32,
    last_attempt_at: Option<Timestamp>,
    last_transition_at: Option<Timestamp>,
    /// When the step is tried again by itself; null is now, or, while it waits for its upstream, when that works.
    next_attempt_at: Option<Timestamp>,
    /// Since when a step that is `ok` waits for something that its upstream has yet to learn; the message says for
    /// what.
    awaits_since: Option<Timestamp>,
    /// Set while the step waits for its upstream to work.
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_for: Option<WaitView>,
}

/// What a step waits for that is not tried while its upstream does not work.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct WaitView {
    upstream: &'static str,
    /// When the upstream is probed next, as far as the process that answers knows.
    next_probe_at: Option<Timestamp>,
}

/// When the upstreams that do not work are probed next, as this process sees it.
pub type Probes = PerStep<Option<Timestamp>>;

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ConditionView {
    r#type: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    observed_generation: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_transition_time: Option<Timestamp>,
}

/// What can be said of an invalid document.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InvalidTenant {
    id: String,
    slug: Option<String>,
    #[schema(value_type = InvalidStatus)]
    status: &'static str,
    conditions: Vec<ConditionView>,
}

/// What tells such a document from a tenant.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
enum InvalidStatus {
    #[expect(dead_code, reason = "a description")]
    Invalid,
}

impl TenantView {
    /// The tenant as it is recorded, and until when its steps wait that wait for an upstream.
    pub fn now(record: &Record, probes: &Probes) -> Self {
        let mut view = Self::from(record);
        if let Self::Tenant(tenant) = &mut view {
            let now = Timestamp::now();
            for step in Upstream::ALL {
                if let Some(view) = tenant.steps.get_mut(step.name()) {
                    view.until(probes[step], now);
                }
            }
        }
        view
    }

    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Invalid(_))
    }

    pub fn status(&self) -> &'static str {
        match self {
            Self::Tenant(tenant) => tenant.status,
            Self::Invalid(invalid) => invalid.status,
        }
    }

    /// Whether it is as it should be now.
    pub fn is_ready(&self) -> bool {
        self.conditions()
            .iter()
            .any(|condition| condition.r#type == "Ready" && condition.status == "True")
    }

    /// Of its conditions and its steps.
    pub fn reasons(&self) -> impl Iterator<Item = &'static str> {
        let steps = match self {
            Self::Tenant(tenant) => Some(tenant.steps.values()),
            Self::Invalid(_) => None,
        };
        let steps = steps.into_iter().flatten().filter_map(|step| step.reason);
        self.conditions().iter().map(|condition| condition.reason).chain(steps)
    }

    /// The state of a step; of an invalid document none is known.
    pub fn state(&self, step: Upstream) -> &'static str {
        match self {
            Self::Tenant(tenant) => tenant.steps.get(step.name()).map_or("", |step| step.state),
            Self::Invalid(_) => "",
        }
    }

    fn conditions(&self) -> &[ConditionView] {
        match self {
            Self::Tenant(tenant) => &tenant.conditions,
            Self::Invalid(invalid) => &invalid.conditions,
        }
    }
}

impl From<&Record> for TenantView {
    fn from(record: &Record) -> Self {
        match record {
            Record::Tenant(tenant) => Self::Tenant(Box::new(ValidTenant::from(&**tenant))),
            Record::Invalid(invalid) => Self::Invalid(InvalidTenant::from(invalid)),
        }
    }
}

impl From<&InvalidDocument> for InvalidTenant {
    fn from(invalid: &InvalidDocument) -> Self {
        let condition = ConditionView {
            r#type: "Ready",
            status: "False",
            reason: Reason::InvalidDocument.name(),
            message: invalid.to_string(),
            observed_generation: None,
            last_transition_time: None,
        };
        Self {
            id: invalid.id.clone(),
            slug: invalid.slug.clone(),
            status: "invalid",
            conditions: vec![condition],
        }
    }
}

impl From<&Tenant> for ValidTenant {
    fn from(tenant: &Tenant) -> Self {
        let status = &tenant.status;
        let state = |step| tenant.current_state(step);
        let error = |step: Upstream| {
            let detail = &status.steps[step];
            (state(step) == StepState::Error)
                .then(|| (step.name(), detail.message.clone().unwrap_or_else(|| "failed".into())))
        };
        Self {
            id: tenant.id.to_string(),
            slug: tenant.slug.to_string(),
            name: tenant.desired.name.to_string(),
            domain: tenant.desired.domain.as_ref().map(ToString::to_string),
            quota: Quota { storage_bytes: tenant.desired.storage_bytes },
            services: each_step(|step| tenant.desired.services.has(step)),
            paused: tenant.desired.paused,
            adopt: tenant.desired.adopt,
            deletion: tenant.desired.deletion.map(|policy| DeletionView {
                policy: policy.name(),
                requested_at: tenant.deletion_requested_at,
            }),
            status: match tenant.desired.deletion {
                Some(_) => Phase::Deleting.name(),
                None => status.phase.name(),
            },
            provisioning_status: each_step(|step| state(step).name()),
            provisioning_errors: Upstream::ALL.into_iter().filter_map(error).collect(),
            steps: each_step(|step| StepView::new(step, &status.steps[step], state(step))),
            conditions: vec![ready(tenant)],
            generation: tenant.generation,
            observed_generation: status.observed_generation,
            reconcile_requested_at: tenant.reconcile_requested_at,
            last_handled_reconcile_at: status.last_handled_reconcile_at,
            next_reconcile_at: status.next_reconcile_at,
            created_at: tenant.created_at,
            updated_at: tenant.updated_at,
        }
    }
}

/// A resource that carries a tenant's mark and is not the recorded one.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OtherView {
    external_id: String,
    name: String,
}

impl From<&OtherResource> for OtherView {
    fn from(other: &OtherResource) -> Self {
        Self { external_id: other.external_id.clone(), name: other.name.clone() }
    }
}

impl StepView {
    /// `state` is the step's for the *current* desired state.
    fn new(kind: Upstream, step: &StepStatus, state: StepState) -> Self {
        let outdated = state != step.state;
        // What was recorded for it is when it would be tried if the recovery went unnoticed.
        let waits = step.parked && !outdated;
        let reason = if outdated { Some(Reason::DesiredStateChanged) } else { step.reason };
        Self {
            state: state.name(),
            reason: reason.map(Reason::name),
            message: match &step.message {
                Some(message) if waits => Some(format!("{message} (waits until {kind} works)")),
                message => message.clone(),
            },
            external_id: step.external_id.clone(),
            origin: step.origin().map(Origin::name),
            before: step.before().cloned(),
            others: step.others.iter().map(OtherView::from).collect(),
            attempts: step.attempts,
            last_attempt_at: step.last_attempt_at,
            last_transition_at: step.last_transition_at,
            next_attempt_at: if outdated || waits { None } else { step.next_attempt_at },
            awaits_since: step.awaits_since.filter(|_| !outdated),
            waits_for: waits.then(|| WaitView { upstream: kind.name(), next_probe_at: None }),
        }
    }

    /// Says until when the step waits, if it waits for its upstream.
    fn until(&mut self, probe_at: Option<Timestamp>, now: Timestamp) {
        let (Some(waits), Some(probe_at)) = (&mut self.waits_for, probe_at) else { return };
        waits.next_probe_at = Some(probe_at);
        if let Some(message) = &mut self.message
            && message.ends_with(" works)")
        {
            message.pop();
            let seconds = probe_at.duration_since(now).as_secs().max(0);
            message.push_str(&format!("; next probe in {seconds}s)"));
        }
    }
}

fn ready(tenant: &Tenant) -> ConditionView {
    let recorded = tenant.status.ready.as_ref();
    let outdated = Upstream::ALL
        .into_iter()
        .any(|step| tenant.current_state(step) != tenant.status.steps[step].state);
    match recorded {
        Some(recorded) if !(recorded.ready && outdated) => ConditionView {
            r#type: "Ready",
            status: if recorded.ready { "True" } else { "False" },
            reason: recorded.reason.name(),
            message: recorded.message.clone(),
            observed_generation: Some(recorded.observed_generation),
            last_transition_time: Some(recorded.last_transition_time),
        },
        _ => ConditionView {
            r#type: "Ready",
            status: "False",
            reason: Reason::Reconciling.name(),
            message: "not every step has been observed to match yet".into(),
            observed_generation: tenant.status.observed_generation,
            last_transition_time: None,
        },
    }
}

fn each_step<T>(mut value: impl FnMut(Upstream) -> T) -> BTreeMap<&'static str, T> {
    Upstream::ALL.into_iter().map(|step| (step.name(), value(step))).collect()
}
