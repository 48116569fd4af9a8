//! The catalogue for people: what each metric means, and which alerts and panels use it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::{Entry, Metrics};

const RULES: &str = include_str!("../../manifests/prometheus/tenantry.rules.yaml");
const DASHBOARDS: [&str; 3] = [
    include_str!("../../dashboards/fleet.json"),
    include_str!("../../dashboards/upstreams.json"),
    include_str!("../../dashboards/controller.json"),
];

/// A metric with what uses it.
#[derive(Debug, Serialize)]
pub struct Described {
    #[serde(flatten)]
    pub entry: Entry,
    pub alerts: Vec<String>,
    /// `Fleet: Ready`.
    pub panels: Vec<String>,
}

/// How the catalogue is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum GuideFormat {
    Table,
    Markdown,
    Json,
}

/// Every metric of this version.
pub fn describe() -> Vec<Described> {
    let (alerts, panels) = (alerts(), panels());
    let used_by = |users: &BTreeMap<String, BTreeSet<String>>, name: &str| -> Vec<String> {
        let uses =
            |(user, names): (&String, &BTreeSet<String>)| names.contains(name).then(|| user.clone());
        users.iter().filter_map(uses).collect()
    };
    let described = |entry: &Entry| Described {
        alerts: used_by(&alerts, &entry.name),
        panels: used_by(&panels, &entry.name),
        entry: entry.clone(),
    };
    Metrics::new().catalogue().iter().map(described).collect()
}

/// The catalogue as a text.
pub fn guide(format: GuideFormat) -> String {
    let all = describe();
    match format {
        GuideFormat::Json => serde_json::to_string_pretty(&all).unwrap_or_default() + "\n",
        GuideFormat::Markdown => markdown(&all),
        GuideFormat::Table => table(&all),
    }
}

/// The names of metrics that each alert asks for, by itself or through recording rules.
fn alerts() -> BTreeMap<String, BTreeSet<String>> {
    let mut alerts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut recorded: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for rule in RULES.split("\n      - ").skip(1) {
        let Some((kind, rest)) = rule.split_once(": ") else { continue };
        let (name, body) = rest.split_once('\n').unwrap_or((rest, ""));
        let names = names(&expression(body));
        match kind {
            "alert" => alerts.insert(name.to_owned(), names),
            _ => recorded.insert(name.to_owned(), names),
        };
    }
    for names in alerts.values_mut() {
        // A recorded series may be made of others.
        loop {
            let through = names.iter().filter_map(|name| recorded.get(name)).flatten();
            let new: Vec<String> = through.filter(|name| !names.contains(*name)).cloned().collect();
            if new.is_empty() {
                break;
            }
            names.extend(new);
        }
    }
    alerts
}

/// The expression of a rule: up to the next key, comment or rule.
fn expression(body: &str) -> String {
    let after = body.split("expr: ").nth(1).unwrap_or_default();
    let inside = |line: &&str| line.starts_with("          ");
    let (first, rest) = after.split_once('\n').unwrap_or((after, ""));
    let lines = std::iter::once(first).chain(rest.lines().take_while(inside));
    lines.collect::<Vec<_>>().join(" ")
}

/// The same of each panel.
fn panels() -> BTreeMap<String, BTreeSet<String>> {
    let mut panels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for dashboard in DASHBOARDS {
        let dashboard: Value = serde_json::from_str(dashboard).unwrap_or_default();
        let title = dashboard["title"].as_str().unwrap_or_default();
        let title = title.rsplit(" / ").next().unwrap_or_default();
        for panel in dashboard["panels"].as_array().into_iter().flatten() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let panel = format!("{title}: {}", panel["title"].as_str().unwrap_or_default());
                let expression = target["expr"].as_str().unwrap_or_default();
                panels.entry(panel).or_default().extend(names(expression));
            }
        }
    }
    panels
}

/// The metrics that an expression names, those of a histogram by the histogram's name.
fn names(expression: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = expression.split(|c| !is_part(c)).filter(|word| {
        word.starts_with("tenantry_") || word.starts_with("tenantry:") || word.starts_with("process_")
    });
    let base = |word: &str| {
        let ends = ["_bucket", "_count", "_sum"].iter().find_map(|end| word.strip_suffix(end));
        ends.unwrap_or(word).to_owned()
    };
    words.map(base).collect()
}

fn labels(entry: &Entry) -> Vec<String> {
    let label = |label: &super::LabelEntry| match label.values.as_slice() {
        [] => label.name.to_owned(),
        values => format!("{}: {}", label.name, values.join(", ")),
    };
    entry.labels.iter().map(label).collect()
}

fn markdown(all: &[Described]) -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         Every metric that a process shows at `/metrics` of `TELEMETRY_ADDR`, as `tenantry metrics -o markdown` prints \
         them. A label without values has a closed list too, but a long one: the paths of the API, and status codes. \
         Gauges that a census counts (`tenants…`, `steps`, `oldest_due_age_seconds`) are of the whole fleet, the same in \
         every process, and counted while they are scraped: every 5 seconds at most, every minute where a count takes longer \
         than a second; the others are of one process.\n",
    );
    for Described { entry, alerts, panels } in all {
        // Writing to a text does not fail.
        let _ = write!(
            text,
            "\n## {}\n\n{}, {}. {}\n",
            entry.name,
            entry.kind.name(),
            entry.unit,
            entry.help
        );
        let mut line = |title: &str, items: &[String]| {
            if !items.is_empty() {
                let _ = write!(text, "\n* **{title}** {}", items.join("; "));
            }
        };
        line("Labels", &labels(entry));
        let linked: Vec<_> = alerts
            .iter()
            .map(|alert| format!("[{alert}](runbook.md#{})", alert.to_lowercase()))
            .collect();
        line("Alerts", &linked);
        line("Panels", panels);
        if text.ends_with('\n') {
            continue;
        }
        text.push('\n');
    }
    text
}

fn table(all: &[Described]) -> String {
    let widest = all.iter().map(|it| it.entry.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Described { entry, alerts, .. } in all {
        let Entry { name, kind, unit, help, .. } = entry;
        let _ = writeln!(text, "{name:widest$}  {:9}  {unit:7}  {help}", kind.name());
        for label in labels(entry) {
            let _ = writeln!(text, "{:widest$}    {label}", "");
        }
        if !alerts.is_empty() {
            let _ = writeln!(text, "{:widest$}    alerts: {}", "", alerts.join(", "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_that_an_alert_or_a_panel_names_is_in_the_catalogue() {
        let metrics = Metrics::new();
        let known: BTreeSet<&str> =
            metrics.catalogue().iter().map(|entry| entry.name.as_str()).collect();
        let (alerts, panels) = (alerts(), panels());
        assert!(alerts.len() > 20 && panels.len() > 50, "{} {}", alerts.len(), panels.len());
        for (user, names) in alerts.iter().chain(&panels) {
            let named = names.iter().filter(|name| !name.starts_with("tenantry:"));
            let unknown: Vec<_> = named.filter(|name| !known.contains(name.as_str())).collect();
            assert!(unknown.is_empty(), "{user} names {unknown:?}");
            // One panel shows Prometheus' own series of the alerts.
            assert!(!names.is_empty() || user == "Fleet: Alerts", "{user} names no metric");
        }
    }

    #[test]
    fn an_alert_uses_what_its_recording_rule_asks_for() {
        let burn = &alerts()["TenantryErrorBudgetBurnsFast"];
        assert!(burn.contains("tenantry_time_to_active_seconds"), "{burn:?}");
    }
}
