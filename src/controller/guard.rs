//! Stops and change guards, as this process follows and works them.
//!
//! They are documents that every process watches, so that a stop holds everywhere within a moment, and
//! survives restarts. What cannot be read stays as it was last known.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::integration::{Mode, RepairGuard};
use crate::metrics::Metrics;
use crate::store::{Store, WatchError};
use crate::tenant::{Controls, Guard, GuardPolicy, PerStep, Reason, StepKind};

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(15);

/// Follows the controls for this process, and decides about repairs.
pub struct Guards {
    store: Store,
    metrics: Arc<Metrics>,
    policy: GuardPolicy,
    /// Repairs are counted over so long.
    window: Duration,
    controls: watch::Sender<Controls>,
    /// How many resources each upstream was last known to have.
    sizes: watch::Sender<PerStep<u64>>,
}

impl Guards {
    pub fn new(
        store: Store,
        metrics: Arc<Metrics>,
        policy: GuardPolicy,
        window: Duration,
        controls: watch::Sender<Controls>,
    ) -> Self {
        let sizes = watch::Sender::new(PerStep::default());
        Self { store, metrics, policy, window, controls, sizes }
    }

    /// How much a step may do now.
    pub fn mode(&self, step: StepKind) -> Mode {
        let controls = self.controls.borrow();
        if controls.is_stopped(step) {
            Mode::Observe(Some(Reason::Stopped))
        } else if controls.guards[step].is_tripped() {
            Mode::Disbelieve
        } else {
            Mode::Change
        }
    }

    pub fn guard(&self, step: StepKind) -> Guard {
        self.controls.borrow().guards[step].clone()
    }

    /// The most that may change of an upstream at once.
    pub fn bound(&self, step: StepKind) -> u64 {
        self.policy.bound(self.sizes.borrow()[step])
    }

    /// A sweep has counted.
    pub fn learn_size(&self, step: StepKind, size: u64) {
        self.sizes.send_modify(|sizes| sizes[step] = size);
    }

    /// Lets the guard of an upstream trip.
    pub async fn trip(&self, step: StepKind, message: &str) {
        match self.store.trip_guard(step, message).await {
            Ok(true) => tracing::error!(
                upstream = %step,
                "the change guard has tripped, and repairs rest until somebody lifts it: {message}"
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
            let mut delay = FIRST_DELAY;
            loop {
                match self.follow_one().await {
                    Ok(()) => delay = FIRST_DELAY,
                    Err(error) => tracing::debug!(%error, "the stream of stops and guards ended"),
                }
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(LONGEST_DELAY);
            }
        };
        tokio::select! {
            () = following => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// One stream, from its opening to its end. Reading comes after opening, so that nothing falls between.
    async fn follow_one(&self) -> Result<(), WatchError> {
        let mut changes = self.store.watch_controls().await?;
        loop {
            self.read().await;
            if !changes.changed().await? {
                return Ok(());
            }
        }
    }

    /// Reads the controls as they are.
    pub async fn read(&self) {
        match self.store.controls().await {
            Ok(controls) => {
                for step in StepKind::ALL {
                    let label = [step.name()];
                    let stopped = controls.is_stopped(step);
                    self.metrics.stopped.with_label_values(&label).set(i64::from(stopped));
                    let tripped = controls.guards[step].is_tripped();
                    self.metrics.guard_tripped.with_label_values(&label).set(i64::from(tripped));
                }
                let mut freed = Vec::new();
                self.controls.send_if_modified(|known| {
                    let changed = *known != controls;
                    if changed {
                        tell(known, &controls);
                        let holds = |controls: &Controls, step: StepKind| {
                            controls.is_stopped(step) || controls.guards[step].is_tripped()
                        };
                        let free = |step: &StepKind| holds(known, *step) && !holds(&controls, *step);
                        freed.extend(StepKind::ALL.into_iter().filter(free));
                        *known = controls;
                    }
                    changed
                });
                // Whoever took it back has woken what was held; but we may have held it again, knowing no
                // better.
                for step in freed {
                    if let Err(error) = self.store.wake_held(step).await {
                        tracing::warn!(upstream = %step, %error, "what was held back waits for its time");
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "cannot read the stops and guards"),
        }
    }
}

fn tell(before: &Controls, after: &Controls) {
    for step in StepKind::ALL {
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

impl RepairGuard for Guards {
    fn may_repair(&self, step: StepKind) -> BoxFuture<'_, bool> {
        async move {
            if matches!(self.guard(step), Guard::Lifted { .. }) {
                return true;
            }
            let bound = self.bound(step);
            let may = match self.store.count_repair(step, self.window).await {
                Ok(count) if count <= bound => !self.guard(step).is_tripped(),
                Ok(count) => {
                    let message = format!(
                        "{count} resources were to be repaired within {:?}, and no more than {bound} are \
                         believed to have changed",
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
                self.metrics.repairs_refused.with_label_values(&[step.name()]).inc();
            }
            may
        }
        .boxed()
    }
}
