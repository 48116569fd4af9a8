//! Releases orphans that an administrator wants released: they say then that no tenant uses them, and a new tenant
//! may adopt them.
//!
//! It is what letting a tenant go with the policy `retain` does, for one resource of a tenant whose document was
//! lost. Nothing is done to what a tenant has that exists.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::change_guard::ChangeGuards;
use crate::integration::{Integrations, Target};
use crate::store::{Store, StoreError, ToRelease};
use crate::tenant::{Controls, DeletionPolicy, Fleet, MayAdopt, Outcome, Presence, StepDesired};

/// Until what could not be released is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// Carries out releases for as long as the process runs.
pub struct Orphans {
    pub store: Store,
    pub integrations: Arc<Integrations>,
    pub guards: Arc<ChangeGuards>,
    pub controls: watch::Receiver<Controls>,
}

impl Orphans {
    /// Runs until `shutdown`.
    pub async fn run(mut self, shutdown: &CancellationToken) {
        tokio::select! {
            () = self.release_when_asked() => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn release_when_asked(&mut self) {
        loop {
            let (asked, fleet) = {
                let controls = self.controls.borrow_and_update();
                (controls.release_asked_at, controls.fleet.clone())
            };
            if let (Some(asked), Some(fleet)) = (asked, fleet) {
                match self.release_all(&fleet).await {
                    Ok(true) => {
                        let settled = self.store.nothing_to_release(asked).await;
                        if settled.is_ok() && self.controls.changed().await.is_ok() {
                            continue;
                        }
                    }
                    Ok(false) => {}
                    Err(error) => tracing::debug!(%error, "cannot release orphans now"),
                }
                tokio::time::sleep(AGAIN).await;
            } else if self.controls.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Releases those that are to be; returns whether none is left.
    async fn release_all(&self, fleet: &Fleet) -> Result<bool, StoreError> {
        let wanted = self.store.to_release().await?;
        let mut all = true;
        for wanted in &wanted {
            if self.store.has_tenant(wanted.orphan.tenant).await? {
                self.store.orphan_stays(wanted, None).await?;
                continue;
            }
            if !self.integrations.configured().contains(&wanted.orphan.upstream) {
                all = false;
                continue;
            }
            match self.release(wanted, fleet).await {
                Ok(()) => self.store.orphan_released(wanted).await?,
                Err(why) => {
                    all = false;
                    self.store.orphan_stays(wanted, Some(&why)).await?;
                }
            }
        }
        Ok(all && wanted.len() < 100)
    }

    async fn release(&self, wanted: &ToRelease, fleet: &Fleet) -> Result<(), String> {
        let step = wanted.orphan.upstream;
        let name = wanted.orphan.name.parse().or_else(|_| wanted.slug.as_str().parse());
        let desired = StepDesired {
            presence: Presence::Gone(DeletionPolicy::Retain),
            name: name.map_err(|error| format!("{step}: its name cannot be a tenant's: {error}"))?,
            domain: None,
            storage_bytes: None,
            paused: false,
            adopt: None,
        };
        let target = Target {
            id: wanted.orphan.tenant,
            slug: wanted.slug.clone(),
            desired,
            observed: None,
            left: None,
            recorded: Some(wanted.orphan.external_id.clone()),
            settled: false,
            search: false,
            may_exist: true,
            intent: None,
            mode: self.guards.mode(step),
            fleet: fleet.id,
            known: true,
            may_adopt: MayAdopt::default(),
            adopted: Vec::new(),
            given_quota: None,
        };
        match self.integrations.run(step, &target, &*self.guards).await {
            Outcome::Released { .. } | Outcome::Skipped(_) => Ok(()),
            Outcome::Failed(failure) => Err(failure.message),
            Outcome::Held { reason, .. } => Err(format!("{step}: held back ({reason})")),
            _ => Err(format!("{step}: it could not be released")),
        }
    }
}
