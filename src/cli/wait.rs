//! Waiting for tenants.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::Value;

use super::batch::{Progress, patiently};
use super::client::Client;
use super::commands::{all, read};
use super::failure::{Exit, Failure};
use super::filters::Filters;
use super::printable::in_line;
use super::show;
use super::table::cell;
use crate::delay::GrowingDelay;
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

/// Of tenants that are not ready in time, so many are named.
const NAMED: usize = 10;

/// Waits until all of these are ready. Asks for those that are not, which are few in a large fleet.
pub async fn all_ready(client: &Client, slugs: Vec<Slug>, timeout: Duration) -> Result<String, Failure> {
    let (limit, mut delay) = (Limit::new(timeout), GrowingDelay::new(FIRST_PAUSE, LONGEST_PAUSE));
    let mut progress = Progress::of("ready", slugs.len());
    let slugs: BTreeSet<String> = slugs.iter().map(ToString::to_string).collect();
    let unready = Filters::unready();
    loop {
        let waiting = patiently(|| all(client, &unready)).await?;
        let ours = |tenant: &Value| tenant["slug"].as_str().is_some_and(|slug| slugs.contains(slug));
        let waiting = waiting.into_iter().filter(ours);
        let waiting: Vec<_> = waiting.collect();
        if waiting.is_empty() {
            progress.clear();
            return Ok(match slugs.len() {
                1 => "1 tenant is ready\n".into(),
                number => format!("{number} tenants are ready\n"),
            });
        }
        progress.at(slugs.len().saturating_sub(waiting.len()));
        let left = limit.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            progress.clear();
            let whole = humantime::format_duration(limit.whole);
            let mut said =
                format!("{} of {} tenants are not ready after {whole}:", waiting.len(), slugs.len());
            for tenant in waiting.iter().take(NAMED) {
                let (ready, slug) = (show::ready(tenant), cell(&tenant["slug"]));
                said.push_str(&format!(
                    "\n  {slug}: {} ({})",
                    cell(&ready["message"]),
                    cell(&ready["reason"])
                ));
            }
            said.push_str("\ntenantry tenants get --ready=false lists them");
            return Err(Failure::new(Exit::Timeout, said));
        }
        tokio::time::sleep(delay.grow().min(left)).await;
    }
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
    let mut delay = GrowingDelay::new(FIRST_PAUSE, LONGEST_PAUSE);
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
        tokio::time::sleep(delay.grow().min(left)).await;
    }
}

/// A tenant in one line.
pub fn summary(tenant: &Value) -> String {
    let ready = show::ready(tenant);
    let steps = tenant["steps"].as_object().into_iter().flatten();
    let steps: Vec<_> = steps.map(|(name, step)| format!("{name}={}", cell(&step["state"]))).collect();
    let message = in_line(&cell(&ready["message"]));
    format!("{} ready={} {} {message}", show::status(tenant), cell(&ready["status"]), steps.join(" "))
}
