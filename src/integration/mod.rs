//! The upstreams. Each is a small [`Integration`] (observe, create, update) over a shared HTTP
//! client; [`converge`](self::converge) drives it, and a [`Gate`] keeps a rejected credential from
//! being tried once per tenant.

mod authentik;
mod converge;
mod error;
mod gate;
mod health;
mod http;
mod limits;
mod oauth;
mod ocis;
mod stalwart;
mod template;
mod upstream;

pub use authentik::Authentik;
pub use converge::{
    Checked, Converged, Drift, Integration, Intent, Mode, Owner, Reached, Release, Released, Remarks,
    Target, Usage, converge, run,
};
pub use error::{Effect, Error};
pub use gate::{Gate, HealthBoard};
pub use http::{BaseUrl, HttpClient, HttpClientError, InvalidBaseUrl, extra_roots};
pub use limits::Limits;
pub use oauth::{ClientCredentials, TokenEndpoint, TokenSource};
pub use ocis::{Membership, Ocis, SpaceRole};
pub use stalwart::{DkimManagement, Stalwart};
pub use template::{GroupTemplate, InvalidGroupTemplate};
pub use upstream::{Answer, Body, Broken, Call, Credentials, Purpose, To, Upstream};

use std::sync::Arc;

use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::tenant::{DeletionPolicy, Outcome, PerStep, Presence, Reason, StepKind, UpstreamHealth};

/// The integrations that this process has, one slot per step.
pub struct Integrations {
    authentik: Option<Guarded<Authentik>>,
    stalwart: Option<Guarded<Stalwart>>,
    ocis: Option<Guarded<Ocis>>,
    metrics: Arc<Metrics>,
    board: HealthBoard,
}

/// An integration behind its gate.
struct Guarded<I> {
    integration: I,
    gate: Gate,
}

impl<I: Integration> Guarded<I> {
    async fn run(&self, target: &Target) -> Outcome {
        let step = self.integration.step();
        match self.gate.pass(run(&self.integration, target)).await {
            Ok(Reached::Held { reason, message }) => Outcome::Held { reason, message },
            Ok(Reached::Disbelieved) => Outcome::Disbelieved,
            Ok(Reached::LetGo(Released { external_id, note })) => {
                let reason = match target.desired.presence {
                    Presence::Present | Presence::Off => Reason::ServiceDisabled,
                    Presence::Gone(DeletionPolicy::Retain) => Reason::Released,
                    Presence::Gone(_) => Reason::Deleted,
                };
                Outcome::Released { reason, external_id, note }
            }
            Ok(Reached::Matches(Converged { external_id, repaired, remarks })) => {
                for drift in &repaired {
                    tracing::info!(
                        slug = %target.slug, upstream = %step, field = drift.field,
                        from = %drift.observed, to = %drift.desired, "repaired drift"
                    );
                }
                let Remarks { note, look_again } = remarks;
                Outcome::Ok { external_id: Some(external_id), note, look_again }
            }
            Err(Error { failure, .. }) => Outcome::Failed(failure),
        }
    }
}

impl Integrations {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let board = watch::Sender::new(PerStep::default());
        Self { authentik: None, stalwart: None, ocis: None, metrics, board }
    }

    #[must_use]
    pub fn with_authentik(mut self, authentik: Authentik) -> Self {
        self.authentik = Some(self.guard(authentik));
        self
    }

    #[must_use]
    pub fn with_stalwart(mut self, stalwart: Stalwart) -> Self {
        self.stalwart = Some(self.guard(stalwart));
        self
    }

    #[must_use]
    pub fn with_ocis(mut self, ocis: Ocis) -> Self {
        self.ocis = Some(self.guard(ocis));
        self
    }

    fn guard<I: Integration>(&self, integration: I) -> Guarded<I> {
        let gate = Gate::new(integration.step(), Arc::clone(&self.metrics), self.board.clone());
        Guarded { integration, gate }
    }

    /// How the upstreams are; it tells of every change.
    pub fn health(&self) -> watch::Receiver<PerStep<Option<UpstreamHealth>>> {
        self.board.subscribe()
    }

    /// Runs one step for one tenant: whatever happens, the answer is an outcome.
    ///
    /// Dropping the future leaves at most one request with an unknown effect, which the next run
    /// finds out by looking.
    pub async fn run(&self, step: StepKind, target: &Target) -> Outcome {
        // Nothing was ever made, so there is nothing to let go.
        let nothing = target.recorded.is_none() && !target.may_exist;
        match target.desired.presence {
            Presence::Off if target.recorded.is_none() => {
                return Outcome::Skipped(Reason::ServiceDisabled);
            }
            Presence::Gone(DeletionPolicy::Retain) if nothing => {
                return Outcome::Skipped(Reason::Released);
            }
            Presence::Gone(_) if nothing => return Outcome::Skipped(Reason::Deleted),
            Presence::Present | Presence::Off | Presence::Gone(_) => {}
        }
        let outcome = match step {
            StepKind::Authentik => match &self.authentik {
                Some(authentik) => Some(authentik.run(target).await),
                None => None,
            },
            StepKind::Stalwart => match &self.stalwart {
                Some(_)
                    if target.desired.domain.is_none()
                        && target.desired.presence == Presence::Present =>
                {
                    return Outcome::Skipped(Reason::NoMailDomain);
                }
                Some(stalwart) => Some(stalwart.run(target).await),
                None => None,
            },
            StepKind::Ocis => match &self.ocis {
                Some(ocis) => Some(ocis.run(target).await),
                None => None,
            },
        };
        outcome.unwrap_or(Outcome::Skipped(Reason::NotConfigured))
    }
}
