//! Keeps an upstream that does not work, or refuses us, from being asked once per tenant.
//!
//! Until an upstream has answered once, one run at a time is let through, and all that wait share its
//! failure. When the breaker shuts (its rules are the [`Circuit`]'s), no run is let through: steps are
//! parked, and a check ([`Gate::probe`]) finds out now and then whether that is still so.
//!
//! A run that was let through is asked again for each of its requests, right before it is sent
//! ([`Gate::may_send`]). So what waited for its turn when a credential went bad is not sent with it, however
//! many workers wait.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use super::circuit::{By, Circuit, News};
use super::{Checked, Error};
use crate::metrics::{BreakerState, Metrics};
use crate::tenant::{Breaker, PerStep, Reason, Upstream, UpstreamHealth};

/// The health of all integrations, to be shown.
pub type HealthBoard = watch::Sender<PerStep<Option<UpstreamHealth>>>;

/// A credential that was not accepted for so long may have gone bad.
const FRESH: Duration = Duration::from_secs(60);
/// Requests that risk a credential like that at once; no more than a refused one may be tried.
const RISKED: usize = 3;
/// Two times of a probe that differ less are the same to those who look.
const SAME: Duration = Duration::from_secs(1);

tokio::task_local! {
    /// The task is a check, which is let through when nothing else is.
    static CHECKING: ();
}

/// One integration's gate. Shared by all workers; the lock is never held across an await.
pub struct Gate {
    step: Upstream,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// Told whenever a run that was let through alone, or a check, has ended.
    probed: Notify,
    risked: Arc<Semaphore>,
    /// Told when a probe is due earlier than it was said.
    hurried: Notify,
    board: HealthBoard,
}

struct State {
    circuit: Circuit,
    probing: bool,
    /// Probes that ended, and how the latest failed, for those who waited for it.
    probes: u64,
    latest_failure: Option<Error>,
    accepted: Option<Instant>,
    /// What a check last told, so that it is logged only when it changes.
    told: Option<Checked>,
    /// The version of the secrets that a probe was last let through early for.
    secrets: u64,
}

enum Entry<'a> {
    Go(Option<Probe<'a>>),
    Wait { probes: u64 },
    Refused(Box<Error>),
}

/// The right to be the one who finds out. Dropping it, as a cancelled run does, passes it on.
struct Probe<'a>(&'a Gate);

/// A request may be sent. Held until it has been answered.
pub(super) struct Leave {
    _risk: Option<OwnedSemaphorePermit>,
}

impl Gate {
    pub fn new(step: Upstream, metrics: Arc<Metrics>, board: HealthBoard) -> Self {
        board.send_modify(|board| board[step] = Some(UpstreamHealth::default()));
        metrics.integration_healthy.of(step).set(1);
        metrics.upstream_down.of(step).set(0);
        show_breaker(&metrics, step, Breaker::Unproven);
        let state = State {
            circuit: Circuit::new(),
            probing: false,
            probes: 0,
            latest_failure: None,
            accepted: None,
            told: None,
            secrets: 0,
        };
        Self {
            step,
            metrics,
            state: Mutex::new(state),
            probed: Notify::new(),
            risked: Arc::new(Semaphore::new(RISKED)),
            hurried: Notify::new(),
            board,
        }
    }

    /// Runs `run` if the upstream works, or if it is its turn to find out.
    pub async fn pass<T>(&self, run: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let probe = self.turn(Self::enter).await?;
        let by = if probe.is_some() { By::Turn } else { By::Run };
        let result = run.await;
        self.learn(result.as_ref().err(), by);
        drop(probe);
        result.map_err(|error| self.until_probe(error))
    }

    /// Runs `run` unless the breaker is shut. It neither waits for others nor lets others wait, because it
    /// takes long; except at start, when nothing is known of the credentials.
    pub async fn pass_beside<T>(&self, run: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.lets_through()?;
        if self.lock().circuit.is_unproven() {
            return self.pass(run).await;
        }
        let result = run.await;
        self.learn(result.as_ref().err(), By::Run);
        result.map_err(|error| self.until_probe(error))
    }

    /// Runs a check, whatever is known of the upstream. One at a time.
    pub async fn probe<T>(&self, check: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let probe = self.turn(|gate, _| gate.enter_to_check()).await?;
        let result = CHECKING.scope((), check).await;
        self.learn(result.as_ref().err(), By::Check);
        drop(probe);
        result.map_err(|error| self.until_probe(error))
    }

    /// Waits while another finds out.
    async fn turn<'a>(
        &'a self,
        enter: impl Fn(&'a Self, Option<u64>) -> Entry<'a>,
    ) -> Result<Option<Probe<'a>>, Error> {
        let mut waited_since = None;
        loop {
            let probed = self.probed.notified();
            tokio::pin!(probed);
            // From here on no notification is missed.
            probed.as_mut().enable();
            match enter(self, waited_since) {
                Entry::Go(probe) => return Ok(probe),
                Entry::Refused(error) => return Err(*error),
                Entry::Wait { probes } => {
                    waited_since = Some(probes);
                    probed.await;
                }
            }
        }
    }

    fn enter(&self, waited_since: Option<u64>) -> Entry<'_> {
        let mut state = self.lock();
        if let Some(shut) = state.circuit.shut() {
            return Entry::Refused(Box::new(parked(shut.error(Instant::now()))));
        }
        if waited_since.is_some_and(|probes| probes != state.probes)
            && let Some(error) = &state.latest_failure
        {
            return Entry::Refused(Box::new(error.clone()));
        }
        if state.circuit.is_working() {
            return Entry::Go(None);
        }
        self.take_turn(&mut state)
    }

    fn enter_to_check(&self) -> Entry<'_> {
        let mut state = self.lock();
        if state.circuit.is_working() { Entry::Go(None) } else { self.take_turn(&mut state) }
    }

    fn take_turn(&self, state: &mut State) -> Entry<'_> {
        if state.probing {
            return Entry::Wait { probes: state.probes };
        }
        state.probing = true;
        state.latest_failure = None;
        Entry::Go(Some(Probe(self)))
    }

    /// Whether a request of this task would be let through now.
    ///
    /// # Errors
    /// What every step gets while the breaker is shut.
    pub(super) fn lets_through(&self) -> Result<(), Error> {
        match self.lock().circuit.shut() {
            Some(shut) if !is_check() => Err(parked(shut.error(Instant::now()))),
            _ => Ok(()),
        }
    }

    /// Whether a request may be sent now. To be asked when nothing else keeps it.
    ///
    /// # Errors
    /// As [`Gate::lets_through`].
    pub(super) async fn may_send(&self) -> Result<Leave, Error> {
        let mut risk = None;
        if !self.is_fresh() {
            // Nothing closes it.
            risk = Arc::clone(&self.risked).acquire_owned().await.ok().filter(|_| !self.is_fresh());
        }
        self.lets_through()?;
        Ok(Leave { _risk: risk })
    }

    fn is_fresh(&self) -> bool {
        self.lock().accepted.is_some_and(|at| at.elapsed() < FRESH)
    }

    /// The upstream answered a request, and did not refuse us.
    pub(super) fn accepted(&self) {
        self.lock().accepted = Some(Instant::now());
    }

    /// The upstream refused a request as not ours. To be told before another one can take its place.
    pub(super) fn refused(&self, error: &Error) {
        let by = if is_check() { By::Check } else { By::Run };
        let news = {
            let mut state = self.lock();
            state.accepted = None;
            state.circuit.refused(error, by, Instant::now())
        };
        self.tell(news);
        self.show(Some(error));
    }

    /// The run that found out waits for the next probe as all others do.
    fn until_probe(&self, error: Error) -> Error {
        match self.lock().circuit.shut() {
            Some(shut) if error.is_misconfigured() => {
                let kind = shut.error(Instant::now()).failure.kind;
                let mut error = error;
                error.failure.kind = kind;
                error
            }
            _ => error,
        }
    }

    fn learn(&self, error: Option<&Error>, by: By) {
        let news = {
            let mut state = self.lock();
            // All that waited are spared the same, unless it may have been about one tenant only.
            state.latest_failure =
                error.filter(|error| error.is_about_the_upstream()).map(Error::for_everybody);
            if error.is_none() {
                state.accepted = Some(Instant::now());
            }
            state.circuit.ended(error, by, Instant::now())
        };
        self.tell(news);
        self.show(error);
    }

    /// Another process was refused with the same credential.
    pub(super) fn recall(&self, message: &str, wait: Duration) {
        let message = format!(
            "{}: another process of the fleet was refused with the same credential, so it was not tried \
             again. It was told: {message}",
            self.step
        );
        let error = Error::misconfigured(Reason::CredentialsRejected, message);
        let now = Instant::now();
        self.lock().circuit.recall(&error, now + wait, now);
        self.tell(News::Believed);
        self.show(Some(&error));
    }

    /// Tries that the other processes do not know of yet.
    pub(super) fn take_untold(&self) -> u32 {
        self.lock().circuit.take_untold()
    }

    /// The next probe is due after `wait`.
    pub(super) fn postpone(&self, wait: Duration) {
        let now = Instant::now();
        let news = self.lock().circuit.postpone(now + wait, now);
        self.tell(news);
        self.amend(|_| {});
    }

    /// The secrets are others than those that were refused, so that the next check may find out at once, and
    /// once: `version` tells them from the ones before.
    pub(super) fn secrets_changed(&self, version: u64) {
        let now = Instant::now();
        {
            let mut state = self.lock();
            if state.secrets == version {
                return;
            }
            state.secrets = version;
            state.circuit.renewed(now);
        }
        self.amend(|_| {});
        self.hurried.notify_one();
    }

    /// Waits until a probe is due earlier than it was said.
    pub(super) async fn hurried(&self) {
        self.hurried.notified().await;
    }

    /// While the breaker is shut: how long until the next probe, and what is told to all.
    pub(super) fn shut(&self) -> Option<(Duration, Error)> {
        let (state, now) = (self.lock(), Instant::now());
        let shut = state.circuit.shut()?;
        Some((shut.probe_at.saturating_duration_since(now), shut.error(now)))
    }

    /// Whether our credentials are refused, for good or not.
    pub(super) fn is_refused(&self) -> bool {
        self.lock().circuit.is_refused()
    }

    /// Whether runs are let through, if only one at a time.
    pub fn is_open(&self) -> bool {
        self.lock().circuit.shut().is_none()
    }

    fn tell(&self, news: News) {
        let (shut, working) = {
            let state = self.lock();
            let shut = state.circuit.shut().map(|shut| {
                let failure = &shut.error.failure;
                (shut.is_believed(), failure.reason, failure.message.clone())
            });
            (shut, state.circuit.is_working())
        };
        let upstream = self.step;
        match (news, &shut) {
            (News::Shut, Some((_, reason, message))) => tracing::warn!(
                %upstream, %reason, "taken to be down; its steps wait until it works again: {message}"
            ),
            (News::Believed, Some((_, reason, message))) => tracing::error!(
                %upstream, %reason, "the integration does not work until a person sees to it: {message}"
            ),
            (News::Works, _) => tracing::info!(%upstream, "the integration works again"),
            _ => {}
        }
        let believed = shut.as_ref().is_some_and(|(believed, ..)| *believed);
        if shut.is_some() || working {
            self.metrics.integration_healthy.of(upstream).set(i64::from(!believed));
            let down = shut.is_some() && !believed;
            self.metrics.upstream_down.of(upstream).set(i64::from(down));
        }
    }

    /// Tells of an upstream that works by all that is known, though no run has proved it.
    pub(super) fn settle(&self) {
        if self.lock().circuit.shut().is_none() {
            self.metrics.integration_healthy.of(self.step).set(1);
            self.metrics.upstream_down.of(self.step).set(0);
        }
    }

    /// What a check found.
    pub(super) fn checked(&self, checked: &Checked) {
        let lacks = i64::try_from(checked.lacks.len()).unwrap_or(i64::MAX);
        self.metrics.integration_lacks.of(self.step).set(lacks);
        let problem = (!checked.lacks.is_empty()).then(|| {
            let lacks = checked.lacks.join(", ");
            (Reason::Forbidden, format!("{}: our account lacks {lacks}. {}", self.step, checked.remedy))
        });
        let news = {
            let mut state = self.lock();
            let news = state.told.as_ref() != Some(checked);
            state.told = Some(checked.clone());
            news
        };
        match &problem {
            Some((_, message)) if news => tracing::error!(upstream = %self.step, "{message}"),
            None if news => tracing::info!(
                upstream = %self.step, version = checked.version.as_deref().unwrap_or("not told"),
                "the upstream answers and knows us"
            ),
            _ => {}
        }
        self.amend(|health| {
            health.version.clone_from(&checked.version);
            health.lacks.clone_from(&checked.lacks);
            health.problem.clone_from(&problem);
        });
    }

    /// Shows what the latest run says of the upstream.
    fn show(&self, error: Option<&Error>) {
        let shut = self.shut().map(|(_, error)| error);
        let error = shut.as_ref().or(error).map(|error| &error.failure);
        self.amend(|health| {
            let Some(failure) = error else {
                health.accepted_at = Some(Timestamp::now());
                (health.reachable, health.authenticated) = (Some(true), Some(true));
                // A missing permission may not have been needed this time.
                if health.lacks.is_empty() {
                    health.problem = None;
                }
                return;
            };
            let problem = Some((failure.reason, failure.message.clone()));
            match failure.reason {
                Reason::Unreachable | Reason::Timeout | Reason::TlsFailed => {
                    health.reachable = Some(false);
                    health.problem = problem;
                }
                Reason::CredentialsRejected | Reason::ClaimsRejected => {
                    (health.reachable, health.authenticated) = (Some(true), Some(false));
                    health.problem = problem;
                }
                Reason::Forbidden => {
                    (health.reachable, health.authenticated) = (Some(true), Some(true));
                    health.problem = problem;
                }
                Reason::NotReady | Reason::StorageAway | Reason::RateLimited | Reason::WrongAddress => {
                    health.reachable = Some(true);
                    health.problem = problem;
                }
                // One tenant's affair, or one request's, unless it shut the breaker.
                _ if shut.is_some() => {
                    health.reachable = Some(true);
                    health.problem = problem;
                }
                _ => health.reachable = Some(true),
            }
        });
    }

    fn breaker(&self) -> Breaker {
        let state = self.lock();
        match state.circuit.shut() {
            Some(shut) => Breaker::Open {
                probe_at: Timestamp::now() + shut.probe_at.saturating_duration_since(Instant::now()),
            },
            None if state.circuit.is_working() => Breaker::Closed,
            None => Breaker::Unproven,
        }
    }

    fn amend(&self, change: impl FnOnce(&mut UpstreamHealth)) {
        self.board.send_if_modified(|board| {
            let before = board[self.step].clone().unwrap_or_default();
            let mut after = before.clone();
            show_breaker(&self.metrics, self.step, self.breaker());
            after.breaker = match (before.breaker, self.breaker()) {
                (Breaker::Open { probe_at: old }, Breaker::Open { probe_at: new })
                    if old.duration_since(new).unsigned_abs() < SAME =>
                {
                    before.breaker
                }
                (_, breaker) => breaker,
            };
            change(&mut after);
            let changed = !before.says_the_same(&after);
            board[self.step] = Some(after);
            changed
        });
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

fn is_check() -> bool {
    CHECKING.try_with(|()| ()).is_ok()
}

/// The same for a run that was not let through.
fn parked(mut error: Error) -> Error {
    error.failure.parked = true;
    error
}

/// One of the states is 1, the others are 0.
fn show_breaker(metrics: &Metrics, step: Upstream, breaker: Breaker) {
    let now = BreakerState::from(breaker);
    for state in BreakerState::ALL {
        metrics.breaker_state.of((step, *state)).set(i64::from(*state == now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        Gate::new(Upstream::Stalwart, Arc::default(), HealthBoard::new(PerStep::default()))
    }

    #[tokio::test]
    async fn a_credential_that_was_not_accepted_lately_is_risked_by_three_requests_at_once() {
        let gate = gate();
        let mut risked = Vec::new();
        for _ in 0..RISKED {
            risked.push(gate.may_send().await.unwrap());
        }
        let fourth = gate.may_send();
        tokio::pin!(fourth);
        let waits = tokio::time::timeout(Duration::from_millis(20), &mut fourth).await;
        assert!(waits.is_err(), "a fourth waits for what comes of them");
        gate.accepted();
        risked.pop();
        fourth.await.unwrap();
        // From now on as many as there are.
        for _ in 0..2 * RISKED {
            risked.push(gate.may_send().await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_request_that_waited_while_the_credential_was_refused_is_not_sent() {
        let gate = gate();
        let refusal = Error::misconfigured(Reason::CredentialsRejected, "stalwart: 401".into());
        gate.probe(std::future::ready(Ok(()))).await.unwrap();
        let run = gate.pass(async {
            gate.refused(&refusal);
            gate.may_send().await.map(drop)
        });
        let error = run.await.unwrap_err();
        assert!(error.failure.parked, "{error:?}");
        // A check is let through.
        gate.probe(async { gate.may_send().await.map(drop) }).await.unwrap();
        gate.pass(async { gate.may_send().await.map(drop) }).await.unwrap();
    }

    #[tokio::test]
    async fn what_takes_long_does_not_keep_the_turn_from_others() {
        let gate = gate();
        let down = Error::transient(Reason::Unreachable, "stalwart: cannot connect".into());
        gate.probe(std::future::ready(Err::<(), _>(down.clone()))).await.unwrap_err();
        let refused = gate.pass_beside(std::future::ready(Ok(()))).await.unwrap_err();
        assert!(refused.failure.parked, "{refused:?}");
        gate.probe(std::future::ready(Ok(()))).await.unwrap();
        let long = gate.pass_beside(std::future::pending::<Result<(), Error>>());
        tokio::pin!(long);
        assert!(tokio::time::timeout(Duration::from_millis(10), &mut long).await.is_err());
        gate.pass(std::future::ready(Ok(()))).await.unwrap();
    }
}
