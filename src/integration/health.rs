//! Finds out whether each upstream is usable, before tenants need it and while it is not.
//!
//! A check is a harmless read. It runs once at start; a healthy upstream is not asked again. One that is
//! not is checked until it is, through the [`Gate`](super::Gate), so that checks and tenants' steps
//! together keep to the gate's bounds.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Guarded, Integration, Integrations};
use crate::tenant::{FailureKind, PerStep, StepKind, UpstreamHealth};

const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Between looks whether a missing permission has been granted.
const PERMISSION_WAIT: Duration = Duration::from_secs(300);

impl Integrations {
    /// Checks every upstream at start, and whenever it turns out to be unusable. Runs until `shutdown`.
    pub async fn keep_checked(&self, shutdown: &CancellationToken) {
        let all = async {
            tokio::join!(
                self.keep(self.authentik.as_ref()),
                self.keep(self.stalwart.as_ref()),
                self.keep(self.ocis.as_ref()),
            )
        };
        tokio::select! {
            _ = all => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn keep<I: Integration>(&self, guarded: Option<&Guarded<I>>) {
        let Some(guarded) = guarded else { return };
        let step = guarded.integration.step();
        loop {
            guarded.check_until_usable().await;
            self.becomes_unusable(step).await;
        }
    }

    /// Waits until something is wrong with the integration as a whole.
    async fn becomes_unusable(&self, step: StepKind) {
        self.health_becomes(step, |health| {
            health.authenticated == Some(false)
                || health.reachable == Some(false)
                || health.problem.is_some()
        })
        .await;
    }

    /// Waits until an upstream works.
    pub async fn becomes_usable(&self, step: StepKind) {
        self.health_becomes(step, UpstreamHealth::is_healthy).await;
    }

    /// Waits until an upstream that worked does not.
    pub async fn stops_working(&self, step: StepKind) {
        self.health_becomes(step, |health| !health.is_healthy()).await;
    }

    async fn health_becomes(&self, step: StepKind, holds: impl Fn(&UpstreamHealth) -> bool) {
        let mut health = self.health();
        let holds = |board: &PerStep<Option<UpstreamHealth>>| board[step].as_ref().is_some_and(&holds);
        if health.wait_for(holds).await.is_err() {
            // Nobody tells any more.
            std::future::pending::<()>().await;
        }
    }
}

impl<I: Integration> Guarded<I> {
    async fn check_until_usable(&self) {
        let mut wait = FIRST_WAIT;
        loop {
            match self.gate.pass(self.integration.check()).await {
                Ok(checked) => {
                    self.gate.checked(&checked);
                    if checked.lacks.is_empty() {
                        return;
                    }
                    tokio::time::sleep(PERMISSION_WAIT).await;
                }
                Err(error) => {
                    let asked_for = match error.failure.kind {
                        FailureKind::Misconfigured { retry_after } => retry_after,
                        FailureKind::Transient { retry_after } => retry_after.unwrap_or_default(),
                        FailureKind::Terminal => LONGEST_WAIT,
                    };
                    if error.failure.parked {
                        // Until the next probe is due; somebody's step may be it.
                        tokio::time::sleep(asked_for.max(SHORTEST_WAIT)).await;
                        continue;
                    }
                    tokio::time::sleep(wait.max(asked_for)).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }
}
