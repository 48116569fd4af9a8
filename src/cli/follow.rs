//! Waiting for tenants.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::Value;

use super::client::Client;
use super::commands::read;
use super::failure::{Exit, Failure};
use super::show;
use super::table::cell;
use crate::tenant::Slug;

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum State {
    /// Every service was there once
    #[default]
    Active,
    /// All is as it should be now
    Ready,
    /// There is no such tenant any more
    Deleted,
}

/// Between two looks at a tenant; doubled up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl State {
    fn is_reached(self, tenant: &Value) -> bool {
        match self {
            Self::Active => tenant["status"] == "active",
            Self::Ready => show::ready(tenant)["status"] == "True",
            Self::Deleted => false,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Ready => "ready",
            Self::Deleted => "deleted",
        }
    }
}

/// How long to wait, and until when that is.
#[derive(Clone, Copy)]
struct Limit {
    whole: Duration,
    deadline: Instant,
}

impl Limit {
    fn new(whole: Duration) -> Self {
        Self { whole, deadline: Instant::now() + whole }
    }
}

pub async fn wait(
    client: &Client,
    slugs: &[Slug],
    state: State,
    timeout: Duration,
) -> Result<String, Failure> {
    // For all of them together.
    let limit = Limit::new(timeout);
    let mut said = String::new();
    for slug in slugs {
        poll(client, slug, state, limit, |tenant| state.is_reached(tenant)).await?;
        said.push_str(&format!("{slug}: {}\n", state.name()));
    }
    Ok(said)
}

/// The tenant once it is so. `now` is the tenant as it was just read.
pub async fn until(
    client: &Client,
    slug: &Slug,
    state: State,
    timeout: Duration,
    now: Option<Value>,
) -> Result<Value, Failure> {
    if let Some(tenant) = now.filter(|tenant| state.is_reached(tenant)) {
        return Ok(tenant);
    }
    poll(client, slug, state, Limit::new(timeout), |tenant| state.is_reached(tenant)).await
}

/// The tenant once the reconcile request of this token has been acted on.
pub async fn until_handled(
    client: &Client,
    slug: &Slug,
    token: &Value,
    timeout: Duration,
) -> Result<Value, Failure> {
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let asked = time(token);
    let handled = |tenant: &Value| time(&tenant["lastHandledReconcileAt"]) >= asked;
    poll(client, slug, State::Ready, Limit::new(timeout), handled).await
}

async fn poll(
    client: &Client,
    slug: &Slug,
    state: State,
    limit: Limit,
    reached: impl Fn(&Value) -> bool,
) -> Result<Value, Failure> {
    let mut pause = FIRST_PAUSE;
    loop {
        let tenant = match read(client, slug).await {
            Ok((tenant, _)) => tenant,
            Err(failure) if failure.exit == Exit::NotFound && state == State::Deleted => {
                return Ok(Value::Null);
            }
            Err(failure) => return Err(failure),
        };
        if reached(&tenant) {
            return Ok(tenant);
        }
        let left = limit.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let ready = show::ready(&tenant);
            let message = format!(
                "{slug} is not {} after {}: {} ({}). tenantry tenants describe {slug} tells more",
                state.name(),
                humantime::format_duration(limit.whole),
                cell(&ready["message"]),
                cell(&ready["reason"]),
            );
            return Err(Failure::new(Exit::Timeout, message));
        }
        tokio::time::sleep(pause.min(left)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// A tenant in one line.
pub fn summary(tenant: &Value) -> String {
    let ready = show::ready(tenant);
    let steps = tenant["steps"].as_object().into_iter().flatten();
    let steps: Vec<_> = steps.map(|(name, step)| format!("{name}={}", cell(&step["state"]))).collect();
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let message: String = cell(&ready["message"]).chars().map(printable).collect();
    format!("{} ready={} {} {message}", show::status(tenant), cell(&ready["status"]), steps.join(" "))
}
