//! The domain: what a tenant is, which of its steps are due, and what follows from their outcomes.
//!
//! Everything here is pure: no I/O, no clock, no randomness, no async. Time and jitter come in as
//! arguments, so that a property test can drive every rule about status (`transition`) and timing
//! (`due`, `backoff`) directly.

mod act;
mod adoption;
mod backoff;
mod controls;
mod desired;
mod due;
mod event;
mod fingerprint;
mod fleet;
mod health;
mod id;
mod mail_domain;
mod name;
mod observation;
mod plan;
mod slug;
mod status;
mod step;
#[cfg(test)]
mod tests;
mod traffic;
mod transition;
mod tries;
mod urgency;

pub use act::{Act, ActKind, Deed, Fate, Resource};
pub use adoption::{Adopted, Before, MayAdopt, Origin};
pub use backoff::{Backoff, Jitter};
pub use controls::{ChangeGuard, ChangeGuardPolicy, Controls};
pub use desired::{DeletionPolicy, Desired, Presence, Services, StepDesired};
pub use due::{due_steps, starts_afresh, steps_to_observe};
pub use event::{Attribution, Event, EventKind, Subject};
pub use fingerprint::{Fingerprint, Part, UnknownFingerprint};
pub use fleet::{Fleet, FleetId, InvalidFleetId, Standing, lacking};
pub use health::{Breaker, UpstreamHealth};
pub use id::{IntentId, InvalidId, TenantId};
pub use mail_domain::{InvalidMailDomain, MailDomain};
pub use name::{InvalidTenantName, TenantName};
pub use observation::{Field, Found, Observation, shortened};
pub use plan::{Action, PlannedField, StepPlan, plan};
pub use slug::{InvalidSlug, Slug};
pub use status::{Phase, Ready, Status};
pub use step::{CreateIntent, OtherResource, PerStep, Reason, StepState, StepStatus, Upstream};
pub use traffic::{Latency, SweepEnd, SweepFound, Swept, Traffic};
pub use transition::{Basis, Failure, FailureKind, Outcome, Policy, StepRun, Transition, transition};
pub use tries::TryLimits;
pub use urgency::Urgency;

use jiff::Timestamp;

/// One tenant as its document tells it: what it should be, and what was last recorded about it.
///
/// Only documents that make sense become a `Tenant`; see `store::document` for the others.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenant {
    pub id: TenantId,
    pub slug: Slug,
    pub desired: Desired,
    /// Counts changes of the desired state made through the API; 1 for a document without it.
    pub generation: i64,
    /// The latest explicit reconcile request, if there ever was one.
    pub reconcile_requested_at: Option<Timestamp>,
    /// The steps that it is about; `None`: all of them.
    pub reconcile_requested_steps: Option<PerStep<bool>>,
    /// It also wants the other steps to be looked at, without any change.
    pub observation_requested: bool,
    /// Who made that request, and those that it joined, where that is known.
    pub reconcile_requested_by: Vec<String>,
    /// Who has changed the desired state since it was last handled, as far as that is known, in order; `None`
    /// for what cannot be read.
    pub changed_by: Vec<Option<Attribution>>,
    pub status: Status,
    /// An earlier reconcile ended without saying what it did: what it had found out no longer counts.
    pub interrupted: bool,
    /// When the tenant's deletion was requested, if it is to go.
    pub deletion_requested_at: Option<Timestamp>,
    /// When the document was created; taken from its id where the writer did not say.
    pub created_at: Timestamp,
    /// When something visible last changed, where the writer said.
    pub updated_at: Option<Timestamp>,
}

impl Tenant {
    /// The explicit request that no reconcile has handled yet.
    pub fn open_request(&self) -> Option<Timestamp> {
        self.reconcile_requested_at.filter(|at| self.status.last_handled_reconcile_at != Some(*at))
    }

    /// Whether an open request is about the step.
    pub fn is_requested(&self, step: Upstream) -> bool {
        self.open_request().is_some()
            && self.reconcile_requested_steps.as_ref().is_none_or(|of| of[step])
    }

    /// Whether an open request wants what is not reconciled to be looked at.
    pub fn is_observation_requested(&self) -> bool {
        self.open_request().is_some() && self.observation_requested
    }

    /// Whose history its events belong to.
    pub fn subject(&self) -> Subject {
        Subject::Tenant { id: self.id, slug: Some(self.slug.clone()) }
    }

    /// The state of a step as it may be shown: `ok` and `skipped` speak of the *current* desired
    /// state, so a recorded one that was reached for an earlier desired state counts as pending.
    pub fn current_state(&self, step: Upstream) -> StepState {
        let recorded = &self.status.steps[step];
        if recorded.state.is_settled()
            && recorded.observed.as_ref() != Some(&self.desired.for_step(step))
        {
            StepState::Pending
        } else {
            recorded.state
        }
    }
}
