//! The upstreams. Each is a small [`Integration`] (observe, create, update) over a shared HTTP
//! client; [`converge`](self::converge) drives it, and a [`Gate`] keeps a rejected credential from
//! being tried once per tenant.

mod authentik;
mod converge;
mod error;
mod gate;
mod http;

pub use authentik::{Authentik, GroupTemplate, InvalidGroupTemplate};
pub use converge::{Converged, Drift, Integration, Owner, Target, converge};
pub use error::{Effect, Error};
pub use gate::Gate;
pub use http::{BaseUrl, HttpClient, HttpClientError, InvalidBaseUrl, Upstream, extra_roots};

use std::sync::Arc;

use crate::metrics::Metrics;
use crate::tenant::{Outcome, Reason, StepKind};

/// The integrations that this process has, one slot per step.
pub struct Integrations {
    authentik: Option<(Authentik, Gate)>,
    metrics: Arc<Metrics>,
}

impl Integrations {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { authentik: None, metrics }
    }

    #[must_use]
    pub fn with_authentik(mut self, authentik: Authentik) -> Self {
        let gate = Gate::new(StepKind::Authentik, Arc::clone(&self.metrics));
        self.authentik = Some((authentik, gate));
        self
    }

    /// Runs one step for one tenant: whatever happens, the answer is an outcome.
    ///
    /// Dropping the future leaves at most one request with an unknown effect, which the next run
    /// finds out by looking.
    pub async fn run(&self, step: StepKind, target: &Target) -> Outcome {
        if !target.desired.enabled {
            return Outcome::Skipped(Reason::ServiceDisabled);
        }
        let converged = match (step, &self.authentik) {
            (StepKind::Authentik, Some((authentik, gate))) => {
                gate.pass(converge(authentik, target)).await
            }
            (StepKind::Authentik, None) | (StepKind::Stalwart | StepKind::Ocis, _) => {
                return Outcome::Skipped(Reason::NotConfigured);
            }
        };
        match converged {
            Ok(converged) => {
                for drift in &converged.repaired {
                    tracing::info!(
                        slug = %target.slug, upstream = %step, field = drift.field,
                        from = %drift.observed, to = %drift.desired, "repaired drift"
                    );
                }
                Outcome::Ok { external_id: Some(converged.external_id) }
            }
            Err(Error { failure, .. }) => Outcome::Failed(failure),
        }
    }
}
