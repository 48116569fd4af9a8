//! How the upstreams are, as the process that answers sees them.
//!
//! The HTTP layer asks no upstream: what it shows is the board that the integrations keep. Several
//! processes may see an upstream differently, so an answer names the process that it is of.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use utoipa::ToSchema;

use super::health::UpstreamHealthView;
use super::openapi::{Deciding, Reading};
use super::problem::Problem;
use super::representation::Probes;
use super::tenants::Acting;
use crate::store::Retired;
use crate::tenant::{
    Breaker, Controls, Latency, PerStep, Standing, Swept, Traffic, Upstream, UpstreamHealth,
};

/// What is known of the upstreams, and by which process.
#[derive(Clone)]
pub struct Upstreams {
    /// Names this process, as leases do.
    pub process: Arc<str>,
    /// `None` for an upstream that is not configured.
    pub board: watch::Receiver<PerStep<Option<UpstreamHealth>>>,
    /// Which upstreams the fleet has.
    pub controls: watch::Receiver<Controls>,
    /// How this process' requests fare; `None` for an upstream that is not configured.
    pub traffic: Arc<dyn Fn(Upstream) -> Option<Traffic> + Send + Sync>,
    /// Where checks are asked for.
    pub checks: mpsc::Sender<CheckRequest>,
}

/// An operator wants an upstream to be checked now. What was found is on the board afterwards.
pub struct CheckRequest {
    pub upstream: Upstream,
    pub answer: oneshot::Sender<CheckAnswer>,
}

/// What became of a request for a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckAnswer {
    Checked,
    /// It refuses our credentials, which are the same still: not before so long.
    NotYet(Duration),
}

/// All upstreams, as one process sees them.
#[derive(Debug, Serialize, ToSchema)]
pub struct UpstreamList {
    /// The process that answers; others may see an upstream differently.
    process: String,
    items: Vec<UpstreamView>,
}

/// One upstream.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamView {
    upstream: &'static str,
    /// Whether this process has its address and credentials.
    configured: bool,
    /// Whether the fleet has it: `known`, `retired`, or `never` if no process ever had its address
    fleet: &'static str,
    /// Since when that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    /// `healthy`, `unhealthy` (the reason says why), or `unknown`
    health: &'static str,
    /// What is known of a configured one.
    #[serde(flatten)]
    detail: Option<UpstreamDetail>,
    /// The latest sweep, by whichever process; null before the first.
    last_sweep: Option<SweepView>,
}

/// How a sweep of an upstream ended.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SweepView {
    ended_at: Timestamp,
    /// `ok`, `refused` (so many tenants differed that it was not believed: see the change guard), or `failed`
    /// (the upstream could not be listed, or the database not read)
    end: &'static str,
    /// When one could last compare; what it saw is below
    compared_at: Option<Timestamp>,
    took_seconds: Option<f64>,
    /// Resources in the upstream's list
    seen: Option<u64>,
    /// Resources that the tenants should have
    expected: Option<u64>,
    /// Tenants whose resource differs or is missing
    differing: Option<u64>,
    /// Tenants of which another resource with their mark was newly seen
    second: Option<u64>,
    /// Resources of no tenant
    orphans: Option<u64>,
    /// Resources that are marked as another fleet's
    foreign: Option<u64>,
}

impl From<&Swept> for SweepView {
    fn from(swept: &Swept) -> Self {
        let found = swept.found;
        Self {
            ended_at: swept.ended_at,
            end: swept.end.name(),
            compared_at: swept.compared_at,
            took_seconds: found.map(|found| found.took.as_secs_f64()),
            seen: found.map(|found| found.seen),
            expected: found.map(|found| found.expected),
            differing: found.map(|found| found.differing),
            second: found.map(|found| found.second),
            orphans: found.map(|found| found.orphans),
            foreign: found.map(|found| found.foreign),
        }
    }
}

/// How long this process' latest requests to an upstream took.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LatencyView {
    /// How many they are, 128 at most
    requests: usize,
    median_seconds: f64,
    p95_seconds: f64,
}

/// How this process paces its requests to an upstream.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PacingView {
    /// Requests at once, at most
    max_concurrent: usize,
    /// Requests a minute, at most; null is without a limit
    max_per_minute: Option<u32>,
    /// Requests under way now
    under_way: usize,
    /// Requests that wait for their turn now
    waiting: usize,
    /// What is left of a pause that the upstream asked for
    paused_for_seconds: Option<f64>,
}

/// What is known of a configured upstream.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamDetail {
    #[serde(flatten)]
    seen: UpstreamHealthView,
    /// `closed` (steps are let through), `open` (they wait until a probe finds that it works), or `unproven`
    breaker: &'static str,
    /// When an open breaker lets the next probe through.
    next_probe_at: Option<Timestamp>,
    /// When the upstream last accepted our credentials.
    credentials_accepted_at: Option<Timestamp>,
    /// Null before the first request.
    latency: Option<LatencyView>,
    pacing: PacingView,
}

impl UpstreamDetail {
    fn new(health: UpstreamHealth, traffic: Traffic) -> Self {
        let Traffic { latency, under_way, waiting, at_once, per_minute, paused_for } = traffic;
        Self {
            latency: latency.map(|Latency { requests, median, p95 }| LatencyView {
                requests,
                median_seconds: median.as_secs_f64(),
                p95_seconds: p95.as_secs_f64(),
            }),
            pacing: PacingView {
                max_concurrent: at_once,
                max_per_minute: per_minute,
                under_way,
                waiting,
                paused_for_seconds: paused_for.map(|left| left.as_secs_f64()),
            },
            breaker: health.breaker.name(),
            next_probe_at: match health.breaker {
                Breaker::Open { probe_at } => Some(probe_at),
                Breaker::Unproven | Breaker::Closed => None,
            },
            credentials_accepted_at: health.accepted_at,
            seen: health.into(),
        }
    }
}

impl Upstreams {
    /// When those that do not work are probed next.
    pub fn probes(&self) -> Probes {
        let board = self.board.borrow();
        PerStep::from_fn(|step| match board[step].as_ref()?.breaker {
            Breaker::Open { probe_at } => Some(probe_at),
            Breaker::Unproven | Breaker::Closed => None,
        })
    }

    async fn check(&self, upstream: Upstream) -> Option<CheckAnswer> {
        let (answer, answered) = oneshot::channel();
        self.checks.send(CheckRequest { upstream, answer }).await.ok()?;
        answered.await.ok()
    }

    fn view(&self, step: Upstream) -> UpstreamView {
        let known = self.board.borrow()[step].clone();
        let health = match &known {
            Some(known) if known.is_healthy() => "healthy",
            Some(known) if known.problem.is_some() || known.reachable == Some(false) => "unhealthy",
            _ => "unknown",
        };
        let (standing, last_sweep) = {
            let controls = self.controls.borrow();
            let standing = controls.fleet.as_ref().map(|fleet| fleet.upstreams[step]);
            (standing, controls.sweeps[step].as_ref().map(SweepView::from))
        };
        let (fleet, since) = match standing.unwrap_or_default() {
            Standing::Never => ("never", None),
            Standing::Known { since } => ("known", Some(since)),
            Standing::Retired { at } => ("retired", Some(at)),
        };
        UpstreamView {
            upstream: step.name(),
            configured: known.is_some(),
            fleet,
            since,
            health,
            detail: known
                .map(|health| UpstreamDetail::new(health, (self.traffic)(step).unwrap_or_default())),
            last_sweep,
        }
    }
}

/// Show the upstreams
///
/// Their health, latency and pacing, as the process that answers has seen them, and how the latest sweep of any
/// process ended. Nothing is asked of them.
#[utoipa::path(get, path = "/upstreams", tag = "fleet", operation_id = "showUpstreams",
    responses((status = 200, description = "All of them", body = UpstreamList), Reading))]
pub async fn list(State(upstreams): State<Upstreams>) -> Json<UpstreamList> {
    let items = Upstream::ALL.into_iter().map(|step| upstreams.view(step)).collect();
    Json(UpstreamList { process: upstreams.process.to_string(), items })
}

/// Check an upstream
///
/// The process that answers asks it now, with what its secrets' files hold now, and tells what it found; a
/// healthy answer lets the steps that wait go on. Credentials that were refused and are still the same are
/// not tried before their next probe is due: an upstream may ban an address for failed logins.
#[utoipa::path(post, path = "/upstreams/{upstream}/check", tag = "fleet", operation_id = "checkUpstream",
    params(("upstream" = String, Path, description = "`authentik`, `stalwart` or `ocis`",
        example = "authentik")),
    responses((status = 200, description = "What was found", body = UpstreamView), Deciding))]
pub async fn check(
    State(upstreams): State<Upstreams>,
    Path(upstream): Path<String>,
) -> Result<Json<UpstreamView>, Problem> {
    let step = Upstream::ALL.into_iter().find(|step| step.name() == upstream);
    let step = step.ok_or_else(|| Problem::no_upstream(&upstream))?;
    if upstreams.board.borrow()[step].is_none() {
        return Err(Problem::upstream_not_configured(step.name(), step.setting()));
    }
    match upstreams.check(step).await {
        Some(CheckAnswer::Checked) => Ok(Json(upstreams.view(step))),
        Some(CheckAnswer::NotYet(wait)) => Err(Problem::refused_lately(step.name(), wait)),
        None => Err(Problem::unavailable("the process is shutting down")),
    }
}

/// An upstream that the fleet no longer has.
#[derive(Debug, Serialize, ToSchema)]
pub struct RetiredView {
    upstream: &'static str,
    /// `retired`
    fleet: &'static str,
}

/// Retire an upstream
///
/// The fleet no longer has it: its steps are skipped from now on, what is there stays as it is, and deletions
/// no longer wait for it. No process may have its address set. A process that is started with it takes it
/// back.
#[utoipa::path(post, path = "/upstreams/{upstream}/retire", tag = "fleet", operation_id = "retireUpstream",
    params(("upstream" = String, Path, description = "`authentik`, `stalwart` or `ocis`",
        example = "authentik")),
    responses((status = 200, description = "It is retired", body = RetiredView), Deciding))]
pub async fn retire(
    Acting(store): Acting,
    State(upstreams): State<Upstreams>,
    Path(upstream): Path<String>,
) -> Result<Json<RetiredView>, Problem> {
    let step = Upstream::ALL.into_iter().find(|step| step.name() == upstream);
    let step = step.ok_or_else(|| Problem::no_upstream(&upstream))?;
    if upstreams.board.borrow()[step].is_some() {
        return Err(Problem::upstream_in_use(step.name(), step.setting()));
    }
    match store.retire_upstream(step).await? {
        Retired::Done => Ok(Json(RetiredView { upstream: step.name(), fleet: "retired" })),
        Retired::InUse => Err(Problem::upstream_in_use(step.name(), step.setting())),
        Retired::NotKnown => Err(Problem::upstream_not_known(step.name())),
    }
}
