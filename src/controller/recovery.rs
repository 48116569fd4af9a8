//! After an outage: the tenants whose steps wait for an upstream are made due again, a few at a time, so
//! that it is not knocked over by those who waited for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::feed::Hint;
use crate::integration::Integrations;
use crate::store::{Store, Woken};
use crate::tenant::Upstream;

/// Tenants that are made due at once, at first and at the most, and the pause between. The first find out
/// whether it really works.
const FIRST: u32 = 10;
const AT_ONCE: u32 = 200;
const PAUSE: Duration = Duration::from_secs(1);

/// Watches over one upstream. Several processes may do the same: what is due is due once.
pub struct Recovery {
    pub store: Store,
    pub integrations: Arc<Integrations>,
    pub step: Upstream,
    /// Where work may be, the database is asked at once.
    pub hints: mpsc::Sender<Hint>,
}

impl Recovery {
    /// Runs until `shutdown`. Also at start: an earlier process may have ended during an outage.
    pub async fn run(&self, shutdown: &CancellationToken) {
        let recovering = async {
            loop {
                self.integrations.becomes_usable(self.step).await;
                self.recover().await;
                self.integrations.stops_working(self.step).await;
            }
        };
        tokio::select! {
            () = recovering => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Makes due all that wait, as long as the upstream lets them through.
    async fn recover(&self) {
        let (mut recovered, mut at_once) = (0, FIRST);
        while self.integrations.lets_through(self.step) {
            match self.store.unpark(self.step, at_once).await {
                Ok(Woken { found: 0, .. }) => break,
                Ok(Woken { made_due, .. }) => {
                    recovered += made_due;
                    at_once = (at_once * 2).min(AT_ONCE);
                    // Other processes find them by their own scans.
                    let _ = self.hints.try_send(Hint::Scan);
                }
                Err(error) => tracing::debug!(upstream = %self.step, %error, "cannot resume yet"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        if recovered > 0 {
            tracing::info!(upstream = %self.step, tenants = recovered, "steps that waited are resumed");
        }
    }
}
