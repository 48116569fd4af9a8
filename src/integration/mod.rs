//! The upstreams. Each is a small [`Integration`] (observe, create, update) over a shared HTTP
//! client; [`converge`] drives it, and a [`Gate`] keeps a rejected credential from
//! being tried once per tenant.

mod adopt;
mod asked;
mod authentik;
mod circuit;
mod converge;
mod deeds;
mod error;
mod gate;
mod health;
mod ledger;
mod limits;
mod oauth;
mod ocis;
mod pace;
mod permission;
mod recent;
mod stalwart;
mod template;
mod upstream;

pub use adopt::Owner;
pub use authentik::Authentik;
pub use converge::{
    Checked, Converged, Integration, Intent, Marked, MarkedFor, Mode, Reached, Release, Released,
    Remarks, RepairGuard, Seen, Target, Unbounded, Usage, run,
};
pub use deeds::Deeds;
pub use error::{Effect, Error};
pub use gate::{Gate, HealthBoard};
pub use ledger::{Away, Known, Ledger};
pub use limits::Limits;
pub use oauth::{ClientCredentials, TokenEndpoint, TokenSource};
pub use ocis::{Membership, Ocis, SpaceRole};
pub use permission::{Cause, Permission, Ready, Refusal};
pub use stalwart::{DkimManagement, Stalwart};
pub use template::{GroupTemplate, InvalidGroupTemplate};
pub use upstream::{Answer, Body, Call, Credentials, Dialect, Purpose, To, UpstreamClient};

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::tenant::{
    DeletionPolicy, Failure, Found, Outcome, PerStep, Presence, Reason, StepDesired, TenantId, Upstream,
    UpstreamHealth, lacking,
};

/// The integrations that this process has, one slot per step.
pub struct Integrations {
    authentik: Option<Gated<Authentik>>,
    stalwart: Option<Gated<Stalwart>>,
    ocis: Option<Gated<Ocis>>,
    metrics: Arc<Metrics>,
    board: HealthBoard,
}

/// An integration behind its gate.
struct Gated<I> {
    integration: I,
    gate: Arc<Gate>,
}

impl<I: Integration> Gated<I> {
    async fn run(&self, target: &Target, guard: &dyn RepairGuard) -> Outcome {
        let (ended, asked) =
            asked::observed(self.pass(Box::pin(run(&self.integration, target, guard)))).await;
        match ended {
            Ok(Reached::Held { reason, found, external_id }) => {
                Outcome::Held { reason, found, external_id }
            }
            Ok(Reached::Seen(found)) => Outcome::Observed(found),
            Ok(Reached::Adopts { adopted, what }) => {
                tracing::info!(
                    upstream = %self.integration.step(),
                    "{what} is taken over; it said {adopted}"
                );
                Outcome::Adopting { adopted, what }
            }
            Ok(Reached::LetGo(Released { external_id, note })) => {
                let stays = external_id.as_deref().is_some_and(|id| target.adopted_before(id).is_some());
                let reason = match target.desired.presence {
                    Presence::Present | Presence::Off => Reason::ServiceDisabled,
                    Presence::Gone(DeletionPolicy::Retain) => Reason::Released,
                    Presence::Gone(_) if stays => Reason::Released,
                    Presence::Gone(_) => Reason::Deleted,
                };
                Outcome::Released { reason, external_id, note }
            }
            Ok(Reached::Matches(Converged { external_id, remarks, fingerprint, .. })) => {
                let Remarks { note, look_again, awaits } = remarks;
                Outcome::Ok { external_id: Some(external_id), note, look_again, awaits, fingerprint }
            }
            // The person who wanted to see has nothing to do with the step's own tries.
            Err(Error { failure, .. }) if target.mode == Mode::Look => {
                let Failure { reason, message, .. } = failure;
                Outcome::Observed(Found::Failed { reason, message })
            }
            Err(Error { failure, .. }) => Outcome::Failed(Failure { asked, ..failure }),
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

    fn guard<I: Integration>(&self, integration: I) -> Gated<I> {
        let gate = Gate::new(integration.step(), Arc::clone(&self.metrics), self.board.clone());
        let gate = Arc::new(gate);
        integration.upstream().behind(Arc::clone(&gate));
        Gated { integration, gate }
    }

    /// Asks before each request from now on.
    pub fn obey(&self, permission: &Arc<dyn Permission>) {
        let upstreams = [
            self.authentik.as_ref().map(|it| it.integration.upstream()),
            self.stalwart.as_ref().map(|it| it.integration.upstream()),
            self.ocis.as_ref().map(|it| it.integration.upstream()),
        ];
        upstreams.into_iter().flatten().for_each(|upstream| upstream.obey(Arc::clone(permission)));
    }

    /// How the upstreams are; it tells of every change.
    pub fn health(&self) -> watch::Receiver<PerStep<Option<UpstreamHealth>>> {
        self.board.subscribe()
    }

    /// The steps whose upstreams are configured.
    pub fn configured(&self) -> Vec<Upstream> {
        let has = |step: &Upstream| match step {
            Upstream::Authentik => self.authentik.is_some(),
            Upstream::Stalwart => self.stalwart.is_some(),
            Upstream::Ocis => self.ocis.is_some(),
        };
        Upstream::ALL.into_iter().filter(has).collect()
    }

    /// Whether an upstream's gate lets everything through.
    pub fn is_open(&self, step: Upstream) -> bool {
        let gate = match step {
            Upstream::Authentik => self.authentik.as_ref().map(|it| &it.gate),
            Upstream::Stalwart => self.stalwart.as_ref().map(|it| &it.gate),
            Upstream::Ocis => self.ocis.as_ref().map(|it| &it.gate),
        };
        gate.is_some_and(|gate| gate.is_open())
    }

    /// Lists what tenants have in use in an upstream; see [`Integration::sweep`].
    pub async fn sweep(&self, step: Upstream, each: impl FnMut(Seen<'_>) + Send) -> Result<(), Error> {
        match (step, &self.authentik, &self.stalwart, &self.ocis) {
            (Upstream::Authentik, Some(it), ..) => {
                it.pass_beside(Box::pin(it.integration.sweep(each))).await
            }
            (Upstream::Stalwart, _, Some(it), _) => {
                it.pass_beside(Box::pin(it.integration.sweep(each))).await
            }
            (Upstream::Ocis, .., Some(it)) => it.pass_beside(Box::pin(it.integration.sweep(each))).await,
            _ => Ok(()),
        }
    }

    /// The resources in an upstream that carry these tenants' marks.
    pub async fn marked_as(
        &self,
        step: Upstream,
        ids: &HashSet<TenantId>,
    ) -> Result<Vec<Marked>, Error> {
        match (step, &self.authentik, &self.stalwart, &self.ocis) {
            (Upstream::Authentik, Some(it), ..) => {
                it.pass_beside(Box::pin(it.integration.marked_as(ids))).await
            }
            (Upstream::Stalwart, _, Some(it), _) => {
                it.pass_beside(Box::pin(it.integration.marked_as(ids))).await
            }
            (Upstream::Ocis, .., Some(it)) => {
                it.pass_beside(Box::pin(it.integration.marked_as(ids))).await
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Runs one step for one tenant: whatever happens, the answer is an outcome.
    ///
    /// Dropping the future leaves at most one request with an unknown effect, which the next run
    /// finds out by looking.
    pub async fn run(&self, step: Upstream, target: &Target, guard: &dyn RepairGuard) -> Outcome {
        // Nothing was ever made, so there is nothing to let go.
        let nothing = target.recorded.is_none() && !target.may_exist;
        // A run that ended well has recorded what there is.
        let none_of_late = target.recorded.is_none() && (nothing || target.settled);
        let presence = target.desired.presence_for(step);
        let without_domain = presence != target.desired.presence;
        match presence {
            Presence::Off if none_of_late && without_domain && self.configured().contains(&step) => {
                return Outcome::Skipped(Reason::NoMailDomain);
            }
            Presence::Off if none_of_late && !without_domain => {
                return Outcome::Skipped(Reason::ServiceDisabled);
            }
            Presence::Gone(DeletionPolicy::Retain) if nothing => {
                return Outcome::Skipped(Reason::Released);
            }
            Presence::Gone(_) if nothing => return Outcome::Skipped(Reason::Deleted),
            Presence::Present | Presence::Off | Presence::Gone(_) => {}
        }
        let outcome = match step {
            Upstream::Authentik => match &self.authentik {
                Some(authentik) => Some(authentik.run(target, guard).await),
                None => None,
            },
            Upstream::Stalwart => match &self.stalwart {
                Some(stalwart) if without_domain => {
                    let desired = StepDesired { presence, ..target.desired.clone() };
                    let target = Target { desired, ..target.clone() };
                    Some(for_want_of_a_domain(stalwart.run(&target, guard).await))
                }
                Some(stalwart) => Some(stalwart.run(target, guard).await),
                None => None,
            },
            Upstream::Ocis => match &self.ocis {
                Some(ocis) => Some(ocis.run(target, guard).await),
                None => None,
            },
        };
        outcome.unwrap_or_else(|| unconfigured(step, target))
    }
}

/// What was let go because the tenant has no mail domain any more.
fn for_want_of_a_domain(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Released { external_id, note, .. } => {
            Outcome::Released { reason: Reason::NoMailDomain, external_id, note }
        }
        other => other,
    }
}

/// What comes of a step whose upstream this process cannot reach.
fn unconfigured(step: Upstream, target: &Target) -> Outcome {
    match (target.known, target.mode) {
        (true, Mode::Look) => {
            Outcome::Observed(Found::Failed { reason: Reason::NotConfigured, message: lacking(step) })
        }
        (true, _) => Outcome::Lacking,
        (false, _) => Outcome::Skipped(Reason::NotConfigured),
    }
}
