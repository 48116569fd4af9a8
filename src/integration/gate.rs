//! Keeps an unhealthy integration from being asked once per tenant.
//!
//! Until an upstream has accepted our credentials once, one run at a time is let through, and
//! everybody waiting shares its failure. Once it rejects them, nobody is let through until a probe
//! is due; probes are rare, because Stalwart bans an address for ever after a hundred failed logins.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Error;
use crate::metrics::Metrics;
use crate::tenant::{FailureKind, Reason, StepKind};

/// Between probes after rejected credentials: at most two more tries in ten minutes, six an hour.
const CREDENTIAL_PROBES: [Duration; 3] =
    [Duration::from_secs(120), Duration::from_secs(600), Duration::from_secs(900)];
/// Between probes after a wrong address or failed TLS, which harm nobody.
const OTHER_PROBES: [Duration; 3] =
    [Duration::from_secs(15), Duration::from_secs(60), Duration::from_secs(300)];

/// One integration's gate. Shared by all workers; the lock is never held across an await.
pub struct Gate {
    step: StepKind,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// Told whenever a probe ends.
    probed: Notify,
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
    Healthy,
    Rejected { error: Error, in_a_row: usize, probe_at: Instant },
}

enum Entry<'a> {
    Go(Option<Probe<'a>>),
    Wait { probes: u64 },
    Refused(Error),
}

/// The right to be the one who finds out. Dropping it, as a cancelled run does, passes it on.
struct Probe<'a>(&'a Gate);

impl Gate {
    pub fn new(step: StepKind, metrics: Arc<Metrics>) -> Self {
        let state = State { health: Health::Unproven, probing: false, probes: 0, latest_failure: None };
        metrics.integration_healthy.with_label_values(&[step.name()]).set(1);
        Self { step, metrics, state: Mutex::new(state), probed: Notify::new() }
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
        drop(probe);
        result
    }

    fn enter(&self, waited_since: Option<u64>) -> Entry<'_> {
        let mut state = self.lock();
        if waited_since.is_some_and(|probes| probes != state.probes)
            && let Some(error) = &state.latest_failure
        {
            return Entry::Refused(error.clone());
        }
        match &state.health {
            Health::Healthy => return Entry::Go(None),
            Health::Unproven => {}
            Health::Rejected { error, probe_at, .. } => {
                let wait = probe_at.saturating_duration_since(Instant::now());
                if !wait.is_zero() {
                    return Entry::Refused(postponed(error, wait));
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
                    Health::Unproven | Health::Healthy => 0,
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
            }
            // Begun before the rejection: what it saw is no longer so.
            Some(_) | None if !probe && matches!(state.health, Health::Rejected { .. }) => {}
            Some(_) | None => {
                state.latest_failure = None;
                if matches!(state.health, Health::Rejected { .. }) {
                    tracing::info!(upstream = %self.step, "the integration works again");
                }
                state.health = Health::Healthy;
                self.healthy(1);
            }
        }
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

fn postponed(error: &Error, wait: Duration) -> Error {
    let mut error = error.clone();
    error.failure.kind = FailureKind::Misconfigured { retry_after: wait };
    error
}
