//! What is told of a reconcile, as soon as it is recorded: in the history, the log and the metrics.
//!
//! A reconcile may record its outcomes in several pieces, and may end before the last. Each piece is told when
//! it has been written, and once: what was told before is what the next piece is compared with.

use super::history;
use crate::metrics::Metrics;
use crate::store::{Claim, Journal};
use crate::tenant::{
    Act, ActKind, Phase, Reason, Status, StepState, StepStatus, Transition, Upstream, starts_afresh,
};

/// See the module.
pub struct Report<'a> {
    claim: &'a Claim,
    journal: &'a Journal,
    metrics: &'a Metrics,
    /// The status that was told.
    told: Status,
    /// Whether it was told what was asked for.
    asked: bool,
}

impl<'a> Report<'a> {
    pub fn of(claim: &'a Claim, journal: &'a Journal, metrics: &'a Metrics) -> Self {
        Self { claim, journal, metrics, told: claim.tenant.status.clone(), asked: false }
    }

    /// What was asked for has been told in another way.
    pub fn asked_is_told(&mut self) {
        self.asked = true;
    }

    /// Tells what was asked of the tenant since its last commit.
    pub fn tell_asked(&mut self) {
        if !std::mem::replace(&mut self.asked, true) {
            history::of_what_was_asked(self.claim).into_iter().for_each(|event| self.note(event));
        }
    }

    /// Tells what was recorded, and what was done until then.
    pub fn tell(&mut self, recorded: &Transition, acts: Vec<(Upstream, Act)>) {
        self.tell_acts(acts);
        let recorded = &recorded.status;
        history::of_reconcile(&self.told, recorded, self.claim.now())
            .into_iter()
            .for_each(|event| self.note(event));
        for step in Upstream::ALL {
            self.tell_step(step, &self.told.steps[step], &recorded.steps[step]);
        }
        if self.told.phase == Phase::Pending && recorded.phase == Phase::Active {
            let tenant = &self.claim.tenant;
            let age = self.claim.now().duration_since(tenant.created_at).as_secs_f64().max(0.0);
            self.metrics.time_to_active_seconds.observe(age);
            tracing::info!(after_seconds = age, "tenant is active");
        }
        self.measure_edit(recorded);
        self.told = recorded.clone();
    }

    /// Tells what was done to resources.
    pub fn tell_acts(&self, acts: Vec<(Upstream, Act)>) {
        for (step, act) in &acts {
            let kind = act.deed.act();
            self.metrics.acts.of((*step, kind)).inc();
            self.measure_drift(*step, kind);
            if act.deed.is_alarming() {
                tracing::warn!(upstream = %step, act = kind.name(), "{act}");
            } else {
                tracing::info!(upstream = %step, act = kind.name(), "{act}");
            }
        }
        history::of_acts(&acts, self.claim.now()).into_iter().for_each(|event| self.note(event));
    }

    /// Tells that the tenant is gone, as was asked.
    pub fn gone(&self) {
        let tenant = &self.claim.tenant;
        let asked = tenant.deletion_requested_at;
        let age = asked.map(|at| self.claim.now().duration_since(at).as_secs_f64().max(0.0));
        if let Some(age) = age {
            self.metrics.time_to_delete_seconds.observe(age);
        }
        tracing::info!(after_seconds = age, "tenant is gone");
    }

    /// An edit of a tenant that was reconciled before has arrived everywhere.
    fn measure_edit(&self, recorded: &Status) {
        let tenant = &self.claim.tenant;
        let is_ready = recorded.ready.as_ref().is_some_and(|ready| ready.ready);
        let arrived = self.told.observed_generation != recorded.observed_generation
            && recorded.observed_generation == Some(tenant.generation);
        // Only the API says when it edited.
        if let (true, true, Some(_), Some(at)) =
            (is_ready, arrived, self.told.observed_generation, tenant.updated_at)
        {
            let took = self.claim.now().duration_since(at).as_secs_f64().max(0.0);
            self.metrics.time_to_ready_seconds.observe(took);
        }
    }

    /// A resource that was as it should be is not any more.
    fn measure_drift(&self, step: Upstream, kind: ActKind) {
        let before = &self.claim.tenant.status.steps[step];
        let is_drift = matches!(kind, ActKind::Repaired | ActKind::Recreated);
        if let (true, StepState::Ok, Some(at)) = (is_drift, before.state, before.last_attempt_at) {
            let age = self.claim.now().duration_since(at).as_secs_f64().max(0.0);
            self.metrics.drift_age_seconds.of(step).observe(age);
        }
    }

    fn tell_step(&self, step: Upstream, old: &StepStatus, new: &StepStatus) {
        let tried = old.last_attempt_at != new.last_attempt_at;
        if tried
            && new.state == StepState::Error
            && let (Some(at), Some(next)) = (new.last_attempt_at, new.next_attempt_at)
        {
            let delay = next.duration_since(at).as_secs_f64();
            self.metrics.backoff_seconds.of(step).observe(delay);
        }
        let asked_anew = tried && starts_afresh(&self.claim.tenant, step);
        if (old.state, old.reason) == (new.state, new.reason) && !asked_anew {
            return;
        }
        let reason = new.reason.map_or("", Reason::name);
        match &new.message {
            Some(message) if new.state == StepState::Error => tracing::warn!(
                upstream = %step, reason, attempts = new.attempts,
                "{} -> {}: {message}", old.state.name(), new.state.name()
            ),
            // The same for every tenant, and told at start.
            _ if new.reason == Some(Reason::NotConfigured) => tracing::debug!(
                upstream = %step, reason,
                "{} -> {}", old.state.name(), new.state.name()
            ),
            _ if old.state != new.state => tracing::info!(
                upstream = %step, reason,
                "{} -> {}", old.state.name(), new.state.name()
            ),
            _ => {}
        }
    }

    fn note(&self, event: crate::tenant::Event) {
        self.journal.note(self.claim.tenant.subject(), event);
    }
}
