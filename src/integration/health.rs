//! Finds out whether each upstream is usable, before tenants need it and while it is not.
//!
//! A check is a harmless read of what the work needs. It runs once at start; a healthy upstream is not asked
//! again. While the breaker is shut nothing but a check goes to the upstream, when the gate says that it is
//! time, and for refused credentials when no other process has tried. What an upstream asks for
//! (`Retry-After`) is kept, but no longer than the gate's longest pause.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::ledger::{Away, Known, Ledger};
use super::{Error, Gated, Integration, Integrations};
use crate::delay::GrowingDelay;
use crate::secret::Changes;
use crate::tenant::{Breaker, FailureKind, PerStep, Reason, Traffic, Upstream, UpstreamHealth};

const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Between looks whether a missing permission has been granted.
const PERMISSION_WAIT: Duration = Duration::from_secs(300);
/// Before a ledger that was away is asked again.
const AWAY: Duration = Duration::from_secs(1);
/// Between looks whether another process was accepted, while we are refused.
const LOOK: Duration = Duration::from_secs(15);
/// In which secrets that belong together change.
const TOGETHER: Duration = Duration::from_millis(100);

/// An upstream that a check found to work, and that nothing has shown otherwise for so long, is told as working.
const SETTLES: Duration = Duration::from_secs(20);

impl Integrations {
    /// Learns what credentials other processes know to be refused. To be called before anything is asked;
    /// waits for a database that is away.
    pub async fn recall(&self, ledger: &dyn Ledger) {
        tokio::join!(
            recall(self.authentik.as_ref(), ledger),
            recall(self.stalwart.as_ref(), ledger),
            recall(self.ocis.as_ref(), ledger),
        );
    }

    /// Checks every upstream at start, and whenever it turns out to be unusable. Runs until `shutdown`.
    pub async fn keep_checked(&self, ledger: &dyn Ledger, shutdown: &CancellationToken) {
        let all = async {
            tokio::join!(
                // On the heap: a future of many requests is large, and so are three of them on a stack.
                Box::pin(self.keep(self.authentik.as_ref(), ledger)),
                Box::pin(self.keep(self.stalwart.as_ref(), ledger)),
                Box::pin(self.keep(self.ocis.as_ref(), ledger)),
            )
        };
        tokio::select! {
            _ = all => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn keep<I: Integration>(&self, guarded: Option<&Gated<I>>, ledger: &dyn Ledger) {
        let Some(guarded) = guarded else { return };
        let step = guarded.integration.step();
        let keeping = async {
            loop {
                self.check_until_usable(guarded, ledger).await;
                tokio::select! {
                    () = self.health_becomes(step, is_unusable) => continue,
                    // There may be no run that could prove it for hours.
                    () = tokio::time::sleep(SETTLES) => guarded.gate.settle(),
                }
                self.health_becomes(step, is_unusable).await;
            }
        };
        tokio::select! {
            () = keeping => {}
            () = guarded.follow_secrets() => {}
        }
    }

    /// Checks an upstream now, because a person asked, with what its secrets' files hold now.
    ///
    /// # Errors
    /// How long to wait, where its credentials are refused and still the same: tries of those are rationed.
    pub async fn check(&self, step: Upstream, ledger: &dyn Ledger) -> Result<(), Duration> {
        match (step, &self.authentik, &self.stalwart, &self.ocis) {
            (Upstream::Authentik, Some(it), ..) => it.check_now(ledger).await,
            (Upstream::Stalwart, _, Some(it), _) => it.check_now(ledger).await,
            (Upstream::Ocis, .., Some(it)) => it.check_now(ledger).await,
            _ => Ok(()),
        }
    }

    async fn check_until_usable<I: Integration>(&self, guarded: &Gated<I>, ledger: &dyn Ledger) {
        let (gate, step) = (&guarded.gate, guarded.integration.step());
        let mut wait = GrowingDelay::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            let refused = guarded.share(ledger).await;
            if let Some((until_probe, _)) = gate.shut() {
                if !until_probe.is_zero() {
                    let rest = if refused { until_probe.min(LOOK) } else { until_probe };
                    self.rest(guarded, rest).await;
                    guarded.look(ledger).await;
                    continue;
                }
                if refused && !guarded.take_try(ledger).await {
                    continue;
                }
            }
            match guarded.probe(Box::pin(guarded.integration.check())).await {
                Ok(checked) => {
                    gate.checked(&checked);
                    if refused {
                        // Should it not be heard of, the others find out by themselves.
                        let _ = ledger.clear(step).await;
                    }
                    if checked.lacks.is_empty() && gate.is_open() {
                        return;
                    }
                    self.rest(guarded, PERMISSION_WAIT).await;
                }
                // The gate says when.
                Err(_) if !gate.is_open() => {}
                Err(error) => {
                    self.rest(guarded, wait.grow().max(error.asked_pause())).await;
                }
            }
        }
    }

    /// Waits, but no longer than until the breaker shuts or opens, or a probe is due earlier.
    async fn rest<I: Integration>(&self, guarded: &Gated<I>, wait: Duration) {
        let step = guarded.integration.step();
        let is_open = |health: &UpstreamHealth| matches!(health.breaker, Breaker::Open { .. });
        let before = self.health().borrow()[step].as_ref().is_some_and(is_open);
        tokio::select! {
            () = tokio::time::sleep(wait.max(SHORTEST_WAIT)) => {}
            () = self.health_becomes(step, |health| is_open(health) != before) => {}
            () = guarded.gate.hurried() => {}
        }
    }

    /// Waits until steps are let through to an upstream.
    pub async fn becomes_usable(&self, step: Upstream) {
        self.health_becomes(step, UpstreamHealth::lets_through).await;
    }

    /// Waits until steps that were let through are not any more.
    pub async fn stops_working(&self, step: Upstream) {
        self.health_becomes(step, |health| !health.lets_through()).await;
    }

    /// How requests to an upstream fare; `None` where it is not configured.
    pub fn traffic(&self, step: Upstream) -> Option<Traffic> {
        Some(match step {
            Upstream::Authentik => self.authentik.as_ref()?.integration.upstream().traffic(),
            Upstream::Stalwart => self.stalwart.as_ref()?.integration.upstream().traffic(),
            Upstream::Ocis => self.ocis.as_ref()?.integration.upstream().traffic(),
        })
    }

    /// Whether steps are let through to an upstream, as far as is known.
    pub fn lets_through(&self, step: Upstream) -> bool {
        self.health().borrow()[step].as_ref().is_some_and(UpstreamHealth::lets_through)
    }

    async fn health_becomes(&self, step: Upstream, holds: impl Fn(&UpstreamHealth) -> bool) {
        let mut health = self.health();
        let holds = |board: &PerStep<Option<UpstreamHealth>>| board[step].as_ref().is_some_and(&holds);
        if health.wait_for(holds).await.is_err() {
            // Nothing tells any more.
            std::future::pending::<()>().await;
        }
    }
}

async fn recall<I: Integration>(guarded: Option<&Gated<I>>, ledger: &dyn Ledger) {
    let Some(Gated { integration, gate }) = guarded else { return };
    loop {
        match ledger.known(integration.step(), integration.upstream().credentials()).await {
            Ok(Known::This { wait, message }) => return gate.recall(&message, wait),
            Ok(Known::Nothing | Known::Another) => return,
            Err(Away) => tokio::time::sleep(AWAY).await,
        }
    }
}

fn is_unusable(health: &UpstreamHealth) -> bool {
    matches!(health.breaker, Breaker::Open { .. })
        || health.authenticated == Some(false)
        || health.reachable == Some(false)
        // A pause is kept by itself.
        || health.problem.as_ref().is_some_and(|(reason, _)| *reason != Reason::RateLimited)
}

impl<I: Integration> Gated<I> {
    /// Lets a run through the gate. If it is refused because of our secrets, their files are read again:
    /// where others have been put in their place, those are tried at once.
    pub(super) async fn pass<T>(&self, run: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let used = self.integration.upstream().secrets_version();
        let ended = self.gate.pass(run).await;
        self.judged(used, ended).await
    }

    /// The same for a run that takes long.
    pub(super) async fn pass_beside<T>(
        &self,
        run: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let used = self.integration.upstream().secrets_version();
        let ended = self.gate.pass_beside(run).await;
        self.judged(used, ended).await
    }

    /// The same for a check, which is let through when nothing else is.
    pub(super) async fn probe<T>(
        &self,
        check: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let used = self.integration.upstream().secrets_version();
        let ended = self.gate.probe(check).await;
        self.judged(used, ended).await
    }

    async fn judged<T>(&self, used: u64, mut ended: Result<T, Error>) -> Result<T, Error> {
        let upstream = self.integration.upstream();
        if let Err(error) = &mut ended
            && error.is_about_our_secrets()
            && !error.failure.parked
        {
            upstream.reread_secrets().await;
            if upstream.secrets_version() != used {
                self.secrets_changed();
                error.failure.kind = FailureKind::Transient { retry_after: None };
            }
        }
        ended
    }

    fn secrets_changed(&self) {
        let upstream = self.integration.upstream();
        upstream.secrets_changed();
        self.gate.secrets_changed(upstream.secrets_version());
    }

    /// Uses other secrets as soon as they are there.
    async fn follow_secrets(&self) {
        let mut changes = Changes::of(&self.integration.upstream().secrets());
        loop {
            changes.next().await;
            // A name and its password are in two files.
            tokio::time::sleep(TOGETHER).await;
            self.secrets_changed();
        }
    }

    async fn check_now(&self, ledger: &dyn Ledger) -> Result<(), Duration> {
        self.integration.upstream().reread_secrets().await;
        self.secrets_changed();
        let refused = self.share(ledger).await;
        let due_in = || self.gate.shut().map_or(Duration::ZERO, |(wait, _)| wait);
        if refused && (!due_in().is_zero() || !self.take_try(ledger).await) {
            return Err(due_in());
        }
        if let Ok(checked) = self.probe(self.integration.check()).await {
            self.gate.checked(&checked);
            if refused {
                // Should it not be heard of, the others find out by themselves.
                let _ = ledger.clear(self.integration.step()).await;
            }
        } else {
            self.share(ledger).await;
        }
        Ok(())
    }

    /// Tells the other processes of refused tries. Returns whether our credentials are refused.
    async fn share(&self, ledger: &dyn Ledger) -> bool {
        let (step, credentials) = (self.integration.step(), self.integration.upstream().credentials());
        let tries = self.gate.take_untold();
        if !self.gate.is_refused() {
            return false;
        }
        if tries > 0
            && let Some((wait, error)) = self.gate.shut()
            && let Ok(agreed) = ledger.note(step, credentials, tries, wait, &error.failure.message).await
            && agreed > wait
        {
            self.gate.postpone(agreed);
        }
        true
    }

    /// Looks whether another process was accepted: then it is our turn at once.
    async fn look(&self, ledger: &dyn Ledger) {
        if !self.gate.is_refused() {
            return;
        }
        let (step, credentials) = (self.integration.step(), self.integration.upstream().credentials());
        if ledger.known(step, credentials).await == Ok(Known::Nothing) {
            self.gate.postpone(Duration::ZERO);
        }
    }

    /// Whether this process is the one to try a refused credential again.
    async fn take_try(&self, ledger: &dyn Ledger) -> bool {
        let (step, credentials) = (self.integration.step(), self.integration.upstream().credentials());
        match ledger.take_try(step, credentials).await {
            Ok(Some(wait)) => {
                self.gate.postpone(wait.max(SHORTEST_WAIT));
                false
            }
            Ok(None) | Err(_) => true,
        }
    }
}
