//! Tenants as tables, as `describe` text, or in a form for programs.

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde_json::Value;

use super::printable::{escaped, in_line};
use super::table::{Style, Table, age, bytes, cell};
use super::yaml::to_yaml;

/// In which form to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Form {
    /// For people
    #[default]
    Table,
    /// A table with more columns
    Wide,
    /// The API's answer
    Json,
    /// The same as YAML
    Yaml,
    /// Slugs only, one a line
    Name,
}

#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
    /// Form of what is printed
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub output: Form,
}

/// The condition `Ready` of a tenant.
pub fn ready(tenant: &Value) -> &Value {
    let conditions = tenant["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|condition| condition["type"] == "Ready").unwrap_or(&Value::Null)
}

/// The status as people read it: whether it is paused says more than that it once was active.
pub fn status(tenant: &Value) -> String {
    if tenant["paused"] == true { "paused".into() } else { cell(&tenant["status"]) }
}

/// The state of one of its steps.
pub fn step_state(tenant: &Value, step: &str) -> String {
    cell(&tenant["steps"][step]["state"])
}

/// One tenant.
pub fn tenant(tenant: &Value, form: Form) -> String {
    match form {
        Form::Json => json(tenant),
        Form::Yaml => to_yaml(tenant),
        _ => tenants(std::slice::from_ref(tenant), form, true),
    }
}

/// Any number of tenants; a table with or without its head.
pub fn tenants(items: &[Value], form: Form, head: bool) -> String {
    match form {
        Form::Json => json(&serde_json::json!({ "items": items })),
        Form::Yaml => to_yaml(&serde_json::json!({ "items": items })),
        Form::Name => items.iter().map(|tenant| format!("{}\n", cell(&tenant["slug"]))).collect(),
        Form::Table | Form::Wide => {
            let wide = form == Form::Wide;
            let mut names =
                vec!["SLUG", "NAME", "STATUS", "READY", "AUTHENTIK", "STALWART", "OCIS", "AGE"];
            if wide {
                names.extend(["DOMAIN", "QUOTA", "GENERATION", "REASON", "MESSAGE"]);
            }
            let mut table = if head { Table::new(&names) } else { Table::without_head() };
            let now = Timestamp::now();
            for tenant in items {
                let ready = ready(tenant);
                let step = |name: &str| step_state(tenant, name);
                let mut row = vec![
                    cell(&tenant["slug"]),
                    cell(&tenant["name"]),
                    status(tenant),
                    cell(&ready["status"]),
                    step("authentik"),
                    step("stalwart"),
                    step("ocis"),
                    age(&tenant["createdAt"], now),
                ];
                if wide {
                    row.extend([
                        cell(&tenant["domain"]),
                        bytes(&tenant["quota"]["storageBytes"]),
                        cell(&tenant["generation"]),
                        cell(&ready["reason"]),
                        cell(&ready["message"]),
                    ]);
                }
                table.row(row);
            }
            if table.is_empty() { String::new() } else { table.render(Style::of_stdout(), "") }
        }
    }
}

/// Any list of the API, such as of orphans, guards or events, by its items' fields.
pub fn items(answer: &Value, columns: &[(&str, &str)], form: Form) -> String {
    let items = answer["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    match form {
        Form::Json => json(answer),
        Form::Yaml => to_yaml(answer),
        Form::Name => {
            let first = columns.first().map_or("", |(_, field)| field);
            items.iter().map(|item| format!("{}\n", cell(&item[first]))).collect()
        }
        Form::Table | Form::Wide => {
            let head: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
            let mut table = Table::new(&head);
            let now = Timestamp::now();
            for item in items {
                let field = |(_, field): &(&str, &str)| match *field {
                    "at" | "since" | "firstSeenAt" | "nextProbeAt" | "credentialsAcceptedAt" => {
                        age(&item[*field], now)
                    }
                    "by" if form == Form::Table => names(&item[*field]),
                    field => cell(&item[field]),
                };
                table.row(columns.iter().map(field).collect());
            }
            if table.is_empty() { String::new() } else { table.render(Style::of_stdout(), "") }
        }
    }
}

/// Who asked for something: by the names for people, where there are some; the issuer's are long.
fn names(by: &Value) -> String {
    let short = |one: &str| one.split_once(" (").map_or(one, |(name, _)| name).to_owned();
    match by.as_str() {
        Some(by) => by.split(", ").map(short).collect::<Vec<_>>().join(", "),
        None => cell(by),
    }
}

/// What the lists of the API hold.
pub const EVENTS: [(&str, &str); 6] = [
    ("AGE", "at"),
    ("TYPE", "type"),
    ("REASON", "reason"),
    ("STEP", "step"),
    ("BY", "by"),
    ("MESSAGE", "message"),
];

/// Everything about one tenant, for people. `events` is the API's list of them, where it has one.
pub fn describe(tenant: &Value, events: Option<&Value>) -> String {
    let (style, now) = (Style::of_stdout(), Timestamp::now());
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let value = in_line(&value);
        text.push_str(format!("{:<14}{value}", format!("{name}:")).trim_end());
        text.push('\n');
    };
    let since = |field: &str| match &tenant[field] {
        Value::Null => "-".to_owned(),
        at => format!("{} ({} ago)", cell(at), age(at, now)),
    };
    line("Slug", cell(&tenant["slug"]));
    line("Name", cell(&tenant["name"]));
    line("Id", cell(&tenant["id"]));
    line("Status", status(tenant));
    line("Created", since("createdAt"));
    line("Updated", since("updatedAt"));
    let observed = cell(&tenant["observedGeneration"]);
    line("Generation", format!("{} (observed: {observed})", cell(&tenant["generation"])));
    let next = match &tenant["nextReconcileAt"] {
        Value::Null => "now".to_owned(),
        at => age(at, now),
    };
    line("Next look", next);
    line("Spec", String::new());
    line("  Domain", cell(&tenant["domain"]));
    line("  Quota", bytes(&tenant["quota"]["storageBytes"]));
    let services = tenant["services"].as_object().into_iter().flatten();
    let services: Vec<_> =
        services.filter(|(_, on)| **on == true).map(|(name, _)| name.as_str()).collect();
    line("  Services", if services.is_empty() { "-".into() } else { services.join(", ") });
    line("  Paused", cell(&tenant["paused"]));
    line("  Adopt", if tenant["adopt"].is_null() { "default".into() } else { cell(&tenant["adopt"]) });

    let mut steps =
        Table::new(&["NAME", "STATE", "REASON", "SINCE", "ATTEMPTS", "NEXT", "ORIGIN", "EXTERNAL ID"]);
    let mut messages = Vec::new();
    for (name, step) in tenant["steps"].as_object().into_iter().flatten() {
        steps.row(vec![
            name.clone(),
            cell(&step["state"]),
            cell(&step["reason"]),
            age(&step["lastTransitionAt"], now),
            cell(&step["attempts"]),
            match &step["waitsFor"] {
                Value::Null => age(&step["nextAttemptAt"], now),
                waits => format!("probe {}", age(&waits["nextProbeAt"], now)),
            },
            cell(&step["origin"]),
            cell(&step["externalId"]),
        ]);
        if let Some(message) = step["message"].as_str() {
            messages.push((name.clone(), message.to_owned()));
        }
        for other in step["others"].as_array().into_iter().flatten() {
            let (id, named) = (cell(&other["externalId"]), cell(&other["name"]));
            messages.push((name.clone(), format!("{named} ({id}) carries this tenant's mark as well")));
        }
    }
    let mut section = |title: &str, table: &Table| {
        text.push_str(&format!("{title}:\n"));
        text.push_str(&if table.is_empty() { "  -\n".to_owned() } else { table.render(style, "  ") });
    };
    section("Steps", &steps);
    if !messages.is_empty() {
        let mut table = Table::new(&["STEP", "MESSAGE"]);
        for (name, message) in messages {
            table.row(vec![name, message]);
        }
        section("Messages", &table);
    }
    let mut conditions = Table::new(&["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"]);
    for condition in tenant["conditions"].as_array().into_iter().flatten() {
        conditions.row(vec![
            cell(&condition["type"]),
            cell(&condition["status"]),
            cell(&condition["reason"]),
            age(&condition["lastTransitionTime"], now),
            cell(&condition["message"]),
        ]);
    }
    section("Conditions", &conditions);
    if let Some(events) = events {
        let table = items(events, &EVENTS, Form::Table);
        text.push_str("Events:\n");
        if table.is_empty() {
            text.push_str("  -\n");
        }
        for line in table.lines() {
            text.push_str(&format!("  {line}\n"));
        }
    }
    text
}

/// What a reconcile would do.
pub fn plan(plan: &Value, form: Form) -> String {
    match form {
        Form::Json => return json(plan),
        Form::Yaml => return to_yaml(plan),
        Form::Name => return format!("{}\n", cell(&plan["slug"])),
        Form::Table | Form::Wide => {}
    }
    let now = Timestamp::now();
    let steps = plan["steps"].as_object().into_iter().flatten();
    let mut text = match plan["changes"].as_u64() {
        Some(0) => format!("{}: nothing would be done\n", cell(&plan["slug"])),
        _ => {
            format!("{}: something would be done for {} step(s)\n", cell(&plan["slug"]), plan["changes"])
        }
    };
    for (name, step) in steps {
        let action = cell(&step["action"]);
        let sign = match action.as_str() {
            "none" => ' ',
            "create" => '+',
            "look" => '?',
            "release" | "delete" | "purge" => '-',
            _ => '~',
        };
        let mut told = match action.as_str() {
            "none" => "nothing to do".to_owned(),
            "look" => "could not be looked at, so it is not known".to_owned(),
            "switchOff" => "switch off".to_owned(),
            _ => action,
        };
        if let Some(reason) = step["heldBack"].as_str() {
            told.push_str(&format!(", but not now: {reason}"));
        }
        let seen = match &step["observedAt"] {
            Value::Null => String::new(),
            at => format!("  (seen {} ago)", age(at, now)),
        };
        let mut line = |line: String| {
            text.push_str(in_line(&line).trim_end());
            text.push('\n');
        };
        line(format!("{sign} {name:<10} {told}{seen}"));
        if let Some(message) = step["message"].as_str() {
            line(format!("      {message}"));
        }
        for field in step["fields"].as_array().into_iter().flatten() {
            let quoted = |value: &Value| match value {
                Value::Null => "(nothing)".to_owned(),
                value => value.to_string(),
            };
            let (from, to) = (quoted(&field["observed"]), quoted(&field["desired"]));
            let name = cell(&field["field"]);
            match field["action"].as_str() {
                Some("set") => line(format!("    + {name}: {to}")),
                Some("change") => line(format!("    ~ {name}: {from} -> {to}")),
                _ if form == Form::Wide => line(format!("      {name}: {from}")),
                _ => {}
            }
        }
    }
    text
}

pub fn json(value: &Value) -> String {
    escaped(&format!("{value:#}\n"))
}
