//! What operators are given: metrics and their catalogue, rules, alerts, the runbook and dashboards, held against
//! each other and against a real Prometheus.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::metrics::{GuideFormat, describe, guide};
use tenantry::tenant::StepKind;
use tokio::process::{Child, Command};

use crate::support::{Process, World, eventually, http, missing, tool};
use crate::three::Suite;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

const RULES: &str = "manifests/prometheus/tenantry.rules.yaml";
/// The files with cases in which alerts fire and do not.
fn cases() -> Vec<String> {
    let folder = "manifests/prometheus/tests";
    let files = std::fs::read_dir(root().join(folder)).unwrap();
    files.map(|file| format!("{folder}/{}", file.unwrap().file_name().to_str().unwrap())).collect()
}

/// The alerts of the cases, and whether they fire in them.
fn tested() -> BTreeSet<(String, bool)> {
    let text = cases().iter().map(|file| read(file)).collect::<String>();
    let case = |case: &str| {
        let (name, rest) = case.split_once('\n').unwrap();
        let expected = rest.split("exp_alerts:").nth(1).unwrap();
        (name.trim().to_owned(), !expected.trim_start().starts_with("[]"))
    };
    text.split("alertname: ").skip(1).map(case).collect()
}

const DASHBOARDS: [&str; 3] = ["fleet", "upstreams", "controller"];

fn dashboard(name: &str) -> Value {
    serde_json::from_str(&read(&format!("dashboards/{name}.json"))).unwrap()
}

async fn run(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).current_dir(root()).output().await.expect("it starts")
}

async fn succeeds(program: &Path, arguments: &[&str]) {
    let output = run(program, arguments).await;
    let told = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&told));
}

/// A rule as the file has it.
struct Rule {
    /// `alert` or `record`.
    kind: String,
    name: String,
    expression: String,
    body: String,
}

fn rules() -> Vec<Rule> {
    let text = read(RULES);
    let rule = |rule: &str| {
        let (kind, rest) = rule.split_once(": ").unwrap();
        let (name, body) = rest.split_once('\n').unwrap();
        // Up to the next key, comment or rule.
        let after = body.split("expr: ").nth(1).unwrap();
        let (first, rest) = after.split_once('\n').unwrap_or((after, ""));
        let inside = |line: &&str| line.starts_with("          ");
        let lines =
            std::iter::once(first.trim_start_matches('|')).chain(rest.lines().take_while(inside));
        let expression = lines.collect::<Vec<_>>().join(" ");
        Rule {
            kind: kind.to_owned(),
            name: name.to_owned(),
            expression: expression.split_whitespace().collect::<Vec<_>>().join(" "),
            body: body.to_owned(),
        }
    };
    text.split("\n      - ").skip(1).map(rule).collect()
}

/// Every expression of the dashboards, as Grafana sends it, by dashboard and panel.
fn expressions() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for name in DASHBOARDS {
        for panel in dashboard(name)["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let place = format!("{name}: {}", panel["title"].as_str().unwrap());
                let mut expression = target["expr"].as_str().unwrap().to_owned();
                let variables = [
                    ("$__rate_interval", "15s"),
                    ("$__range", "5m"),
                    ("$namespace", ""),
                    ("$job", "tenantry"),
                    ("$instance", ".*"),
                    ("$upstream", ".*"),
                ];
                for (variable, value) in variables {
                    expression = expression.replace(variable, value);
                }
                assert!(!expression.contains('$'), "{place}: {expression}");
                all.push((place, expression));
            }
        }
    }
    all
}

#[test]
fn the_catalogue_in_the_docs_is_what_the_program_prints() {
    let printed = guide(GuideFormat::Markdown);
    assert!(
        read("docs/metrics.md") == printed,
        "docs/metrics.md is stale: tenantry metrics -o markdown > docs/metrics.md"
    );
    let parsed: Value = serde_json::from_str(&guide(GuideFormat::Json)).unwrap();
    assert_eq!(parsed.as_array().unwrap().len(), describe().len());
    for entry in describe() {
        assert!(entry.entry.help.ends_with('.'), "{} is described by a sentence", entry.entry.name);
    }
}

#[tokio::test]
async fn the_dashboards_are_as_their_source_makes_them() {
    let Some(python) = tool("python3") else { return };
    succeeds(&python, &["dashboards/generate.py", "--check"]).await;
}

#[test]
fn panels_are_described_and_do_not_overlap() {
    for name in DASHBOARDS {
        let dashboard = dashboard(name);
        let panels = dashboard["panels"].as_array().unwrap();
        let mut ids = BTreeSet::new();
        let mut taken: BTreeMap<(u64, u64), &str> = BTreeMap::new();
        for panel in panels {
            let title = panel["title"].as_str().unwrap();
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{name}: {title} has another's id");
            let place = |side: &str| panel["gridPos"][side].as_u64().unwrap();
            assert!(place("x") + place("w") <= 24, "{name}: {title} is too wide");
            for x in place("x")..place("x") + place("w") {
                for y in place("y")..place("y") + place("h") {
                    let other = taken.insert((x, y), title);
                    assert!(other.is_none(), "{name}: {title} overlaps {other:?}");
                }
            }
            if panel["type"] != "row" {
                let description = panel["description"].as_str().unwrap_or_default();
                assert!(description.ends_with('.'), "{name}: {title}: {description:?} is no sentence");
                let defaults = &panel["fieldConfig"]["defaults"];
                assert!(defaults["unit"].is_string(), "{name}: {title} has no unit");
                assert!(defaults["thresholds"]["steps"].is_array(), "{name}: {title} has no thresholds");
                assert!(
                    !panel["targets"].as_array().unwrap().is_empty(),
                    "{name}: {title} asks nothing"
                );
            }
        }
        let first = panels.iter().find(|panel| panel["type"] != "row").unwrap();
        assert_eq!(first["type"], "stat", "{name} begins with what reads green, amber or red");
    }
}

#[test]
fn every_alert_says_what_it_is_and_the_runbook_what_to_do() {
    let runbook = read("docs/runbook.md");
    let tested = tested();
    let mut sections: BTreeMap<&str, &str> = BTreeMap::new();
    for section in runbook.split("\n## ").skip(1) {
        let (title, text) = section.split_once('\n').unwrap();
        sections.insert(title, text);
    }
    let mut alerts = BTreeSet::new();
    for Rule { name, body, .. } in rules().iter().filter(|rule| rule.kind == "alert") {
        assert!(alerts.insert(name.clone()), "{name} is there twice");
        let severity = body.split("severity: ").nth(1).and_then(|rest| rest.split_whitespace().next());
        assert!(matches!(severity, Some("critical" | "warning" | "info")), "{name}: {severity:?}");
        for annotation in ["summary: ", "description: ", "runbook_url: "] {
            assert!(body.contains(annotation), "{name} has no {annotation}");
        }
        let link = format!("/runbook.md#{}\n", name.to_lowercase());
        assert!(body.contains(&link), "{name} does not link to its own section");
        let section = sections.get(name.as_str()).unwrap_or_else(|| panic!("{name} has no section"));
        for part in ["**Means.**", "**Look.**", "**Do.**", "**Do not**"] {
            assert!(section.contains(part), "the section of {name} lacks {part}");
        }
        for fires in [true, false] {
            assert!(
                tested.contains(&(name.clone(), fires)),
                "no case says whether {name} fires: {fires}"
            );
        }
    }
    let described: BTreeSet<String> = sections.keys().map(|name| (*name).to_owned()).collect();
    assert_eq!(described, alerts, "the runbook has a section for each alert and for nothing else");
}

/// `metric{label="value", …}` in an expression: what is selected of which metric.
fn selectors(expression: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found = Vec::new();
    for (at, _) in expression.match_indices('{') {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let before = &expression[..at];
        let name = &before[before.rfind(|c| !is_part(c)).map_or(0, |end| end + 1)..];
        let inside = &expression[at + 1..at + expression[at..].find('}').unwrap()];
        // label, operator, quoted value, and so on.
        let mut matchers = Vec::new();
        let mut parts = inside.split('"');
        while let (Some(label), Some(value)) = (parts.next(), parts.next()) {
            let label = label.trim_matches([',', ' ', '=', '!', '~']);
            matchers.push((label.to_owned(), value.to_owned()));
        }
        found.push((name.to_owned(), matchers));
    }
    found
}

#[test]
fn every_label_and_value_that_an_expression_names_exists() {
    let known: BTreeMap<String, BTreeMap<&str, Vec<&str>>> = describe()
        .into_iter()
        .map(|described| {
            let labels = described.entry.labels.into_iter().map(|label| (label.name, label.values));
            (described.entry.name, labels.collect())
        })
        .collect();
    // What Prometheus or Kubernetes adds, and the bounds of histograms.
    let of_scrapes = ["namespace", "job", "instance", "pod", "le"];
    let recorded: BTreeSet<String> = rules().into_iter().map(|rule| rule.name).collect();
    let of_rules = rules().into_iter().map(|rule| (rule.name, rule.expression));
    let mut checked = 0;
    for (place, expression) in of_rules.chain(expressions()) {
        for (metric, matchers) in selectors(&expression) {
            if metric.contains(':') {
                assert!(recorded.contains(&metric), "{place}: nothing records {metric}");
                continue;
            }
            let base = ["_bucket", "_count", "_sum"].iter().find_map(|end| metric.strip_suffix(end));
            let labels = known.get(&metric).or_else(|| known.get(base?));
            let labels = labels.unwrap_or_else(|| panic!("{place}: there is no metric {metric}"));
            for (label, value) in
                matchers.iter().filter(|(label, _)| !of_scrapes.contains(&label.as_str()))
            {
                let values = labels.get(label.as_str());
                let values = values.unwrap_or_else(|| panic!("{place}: {metric} has no label {label}"));
                let plain = value
                    .split('|')
                    .filter(|value| value.chars().all(|c| c.is_alphanumeric() || c == '_'));
                for value in plain.filter(|_| !values.is_empty()) {
                    assert!(values.contains(&value), "{place}: {metric} has no {label} {value:?}");
                    checked += 1;
                }
            }
        }
    }
    assert!(checked >= 10, "the expressions name values: {checked}");
}

#[tokio::test]
async fn prometheus_takes_the_rules_and_each_alert_fires_when_it_shall() {
    let Some(promtool) = tool("promtool") else { return };
    succeeds(&promtool, &["check", "rules", RULES]).await;
    succeeds(&promtool, &["check", "config", "manifests/prometheus/prometheus.example.yaml"]).await;
    let cases = cases();
    let mut arguments = vec!["test", "rules"];
    arguments.extend(cases.iter().map(String::as_str));
    succeeds(&promtool, &arguments).await;
}

#[tokio::test]
async fn alertmanager_takes_the_example() {
    let Some(amtool) = tool("amtool") else { return };
    succeeds(&amtool, &["check-config", "manifests/prometheus/alertmanager.example.yaml"]).await;
}

#[tokio::test]
async fn prometheus_understands_every_expression_of_the_dashboards() {
    let Some(promtool) = tool("promtool") else { return };
    let mut text = String::from("groups:\n  - name: dashboards\n    rules:\n");
    for (n, (place, expression)) in expressions().iter().enumerate() {
        let expression = json!(expression);
        let _ =
            writeln!(text, "      # {place}\n      - record: dashboard:{n}\n        expr: {expression}");
    }
    let text = text.replace("dashboard:", "dashboard:panel_");
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    succeeds(&promtool, &["check", "rules", file.path().to_str().unwrap()]).await;
}

/// Reads each dashboard into the model that Grafana publishes, and back.
const ROUND_TRIP: &str = r"
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

def lost(before, after, path):
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key not in after:
                yield f'{path}/{key} is lost'
            else:
                yield from lost(value, after[key], f'{path}/{key}')
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, pair in enumerate(zip(before, after)):
            yield from lost(*pair, f'{path}/{i}')
    elif before != after:
        yield f'{path}: {before!r} becomes {after!r}'

for file in sys.argv[1:]:
    before = json.load(open(file, encoding='utf-8'))
    after = json.loads(JSONEncoder().encode(Dashboard.from_json(before)))
    for what in lost(before, after, file):
        print(what)
        sys.exit(1)
";

const SDK: &str = "grafana-foundation-sdk==1769699998!10.1.0";

#[tokio::test]
async fn grafanas_own_model_of_a_dashboard_loses_nothing_of_ours() {
    let Some(python) = tool("python3") else { return };
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"))).unwrap();
    let venv = cache.join("tenantry/grafana-foundation-sdk-10.1.0");
    if !venv.join("ready").is_file() {
        let made = run(&python, &["-m", "venv", "--clear", venv.to_str().unwrap()]).await;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", SDK];
        if !made.status.success() || !run(&venv.join("bin/python"), &pip).await.status.success() {
            return missing("grafana-foundation-sdk (from PyPI)");
        }
        std::fs::write(venv.join("ready"), "").unwrap();
    }
    let files = DASHBOARDS.map(|name| format!("dashboards/{name}.json"));
    let mut arguments = vec!["-c", ROUND_TRIP];
    arguments.extend(files.iter().map(String::as_str));
    succeeds(&venv.join("bin/python"), &arguments).await;
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

/// A real Prometheus on a process, with the alerts' times compressed: a minute is a second.
struct Prometheus {
    /// It ends with the test.
    _child: Child,
    url: String,
    _folder: tempfile::TempDir,
}

/// The rules with each `for` and each range sixty times as short.
fn compressed(rules: &str) -> String {
    let seconds = |span: &str| {
        let (number, unit) = span.split_at(span.len() - 1);
        let number: u64 = number.parse().ok()?;
        let factor = match unit {
            "m" => 1,
            "h" => 60,
            "d" => 24 * 60,
            _ => return None,
        };
        Some(format!("{}s", number * factor))
    };
    let mut text = String::new();
    for line in rules.lines() {
        let mut line = line.to_owned();
        if let Some(span) = line.trim().strip_prefix("for: ").and_then(seconds) {
            line = format!("        for: {span}");
        } else if line.trim().starts_with("interval: ") {
            "    interval: 1s".clone_into(&mut line);
        }
        // Ranges: [15m].
        for span in ["5m", "10m", "15m", "30m", "1h", "6h", "1d"] {
            line = line.replace(&format!("[{span}]"), &format!("[{}]", seconds(span).unwrap()));
        }
        text.push_str(&line);
        text.push('\n');
    }
    text
}

impl Prometheus {
    async fn start(program: &Path, target: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("rules.yaml"), compressed(&read(RULES))).unwrap();
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s, external_labels: {{ tenantry_docs: docs }} }}\n\
             rule_files: [rules.yaml]\n\
             scrape_configs:\n  - job_name: tenantry\n    static_configs: [{{ targets: ['{target}'] }}]\n"
        );
        std::fs::write(file("prometheus.yml"), config).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(program)
            .arg(format!("--config.file={}", file("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", file("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("Prometheus starts");
        let prometheus =
            Self { _child: child, url: format!("http://127.0.0.1:{port}"), _folder: folder };
        eventually("Prometheus answers", async || prometheus.ask("up").await.is_some()).await;
        prometheus
    }

    /// The series that an expression gives now; nothing while Prometheus does not answer.
    async fn ask(&self, expression: &str) -> Option<Vec<Value>> {
        let asked = http().get(format!("{}/api/v1/query", self.url)).query(&[("query", expression)]);
        let answer: Value = serde_json::from_str(&asked.send().await.ok()?.text().await.ok()?).ok()?;
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().cloned()
    }

    /// Alerts in a state, as `Name/upstream`.
    async fn alerts(&self, state: &str) -> BTreeSet<String> {
        let found = self.ask(&format!("ALERTS{{alertstate=\"{state}\"}}")).await.unwrap_or_default();
        let name = |alert: &Value| {
            let labels = &alert["metric"];
            let upstream = labels["upstream"].as_str().map(|upstream| format!("/{upstream}"));
            format!("{}{}", labels["alertname"].as_str().unwrap(), upstream.unwrap_or_default())
        };
        found.iter().map(name).collect()
    }
}

#[test]
fn compressed_rules_are_the_same_but_for_their_times() {
    let text = compressed("        for: 1d\n        expr: rate(x[6h]) > 3600\n    interval: 30s\n");
    assert_eq!(text, "        for: 1440s\n        expr: rate(x[360s]) > 3600\n    interval: 1s\n");
}

/// The story of an outage, told by Prometheus alone.
#[tokio::test]
async fn an_outage_of_an_upstream_is_told_by_one_alert_that_ends_with_it() {
    const DOWN: &str = "TenantryUpstreamDown/authentik";
    let Some(program) = tool("prometheus") else { return };
    let suite = Suite::new().await;
    let process = suite.process(&[("SWEEP_INTERVAL", "3s")]);
    for n in 0..20 {
        suite.create(&format!("t{n:02}")).await;
    }
    for n in 0..20 {
        suite.settled(&format!("t{n:02}")).await;
    }
    let prometheus = Prometheus::start(&program, &process.address("telemetry").await).await;
    let healthy = "tenantry_integration_healthy == 1";
    eventually("it is scraped", async || {
        prometheus.ask(healthy).await.is_some_and(|series| series.len() == 3)
            && prometheus.alerts("firing").await.is_empty()
    })
    .await;

    let fails = FaultAnswer::Status { status: 503, body: String::new(), retry_after: None };
    suite.faults(StepKind::Authentik).add(Fault { answer: fails, ..Fault::default() });
    suite.create("while-it-is-down").await;
    suite.world.set("t00", mongodb::bson::doc! { "name": "Edited while it is down" }).await;
    eventually("the alert is pending", async || prometheus.alerts("pending").await.contains(DOWN)).await;
    let api = process.address("http").await;
    let mut firing = BTreeSet::new();
    eventually("the alert fires", async || {
        http().get(format!("http://{api}/tenants?ready=false")).send().await.unwrap();
        firing = prometheus.alerts("firing").await;
        firing.contains(DOWN)
    })
    .await;
    assert_eq!(firing, BTreeSet::from([DOWN.to_owned()]), "and no other does");
    // Since when, how many tenants, and why: for a person who has nothing but Prometheus.
    let since =
        prometheus.ask("time() - ALERTS_FOR_STATE{alertname=\"TenantryUpstreamDown\"}").await.unwrap();
    assert_eq!(since.len(), 1, "{since:?}");
    let why = "sum by (reason) (increase(tenantry_step_errors_total{upstream=\"authentik\"}[5m])) > 0";
    eventually("the reason is told", async || {
        let reasons = prometheus.ask(why).await.unwrap_or_default();
        !reasons.is_empty() && reasons.iter().all(|series| series["metric"]["reason"] == "UpstreamError")
    })
    .await;
    for (place, expression) in expressions() {
        // A census is some seconds old.
        eventually(&format!("{place} shows something: {expression}"), async || {
            !prometheus.ask(&expression).await.unwrap().is_empty()
        })
        .await;
    }

    suite.faults(StepKind::Authentik).clear();
    suite.settled("while-it-is-down").await;
    eventually("the alert is resolved", async || {
        !prometheus.alerts("firing").await.contains(DOWN)
            && !prometheus.alerts("pending").await.contains(DOWN)
    })
    .await;
    assert_eq!(prometheus.alerts("firing").await, BTreeSet::new());
    process.stop().await;
}
