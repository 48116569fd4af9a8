//! What a reconcile's outcomes make of a tenant's status: the heart of the controller, and pure.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    Adopted, Backoff, Fingerprint, Found, Jitter, Observation, Phase, Presence, Ready, Reason, Status,
    StepState, StepStatus, Tenant, Upstream, due::starts_afresh, lacking,
};

/// When things are tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// After a failure that may pass by itself.
    pub backoff: Backoff,
    /// Between routine re-checks of a settled step, spread by ±10 %.
    pub resync: Duration,
}

impl Policy {
    const RESYNC_SPREAD: f64 = 0.1;
    /// The longest an upstream's `Retry-After` is obeyed.
    pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

    /// After which a step that waits for its upstream is tried all the same, should no process have noticed.
    const PARKED: Duration = Duration::from_secs(3600);
    /// The longest between looks at what waits for a person.
    const PATIENCE: Duration = Duration::from_secs(600);

    /// The shortest between looks at something that an upstream has yet to learn.
    const LEARNING: Duration = Duration::from_secs(60);

    /// After which something is looked for that an upstream has yet to learn, and that has been waited for this
    /// long: a quarter of that, so that what comes late is noticed late in proportion, and a fleet of tenants that
    /// wait in vain is soon looked at no more often than any other.
    pub fn learning(&self, waited: Duration) -> Duration {
        (waited / 4).max(Self::LEARNING).min(self.resync)
    }

    /// After a failure that only a person or a change of the desired state mends, and between looks at what
    /// is held back: rarely, and never more often than any other retry.
    pub fn terminal(&self) -> Duration {
        self.resync.min(Self::PATIENCE).max(self.backoff.max)
    }
}

/// How one run of a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Observed to match the desired state that the reconcile was claimed for.
    Ok {
        external_id: Option<String>,
        /// What a person should know all the same.
        note: Option<String>,
        /// A create whose outcome was never known may still take effect: look again after this long.
        look_again: Option<Duration>,
        /// Something of it waits for what the upstream has yet to learn.
        awaits: bool,
        fingerprint: Option<Fingerprint>,
    },
    /// Nothing to do; the reason says why.
    Skipped(Reason),
    /// The resource was let go: the service is off, or the tenant is to go.
    Released {
        reason: Reason,
        /// Where something of it stays.
        external_id: Option<String>,
        note: Option<String>,
    },
    /// A resource that was not made for the tenant is its own from now on. Nothing of it was changed yet: that
    /// is for the next run, once this is recorded.
    Adopting {
        adopted: Adopted,
        /// What it is, for people.
        what: String,
    },
    /// It was looked at only, and differs; the reason says why nothing was changed.
    Held {
        reason: Reason,
        found: Found,
        /// The resource where the run had made or changed it before it was held.
        external_id: Option<String>,
    },
    /// The fleet has the upstream and the process that ran the step cannot reach it: everything recorded stays.
    Lacking,
    /// A person wanted to see what would be changed, and it differs. Nothing else follows.
    Observed(Found),
    Failed(Failure),
}

impl Outcome {
    /// Whether something went wrong. A step that waits its turn has not failed.
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Failed(failure) if !matches!(failure.kind, FailureKind::Paced { .. }))
    }

    /// Whether the upstream was asked for this tenant.
    pub fn asked(&self) -> bool {
        match self {
            Self::Failed(failure) => failure.asked,
            Self::Skipped(_) | Self::Lacking => false,
            Self::Ok { .. }
            | Self::Released { .. }
            | Self::Held { .. }
            | Self::Adopting { .. }
            | Self::Observed(_) => true,
        }
    }

    /// Plainly well.
    pub fn ok(external_id: &str) -> Self {
        let external_id = Some(external_id.to_owned());
        Self::Ok { external_id, note: None, look_again: None, awaits: false, fingerprint: None }
    }
}

/// Why a step failed and what kind of retry that calls for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    pub reason: Reason,
    /// For people: system, operation, status, the upstream's own words. Never a secret.
    pub message: String,
    /// The id of the resource where it was found although the step failed.
    pub external_id: Option<String>,
    /// A create may have taken effect, or may still do so.
    pub unresolved: bool,
    /// Nothing was asked: the upstream is known not to work, and the process that notices that it does again makes
    /// the tenant due.
    pub parked: bool,
    /// A request was sent to the upstream for this tenant. Where none was, another tenant's was refused or
    /// not answered, or a pause has to be kept.
    pub asked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// May pass by itself: backoff, and never sooner than the upstream asked for.
    Transient { retry_after: Option<Duration> },
    /// Will not pass without a person or another desired state: retried slowly.
    Terminal,
    /// The whole integration is unhealthy; `retry_after` is when it is probed again.
    Misconfigured { retry_after: Duration },
    /// None: the upstream asked for a pause, and the step waits its turn until `wait` is over.
    Paced { wait: Duration },
}

/// One step's outcome with the time it was reached and the jitter for its retry.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRun {
    pub step: Upstream,
    pub outcome: Outcome,
    pub at: Timestamp,
    pub jitter: Jitter,
}

impl StepRun {
    /// Whether it was to leave nothing but what it saw.
    pub fn is_look(&self) -> bool {
        matches!(self.outcome, Outcome::Observed(_))
    }
}

/// Whether the desired state is still the one that the reconcile was claimed for. Only the commit can
/// know, so both answers are prepared and the database picks one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    Current,
    Superseded,
}

/// A tenant's next status, and which steps changed their state on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    pub status: Status,
    /// Whether anything that people look at differs from before (times of attempts do not count).
    pub visible: bool,
}

/// The status after `runs`.
///
/// `tenant` is the tenant as claimed, `due` are the steps that were due at the claim. A step among
/// them without a run (the reconcile was interrupted, or is still going on) stays due.
///
/// # Guarantees
///
/// * `Phase::Active` is entered iff every step is `ok` or `skipped` for the current desired state, and
///   is left only for `Phase::Deleting`, which is the phase of every tenant that is to go and of no other.
/// * A step that is not in `runs` keeps everything recorded about it.
/// * With [`Basis::Superseded`] nothing claims to match the new desired state, and the tenant is due
///   at once.
/// * The tenant's next due time is the earliest of its steps'.
pub fn transition(
    tenant: &Tenant,
    due: &[Upstream],
    runs: &[StepRun],
    basis: Basis,
    now: Timestamp,
    policy: &Policy,
    resync_jitter: Jitter,
) -> Transition {
    let before = &tenant.status;
    let mut status = before.clone();
    let recheck_at = now + resync_jitter.spread(policy.resync, Policy::RESYNC_SPREAD);
    for run in runs {
        status.steps[run.step] = after_run(tenant, run, basis, recheck_at, policy);
    }

    let ran = |step: &Upstream| runs.iter().any(|run| run.step == *step);
    let complete = due.iter().all(ran);
    if complete {
        // The claim records an intent for every step that could need one; these did not.
        for step in Upstream::ALL.into_iter().filter(|step| !ran(step)) {
            let intent = &mut status.steps[step].create_intent;
            *intent = intent.filter(|intent| !intent.fresh);
        }
        status.last_handled_desired = Some(tenant.desired.clone());
        status.last_handled_reconcile_at = tenant.reconcile_requested_at;
        status.observed_generation = Some(tenant.generation);
    }

    let after = Tenant { status, ..tenant.clone() };
    let settled = basis == Basis::Current
        && Upstream::ALL.into_iter().all(|step| after.current_state(step).is_settled());
    let mut status = after.status;
    status.phase = match (basis, tenant.desired.deletion) {
        (Basis::Superseded, _) => before.phase,
        (Basis::Current, Some(_)) => Phase::Deleting,
        (Basis::Current, None) if settled => Phase::Active,
        // Taken back: it has to be seen again that all is there.
        (Basis::Current, None) if before.phase == Phase::Deleting => Phase::Pending,
        (Basis::Current, None) => before.phase,
    };
    status.ready = Some(ready(before, &status, settled, tenant.generation, now));
    status.next_reconcile_at = if complete && basis == Basis::Current {
        let steps = status.steps.iter();
        Some(steps.filter_map(|(_, step)| step.next_attempt_at).min().unwrap_or(now))
    } else if complete {
        Some(now)
    } else {
        // Due still, and if that was because the time was missing, for the same steps.
        before.next_reconcile_at.map(|_| now)
    };

    let visible = before.phase != status.phase
        || before.ready.as_ref().map(said) != status.ready.as_ref().map(said)
        || Upstream::ALL.into_iter().any(|s| looks(&before.steps[s]) != looks(&status.steps[s]));
    Transition { status, visible }
}

fn after_run(
    tenant: &Tenant,
    run: &StepRun,
    basis: Basis,
    recheck_at: Timestamp,
    policy: &Policy,
) -> StepStatus {
    let before = &tenant.status.steps[run.step];
    let mut step = before.clone();
    let observation = |found: &Found| {
        let against = tenant.desired.for_step(run.step);
        Some(Observation { at: run.at, against, found: found.clone() })
    };
    if let Outcome::Observed(found) = &run.outcome {
        step.create_intent = step.create_intent.filter(|intent| !intent.fresh);
        step.observation = observation(found);
        return step;
    }
    let mut released_note = None;
    step.parked = false;
    step.observation = None;
    if run.outcome.asked() {
        step.last_attempt_at = Some(run.at);
    }
    match &run.outcome {
        Outcome::Observed(_) => {}
        Outcome::Lacking => {
            (step.state, step.reason) = (StepState::Pending, Some(Reason::NotConfigured));
            step.message = Some(lacking(run.step));
            step.attempts = 0;
            // A process that has the setting makes it due; the whole fleet is not written again and again.
            step.next_attempt_at = Some(recheck_at);
            step.create_intent = step.create_intent.filter(|intent| !intent.fresh);
        }
        Outcome::Adopting { adopted, what } => {
            (step.state, step.reason) = (StepState::Pending, Some(Reason::Reconciling));
            step.message = Some(format!("{what} is taken over; it is recorded before it is changed"));
            step.adopt(adopted);
            step.attempts = 0;
            step.next_attempt_at = Some(run.at);
            step.create_intent = step.create_intent.filter(|intent| !intent.fresh);
        }
        Outcome::Held { reason, found, external_id } => {
            if external_id.is_some() {
                step.external_id.clone_from(external_id);
            }
            (step.state, step.reason) = (StepState::Pending, Some(*reason));
            let gone = tenant.desired.for_step(run.step).presence != Presence::Present;
            step.message = Some(match found {
                Found::Missing if gone => format!("{}: there is nothing to let go", run.step),
                found => format!("{}: would change: {found}", run.step),
            });
            step.observation = observation(found);
            step.attempts = 0;
            step.next_attempt_at =
                Some(run.at + run.jitter.spread(policy.terminal(), Policy::RESYNC_SPREAD));
            step.create_intent = step.create_intent.filter(|intent| !intent.fresh);
        }
        Outcome::Ok { .. } | Outcome::Skipped(_) | Outcome::Released { .. } => {
            let (state, reason) = match &run.outcome {
                Outcome::Skipped(reason) | Outcome::Released { reason, .. } => {
                    (StepState::Skipped, *reason)
                }
                _ => (StepState::Ok, Reason::InSync),
            };
            if let Outcome::Released { external_id, note, .. } = &run.outcome {
                step.external_id.clone_from(external_id);
                step.keep_of_adopted(external_id.as_deref());
                released_note = note.clone();
            }
            step.message = released_note;
            step.create_intent = step.create_intent.filter(|intent| !intent.fresh);
            let mut check_at = recheck_at;
            step.fingerprint = None;
            step.awaits_since = None;
            step.search = false;
            if let Outcome::Ok { external_id, note, look_again, awaits, fingerprint } = &run.outcome {
                step.given_quota = tenant.desired.for_step(run.step).storage_bytes;
                step.fingerprint = *fingerprint;
                step.external_id.clone_from(external_id);
                step.keep_of_adopted(external_id.as_deref());
                step.legacy = false;
                step.message.clone_from(note);
                match look_again {
                    Some(wait) => {
                        check_at = recheck_at.min(run.at + *wait);
                        step.create_intent = before.create_intent;
                    }
                    None => step.create_intent = None,
                }
                if *awaits {
                    let since = before.awaits_since.unwrap_or(run.at);
                    let waited = Duration::try_from(run.at.duration_since(since)).unwrap_or_default();
                    check_at = check_at.min(run.at + policy.learning(waited));
                    step.awaits_since = Some(since);
                }
            }
            step.observed = Some(tenant.desired.for_step(run.step));
            step.attempts = 0;
            (step.state, step.reason, step.next_attempt_at) = match basis {
                Basis::Current => (state, Some(reason), Some(check_at)),
                Basis::Superseded => {
                    (StepState::Pending, Some(Reason::DesiredStateChanged), Some(run.at))
                }
            };
        }
        Outcome::Failed(failure @ Failure { kind: FailureKind::Paced { wait }, .. }) => {
            keep_what_was_found(&mut step, failure);
            step.attempts = failed_before(tenant, run.step);
            let outdated = before.observed.as_ref() != Some(&tenant.desired.for_step(run.step));
            let stays = match step.state {
                StepState::Ok | StepState::Skipped => basis == Basis::Current && !outdated,
                StepState::Error => !starts_afresh(tenant, run.step),
                StepState::Pending => false,
            };
            if !stays {
                (step.state, step.reason) = (StepState::Pending, Some(failure.reason));
                step.message = Some(failure.message.clone());
            }
            let wait = (*wait).min(Policy::MAX_RETRY_AFTER);
            step.next_attempt_at = Some(run.at + wait + run.jitter.spread(wait / 10, 1.0));
        }
        Outcome::Failed(failure) => {
            keep_what_was_found(&mut step, failure);
            step.attempts = failed_before(tenant, run.step).saturating_add(u32::from(!failure.parked));
            // Nothing of it works before a probe finds that it does.
            step.parked = failure.parked || matches!(failure.kind, FailureKind::Misconfigured { .. });
            step.state = StepState::Error;
            step.reason = Some(failure.reason);
            step.message = Some(failure.message.clone());
            let backoff = policy.backoff.delay(step.attempts, run.jitter);
            let delay = match failure.kind {
                FailureKind::Transient { retry_after } => {
                    backoff.max(retry_after.unwrap_or_default().min(Policy::MAX_RETRY_AFTER))
                }
                FailureKind::Terminal => {
                    run.jitter.spread(policy.terminal(), Policy::RESYNC_SPREAD).max(backoff)
                }
                FailureKind::Misconfigured { retry_after }
                | FailureKind::Paced { wait: retry_after } => {
                    backoff.max(retry_after.min(Policy::MAX_RETRY_AFTER))
                }
            };
            let delay = if failure.parked {
                run.jitter.spread(Policy::PARKED, Policy::RESYNC_SPREAD)
            } else {
                delay
            };
            step.next_attempt_at = Some(run.at + delay);
        }
    }
    if step.state != before.state || before.last_transition_at.is_none() {
        step.last_transition_at = Some(run.at);
    }
    step
}

/// Failed attempts in a row that count.
fn failed_before(tenant: &Tenant, step: Upstream) -> u32 {
    if starts_afresh(tenant, step) { 0 } else { tenant.status.steps[step].attempts }
}

/// What a run that did not come to its end has found out all the same.
fn keep_what_was_found(step: &mut StepStatus, failure: &Failure) {
    step.create_intent = step.create_intent.filter(|intent| failure.unresolved || !intent.fresh);
    if failure.external_id.is_some() {
        step.external_id.clone_from(&failure.external_id);
    }
}

fn ready(before: &Status, status: &Status, settled: bool, generation: i64, now: Timestamp) -> Ready {
    let failing = status.steps.iter().find(|(_, step)| step.state == StepState::Error);
    let held = status.steps.iter().find_map(|(kind, step)| match (step.state, step.reason) {
        (StepState::Pending, Some(reason)) if reason.holds() || reason == Reason::RateLimited => {
            Some((kind, reason, step))
        }
        _ => None,
    });
    let (reason, message) = match failing {
        Some((kind, step)) => (
            step.reason.unwrap_or(Reason::UpstreamError),
            of_step(kind, step.message.as_deref().unwrap_or("failed")),
        ),
        None if settled => (Reason::InSync, String::from("every step matches the desired state")),
        None => match held {
            Some((kind, reason, step)) => {
                (reason, of_step(kind, step.message.as_deref().unwrap_or("held")))
            }
            None => (Reason::Reconciling, String::from("not every step has been observed to match yet")),
        },
    };
    let since = before
        .ready
        .as_ref()
        .filter(|earlier| earlier.ready == settled)
        .map_or(now, |earlier| earlier.last_transition_time);
    Ready {
        ready: settled,
        reason,
        message,
        observed_generation: generation,
        last_transition_time: since,
    }
}

/// Most messages begin with the name of their upstream.
fn of_step(step: Upstream, message: &str) -> String {
    let named = message.strip_prefix(step.name()).is_some_and(|rest| rest.starts_with(": "));
    if named { message.to_owned() } else { format!("{step}: {message}") }
}

/// What people see of a condition.
fn said(ready: &Ready) -> (bool, Reason, &str, i64) {
    (ready.ready, ready.reason, &ready.message, ready.observed_generation)
}

/// What people see of a step: all but the times of its attempts.
fn looks(step: &StepStatus) -> (StepState, Option<Reason>, Option<&str>, Option<&str>) {
    (step.state, step.reason, step.message.as_deref(), step.external_id.as_deref())
}
