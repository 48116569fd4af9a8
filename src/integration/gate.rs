//! Keeps an unhealthy integration from being asked once per tenant.
//!
//! Until an upstream has accepted our credentials once, one run at a time is let through, and
//! everybody waiting shares its failure. Once it rejects them, nobody is let through until a probe
//! is due; probes are rare, because Stalwart bans an address for ever after a hundred failed logins.
//!
//! An upstream that fails several runs in a row is taken to be down (a circuit breaker): nobody is let
//! through but a probe now and then, and everybody else gets the same error at once, without a request. When
//! it asks for a pause (`Retry-After`), it gets one from all.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use super::{Checked, Error};
use crate::metrics::Metrics;
use crate::tenant::{Breaker, FailureKind, PerStep, Reason, StepKind, UpstreamHealth};

/// Between probes after rejected credentials: at most two more tries in ten minutes, six an hour.
const CREDENTIAL_PROBES: [Duration; 3] =
    [Duration::from_secs(120), Duration::from_secs(600), Duration::from_secs(900)];
/// Between probes after a wrong address or failed TLS, which harm nobody.
const OTHER_PROBES: [Duration; 3] =
    [Duration::from_secs(15), Duration::from_secs(60), Duration::from_secs(300)];

/// Failures in a row after which an upstream is taken to be down.
const DOWN_AFTER: u32 = 5;
/// Between probes of an upstream that is down.
const DOWN_PROBES: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
];
/// The longest pause that an upstream is given at its word.
const LONGEST_PAUSE: Duration = Duration::from_secs(900);

/// The health of all integrations, for whoever shows it.
pub type HealthBoard = watch::Sender<PerStep<Option<UpstreamHealth>>>;

/// One integration's gate. Shared by all workers; the lock is never held across an await.
pub struct Gate {
    step: StepKind,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// Told whenever a probe ends.
    probed: Notify,
    board: HealthBoard,
}

struct State {
    health: Health,
    probing: bool,
    /// Probes that ended, and how the latest failed, for those who waited for it.
    probes: u64,
    latest_failure: Option<Error>,
}

enum Health {
    Unproven,
    /// Failures in a row since it last worked.
    Healthy {
        failures: u32,
    },
    Down {
        error: Error,
        in_a_row: usize,
        probe_at: Instant,
    },
    Rejected {
        error: Error,
        in_a_row: usize,
        probe_at: Instant,
    },
}

impl Health {
    /// The same for people.
    fn breaker(&self) -> Breaker {
        match self {
            Self::Unproven => Breaker::Unproven,
            Self::Healthy { .. } => Breaker::Closed,
            Self::Down { probe_at, .. } | Self::Rejected { probe_at, .. } => Breaker::Open {
                probe_at: Timestamp::now() + probe_at.saturating_duration_since(Instant::now()),
            },
        }
    }
}

enum Entry<'a> {
    Go(Option<Probe<'a>>),
    Wait { probes: u64 },
    Refused(Error),
}

/// The right to be the one who finds out. Dropping it, as a cancelled run does, passes it on.
struct Probe<'a>(&'a Gate);

impl Gate {
    pub fn new(step: StepKind, metrics: Arc<Metrics>, board: HealthBoard) -> Self {
        board.send_modify(|board| board[step] = Some(UpstreamHealth::default()));
        let state = State { health: Health::Unproven, probing: false, probes: 0, latest_failure: None };
        metrics.integration_healthy.with_label_values(&[step.name()]).set(1);
        Self { step, metrics, state: Mutex::new(state), probed: Notify::new(), board }
    }

    /// Runs `run` if the integration is healthy, or if it is our turn to find out.
    pub async fn pass<T>(&self, run: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let mut waited_since = None;
        let probe = loop {
            let probed = self.probed.notified();
            tokio::pin!(probed);
            // From here on no notification is missed.
            probed.as_mut().enable();
            match self.enter(waited_since) {
                Entry::Go(probe) => break probe,
                Entry::Refused(error) => return Err(error),
                Entry::Wait { probes } => {
                    waited_since = Some(probes);
                    probed.await;
                }
            }
        };
        let result = run.await;
        self.learn(result.as_ref().err(), probe.is_some());
        self.show(result.as_ref().err());
        drop(probe);
        result.map_err(|error| self.until_probe(error))
    }

    /// Whether a run would be let through now, and not as a probe.
    pub fn is_open(&self) -> bool {
        matches!(self.lock().health, Health::Healthy { .. })
    }

    /// Whoever found out waits for the next probe like everybody else.
    fn until_probe(&self, error: Error) -> Error {
        match &self.lock().health {
            Health::Rejected { probe_at, .. } if error.is_misconfigured() => {
                postponed(&error, probe_at.saturating_duration_since(Instant::now()))
            }
            _ => error,
        }
    }

    fn enter(&self, waited_since: Option<u64>) -> Entry<'_> {
        let mut state = self.lock();
        if waited_since.is_some_and(|probes| probes != state.probes)
            && let Some(error) = &state.latest_failure
        {
            return Entry::Refused(error.clone());
        }
        match &state.health {
            Health::Healthy { .. } => return Entry::Go(None),
            Health::Unproven => {}
            Health::Down { error, probe_at, .. } => {
                let wait = probe_at.saturating_duration_since(Instant::now());
                if !wait.is_zero() || state.probing {
                    let mut error = parked(error);
                    error.failure.kind = FailureKind::Transient { retry_after: Some(wait) };
                    return Entry::Refused(error);
                }
            }
            Health::Rejected { error, probe_at, .. } => {
                let wait = probe_at.saturating_duration_since(Instant::now());
                if !wait.is_zero() {
                    return Entry::Refused(parked(&postponed(error, wait)));
                }
            }
        }
        if state.probing {
            return Entry::Wait { probes: state.probes };
        }
        state.probing = true;
        state.latest_failure = None;
        Entry::Go(Some(Probe(self)))
    }

    fn learn(&self, error: Option<&Error>, probe: bool) {
        let mut state = self.lock();
        match error {
            Some(error) if error.is_misconfigured() => {
                let in_a_row = match &state.health {
                    // Several runs were under way when the first was rejected: that is one rejection.
                    Health::Rejected { in_a_row, .. } if !probe => *in_a_row,
                    Health::Rejected { in_a_row, .. } => in_a_row + 1,
                    Health::Unproven | Health::Healthy { .. } | Health::Down { .. } => 0,
                };
                let schedule = match error.failure.reason {
                    Reason::CredentialsRejected => CREDENTIAL_PROBES,
                    _ => OTHER_PROBES,
                };
                let wait = schedule[in_a_row.min(schedule.len() - 1)];
                if !matches!(state.health, Health::Rejected { .. }) {
                    tracing::error!(
                        upstream = %self.step, reason = %error.failure.reason,
                        "the integration does not work until somebody mends it: {}",
                        error.failure.message
                    );
                }
                let error = postponed(&error.for_everybody(), wait);
                state.latest_failure = Some(error.clone());
                state.health = Health::Rejected { error, in_a_row, probe_at: Instant::now() + wait };
                self.healthy(0);
            }
            // It did not answer, which says nothing about the credentials. Whoever waited is spared
            // the same, unless this may have been about one tenant only.
            Some(error) if error.is_transient() => {
                state.latest_failure = error.is_about_the_upstream().then(|| error.for_everybody());
                if error.is_outage() {
                    self.count_failure(&mut state, error, probe);
                }
            }
            // Begun before the rejection: what it saw is no longer so.
            Some(_) | None if !probe && matches!(state.health, Health::Rejected { .. }) => {}
            // Begun before it was found to be down.
            Some(_) | None if !probe && matches!(state.health, Health::Down { .. }) => {}
            Some(_) | None => {
                state.latest_failure = None;
                if matches!(state.health, Health::Rejected { .. } | Health::Down { .. }) {
                    tracing::info!(upstream = %self.step, "the integration works again");
                }
                state.health = Health::Healthy { failures: 0 };
                self.metrics.upstream_down.with_label_values(&[self.step.name()]).set(0);
                self.healthy(1);
            }
        }
    }

    /// Another failure that says that the upstream does not work.
    fn count_failure(&self, state: &mut State, error: &Error, probe: bool) {
        let pause = match error.failure.kind {
            FailureKind::Transient { retry_after } => retry_after.map(|wait| wait.min(LONGEST_PAUSE)),
            _ => None,
        };
        let in_a_row = match &mut state.health {
            // At start nobody is let through but one at a time anyway.
            Health::Unproven if pause.is_none() => return,
            Health::Unproven => 0,
            Health::Healthy { failures } => {
                *failures += 1;
                if *failures < DOWN_AFTER && pause.is_none() {
                    return;
                }
                0
            }
            // Under way when it was found out.
            Health::Down { .. } if !probe => return,
            Health::Down { in_a_row, .. } => *in_a_row + 1,
            Health::Rejected { .. } => return,
        };
        let wait = pause.unwrap_or(DOWN_PROBES[in_a_row.min(DOWN_PROBES.len() - 1)]);
        if in_a_row == 0 {
            tracing::warn!(
                upstream = %self.step, reason = %error.failure.reason,
                "taken to be down; its steps wait until it works again: {}", error.failure.message
            );
        }
        self.metrics.upstream_down.with_label_values(&[self.step.name()]).set(1);
        let error = error.for_everybody();
        state.health = Health::Down { error, in_a_row, probe_at: Instant::now() + wait };
    }

    /// What a check found.
    pub fn checked(&self, checked: &Checked) {
        let lacks = i64::try_from(checked.lacks.len()).unwrap_or(i64::MAX);
        self.metrics.integration_lacks.with_label_values(&[self.step.name()]).set(lacks);
        let problem = (!checked.lacks.is_empty()).then(|| {
            let lacks = checked.lacks.join(", ");
            (Reason::Forbidden, format!("{}: our account lacks {lacks}. {}", self.step, checked.remedy))
        });
        match &problem {
            Some((_, message)) => tracing::error!(upstream = %self.step, "{message}"),
            None => tracing::info!(
                upstream = %self.step, version = checked.version.as_deref().unwrap_or("not told"),
                "the upstream answers and knows us"
            ),
        }
        self.amend(|health| {
            health.version.clone_from(&checked.version);
            health.lacks.clone_from(&checked.lacks);
            health.problem.clone_from(&problem);
        });
    }

    /// Shows what the latest run says of the upstream.
    fn show(&self, error: Option<&Error>) {
        let (down, breaker) = {
            let state = self.lock();
            let down = match &state.health {
                Health::Down { error, .. } => {
                    Some((error.failure.reason, error.failure.message.clone()))
                }
                _ => None,
            };
            (down, state.health.breaker())
        };
        self.amend(|health| {
            health.breaker = breaker;
            if error.is_none() {
                health.accepted_at = Some(Timestamp::now());
            }
            if down.is_some() {
                health.problem.clone_from(&down);
                return;
            }
            let problem = |error: &Error| Some((error.failure.reason, error.failure.message.clone()));
            match error {
                Some(error) => match error.failure.reason {
                    Reason::Unreachable | Reason::Timeout | Reason::TlsFailed => {
                        health.reachable = Some(false);
                        health.problem = problem(error);
                    }
                    Reason::CredentialsRejected | Reason::ClaimsRejected => {
                        (health.reachable, health.authenticated) = (Some(true), Some(false));
                        health.problem = problem(error);
                    }
                    _ if error.is_misconfigured() || error.is_about_the_upstream() => {
                        health.reachable = Some(true);
                        health.problem = problem(error);
                    }
                    Reason::Forbidden => {
                        (health.reachable, health.authenticated) = (Some(true), Some(true));
                        health.problem = problem(error);
                    }
                    // One tenant's affair, or one request's.
                    _ => health.reachable = Some(true),
                },
                None => {
                    (health.reachable, health.authenticated) = (Some(true), Some(true));
                    // A missing permission may not have been needed this time.
                    if health.lacks.is_empty() {
                        health.problem = None;
                    }
                }
            }
        });
    }

    fn amend(&self, change: impl FnOnce(&mut UpstreamHealth)) {
        self.board.send_if_modified(|board| {
            let before = board[self.step].clone().unwrap_or_default();
            let mut after = before.clone();
            change(&mut after);
            let changed = !before.says_the_same(&after);
            board[self.step] = Some(after);
            changed
        });
    }

    fn healthy(&self, value: i64) {
        self.metrics.integration_healthy.with_label_values(&[self.step.name()]).set(value);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.probing = false;
        state.probes += 1;
        drop(state);
        self.0.probed.notify_waiters();
    }
}

/// The same for somebody who was not let through.
fn parked(error: &Error) -> Error {
    let mut error = error.clone();
    error.failure.parked = true;
    error
}

fn postponed(error: &Error, wait: Duration) -> Error {
    let mut error = error.clone();
    error.failure.kind = FailureKind::Misconfigured { retry_after: wait };
    error
}
