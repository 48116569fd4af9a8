//! How the upstreams are, as the process that answers sees them.
//!
//! The HTTP layer asks no upstream: what it shows is the board that the integrations keep. Several
//! processes may see an upstream differently, so an answer names the process that it is of.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;
use utoipa::ToSchema;

use super::health::Upstream;
use super::openapi::Reading;
use crate::tenant::{Breaker, PerStep, StepKind, UpstreamHealth};

/// What is known of the upstreams, and by which process.
#[derive(Clone)]
pub struct Upstreams {
    /// Names this process, as leases do.
    pub process: Arc<str>,
    /// `None` for an upstream that is not configured.
    pub board: watch::Receiver<PerStep<Option<UpstreamHealth>>>,
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
    /// `healthy`, `unhealthy` (the reason says why), or `unknown`
    health: &'static str,
    /// What is known of a configured one.
    #[serde(flatten)]
    detail: Option<UpstreamDetail>,
}

/// What is known of a configured upstream.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamDetail {
    #[serde(flatten)]
    seen: Upstream,
    /// `closed` (steps are let through), `open` (they wait until a probe finds that it works), or `unproven`
    breaker: &'static str,
    /// When an open breaker lets the next probe through.
    next_probe_at: Option<Timestamp>,
    /// When the upstream last accepted our credentials.
    credentials_accepted_at: Option<Timestamp>,
}

impl From<UpstreamHealth> for UpstreamDetail {
    fn from(health: UpstreamHealth) -> Self {
        Self {
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
    fn view(&self, step: StepKind) -> UpstreamView {
        let known = self.board.borrow()[step].clone();
        let health = match &known {
            Some(known) if known.is_healthy() => "healthy",
            Some(known) if known.problem.is_some() || known.reachable == Some(false) => "unhealthy",
            _ => "unknown",
        };
        UpstreamView {
            upstream: step.name(),
            configured: known.is_some(),
            health,
            detail: known.map(Into::into),
        }
    }
}

/// Show the upstreams
///
/// Their health, as the process that answers has seen it. Nothing is asked of them.
#[utoipa::path(get, path = "/upstreams", tag = "fleet", operation_id = "showUpstreams",
    responses((status = 200, description = "All of them", body = UpstreamList), Reading))]
pub async fn list(State(upstreams): State<Upstreams>) -> Json<UpstreamList> {
    let items = StepKind::ALL.into_iter().map(|step| upstreams.view(step)).collect();
    Json(UpstreamList { process: upstreams.process.to_string(), items })
}
