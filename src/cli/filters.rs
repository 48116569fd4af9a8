//! Which tenants a command is about, when it names none.

use clap::Args;
use serde_json::Value;

use super::client::Ask;
use super::show::{ready, step_state};
use super::table::cell;

/// All of them must hold.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Filters")]
pub struct Filters {
    /// Only tenants with this status: pending, active or deleting
    #[arg(long, value_name = "STATUS", value_parser = ["pending", "active", "deleting"])]
    status: Option<String>,
    /// Only tenants that are as they should be now; with =false, those that are not
    #[arg(
        long,
        value_name = "BOOLEAN",
        value_parser = ["true", "false"],
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    ready: Option<String>,
    /// Only tenants that are not ready for this reason, or a step of which has it, such as Conflict
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// Only tenants whose step is in this state, such as ocis=error; may be repeated
    #[arg(long = "upstream", value_name = "UPSTREAM=STATE", value_parser = step_in_state)]
    steps: Vec<(&'static str, String)>,
    /// Only tenants that have this text in their slug, name or domain
    #[arg(short = 'q', long, value_name = "TEXT")]
    search: Option<String>,
}

/// Steps, and the parameters of the API that filter by their states.
const STEPS: [(&str, &str); 3] =
    [("authentik", "step.authentik"), ("stalwart", "step.stalwart"), ("ocis", "step.ocis")];

fn step_in_state(text: &str) -> Result<(&'static str, String), String> {
    let (upstream, state) = text.split_once('=').unwrap_or((text, ""));
    let parameter = STEPS.iter().find(|(name, _)| *name == upstream).map(|(_, parameter)| *parameter);
    match (parameter, state) {
        (Some(parameter), "pending" | "ok" | "skipped" | "error") => Ok((parameter, state.to_owned())),
        _ => Err("must be authentik, stalwart or ocis, =, and pending, ok, skipped or error".into()),
    }
}

impl Filters {
    /// Tenants that are not as they should be now.
    pub fn unready() -> Self {
        Self { ready: Some("false".into()), ..Self::default() }
    }

    /// The same question, asked of the API.
    pub fn of<'a>(&self, ask: Ask<'a>) -> Ask<'a> {
        let mut ask = ask
            .query("status", self.status.clone())
            .query("ready", self.ready.clone())
            .query("reason", self.reason.clone())
            .query("q", self.search.clone());
        for (parameter, state) in &self.steps {
            ask = ask.query(parameter, Some(state.clone()));
        }
        ask
    }

    /// Whether they hold of a tenant, as the API shows it.
    pub fn hold(&self, tenant: &Value) -> bool {
        let is = |wanted: &Option<String>, shown: &Value| {
            wanted.as_ref().is_none_or(|wanted| *wanted == cell(shown))
        };
        let is_ready = ready(tenant)["status"] == "True";
        let as_ready = self.ready.as_deref().is_none_or(|wanted| (wanted == "true") == is_ready);
        let steps = tenant["steps"].as_object().into_iter().flat_map(|steps| steps.values());
        let mut reasons = steps.map(|step| &step["reason"]).chain([&ready(tenant)["reason"]]);
        let as_reason = self.reason.as_ref().is_none_or(|wanted| reasons.any(|shown| shown == wanted));
        let in_state = |(parameter, state): &(&str, String)| {
            step_state(tenant, parameter.trim_start_matches("step.")) == *state
        };
        let contains = |text: &String| {
            let text = text.to_lowercase();
            ["slug", "name", "domain"].iter().any(|field| {
                tenant[*field].as_str().is_some_and(|value| value.to_lowercase().contains(&text))
            })
        };
        is(&self.status, &tenant["status"])
            && as_ready
            && as_reason
            && self.steps.iter().all(in_state)
            && self.search.as_ref().is_none_or(contains)
    }
}
