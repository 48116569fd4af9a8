//! Tenants whose documents were deleted without asking tenantry: what they had are orphans now.
//!
//! The change stream tells it at once. What it does not tell (it was interrupted, or too many went at once),
//! the next sweep finds, which lists everything. Nothing is ever removed because of it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::change_guard::ChangeGuards;
use crate::integration::{Integrations, Marked};
use crate::metrics::Metrics;
use crate::store::{Gone, Store, StoreError, UnknownResource};

/// Of tenants that went together, those that are looked for at once: oCIS is listed once for all of them.
const TOGETHER: usize = 50;
/// Those that may wait; the others are left to the sweep, which asks the upstreams for more at a time.
pub const WAITING: usize = 200;
/// How long others that went are waited for.
const PAUSE: Duration = Duration::from_millis(200);

pub struct Vanished {
    pub store: Store,
    pub integrations: Arc<Integrations>,
    pub metrics: Arc<Metrics>,
    /// Know whose resources are this fleet's.
    pub guards: Arc<ChangeGuards>,
    /// Tenants whose documents are gone, for whatever reason.
    pub gone: mpsc::Receiver<Gone>,
}

impl Vanished {
    /// Runs until `shutdown`.
    pub async fn run(mut self, shutdown: &CancellationToken) {
        let looking = async {
            let mut together = Vec::new();
            while self.gone.recv_many(&mut together, TOGETHER).await > 0 {
                tokio::time::sleep(PAUSE).await;
                while together.len() < TOGETHER
                    && let Ok(gone) = self.gone.try_recv()
                {
                    together.push(gone);
                }
                if let Err(error) = self.look(&together).await {
                    tracing::warn!(%error, "cannot look after tenants that are gone; the next sweep will");
                }
                together.clear();
            }
        };
        tokio::select! {
            () = looking => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn look(&self, gone: &[Gone]) -> Result<(), StoreError> {
        let vanished = self.store.vanished(gone).await?;
        if vanished.is_empty() {
            return Ok(());
        }
        for (id, slug) in &vanished {
            self.metrics.vanished.inc();
            tracing::warn!(
                %id, slug = slug.as_ref().map_or("(unknown)", |slug| slug.as_str()),
                "a tenant's document was deleted, and not by tenantry; its resources stay, as orphans"
            );
        }
        let ids: HashSet<_> = vanished.into_iter().map(|(id, _)| id).collect();
        for step in self.integrations.configured() {
            let found = match self.integrations.marked_as(step, &ids).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(upstream = %step, "cannot look at orphans: {}", error.failure.message);
                    continue;
                }
            };
            let fleet = self.guards.fleet();
            let ours = |it: &Marked| fleet.as_ref().is_none_or(|fleet| !fleet.id.is_not(it.fleet));
            let found: Vec<_> = found
                .into_iter()
                .filter(ours)
                .map(|Marked { tenant, external_id, name, fleet: _ }| UnknownResource {
                    tenant,
                    external_id,
                    name,
                })
                .collect();
            self.store.add_orphans(step, &found).await?;
            let known = self.store.count_orphans(step).await?;
            let gauge = self.metrics.orphans.of(step);
            gauge.set(i64::try_from(known).unwrap_or(i64::MAX));
        }
        Ok(())
    }
}
