//! Traces, received as a collector receives them; and the log level, which can be changed while a process runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Value, json};
use tenantry::tenant::Upstream;

use crate::auth::{issuer, trusting};
use crate::support::{Process, World, eventually, http};
use crate::three::Suite;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A collector, and whatever else is asked of it.
struct Collector {
    url: String,
    spans: Arc<Mutex<Vec<Span>>>,
    /// What came with other requests.
    headers: Arc<Mutex<Vec<HeaderMap>>>,
}

impl Collector {
    async fn start() -> Self {
        let (spans, headers) =
            (Arc::<Mutex<Vec<Span>>>::default(), Arc::<Mutex<Vec<HeaderMap>>>::default());
        let (received, others) = (Arc::clone(&spans), Arc::clone(&headers));
        let take = move |body: Bytes| async move {
            let request = ExportTraceServiceRequest::decode(body).expect("it is OTLP");
            let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
            received.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        };
        let other = move |headers: HeaderMap| async move {
            others.lock().unwrap().push(headers);
            StatusCode::SERVICE_UNAVAILABLE
        };
        let router = Router::new().route("/v1/traces", post(take)).fallback(other);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, spans, headers }
    }

    /// The spans of a trace, by name; of several with one name, the first to end.
    fn of(&self, trace: &str) -> BTreeMap<String, Span> {
        let mut spans = BTreeMap::new();
        for span in self.spans.lock().unwrap().iter().filter(|span| hex(&span.trace_id) == trace) {
            spans.entry(span.name.clone()).or_insert_with(|| span.clone());
        }
        spans
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn one_trace_tells_of_a_tenant_from_the_request_to_what_was_asked_of_each_upstream() {
    let (suite, collector) = (Suite::new().await, Collector::start().await);
    let process = suite
        .process(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url), ("OTEL_BSP_SCHEDULE_DELAY", "100")]);
    let api = process.address("http").await;
    let body = serde_json::json!({ "slug": "acme", "name": "Acme", "domain": "acme.test" });
    let created = http()
        .post(format!("http://{api}/tenants"))
        .header("content-type", "application/json")
        .header("traceparent", format!("00-{TRACE}-{CALLER}-01"))
        .body(body.to_string());
    assert_eq!(created.send().await.unwrap().status(), 201);
    suite.settled("acme").await;
    let wanted = [
        "POST /tenants",
        "insert",
        "reconcile",
        "authentik",
        "stalwart",
        "ocis",
        "create_group",
        "create_domain",
        "create_space",
        "commit",
    ];
    eventually(&format!("all spans of {wanted:?} have come"), async || {
        let spans = collector.of(TRACE);
        wanted.iter().all(|name| spans.contains_key(*name))
    })
    .await;
    let spans = collector.of(TRACE);
    let parent = |name: &str| hex(&spans[name].parent_span_id);
    let id = |name: &str| hex(&spans[name].span_id);
    assert_eq!(parent("POST /tenants"), CALLER, "the caller's trace goes on");
    assert_eq!(parent("insert"), id("POST /tenants"));
    assert_eq!(parent("reconcile"), id("POST /tenants"), "through what was stored");
    assert_eq!(parent("commit"), id("reconcile"));
    for (step, request) in
        [("authentik", "create_group"), ("stalwart", "create_domain"), ("ocis", "create_space")]
    {
        assert_eq!(parent(step), id("reconcile"));
        assert_eq!(parent(request), id(step));
        let status = spans[request].attributes.iter().find(|it| it.key == "http.response.status_code");
        assert!(status.is_some(), "{request}: {:?}", spans[request].attributes);
    }
    let document = suite.world.find("acme").await;
    assert!(!document.contains_key("traceparent"), "it has been acted on: {document}");

    // A reconcile without a request has a trace of its own.
    suite.world.set("acme", mongodb::bson::doc! { "name": "Acme AG" }).await;
    eventually("another trace has come", async || {
        let spans = collector.spans.lock().unwrap();
        spans.iter().any(|span| span.name == "reconcile" && hex(&span.trace_id) != TRACE)
    })
    .await;
    let log = process.stop().await;
    let line = log.lines().find(|line| line.contains("tenant is active")).expect("it is told");
    let line: Value = serde_json::from_str(line).unwrap();
    let reconcile =
        line["spans"].as_array().unwrap().iter().find(|span| span["name"] == "reconcile").unwrap();
    assert_eq!(reconcile["trace_id"], TRACE, "{line}");
    assert_eq!((&reconcile["slug"], &reconcile["urgency"]), (&"acme".into(), &"new".into()), "{line}");
}

#[tokio::test]
async fn a_trace_is_handed_on_to_upstreams_and_nothing_is_traced_unless_it_is_asked_for() {
    let (world, collector) = (World::new().await, Collector::start().await);
    let traced = |headers: &Mutex<Vec<HeaderMap>>| {
        headers.lock().unwrap().iter().filter(|headers| headers.contains_key("traceparent")).count()
    };
    let process = Process::start(&world, &[("AUTHENTIK_API_URL", &collector.url)]);
    world.insert("acme").await;
    world.step_becomes("acme", "error").await;
    let api = process.address("http").await;
    http().post(format!("http://{api}/tenants/acme/reconcile")).send().await.unwrap();
    assert!(!world.find("acme").await.contains_key("traceparent"));
    process.stop().await;
    assert_eq!(traced(&collector.headers), 0);
    assert!(!collector.headers.lock().unwrap().is_empty());

    let settings = [
        ("AUTHENTIK_API_URL", &*collector.url),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let process = Process::start(&world, &settings);
    world.insert("globex").await;
    world.step_becomes("globex", "error").await;
    eventually("a request carries its trace", async || traced(&collector.headers) > 0).await;
    process.stop().await;
    let steps = collector
        .spans
        .lock()
        .unwrap()
        .iter()
        .filter(|span| span.name == Upstream::Authentik.name())
        .count();
    assert!(steps > 0, "what is left is sent before the process ends");
}

#[tokio::test]
async fn traces_that_cannot_be_sent_as_asked_are_refused_and_a_collector_that_is_away_is_told_once() {
    let world = World::new().await;
    let settings =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
    let mut process = Process::start(&world, &settings);
    assert!(!process.ended().await.success());
    process.says("tenantry sends traces by http/protobuf only").await;

    let settings = [settings[0], ("OTEL_BSP_SCHEDULE_DELAY", "50")];
    let process = Process::start(&world, &settings);
    for n in 0..10 {
        world.insert(&format!("t{n}")).await;
        world.active(&format!("t{n}")).await;
    }
    process.says("are dropped: ").await;
    let log = process.stop().await;
    assert_eq!(log.matches("are dropped: ").count(), 1, "{log}");
}

#[tokio::test]
async fn the_log_level_is_read_and_changed_while_a_process_runs() {
    let world = World::new().await;
    let process = Process::start(&world, &[]);
    let url = format!("http://{}/log-level", process.address("telemetry").await);
    let ask = async || http().get(&url).send().await.unwrap().text().await.unwrap();
    let put = async |level: &'static str| http().put(&url).body(level).send().await.unwrap();
    assert_eq!(ask().await, "info\n");
    assert!(!process.log().contains("\"level\":\"DEBUG\""));
    assert_eq!(put("warn,tenantry::controller=debug\n").await.status(), 200);
    assert_eq!(ask().await, "warn,tenantry::controller=debug\n");
    world.insert("acme").await;
    process.says("\"level\":\"DEBUG\"").await;
    let refused = put("verbose").await;
    assert_eq!(refused.status(), 422);
    assert!(refused.text().await.unwrap().contains("error, warn, info, debug, trace and off"));
    assert_eq!(ask().await, "warn,tenantry::controller=debug\n", "it stays");
    process.stop().await;
}

/// Where tenants are logged, each line says which one, whatever is left out.
#[tokio::test]
async fn each_line_of_a_reconcile_is_in_a_span_that_names_the_tenant() {
    let world = World::new().await;
    let slugs = |log: &str, message: &str| -> Vec<String> {
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let lines = lines.filter(|line| line["message"].as_str().unwrap().contains(message));
        let span = |line: Value| line["spans"][0]["slug"].as_str().unwrap_or("(none)").to_owned();
        lines.map(span).collect()
    };
    let process = Process::start(&world, &[("ADOPT_UNMARKED", "true")]);
    world.insert("acme").await;
    world.active("acme").await;
    process.says("tenant is active").await;
    // Told by the step, which runs in a task of its own.
    world.authentik.plant("tenant-initech", json!({}), &[]);
    world.insert("initech").await;
    world.active("initech").await;
    eventually("both are told", async || process.log().matches("tenant is active").count() == 2).await;
    let log = process.stop().await;
    assert_eq!(slugs(&log, "is taken over"), ["initech"], "{log}");
    assert_eq!(slugs(&log, "was created"), ["acme"], "{log}");
    assert_eq!(slugs(&log, "tenant is active"), ["acme", "initech"], "{log}");
    assert!(!log.contains(r#""message":"tenant is active","slug""#), "once is enough: {log}");

    // The lines that are left still say so.
    let process = Process::start(&world, &[("AUTHENTIK_API_TOKEN", "wrong"), ("LOG_LEVEL", "warn")]);
    world.insert("globex").await;
    process.says("pending -> error").await;
    let log = process.stop().await;
    assert_eq!(slugs(&log, "pending -> error"), ["globex"], "{log}");
}

/// An address of this machine that is not loopback; nothing is sent.
fn outer_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[tokio::test]
async fn from_elsewhere_only_an_administrator_reads_and_changes_the_log_level() {
    let Some(outer) = outer_address() else {
        return eprintln!("skipped: this machine has no address but loopback");
    };
    let (world, issuer) = (World::new().await, issuer().await);
    let trusting = trusting(&issuer);
    let address = format!("{outer}:0");
    let settings =
        [("INSECURE_NO_AUTH", ""), ("OIDC_ISSUERS", &*trusting), ("TELEMETRY_ADDR", address.as_str())];
    let process = Process::start(&world, &settings);
    let telemetry = process.address("telemetry").await;
    let url = format!("http://{telemetry}/log-level");
    let token = |account: &str| issuer.token("tenantry", account, "openid profile email").unwrap();
    process.says("watching for tenants").await;
    for (account, status) in [(None, 401), (Some("operator"), 403), (Some("admin"), 200)] {
        for method in [Method::GET, Method::PUT] {
            let mut request = http().request(method.clone(), &url).body("warn");
            if let Some(account) = account {
                request = request.bearer_auth(token(account));
            }
            assert_eq!(request.send().await.unwrap().status(), status, "{account:?} {method}");
        }
    }
    // A scraper has no token.
    assert_eq!(http().get(format!("http://{telemetry}/metrics")).send().await.unwrap().status(), 200);
    process.stop().await;
}
