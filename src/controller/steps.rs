//! The due steps of one reconcile: what each runs with, how it ended, and whether what held it back still
//! does.
//!
//! A step is held back by what was known when it began. Until the commit that may have been taken back, and
//! the process that took it back has made due what was recorded as held: not what is about to be. So a run that was
//! held back by what no longer holds is repeated rather than recorded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::change_guard::ChangeGuards;
use tracing::Instrument;

use crate::integration::{Deeds, Integrations, Mode, Target};
use crate::metrics::{Metrics, PanicPlace, StepEnd};
use crate::store::Claim;
use crate::tenant::{
    Act, Failure, FailureKind, Fleet, Jitter, Outcome, PerStep, Policy, Reason, StepRun, Upstream,
    due_steps, steps_to_observe,
};

/// Repetitions in one reconcile. What is still free then is left to the next one.
const MOST_REPETITIONS: u32 = 3;

/// See the module.
pub struct Steps<'a> {
    claim: &'a Claim,
    fleet: &'a Fleet,
    integrations: &'a Arc<Integrations>,
    guards: &'a Arc<ChangeGuards>,
    metrics: &'a Metrics,
    /// Whether tenants that do not say so may adopt.
    adopt_unmarked: bool,
    due: Vec<Upstream>,
    only_looks: Vec<Upstream>,
    running: JoinSet<(Upstream, Outcome, Duration)>,
    runs: Vec<StepRun>,
    /// When each run began, as the guards count.
    moments: PerStep<u64>,
    /// What each step did, also those that run still or were given up.
    deeds: [(Upstream, Deeds); 3],
    repetitions: u32,
}

impl<'a> Steps<'a> {
    /// Starts what is due of the tenant.
    pub fn start(
        claim: &'a Claim,
        fleet: &'a Fleet,
        policy: &Policy,
        integrations: &'a Arc<Integrations>,
        guards: &'a Arc<ChangeGuards>,
        metrics: &'a Metrics,
        adopt_unmarked: bool,
    ) -> Self {
        let mut due = due_steps(&claim.tenant, claim.now(), policy);
        let only_looks = steps_to_observe(&claim.tenant, &due);
        due.extend(&only_looks);
        let mut steps = Self {
            claim,
            fleet,
            integrations,
            guards,
            metrics,
            adopt_unmarked,
            due,
            only_looks,
            running: JoinSet::new(),
            runs: Vec::new(),
            moments: PerStep::default(),
            deeds: Upstream::ALL.map(|step| (step, Deeds::default())),
            repetitions: 0,
        };
        for step in steps.due.clone() {
            steps.run(step);
        }
        steps
    }

    /// The steps that were due.
    pub fn due(&self) -> &[Upstream] {
        &self.due
    }

    /// Those that have ended, so far.
    pub fn runs(&self) -> &[StepRun] {
        &self.runs
    }

    /// Waits for the end of a run; `false` when none is left. Cancel-safe.
    pub async fn next(&mut self) -> bool {
        match self.running.join_next().await {
            Some(Ok((step, outcome, took))) => self.ended(step, outcome, took),
            Some(Err(error)) => {
                // A bug of ours in one step must not take the others with it.
                self.metrics.panics.of(PanicPlace::Reconcile).inc_by(u64::from(error.is_panic()));
                tracing::error!(%error, "a step panicked");
            }
            None => return false,
        }
        true
    }

    pub fn are_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// Stops waiting for those that run still.
    pub fn give_up(&mut self) {
        self.running = JoinSet::new();
    }

    /// What was done to resources since the last time.
    pub fn take_acts(&self) -> Vec<(Upstream, Act)> {
        let of = |(step, deeds): &(Upstream, Deeds)| {
            let step = *step;
            deeds.take().into_iter().map(move |act| (step, act))
        };
        self.deeds.iter().flat_map(of).collect()
    }

    /// Says of every step that ended without an outcome that it failed.
    pub fn account_for_all(&mut self) {
        for step in self.due.clone() {
            if !self.runs.iter().any(|run| run.step == step) {
                let outcome = Outcome::Failed(Failure {
                    kind: FailureKind::Transient { retry_after: None },
                    reason: Reason::UnexpectedAnswer,
                    message: format!("{step}: tenantry itself failed; its log says more"),
                    external_id: None,
                    unresolved: true,
                    parked: false,
                    asked: true,
                });
                self.ended(step, outcome, Duration::ZERO);
            }
        }
    }

    /// The steps that were held back by what no longer holds.
    pub fn free_again(&self) -> Vec<Upstream> {
        self.runs.iter().filter(|run| self.is_free_again(run)).map(|run| run.step).collect()
    }

    /// Runs those once more; `false` when there are none.
    pub fn repeat_free(&mut self) -> bool {
        let free = self.free_again();
        if free.is_empty() || self.repetitions == MOST_REPETITIONS {
            return false;
        }
        self.repetitions += 1;
        self.runs.retain(|run| !free.contains(&run.step));
        for step in free {
            tracing::debug!(upstream = %step, "no longer held back");
            self.run(step);
        }
        true
    }

    fn is_free_again(&self, run: &StepRun) -> bool {
        match &run.outcome {
            // Whether it still is, is part of the desired state, which the commit compares.
            Outcome::Held { reason: Reason::Paused, .. } => false,
            Outcome::Held { .. } => self.guards.is_free_since(run.step, self.moments[run.step]),
            Outcome::Failed(failure) => failure.parked && self.integrations.is_open(run.step),
            Outcome::Ok { .. }
            | Outcome::Lacking
            | Outcome::Skipped(_)
            | Outcome::Released { .. }
            | Outcome::Adopting { .. }
            | Outcome::Observed(_) => false,
        }
    }

    fn run(&mut self, step: Upstream) {
        self.moments[step] = self.guards.moment(step);
        let tenant = &self.claim.tenant;
        let mode = match self.guards.mode(step) {
            // Whatever else holds: a look leaves nothing but what it saw.
            _ if self.only_looks.contains(&step) => Mode::Look,
            _ if tenant.desired.paused => Mode::Hold(Reason::Paused),
            mode => mode,
        };
        let may_exist = self.claim.may_have_made(step);
        let (fleet, adopt, now) = (self.fleet, self.adopt_unmarked, self.claim.now());
        let target = Target::of(tenant, fleet, step, may_exist, mode, adopt, now);
        let (integrations, guards) = (Arc::clone(self.integrations), Arc::clone(self.guards));
        let deeds = self.deeds[step as usize].1.clone();
        let span = tracing::debug_span!("step", otel.name = step.name(), upstream = %step);
        let run = async move {
            let started = Instant::now();
            let outcome = deeds.of(integrations.run(step, &target, &*guards)).await;
            (step, outcome, started.elapsed())
        };
        // The second for where the first is not enabled: a task begins outside of the reconcile's span.
        self.running.spawn(run.instrument(span).in_current_span());
    }

    fn ended(&mut self, step: Upstream, outcome: Outcome, took: Duration) {
        let end = match &outcome {
            Outcome::Ok { .. } => StepEnd::Ok,
            Outcome::Skipped(_) | Outcome::Released { .. } => StepEnd::Skipped,
            Outcome::Held { .. } | Outcome::Lacking => StepEnd::Held,
            Outcome::Observed(_) => StepEnd::Observed,
            Outcome::Failed(_) if !outcome.is_failure() => StepEnd::Paced,
            Outcome::Adopting { .. } => StepEnd::Adopting,
            Outcome::Failed(failure) => {
                self.metrics.step_errors.of((step, failure.reason)).inc();
                StepEnd::Error
            }
        };
        self.metrics.step_seconds.of((step, end)).observe(took.as_secs_f64());
        let jitter = Jitter::new(rand::random());
        self.runs.push(StepRun { step, outcome, at: self.claim.now(), jitter });
    }
}
