//! One reconcile of one tenant: claim, run the due steps, commit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::change_guard::ChangeGuards;
use super::history;
use super::report::Report;
use super::steps::Steps;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::failpoint;
use crate::integration::Integrations;
use crate::metrics::{Metrics, ReconcileEnd};
use crate::store::{
    Claim, ClaimAnswer, Commit, CommitCandidates, Holder, InvalidDocument, Journal, Store, StoreError,
};
use crate::telemetry::traces;
use crate::tenant::{
    Basis, Fleet, Jitter, Policy, Status, Tenant, TenantId, Upstream, Urgency, transition,
};

/// What reconciling needs; shared by all workers.
pub struct Reconciler {
    pub store: Store,
    pub integrations: Arc<Integrations>,
    pub guards: Arc<ChangeGuards>,
    pub journal: Journal,
    pub metrics: Arc<Metrics>,
    pub policy: Policy,
    pub holder: Holder,
    pub lease_ttl: Duration,
    /// Whether tenants that do not say so may adopt.
    pub adopt_unmarked: bool,
    /// Cancelled when the grace period is nearly over: stop waiting for upstreams, keep what is known.
    pub abandon: CancellationToken,
}

/// What the queue should do with the tenant next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do, or another process does it.
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
    /// Reconciles `id` if it is due and no other process does.
    ///
    /// Dropping the future leaves the lease to expire; the tenant stays due.
    pub async fn reconcile(&self, id: TenantId, urgency: Urgency) -> Verdict {
        let started = Instant::now();
        // A process takes no tenants before it has read the fleet.
        let Some(fleet) = self.guards.fleet() else { return Verdict::Unavailable };
        let answer = self.store.claim(id, &self.holder, self.lease_ttl, self.policy.terminal()).await;
        let (end, verdict) = match answer {
            Ok(ClaimAnswer::Claimed(claim)) => {
                failpoint::reach(failpoint::CLAIMED);
                self.metrics.leases_taken_over.inc_by(u64::from(claim.tenant.interrupted));
                let span = span_of(&claim, urgency);
                let ended = self.work(&claim, &fleet, started).instrument(span).await;
                self.metrics.reconcile_seconds.observe(started.elapsed().as_secs_f64());
                ended
            }
            Ok(ClaimAnswer::NotDue) => (ReconcileEnd::NotDue, Verdict::Done),
            Ok(ClaimAnswer::Invalid(invalid)) => {
                self.report(&invalid);
                (ReconcileEnd::Invalid, Verdict::Done)
            }
            Err(error) => self.store_failed(id, &error),
        };
        self.metrics.reconciles.of(end).inc();
        verdict
    }

    /// Says once that a document is invalid.
    pub fn report(&self, invalid: &InvalidDocument) {
        if !invalid.known {
            self.metrics.invalid_documents.inc();
            tracing::warn!(
                id = %invalid.id, slug = invalid.slug.as_deref().unwrap_or("(none)"),
                "this document is no valid tenant: {invalid}"
            );
        }
    }

    async fn work(&self, claim: &Claim, fleet: &Fleet, started: Instant) -> (ReconcileEnd, Verdict) {
        let (integrations, guards) = (&self.integrations, &self.guards);
        let adopt = self.adopt_unmarked;
        let mut steps =
            Steps::start(claim, fleet, &self.policy, integrations, guards, &self.metrics, adopt);
        let mut report = Report::of(claim, &self.journal, &self.metrics);
        let ended = self.run_to_the_end(claim, &mut steps, &mut report, started).await;
        // It was done, though its outcome may not have been recorded.
        report.tell_acts(steps.take_acts());
        ended
    }

    async fn run_to_the_end(
        &self,
        claim: &Claim,
        steps: &mut Steps<'_>,
        report: &mut Report<'_>,
        started: Instant,
    ) -> (ReconcileEnd, Verdict) {
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
                    let plans = progress.then(|| self.plans(claim, steps));
                    let asked = Instant::now();
                    match self.store.renew(claim, self.lease_ttl, plans.as_ref()).await {
                        Ok(Commit::Done { superseded, .. }) => {
                            held_until = asked + self.lease_ttl;
                            progress = false;
                            if let Some(plans) = plans {
                                report.tell(plans.written(superseded), steps.take_acts());
                            }
                        }
                        Ok(Commit::Fenced) => return self.fenced(),
                        Err(error) if Instant::now() >= held_until => {
                            tracing::warn!(%error, "could not renew the lease in time");
                            return self.fenced();
                        }
                        Err(error) => {
                            tracing::debug!(%error, "could not renew the lease yet");
                        }
                    }
                }
                () = self.abandon.cancelled() => break,
            }
        }
        failpoint::reach(failpoint::RAN);
        if steps.are_running() {
            steps.give_up();
            return self.give_up(claim, steps, report).await;
        }
        steps.account_for_all();
        self.commit(claim, steps, report, held_until).await
    }

    /// Writes down what is known and frees the tenant for others, who look again at the rest.
    async fn give_up(
        &self,
        claim: &Claim,
        steps: &Steps<'_>,
        report: &mut Report<'_>,
    ) -> (ReconcileEnd, Verdict) {
        let plans = self.plans(claim, steps);
        let given_up = if steps.runs().is_empty() {
            self.store.release(claim).await
        } else {
            self.store.abandon(claim, &plans).await
        };
        match given_up {
            Ok(Commit::Done { superseded, .. }) => {
                report.tell(plans.written(superseded), steps.take_acts());
                self.wake(claim, steps).await;
                (ReconcileEnd::Abandoned, Verdict::Done)
            }
            Ok(Commit::Fenced) => self.fenced(),
            Err(error) => self.store_failed(claim.tenant.id, &error),
        }
    }

    /// What held a step back may have been taken back while that was recorded: the step is made due then.
    /// A start or lift from here on finds it recorded. Returns whether it was so.
    async fn wake(&self, claim: &Claim, steps: &Steps<'_>) -> bool {
        let free = steps.free_again();
        if free.is_empty() {
            return false;
        }
        if let Err(error) = self.store.wake(claim.tenant.id, &free).await {
            tracing::warn!(%error, "cannot make due what was held back yet");
            free.into_iter().for_each(|step| self.guards.owe(step));
        }
        true
    }

    fn plans(&self, claim: &Claim, steps: &Steps<'_>) -> CommitCandidates {
        let spread = Jitter::new(rand::random());
        let (due, runs) = (steps.due(), steps.runs());
        let plan =
            |basis| transition(&claim.tenant, due, runs, basis, claim.now(), &self.policy, spread);
        CommitCandidates {
            current: plan(Basis::Current),
            superseded: plan(Basis::Superseded),
            ran: runs.iter().filter(|run| !run.is_look()).map(|run| run.step).collect(),
            looked: runs.iter().filter(|run| run.is_look()).map(|run| run.step).collect(),
        }
    }

    /// Removes the document of a tenant that is to go and has nothing left, or commits.
    async fn commit(
        &self,
        claim: &Claim,
        steps: &Steps<'_>,
        report: &mut Report<'_>,
        held_until: Instant,
    ) -> (ReconcileEnd, Verdict) {
        let plans = self.plans(claim, steps);
        if nothing_left(claim, &plans.current.status) {
            report.tell_acts(steps.take_acts());
            // First, so that a client that sees the document go finds out that it went as it should. If that is
            // taken back right now, the history says that too.
            let events = history::of_end(claim, &plans.current.status);
            if let Err(error) = self.store.record_events(&events).await {
                return self.store_failed(claim.tenant.id, &error);
            }
            report.asked_is_told();
            failpoint::reach(failpoint::REMOVING);
            match self.store.remove(claim).await {
                Ok(Commit::Done { .. }) => {
                    report.gone();
                    return (ReconcileEnd::Removed, Verdict::Done);
                }
                // It was taken back, which the commit finds out, or it is gone already.
                Ok(Commit::Fenced) => {}
                Err(error) => return self.store_failed(claim.tenant.id, &error),
            }
        }
        match self.commit_for_certain(claim, &plans, held_until).await {
            Ok(Commit::Fenced) => self.fenced(),
            Err(error) => self.store_failed(claim.tenant.id, &error),
            Ok(Commit::Done { next, interrupted, superseded }) => {
                failpoint::reach(failpoint::COMMITTED);
                report.tell_asked();
                report.tell(plans.written(superseded), steps.take_acts());
                if self.wake(claim, steps).await || interrupted {
                    return (ReconcileEnd::Interrupted, Verdict::Again);
                }
                let wait =
                    next.and_then(|next| Duration::try_from(next.duration_since(claim.now())).ok());
                let wait = wait.unwrap_or_default();
                if steps.runs().iter().any(|run| run.outcome.is_failure()) {
                    (ReconcileEnd::Error, Verdict::DueIn { wait, urgency: Urgency::Retry })
                } else {
                    (ReconcileEnd::Ok, Verdict::DueIn { wait, urgency: Urgency::Resync })
                }
            }
        }
    }

    /// Commits, and keeps trying while the lease is certainly ours. The fence makes a second try of a
    /// commit that was applied harmless.
    async fn commit_for_certain(
        &self,
        claim: &Claim,
        plans: &CommitCandidates,
        held_until: Instant,
    ) -> Result<Commit, StoreError> {
        let mut pause = Duration::from_millis(100);
        let mut unclear = false;
        loop {
            match self.store.commit(claim, plans).await {
                Err(error) if error.is_unavailable() && Instant::now() + pause < held_until => {
                    unclear = true;
                    tokio::select! {
                        () = tokio::time::sleep(pause) => pause *= 2,
                        // The lease will expire; there is no time left for another try.
                        () = self.abandon.cancelled() => return Err(error),
                    }
                }
                // The first try was applied, perhaps, and only its answer was lost.
                Ok(Commit::Fenced) if unclear => return self.store.find_commit(claim, plans).await,
                other => return other,
            }
        }
    }

    fn fenced(&self) -> (ReconcileEnd, Verdict) {
        self.metrics.claims_lost.inc();
        tracing::warn!(
            "the lease went to another process, or the document is gone; dropping this outcome"
        );
        (ReconcileEnd::Fenced, Verdict::Done)
    }

    fn store_failed(&self, id: TenantId, error: &StoreError) -> (ReconcileEnd, Verdict) {
        if error.is_unavailable() {
            tracing::debug!(%id, %error, "cannot reconcile while MongoDB is away");
            (ReconcileEnd::Unavailable, Verdict::Unavailable)
        } else {
            tracing::error!(%id, %error, "cannot reconcile this tenant");
            (ReconcileEnd::Refused, Verdict::Refused)
        }
    }
}

/// Whether the tenant is to go and every step has let go.
fn nothing_left(claim: &Claim, after: &Status) -> bool {
    let tenant = Tenant { status: after.clone(), ..claim.tenant.clone() };
    tenant.desired.deletion.is_some()
        && Upstream::ALL.into_iter().all(|step| tenant.current_state(step).is_settled())
}

/// Surrounds a reconcile in logs and traces, so that no line need say whose it is; part of the trace of the request
/// that it acts on. Of the highest level, so that it is there whichever lines are logged.
fn span_of(claim: &Claim, urgency: Urgency) -> Span {
    let tenant = &claim.tenant;
    let span = tracing::error_span!(
        parent: None, "reconcile", slug = %tenant.slug, id = %tenant.id, urgency = urgency.name(), trace_id = Empty
    );
    traces::continue_from(&span, claim.trace());
    traces::note_trace(&span);
    span
}
