//! Stops and change guards, as this process follows and works them.
//!
//! They are documents that every process watches, so that a stop holds everywhere within a moment, and
//! survives restarts. What cannot be read stays as it was last known; before the first read nothing is
//! known, and nothing may be done ([`ChangeGuards::known`]).
//!
//! # What a stop or a guard held back goes on when it is taken back
//!
//! * Taking it back is recorded, and no more. Each process makes due what is recorded as held when it learns
//!   that nothing holds the step any more, and when it starts: what one that crashed has left ([`ChangeGuards::wake`]).
//! * A process may record a hold after others did that, because it has not learned of it yet. It makes due
//!   what it has held when it learns of it.
//! * A reconcile may record a hold after *that*, because its step ran before. So a reconcile asks again
//!   around its commit ([`ChangeGuards::is_free_since`]).

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::feed::Hint;
use crate::delay::GrowingDelay;
use crate::integration::{
    Cause, MarkedFor, Mode, Permission, Purpose, Ready, Refusal, RepairGuard, Target,
};
use crate::metrics::Metrics;
use crate::store::{Store, StoreError, WatchError, Woken};
use crate::tenant::{
    ChangeGuard, ChangeGuardPolicy, Controls, Fleet, Found, PerStep, Reason, Swept, TenantId, Upstream,
};

const FIRST_DELAY: Duration = Duration::from_millis(100);
/// No longer than a stop may take to be known.
const LONGEST_DELAY: Duration = Duration::from_secs(1);
/// Before what was held is made due again, should that have failed.
const WAKE_DELAY: Duration = Duration::from_secs(1);
/// Tenants that are made due at once.
const WAKE_AT_ONCE: u32 = 1_000;
/// Between a thousand repairs and the next thousand, once a guard is lifted; but all begin within the other.
pub const PACE: Duration = Duration::from_secs(5);
pub const WITHIN: Duration = Duration::from_secs(1800);

/// Follows the controls for this process, and decides about repairs.
pub struct ChangeGuards {
    store: Store,
    metrics: Arc<Metrics>,
    policy: ChangeGuardPolicy,
    /// Repairs are counted over so long.
    window: Duration,
    controls: watch::Sender<Controls>,
    /// Where work may be, the database is asked at once.
    hints: mpsc::Sender<Hint>,
    /// One read at a time, so that none overwrites what a later one saw.
    reading: Mutex<()>,
    /// Whether the controls were ever read.
    known: watch::Sender<bool>,
    /// How often this process learned that nothing holds a step any more.
    freed: watch::Sender<PerStep<u64>>,
    /// Steps whose held tenants must still be made due.
    owed: watch::Sender<PerStep<bool>>,
}

impl ChangeGuards {
    pub fn new(
        store: Store,
        metrics: Arc<Metrics>,
        policy: ChangeGuardPolicy,
        window: Duration,
        controls: watch::Sender<Controls>,
        hints: mpsc::Sender<Hint>,
    ) -> Self {
        Self {
            store,
            metrics,
            policy,
            window,
            controls,
            hints,
            reading: Mutex::default(),
            known: watch::Sender::default(),
            freed: watch::Sender::default(),
            owed: watch::Sender::default(),
        }
    }

    /// Waits until the controls have been read once: before that anything may be stopped.
    pub async fn known(&self) {
        // We hold the sender, so that it cannot fail.
        let _ = self.known.subscribe().wait_for(|known| *known).await;
    }

    /// Stands for this moment in [`ChangeGuards::is_free_since`]. To be taken before [`ChangeGuards::mode`].
    pub fn moment(&self, step: Upstream) -> u64 {
        self.freed.borrow()[step]
    }

    /// Whether nothing holds the step now, and this process has learned that since `moment`: a run that
    /// was held back then would not be now.
    pub fn is_free_since(&self, step: Upstream, moment: u64) -> bool {
        self.moment(step) != moment && !self.controls.borrow().hold(step)
    }

    /// What was held of the step must be made due, in all tenants.
    pub fn owe(&self, step: Upstream) {
        self.owed.send_modify(|owed| owed[step] = true);
    }

    /// How much a step may do now.
    pub fn mode(&self, step: Upstream) -> Mode {
        let controls = self.controls.borrow();
        if controls.is_stopped(step) {
            Mode::Hold(Reason::Stopped)
        } else if controls.guards[step].is_tripped() {
            Mode::Distrust
        } else {
            Mode::Apply
        }
    }

    /// The fleet, once it was read.
    pub fn fleet(&self) -> Option<Fleet> {
        self.controls.borrow().fleet.clone()
    }

    /// How the latest sweeps ended.
    pub fn sweeps(&self) -> PerStep<Option<Swept>> {
        self.controls.borrow().sweeps.clone()
    }

    pub fn guard(&self, step: Upstream) -> ChangeGuard {
        self.controls.borrow().guards[step].clone()
    }

    /// The most that may change at once of an upstream with so many resources.
    pub fn bound(&self, resources: u64) -> u64 {
        self.policy.bound(resources)
    }

    /// How many resources the upstream should have, as the latest sweep of any process counted. Before the
    /// first sweep, as many as there are tenants.
    async fn size(&self, step: Upstream) -> u64 {
        let counted = self.controls.borrow().sizes[step];
        if counted > 0 { counted } else { self.store.estimate().await.unwrap_or_default() }
    }

    /// Records how many resources the upstreams should have, if that has changed.
    pub async fn record_sizes(&self, sizes: &PerStep<u64>) -> Result<(), StoreError> {
        let known = self.controls.borrow().sizes == *sizes;
        if known { Ok(()) } else { self.store.record_sizes(sizes).await }
    }

    /// Changes whenever this process learns that a stop or a guard was taken back.
    pub fn taken_back(&self) -> watch::Receiver<PerStep<u64>> {
        self.freed.subscribe()
    }

    /// Lets the guard of an upstream trip.
    pub async fn trip(&self, step: Upstream, message: &str) {
        match self.store.trip_guard(step, message).await {
            Ok(true) => tracing::error!(
                upstream = %step,
                "the change guard has tripped, and repairs rest until a person lifts it: {message}"
            ),
            Ok(false) => {}
            Err(error) => tracing::warn!(upstream = %step, %error, "cannot trip the change guard"),
        }
        // The stream tells everybody, us included; but not soon enough for what runs already.
        self.read().await;
    }

    /// Follows the controls until `shutdown`.
    pub async fn follow(&self, shutdown: &CancellationToken) {
        let following = async {
            let mut delay = GrowingDelay::new(FIRST_DELAY, LONGEST_DELAY);
            loop {
                // Also what cannot be followed, as often as following is tried.
                self.read().await;
                if let Err(error) = self.follow_one(&mut delay).await {
                    tracing::debug!(%error, "the stream of stops and guards ended");
                }
                delay.wait().await;
            }
        };
        tokio::select! {
            () = following => {}
            () = self.wake() => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// One stream, from its opening to its end. Reading comes after opening, so that nothing falls between.
    async fn follow_one(&self, delay: &mut GrowingDelay) -> Result<(), WatchError> {
        let mut changes = self.store.watch_controls().await?;
        loop {
            self.read().await;
            if !changes.changed().await? {
                return Ok(());
            }
            // It does not only open, it also tells.
            delay.reset();
        }
    }

    /// Reads the controls as they are.
    pub async fn read(&self) {
        let _reading = self.reading.lock().await;
        match self.store.controls().await {
            Ok(controls) => self.learn(controls),
            Err(error) if *self.known.borrow() => {
                tracing::warn!(%error, "cannot read the stops and guards; they hold as they were last known");
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read the stops and guards; nothing is done until they were read");
            }
        }
    }

    fn learn(&self, controls: Controls) {
        for step in Upstream::ALL {
            self.metrics.stopped.of(step).set(i64::from(controls.is_stopped(step)));
            let tripped = controls.guards[step].is_tripped();
            self.metrics.guard_tripped.of(step).set(i64::from(tripped));
            // Of whichever process swept.
            if let Some(at) = controls.sweeps[step].as_ref().and_then(|swept| swept.compared_at) {
                self.metrics.sweep_last_success.of(step).set(at.as_duration().as_secs_f64());
            }
        }
        let mut owed = Vec::new();
        if !*self.known.borrow() {
            // An earlier process may have ended before it had made due what it freed.
            owed.extend(Upstream::ALL.into_iter().filter(|step| !controls.hold(*step)));
        }
        self.controls.send_if_modified(|known| {
            let changed = *known != controls;
            if changed {
                tell(known, &controls);
                let freed = Upstream::ALL.into_iter().filter(|s| known.hold(*s) && !controls.hold(*s));
                let freed: Vec<_> = freed.collect();
                // Before it can be seen: a run that begins in between is not held.
                self.freed.send_if_modified(|times| {
                    freed.iter().for_each(|step| times[*step] += 1);
                    !freed.is_empty()
                });
                owed.extend(freed);
                *known = controls;
            }
            changed
        });
        owed.into_iter().for_each(|step| self.owe(step));
        self.known.send_replace(true);
    }

    /// Makes due what was held and no longer is, a batch at a time.
    async fn wake(&self) {
        let mut owed = self.owed.subscribe();
        loop {
            // We hold the sender, so that it cannot fail.
            let _ = owed.wait_for(|owed| owed.iter().any(|(_, owed)| *owed)).await;
            for step in Upstream::ALL {
                let mut owes = false;
                // Before the work: what is owed meanwhile is done after it.
                self.owed.send_modify(|owed| owes = std::mem::take(&mut owed[step]));
                if !owes {
                    continue;
                }
                match self.go_on(step).await {
                    Ok(Woken { found: 0, .. }) => {}
                    Ok(_) => {
                        self.owe(step);
                        let _ = self.hints.try_send(Hint::Scan);
                    }
                    Err(error) => {
                        tracing::warn!(upstream = %step, %error, "cannot make due what was held back yet");
                        self.owe(step);
                        tokio::time::sleep(WAKE_DELAY).await;
                    }
                }
            }
        }
    }
}

impl ChangeGuards {
    /// Makes due some of what was held of the step; once a guard is lifted also what is recorded to differ, paced.
    async fn go_on(&self, step: Upstream) -> Result<Woken, StoreError> {
        if matches!(self.guard(step), ChangeGuard::Lifted { .. }) {
            let due = self.store.repair_drift(step, PACE, WITHIN).await?;
            if due > 0 {
                let _ = self.hints.try_send(Hint::Scan);
                tracing::info!(upstream = %step, tenants = due, "repairs begin");
            }
        }
        self.store.wake_held(step, WAKE_AT_ONCE).await
    }
}

fn tell(before: &Controls, after: &Controls) {
    for step in Upstream::ALL {
        match (before.is_stopped(step), after.is_stopped(step)) {
            (false, true) => {
                tracing::warn!(upstream = %step, "stopped: it is observed, and nothing is changed")
            }
            (true, false) => tracing::warn!(upstream = %step, "started again"),
            _ => {}
        }
        let (old, new) = (&before.guards[step], &after.guards[step]);
        if old.name() != new.name() {
            tracing::warn!(upstream = %step, "the change guard is {}", new.name());
        }
    }
}

impl RepairGuard for ChangeGuards {
    fn may_repair<'a>(
        &'a self,
        step: Upstream,
        target: &'a Target,
        found: &'a Found,
    ) -> BoxFuture<'a, bool> {
        async move {
            if matches!(self.guard(step), ChangeGuard::Lifted { .. }) {
                return true;
            }
            let bound = self.bound(self.size(step).await);
            let whose = (target.id, &target.slug);
            let seen = found.to_string();
            let counted = self.store.count_repair(step, whose, &seen, self.window).await;
            let may = match counted {
                Ok(_) if self.guard(step).is_tripped() => false,
                Ok(count) if count <= bound => true,
                Ok(count) => {
                    let message = format!(
                        "the resources of {count} tenants were to be repaired within {:?}, and no more than \
                         {bound} are believed to have changed",
                        self.window
                    );
                    self.trip(step, &message).await;
                    false
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot count a repair, so it is not made");
                    false
                }
            };
            if !may {
                self.metrics.repairs_refused.of(step).inc();
            }
            may
        }
        .boxed()
    }

    fn marked_for(&self, tenant: TenantId) -> BoxFuture<'_, Option<MarkedFor>> {
        async move {
            let found = self.store.swept_again(&[tenant]).await.ok()?;
            Some(found.into_iter().next().map_or(MarkedFor::Gone, |it| MarkedFor::Tenant(it.slug)))
        }
        .boxed()
    }
}

impl Permission for ChangeGuards {
    fn ask(&self, request: Ready) -> Result<(), Refusal> {
        if request.purpose == Purpose::Read {
            return Ok(());
        }
        match (self.mode(request.step), request.cause) {
            (Mode::Hold(reason), _) => Err(Refusal::Held(reason)),
            (Mode::Distrust, Cause::Doubtful) => Err(Refusal::Held(Reason::ChangeGuard)),
            (Mode::Apply | Mode::Look, _) | (Mode::Distrust, Cause::Asked) => Ok(()),
        }
    }
}
