//! What each command asks of the API, and what it prints.

use std::time::{Duration, Instant};

use clap::Args;
use reqwest::Method;
use reqwest::header::HeaderValue;
use serde_json::{Value, json};

use super::Deletion;
use super::client::{Ask, Client};
use super::desired::Changes;
use super::editor::in_editor;
use super::failure::{Exit, Failure};
use super::filters::Filters;
use super::show::{self, Form, Output};
use super::table::cell;
use super::wait;
use crate::tenant::Slug;
use crate::terminal::{print, say};

/// For paths that every server has.
pub const API: &str = "API of tenantry";

pub async fn read(client: &Client, slug: &Slug) -> Result<(Value, Option<HeaderValue>), Failure> {
    if slug.is_reserved() {
        // What the API has there never ends.
        let said = format!("there is no tenant {slug}: it is a word of the API's own");
        return Err(Failure::new(Exit::NotFound, said));
    }
    let answer = client.ask(Ask::get(&["tenants", slug.as_str()], API)).await?;
    Ok((answer.body, answer.etag))
}

pub async fn create(
    client: &Client,
    slug: &Slug,
    body: Value,
    key: Option<String>,
    wait: Option<Duration>,
    output: Output,
) -> Result<String, Failure> {
    let key = key.map(HeaderValue::try_from).transpose();
    let key = key.map_err(|_| Failure::usage("--idempotency-key must be visible ASCII characters"))?;
    let ask = Ask::new(Method::POST, &["tenants"], API).header("idempotency-key", key).body(body);
    let created = client.ask(ask.wait(wait)).await?.body;
    settled(client, slug, created, wait, output).await
}

pub async fn edit(
    client: &Client,
    slug: &Slug,
    changes: &Changes,
    wait: Option<Duration>,
    output: Output,
) -> Result<String, Failure> {
    let path = ["tenants", slug.as_str()];
    let edited = match changes.patch() {
        Some(patch) => {
            client.ask(Ask::new(Method::PATCH, &path, API).body(patch).wait(wait)).await?.body
        }
        None => {
            let (tenant, etag) = read(client, slug).await?;
            let Some(edited) = in_editor(&tenant)? else {
                say(format_args!("nothing was changed"));
                return Ok(String::new());
            };
            // What was on the screen is what is edited.
            let patch = Ask::new(Method::PATCH, &path, API).header("if-match", etag);
            let answer = client.ask(patch.body(edited.patch.clone()).wait(wait)).await;
            let answer = answer.map_err(|failure| edited.kept(failure))?;
            edited.done();
            answer.body
        }
    };
    settled(client, slug, edited, wait, output).await
}

/// The tenant as it is printed: at once, or when it is ready.
async fn settled(
    client: &Client,
    slug: &Slug,
    tenant: Value,
    wait: Option<Duration>,
    output: Output,
) -> Result<String, Failure> {
    let tenant = match wait {
        None => tenant,
        Some(wait) => wait::until(client, slug, wait::State::Ready, wait, Some(tenant)).await?,
    };
    Ok(show::tenant(&tenant, output.output))
}

/// Tenants that one request of a list asks for.
const PAGE: u16 = 500;

pub async fn all(client: &Client, filters: &Filters) -> Result<Vec<Value>, Failure> {
    let mut items = Vec::new();
    let mut pages = Pages::default();
    while let Some(mut page) = pages.next(client, filters).await? {
        items.append(&mut page);
    }
    Ok(items)
}

/// A list, read a page at a time.
#[derive(Debug, Clone, Default)]
pub struct Pages {
    /// The slug to go on after.
    after: Option<String>,
    ended: bool,
}

impl Pages {
    /// The tenants of the next page; `None` after the last.
    pub async fn next(
        &mut self,
        client: &Client,
        filters: &Filters,
    ) -> Result<Option<Vec<Value>>, Failure> {
        if self.ended {
            return Ok(None);
        }
        let ask = Ask::get(&["tenants"], API).query("limit", Some(PAGE.to_string()));
        let ask = filters.of(ask).query("after", self.after.take());
        let mut page = client.ask(ask).await?.body;
        self.after = page["next"].as_str().map(ToOwned::to_owned);
        self.ended = self.after.is_none();
        Ok(Some(page["items"].as_array_mut().map(std::mem::take).unwrap_or_default()))
    }
}

/// How a list of tenants is shown.
#[derive(Debug, Args)]
pub struct Listing {
    /// Sort by a field of the API, such as createdAt, name or quota.storageBytes; with - before it, downwards
    #[arg(long, value_name = "FIELD", allow_hyphen_values = true)]
    sort_by: Option<String>,
    /// Leave the names of the columns out
    #[arg(long)]
    no_headers: bool,
    #[command(flatten)]
    output: Output,
}

pub async fn get(
    client: &Client,
    slugs: &[Slug],
    filters: &Filters,
    listing: Listing,
) -> Result<String, Failure> {
    let form = listing.output.output;
    let mut tenants = Vec::new();
    if slugs.is_empty() {
        tenants = all(client, filters).await?;
    }
    for slug in slugs {
        tenants.push(read(client, slug).await?.0);
    }
    tenants.retain(|tenant| filters.hold(tenant) || slugs.is_empty());
    if let ([_], [tenant], Form::Json | Form::Yaml) = (slugs, &tenants[..], form) {
        return Ok(show::tenant(tenant, form));
    }
    if let Some(field) = &listing.sort_by {
        sort(&mut tenants, field);
    }
    if tenants.is_empty() && matches!(form, Form::Table | Form::Wide) {
        say(format_args!("there are no such tenants; tenantry tenants create makes one"));
    }
    Ok(show::tenants(&tenants, form, !listing.no_headers))
}

/// By a field such as `quota.storageBytes`; those without it come last.
fn sort(tenants: &mut [Value], field: &str) {
    let (field, down) = field.strip_prefix('-').map_or((field, false), |field| (field, true));
    let pointer = format!("/{}", field.replace('.', "/"));
    let value = |tenant: &Value| tenant.pointer(&pointer).filter(|value| !value.is_null()).cloned();
    tenants.sort_by(|one, other| match (value(one), value(other)) {
        (Some(one), Some(other)) => {
            let order = match (one.as_f64(), other.as_f64()) {
                (Some(one), Some(other)) => one.total_cmp(&other),
                _ => cell(&one).cmp(&cell(&other)),
            };
            if down { order.reverse() } else { order }
        }
        (one, other) => other.is_some().cmp(&one.is_some()),
    });
}

pub async fn describe(client: &Client, slug: &Slug) -> Result<String, Failure> {
    let (tenant, _) = read(client, slug).await?;
    let path = ["tenants", slug.as_str(), "events"];
    let recent = Ask::get(&path, "history of tenants").query("limit", Some("10".into()));
    // A server without a history can be described all the same.
    let events = client.ask(recent).await.ok();
    Ok(show::describe(&tenant, events.as_ref().map(|answer| &answer.body)))
}

pub async fn reconcile(
    client: &Client,
    slug: &Slug,
    steps: &[String],
    wait: Option<Duration>,
) -> Result<String, Failure> {
    let path = ["tenants", slug.as_str(), "reconcile"];
    let mut ask = Ask::new(Method::POST, &path, API);
    if !steps.is_empty() {
        ask = ask.body(json!({ "steps": steps }));
    }
    let asked = client.ask(ask.wait(wait)).await?.body;
    let Some(wait) = wait else { return Ok(format!("{slug}: will be reconciled\n")) };
    let tenant = wait::until_handled(client, slug, &asked["token"], wait).await?;
    match show::ready(&tenant) {
        ready if ready["status"] == "True" => Ok(format!("{slug}: ready\n")),
        ready => {
            let why = ready["message"].as_str().unwrap_or("it does not say why");
            let said = format!("{slug} was reconciled, and is not ready: {why}");
            Err(Failure::new(Exit::Failed, said))
        }
    }
}

/// Between two questions for a plan.
const PLAN_PAUSE: Duration = Duration::from_millis(500);

pub async fn plan(
    client: &Client,
    slug: &Slug,
    exit_code: bool,
    wait: Option<Duration>,
    output: Output,
) -> Result<String, Failure> {
    let path = ["tenants", slug.as_str(), "plan"];
    let until = wait.map(|wait| Instant::now() + wait);
    let plan = loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let ask = Ask::get(&path, "plan of tenants").wait(left);
        let plan = client.ask(ask).await?.body;
        // The server waits for a minute at most.
        if plan["looked"] == true || until.is_none_or(|until| until <= Instant::now()) {
            break plan;
        }
        // Where too many wait already, it answers at once.
        tokio::time::sleep(PLAN_PAUSE).await;
    };
    let text = show::plan(&plan, output.output);
    if let Some(wait) = wait.filter(|_| plan["looked"] != true) {
        print(&text)?;
        let wait = humantime::format_duration(wait);
        let said = format!(
            "no process has looked within {wait}; this is what was seen before. Does a controller run?"
        );
        return Err(Failure::new(Exit::Timeout, said));
    }
    if !exit_code || plan["changes"] == 0 {
        return Ok(text);
    }
    print(&text)?;
    Err(Failure::new(Exit::Changes, format!("{slug} would be changed")))
}

/// `POST /tenants/{slug}/{action}`.
pub async fn act(
    client: &Client,
    slug: &Slug,
    action: &str,
    feature: &'static str,
) -> Result<String, Failure> {
    let path = ["tenants", slug.as_str(), action];
    let tenant = client.ask(Ask::new(Method::POST, &path, feature)).await?.body;
    Ok(format!("{slug}: {}\n", show::status(&tenant)))
}

pub async fn delete(client: &Client, slug: &Slug, deletion: Deletion) -> Result<String, Failure> {
    let path = ["tenants", slug.as_str()];
    let ask = Ask::new(Method::DELETE, &path, "way to delete tenants");
    client.ask(deletion.of(ask)).await?;
    Ok(format!(
        "{slug}: is being deleted; tenantry tenants wait {slug} --for=deleted tells when it is gone\n"
    ))
}

pub async fn events(
    client: &Client,
    slug: &Slug,
    limit: u16,
    output: Output,
) -> Result<String, Failure> {
    let path = ["tenants", slug.as_str(), "events"];
    let ask = Ask::get(&path, "history of tenants").query("limit", Some(limit.to_string()));
    Ok(show::items(&client.ask(ask).await?.body, &show::EVENTS, output.output))
}

type Columns = [(&'static str, &'static str)];

pub const STOPS: [(&str, &str); 2] = [("UPSTREAM", "upstream"), ("STOPPED", "stopped")];
pub const ORPHANS: [(&str, &str); 5] = [
    ("UPSTREAM", "upstream"),
    ("EXTERNAL ID", "externalId"),
    ("NAME", "name"),
    ("TENANT", "tenantId"),
    ("SEEN", "firstSeenAt"),
];
pub const GUARDS: [(&str, &str); 4] =
    [("UPSTREAM", "upstream"), ("STATE", "state"), ("SINCE", "since"), ("MESSAGE", "message")];

/// What the API says by upstream, as a list. `all` is a word for all upstreams.
fn by_upstream(answer: &Value) -> Value {
    let mut items = Vec::new();
    if let Some(upstreams) = answer["upstreams"].as_object() {
        items.push(json!({ "upstream": "all", "stopped": answer["all"] }));
        items.extend(upstreams.iter().map(|(name, on)| json!({ "upstream": name, "stopped": on })));
    } else {
        for (name, guard) in answer.as_object().into_iter().flatten() {
            let mut guard = guard.clone();
            guard["upstream"] = json!(name);
            items.push(guard);
        }
    }
    json!({ "items": items })
}

pub async fn list(
    client: &Client,
    path: &[&str],
    columns: &Columns,
    output: Output,
) -> Result<String, Failure> {
    let feature = match path {
        ["stops"] => "emergency stop",
        ["guards"] => "change guard",
        ["events"] => "history of the fleet",
        _ => "list of orphans",
    };
    let answer = client.ask(Ask::get(path, feature)).await?.body;
    let for_people = matches!(output.output, Form::Table | Form::Wide | Form::Name);
    if for_people && !answer["items"].is_array() {
        return Ok(show::items(&by_upstream(&answer), columns, output.output));
    }
    let text = show::items(&answer, columns, output.output);
    if for_people && text.is_empty() {
        say(format_args!("there are none"));
    }
    Ok(text)
}

pub async fn stop(client: &Client, upstream: Option<String>) -> Result<String, Failure> {
    let what = upstream.as_deref().unwrap_or("all");
    client.ask(Ask::new(Method::PUT, &["stops", what], "emergency stop")).await?;
    Ok(format!("{what}: stopped; tenantry start resumes\n"))
}

pub async fn start(client: &Client, upstream: Option<String>) -> Result<String, Failure> {
    let what = upstream.as_deref().unwrap_or("all");
    client.ask(Ask::new(Method::DELETE, &["stops", what], "emergency stop")).await?;
    Ok(format!("{what}: resumed\n"))
}

pub async fn release_orphan(
    client: &Client,
    upstream: &str,
    id: &str,
    slug: Option<Slug>,
) -> Result<String, Failure> {
    let path = ["orphans", upstream, id, "release"];
    let ask = Ask::new(Method::POST, &path, "way to release orphans");
    client.ask(ask.query("slug", slug.map(|slug| slug.to_string()))).await?;
    Ok(format!("{upstream}: {id} will be released; tenantry orphans no longer lists it then\n"))
}

const DRIFT: [(&str, &str); 4] =
    [("TENANT", "slug"), ("ID", "tenantId"), ("SEEN", "seen"), ("WHEN", "seenAt")];

/// A change guard, and the tenants concerned.
pub async fn guard(
    client: &Client,
    upstream: &str,
    limit: u32,
    after: Option<String>,
    output: Output,
) -> Result<String, Failure> {
    let path = ["guards", upstream];
    let ask = Ask::get(&path, "tenants of a change guard");
    let ask = ask.query("limit", Some(limit.to_string())).query("after", after);
    let answer = client.ask(ask).await?.body;
    let tenants = show::items(&answer, &DRIFT, output.output);
    if !matches!(output.output, Form::Table | Form::Wide) {
        return Ok(tenants);
    }
    let said = |field: &str| answer[field].as_str().map(|text| format!(": {text}")).unwrap_or_default();
    let count = answer["tenants"].as_u64().unwrap_or_default();
    let more = answer["next"].as_str().map(|next| format!("more: --after {next}\n")).unwrap_or_default();
    let (state, message) = (said("state"), said("message"));
    Ok(format!("{upstream}{state}{message}\n{count} tenants differ\n{tenants}{more}"))
}

pub async fn lift(client: &Client, upstream: &str) -> Result<String, Failure> {
    client.ask(Ask::new(Method::POST, &["guards", upstream, "lift"], "change guard")).await?;
    Ok(format!("{upstream}: the guard is lifted; repairs begin\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_are_sorted_by_numbers_times_and_texts_and_those_without_come_last() {
        let mut tenants = vec![
            json!({ "slug": "a", "quota": { "storageBytes": 10 } }),
            json!({ "slug": "b", "quota": { "storageBytes": null } }),
            json!({ "slug": "c", "quota": { "storageBytes": 9 } }),
        ];
        let mut by = |field: &str| {
            sort(&mut tenants, field);
            tenants.iter().map(|tenant| cell(&tenant["slug"])).collect::<String>()
        };
        assert_eq!(by("quota.storageBytes"), "cab");
        assert_eq!(by("-quota.storageBytes"), "acb");
        assert_eq!(by("slug"), "abc");
        assert_eq!(by("-slug"), "cba");
    }
}
