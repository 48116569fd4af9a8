//! One reconcile of one tenant: claim, run the due steps, commit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::guard::Guards;
use super::history;
use super::steps::Steps;
use crate::failpoint;
use crate::integration::Integrations;
use crate::metrics::Metrics;
use crate::store::{
    Claim, ClaimAnswer, Commit, Holder, InvalidDocument, Journal, Plans, Store, StoreError, Urgency,
};
use crate::tenant::{
    Basis, Fleet, Jitter, Phase, Policy, Reason, Status, StepKind, StepState, Tenant, TenantId,
    starts_afresh, transition,
};

/// What reconciling needs; shared by all workers.
pub struct Reconciler {
    pub store: Store,
    pub integrations: Arc<Integrations>,
    pub guards: Arc<Guards>,
    pub journal: Journal,
    pub metrics: Arc<Metrics>,
    pub policy: Policy,
    pub holder: Holder,
    pub lease_ttl: Duration,
    /// Cancelled when the grace period is nearly over: stop waiting for upstreams, keep what is known.
    pub abandon: CancellationToken,
}

/// What the queue should do with the tenant next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do, or somebody else does it.
    Done,
    /// Due again after a while.
    DueIn { wait: Duration, urgency: Urgency },
    /// Something changed while we worked.
    Again,
    /// The database did not answer; nothing is lost, but nothing works until it does.
    Unavailable,
    /// The database refused; try this tenant again after a while.
    Refused,
}

/// A first look at slow steps: what is finished by then is recorded without waiting for the others.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);

impl Reconciler {
    /// Reconciles `id` if it is due and nobody else does.
    ///
    /// Dropping the future leaves the lease to expire; the tenant stays due.
    pub async fn reconcile(&self, id: TenantId) -> Verdict {
        let started = Instant::now();
        // A process takes no tenants before it has read the fleet.
        let Some(fleet) = self.guards.fleet() else { return Verdict::Unavailable };
        let answer = self.store.claim(id, &self.holder, self.lease_ttl, self.policy.terminal()).await;
        let (result, verdict) = match answer {
            Ok(ClaimAnswer::Claimed(claim)) => {
                failpoint::reach(failpoint::CLAIMED);
                let ended = self.work(&claim, &fleet, started).await;
                self.metrics.reconcile_seconds.observe(started.elapsed().as_secs_f64());
                ended
            }
            Ok(ClaimAnswer::NotDue) => ("not_due", Verdict::Done),
            Ok(ClaimAnswer::Invalid(invalid)) => {
                self.report(&invalid);
                ("invalid", Verdict::Done)
            }
            Err(error) => self.store_failed(id, &error),
        };
        self.metrics.reconciles.with_label_values(&[result]).inc();
        verdict
    }

    /// Says once that a document makes no sense.
    pub fn report(&self, invalid: &InvalidDocument) {
        if !invalid.known {
            self.metrics.invalid_documents.inc();
            tracing::warn!(
                id = %invalid.id, slug = invalid.slug.as_deref().unwrap_or("(none)"),
                "this document makes no sense as a tenant: {invalid}"
            );
        }
    }

    async fn work(&self, claim: &Claim, fleet: &Fleet, started: Instant) -> (&'static str, Verdict) {
        let (integrations, guards) = (&self.integrations, &self.guards);
        let mut steps = Steps::start(claim, fleet, &self.policy, integrations, guards, &self.metrics);
        // Our own, cautious idea of how long the lease lasts: counted from before it was asked for.
        let mut held_until = started + self.lease_ttl;
        let renewal = self.lease_ttl / 3;
        let first = tokio::time::Instant::now() + PROGRESS_AFTER.min(renewal);
        let mut tick = interval_at(first, renewal);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Whether there is something to record that was not recorded yet.
        let mut progress = false;

        while steps.are_running() || steps.repeat_free() {
            tokio::select! {
                _ = steps.next() => progress = true,
                _ = tick.tick() => {
                    let plans = progress.then(|| self.plans(claim, &steps));
                    let asked = Instant::now();
                    match self.store.renew(claim, self.lease_ttl, plans.as_ref()).await {
                        Ok(Commit::Done { .. }) => {
                            held_until = asked + self.lease_ttl;
                            progress = false;
                        }
                        Ok(Commit::Fenced) => return self.fenced(claim),
                        Err(error) if Instant::now() >= held_until => {
                            tracing::warn!(slug = %claim.tenant.slug, %error, "could not renew the lease in time");
                            return self.fenced(claim);
                        }
                        Err(error) => {
                            tracing::debug!(slug = %claim.tenant.slug, %error, "could not renew the lease yet");
                        }
                    }
                }
                () = self.abandon.cancelled() => break,
            }
        }
        failpoint::reach(failpoint::RAN);
        if steps.are_running() {
            steps.give_up();
            return self.give_up(claim, &steps).await;
        }
        steps.account_for_all();
        self.commit(claim, &steps, held_until).await
    }

    /// Writes down what is known and frees the tenant for others, who look again at the rest.
    async fn give_up(&self, claim: &Claim, steps: &Steps<'_>) -> (&'static str, Verdict) {
        let given_up = if steps.runs().is_empty() {
            self.store.release(claim).await
        } else {
            self.store.abandon(claim, &self.plans(claim, steps)).await
        };
        match given_up {
            Ok(_) => {
                self.wake(claim, steps).await;
                ("abandoned", Verdict::Done)
            }
            Err(error) => self.store_failed(claim.tenant.id, &error),
        }
    }

    /// What held a step back may have been taken back while that was recorded: the step is made due then.
    /// Whoever takes it back from here on finds it recorded. Returns whether it was so.
    async fn wake(&self, claim: &Claim, steps: &Steps<'_>) -> bool {
        let free = steps.free_again();
        if free.is_empty() {
            return false;
        }
        if let Err(error) = self.store.wake(claim.tenant.id, &free).await {
            tracing::warn!(slug = %claim.tenant.slug, %error, "cannot make due what was held back yet");
            free.into_iter().for_each(|step| self.guards.owe(step));
        }
        true
    }

    fn plans(&self, claim: &Claim, steps: &Steps<'_>) -> Plans {
        let spread = Jitter::new(rand::random());
        let (due, runs) = (steps.due(), steps.runs());
        let plan =
            |basis| transition(&claim.tenant, due, runs, basis, claim.now(), &self.policy, spread);
        Plans {
            current: plan(Basis::Current),
            superseded: plan(Basis::Superseded),
            ran: runs.iter().filter(|run| !run.is_look()).map(|run| run.step).collect(),
            looked: runs.iter().filter(|run| run.is_look()).map(|run| run.step).collect(),
        }
    }

    /// Commits, and keeps trying while the lease is certainly ours. The fence makes a second try of a
    /// commit that was applied harmless.
    async fn commit(
        &self,
        claim: &Claim,
        steps: &Steps<'_>,
        held_until: Instant,
    ) -> (&'static str, Verdict) {
        let plans = self.plans(claim, steps);
        let runs = steps.runs();
        let mut told = false;
        if nothing_left(claim, &plans.current.status) {
            // First, so that whoever sees the document go finds out that it went as it should. If somebody
            // changes their mind right now, the history says that too.
            let subject = claim.tenant.subject();
            let asked = history::of_what_was_asked(claim).into_iter();
            let mut events: Vec<_> = asked.map(|event| (subject.clone(), event)).collect();
            events.push(history::tombstone(&claim.tenant, &plans.current.status));
            if let Err(error) = self.store.record_events(&events).await {
                return self.store_failed(claim.tenant.id, &error);
            }
            told = true;
            failpoint::reach(failpoint::REMOVING);
            match self.store.remove(claim).await {
                Ok(Commit::Done { .. }) => {
                    tracing::info!(slug = %claim.tenant.slug, "tenant is gone");
                    return ("removed", Verdict::Done);
                }
                // Somebody changed their mind, which the commit finds out, or it is gone already.
                Ok(Commit::Fenced) => {}
                Err(error) => return self.store_failed(claim.tenant.id, &error),
            }
        }
        let mut pause = Duration::from_millis(100);
        let mut unclear = false;
        let commit = loop {
            match self.store.commit(claim, &plans).await {
                Err(error) if error.is_unavailable() && Instant::now() + pause < held_until => {
                    unclear = true;
                    tokio::select! {
                        () = tokio::time::sleep(pause) => pause *= 2,
                        // The lease will expire; there is no time left for another try.
                        () = self.abandon.cancelled() => break Err(error),
                    }
                }
                other => break other,
            }
        };
        match commit {
            // The first try was applied, and only its answer was lost.
            Ok(Commit::Fenced) if unclear && self.store.was_committed(claim).await.unwrap_or(false) => {
                self.wake(claim, steps).await;
                ("ok", Verdict::Again)
            }
            Ok(Commit::Fenced) => self.fenced(claim),
            Err(error) => self.store_failed(claim.tenant.id, &error),
            Ok(Commit::Done { next, interrupted, superseded }) => {
                failpoint::reach(failpoint::COMMITTED);
                let written = if superseded { &plans.superseded } else { &plans.current };
                self.committed(claim, &written.status, &plans.ran);
                let asked = if told { Vec::new() } else { history::of_what_was_asked(claim) };
                let happened = history::of_reconcile(claim, &written.status, runs);
                for event in asked.into_iter().chain(happened) {
                    self.journal.note(claim.tenant.subject(), event);
                }
                let failed = runs.iter().any(|run| run.outcome.is_failure());
                if self.wake(claim, steps).await || interrupted {
                    return ("interrupted", Verdict::Again);
                }
                let wait =
                    next.and_then(|next| Duration::try_from(next.duration_since(claim.now())).ok());
                let wait = wait.unwrap_or_default();
                if failed {
                    ("error", Verdict::DueIn { wait, urgency: Urgency::Retry })
                } else {
                    ("ok", Verdict::DueIn { wait, urgency: Urgency::Resync })
                }
            }
        }
    }

    /// Logs and counts what a commit changed.
    fn committed(&self, claim: &Claim, after: &Status, ran: &[StepKind]) {
        let tenant = &claim.tenant;
        let before = &tenant.status;
        for step in StepKind::ALL {
            let (old, new) = (&before.steps[step], &after.steps[step]);
            let asked_anew = starts_afresh(tenant, step);
            if new.state == StepState::Error
                && let (Some(at), Some(next)) = (new.last_attempt_at, new.next_attempt_at)
                && ran.contains(&step)
            {
                let delay = next.duration_since(at).as_secs_f64();
                self.metrics.backoff_seconds.with_label_values(&[step.name()]).observe(delay);
            }
            if old.state == new.state && old.reason == new.reason && !asked_anew {
                continue;
            }
            let reason = new.reason.map_or("", Reason::name);
            match &new.message {
                Some(message) if new.state == StepState::Error => tracing::warn!(
                    slug = %tenant.slug, upstream = %step, reason, attempts = new.attempts,
                    "{} -> {}: {message}", old.state.name(), new.state.name()
                ),
                _ if old.state != new.state => tracing::info!(
                    slug = %tenant.slug, upstream = %step, reason,
                    "{} -> {}", old.state.name(), new.state.name()
                ),
                _ => {}
            }
        }
        if before.phase == Phase::Pending && after.phase == Phase::Active {
            let age = claim.now().duration_since(tenant.created_at).as_secs_f64().max(0.0);
            self.metrics.time_to_active_seconds.observe(age);
            tracing::info!(slug = %tenant.slug, after_seconds = age, "tenant is active");
        }
    }

    fn fenced(&self, claim: &Claim) -> (&'static str, Verdict) {
        self.metrics.claims_lost.inc();
        tracing::warn!(
            slug = %claim.tenant.slug,
            "the lease went to somebody else, or the document is gone; dropping this outcome"
        );
        ("fenced", Verdict::Done)
    }

    fn store_failed(&self, id: TenantId, error: &StoreError) -> (&'static str, Verdict) {
        if error.is_unavailable() {
            tracing::debug!(%id, %error, "cannot reconcile while MongoDB is away");
            ("unavailable", Verdict::Unavailable)
        } else {
            tracing::error!(%id, %error, "cannot reconcile this tenant");
            ("refused", Verdict::Refused)
        }
    }
}

/// Whether the tenant is to go and every step has let go.
fn nothing_left(claim: &Claim, after: &Status) -> bool {
    let tenant = Tenant { status: after.clone(), ..claim.tenant.clone() };
    tenant.desired.deletion.is_some()
        && StepKind::ALL.into_iter().all(|step| tenant.current_state(step).is_settled())
}
