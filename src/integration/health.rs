//! Finds out whether each upstream is usable, before tenants need it and while it is not.
//!
//! A check is a harmless read. It runs once at start; a healthy upstream is not asked again. One that is
//! not is checked until it is, through the [`Gate`](super::Gate), so that checks and tenants' steps
//! together keep to the gate's bounds.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Guarded, Integration, Integrations};
use crate::tenant::{FailureKind, StepKind};

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
        let mut health = self.health();
        let unusable = |health: &Option<crate::tenant::UpstreamHealth>| {
            health.as_ref().is_some_and(|health| health.authenticated == Some(false))
        };
        if health.wait_for(|board| unusable(&board[step])).await.is_err() {
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
                    tokio::time::sleep(wait.max(asked_for)).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }
}
