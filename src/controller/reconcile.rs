//! One reconcile of one tenant: claim, run the due steps, commit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::guard::Guards;
use super::history;
use crate::failpoint;
use crate::integration::{Integrations, Intent, Mode, Target};
use crate::metrics::Metrics;
use crate::store::{
    Claim, ClaimAnswer, Commit, Holder, InvalidDocument, Journal, Plans, Store, StoreError, Urgency,
};
use crate::tenant::{
    Basis, Failure, FailureKind, Jitter, Outcome, Phase, Policy, Reason, Status, StepKind, StepRun,
    StepState, Tenant, TenantId, due_steps, starts_afresh, steps_to_observe, transition,
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
        let answer = self.store.claim(id, &self.holder, self.lease_ttl, self.policy.terminal()).await;
        let (result, verdict) = match answer {
            Ok(ClaimAnswer::Claimed(claim)) => {
                failpoint::reach(failpoint::CLAIMED);
                let ended = self.work(&claim, started).await;
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

    async fn work(&self, claim: &Claim, started: Instant) -> (&'static str, Verdict) {
        let mut due = due_steps(&claim.tenant, claim.now(), &self.policy);
        let only_looks = steps_to_observe(&claim.tenant, &due);
        due.extend(&only_looks);
        let mut steps = self.start(claim, &due, &only_looks);
        let mut runs: Vec<StepRun> = Vec::with_capacity(due.len());
        let mut recorded = 0;
        // Our own, cautious idea of how long the lease lasts: counted from before it was asked for.
        let mut held_until = started + self.lease_ttl;
        let renewal = self.lease_ttl / 3;
        let first = tokio::time::Instant::now() + PROGRESS_AFTER.min(renewal);
        let mut tick = interval_at(first, renewal);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);

        while !steps.is_empty() {
            tokio::select! {
                Some(ended) = steps.join_next_with_id() => match ended {
                    Ok((_, (step, outcome, took))) => runs.push(self.ran(claim, step, outcome, took)),
                    Err(error) => {
                        // A bug of ours in one step must not take the others with it.
                        tracing::error!(slug = %claim.tenant.slug, %error, "a step panicked");
                    }
                },
                _ = tick.tick() => {
                    let plans = (runs.len() > recorded).then(|| self.plans(claim, &due, &runs));
                    let asked = Instant::now();
                    match self.store.renew(claim, self.lease_ttl, plans.as_ref()).await {
                        Ok(Commit::Done { .. }) => {
                            held_until = asked + self.lease_ttl;
                            recorded = runs.len();
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
        if !steps.is_empty() {
            drop(steps);
            return self.give_up(claim, &due, &runs).await;
        }
        for step in &due {
            if !runs.iter().any(|run| run.step == *step) {
                let outcome = Outcome::Failed(Failure {
                    kind: FailureKind::Transient { retry_after: None },
                    reason: Reason::UnexpectedAnswer,
                    message: format!("{step}: tenantry itself failed; its log says more"),
                    external_id: None,
                    unresolved: true,
                    parked: false,
                });
                runs.push(self.ran(claim, *step, outcome, Duration::ZERO));
            }
        }
        self.commit(claim, &due, &runs, held_until).await
    }

    /// Writes down what is known and frees the tenant for others, who look again at the rest.
    async fn give_up(
        &self,
        claim: &Claim,
        due: &[StepKind],
        runs: &[StepRun],
    ) -> (&'static str, Verdict) {
        let given_up = if runs.is_empty() {
            self.store.release(claim).await
        } else {
            self.store.abandon(claim, &self.plans(claim, due, runs)).await
        };
        match given_up {
            Ok(_) => ("abandoned", Verdict::Done),
            Err(error) => self.store_failed(claim.tenant.id, &error),
        }
    }

    fn start(
        &self,
        claim: &Claim,
        due: &[StepKind],
        only_looks: &[StepKind],
    ) -> JoinSet<(StepKind, Outcome, Duration)> {
        let mut steps = JoinSet::new();
        let tenant = &claim.tenant;
        for &step in due {
            let recorded = &tenant.status.steps[step];
            let now = claim.now().as_second();
            let target = Target {
                id: tenant.id,
                slug: tenant.slug.clone(),
                desired: tenant.desired.for_step(step),
                observed: recorded.observed.clone(),
                recorded: recorded.external_id.clone(),
                may_exist: claim.may_have_made(step),
                mode: match self.guards.mode(step) {
                    // Whatever else holds: a look leaves nothing but what it saw.
                    _ if only_looks.contains(&step) => Mode::Observe(None),
                    _ if tenant.desired.paused => Mode::Observe(Some(Reason::Paused)),
                    mode => mode,
                },
                intent: recorded.create_intent.map(|intent| Intent {
                    id: intent.id,
                    open: !intent.fresh,
                    age: seconds(now - i64::from(intent.id.made_at_seconds())),
                }),
            };
            let (integrations, guards) = (Arc::clone(&self.integrations), Arc::clone(&self.guards));
            steps.spawn(async move {
                let started = Instant::now();
                let outcome = integrations.run(step, &target, &*guards).await;
                (step, outcome, started.elapsed())
            });
        }
        steps
    }

    fn ran(&self, claim: &Claim, step: StepKind, outcome: Outcome, took: Duration) -> StepRun {
        let label = match &outcome {
            Outcome::Ok { .. } => StepState::Ok.name(),
            Outcome::Skipped(_) | Outcome::Released { .. } => StepState::Skipped.name(),
            Outcome::Held { .. } | Outcome::Disbelieved => "held",
            Outcome::Observed(_) => "observed",
            Outcome::Failed(failure) => {
                self.metrics.step_errors.with_label_values(&[step.name(), failure.reason.name()]).inc();
                StepState::Error.name()
            }
        };
        self.metrics.step_seconds.with_label_values(&[step.name(), label]).observe(took.as_secs_f64());
        StepRun { step, outcome, at: claim.now(), jitter: jitter() }
    }

    fn plans(&self, claim: &Claim, due: &[StepKind], runs: &[StepRun]) -> Plans {
        let spread = jitter();
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
        due: &[StepKind],
        runs: &[StepRun],
        held_until: Instant,
    ) -> (&'static str, Verdict) {
        let plans = self.plans(claim, due, runs);
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
                let failed = runs.iter().any(|run| matches!(run.outcome, Outcome::Failed(_)));
                if interrupted {
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

fn seconds(span: i64) -> Duration {
    Duration::from_secs(u64::try_from(span).unwrap_or_default())
}

fn jitter() -> Jitter {
    Jitter::new(rand::random())
}
