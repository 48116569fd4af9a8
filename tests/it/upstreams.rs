//! How the upstreams are: what `GET /upstreams` and `tenantry upstreams` tell.

use serde_json::Value;
use tenantry::dev::faults::{Fault, FaultAnswer};

use crate::api::{Served, json};
use crate::support::{Process, World, eventually, http};
use crate::three::Suite;

impl Served {
    /// One upstream as `GET /upstreams` shows it.
    async fn upstream(&self, name: &str) -> Value {
        let answer = self.get("/upstreams").await;
        assert_eq!(answer.status(), 200);
        let list = json(answer).await;
        assert!(list["process"].as_str().is_some_and(|process| !process.is_empty()), "{list}");
        let items = list["items"].as_array().unwrap();
        assert_eq!(items.len(), 3, "{list}");
        items.iter().find(|item| item["upstream"] == name).expect("it is listed").clone()
    }

    async fn upstream_becomes(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("{name} {what}"), async || holds(&self.upstream(name).await)).await;
        self.upstream(name).await
    }
}

#[tokio::test]
async fn an_upstream_is_shown_with_its_health_and_when_it_last_accepted_us() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let shown = served.upstream_becomes("authentik", "is healthy", |it| it["health"] == "healthy").await;
    assert_eq!(shown["breaker"], "closed");
    assert_eq!(shown["nextProbeAt"], Value::Null);
    assert!(shown["credentialsAcceptedAt"].is_string(), "{shown}");
    let not_configured = served.upstream("ocis").await;
    assert_eq!(not_configured["configured"], false, "{not_configured}");
    assert_eq!(not_configured["health"], "unknown", "{not_configured}");
    served.stop().await;
}

#[tokio::test]
async fn an_upstream_that_is_down_is_shown_with_the_time_of_its_next_probe() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.upstream_becomes("authentik", "is healthy", |it| it["health"] == "healthy").await;
    let answer = FaultAnswer::Status { status: 503, body: String::new(), retry_after: None };
    world.authentik.faults.add(Fault { answer, ..Fault::default() });
    for n in 0..6 {
        world.insert(&format!("t{n}")).await;
    }
    let shown = served.upstream_becomes("authentik", "is down", |it| it["breaker"] == "open").await;
    assert_eq!(shown["health"], "unhealthy");
    assert_eq!(shown["reason"], "UpstreamError");
    let probe: jiff::Timestamp = shown["nextProbeAt"].as_str().unwrap().parse().unwrap();
    let wait = probe.duration_since(jiff::Timestamp::now()).as_secs();
    assert!((0..=30).contains(&wait), "the next probe is in {wait}s");
    served.stop().await;
}

/// What a server says that is down, and that is about one tenant only.
fn failing(words: &str) -> FaultAnswer {
    FaultAnswer::Status { status: 503, body: words.to_owned(), retry_after: None }
}

#[tokio::test]
async fn a_step_that_was_not_asked_shows_no_attempt_and_no_words_about_another_tenant() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.upstream_becomes("authentik", "is healthy", |it| it["health"] == "healthy").await;
    world.insert("acme").await;
    world.active("acme").await;
    let before = world.step("acme").await;
    world
        .authentik
        .faults
        .add(Fault { answer: failing("cannot save tenant-first-secret-slug"), ..Fault::default() });
    for n in 0..6 {
        world.insert(&format!("first-{n}")).await;
    }
    served.upstream_becomes("authentik", "is down", |it| it["breaker"] == "open").await;
    let asked = served.post("/tenants/acme/reconcile", &serde_json::json!({})).await;
    assert_eq!(asked.status(), 202);
    world.insert("late").await;
    let late = world.step_becomes("late", "error").await;
    let acme = world.step_becomes("acme", "error").await;
    assert!(!late.contains_key("lastAttemptAt"), "it was never asked for: {late}");
    assert_eq!(acme.get("lastAttemptAt"), before.get("lastAttemptAt"), "not since it was well");
    for step in [late, acme] {
        let message = step.get_str("message").unwrap();
        assert_eq!(message, "authentik: it answers 503 Service Unavailable");
    }
    world.authentik.faults.clear();
    world.active("late").await;
    assert!(world.step("late").await.contains_key("lastAttemptAt"));
    served.stop().await;
}

#[tokio::test]
async fn a_step_that_waits_says_for_what_and_until_when() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.upstream_becomes("authentik", "is healthy", |it| it["health"] == "healthy").await;
    world.authentik.faults.add(Fault { answer: failing("away"), ..Fault::default() });
    for n in 0..6 {
        world.insert(&format!("first-{n}")).await;
    }
    served.upstream_becomes("authentik", "is down", |it| it["breaker"] == "open").await;
    world.insert("late").await;
    world.step_becomes("late", "error").await;
    let mut step = Value::Null;
    eventually("it says when the next probe is", async || {
        step = json(served.get("/tenants/late").await).await["steps"]["authentik"].clone();
        step["waitsFor"]["nextProbeAt"].is_string()
    })
    .await;
    assert_eq!(step["waitsFor"]["upstream"], "authentik", "{step}");
    assert_eq!(step["nextAttemptAt"], Value::Null, "it is not tried at a time of its own: {step}");
    let message = step["message"].as_str().unwrap();
    assert!(message.contains("waits until authentik works; next probe in "), "{message}");
    let probe: jiff::Timestamp = step["waitsFor"]["nextProbeAt"].as_str().unwrap().parse().unwrap();
    let wait = probe.duration_since(jiff::Timestamp::now()).as_secs();
    assert!((-2..=31).contains(&wait), "the next probe is in {wait}s");
    world.authentik.faults.clear();
    world.active("late").await;
    let step = json(served.get("/tenants/late").await).await["steps"]["authentik"].clone();
    assert!(step["waitsFor"].is_null() && step["nextAttemptAt"].is_string(), "{step}");
    served.stop().await;
}

#[tokio::test]
async fn a_check_asks_now_and_ends_an_outage_before_the_next_probe() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.upstream_becomes("authentik", "is healthy", |it| it["health"] == "healthy").await;
    let asked = world.authentik.faults.total();
    let found = json(served.post("/upstreams/authentik/check", &Value::Null).await).await;
    assert_eq!(found["health"], "healthy", "{found}");
    assert!(world.authentik.faults.total() > asked, "it was asked");

    assert_eq!(served.post("/upstreams/nothing/check", &Value::Null).await.status(), 404);
    crate::api::problem(served.post("/upstreams/ocis/check", &Value::Null).await, 409).await;
    served.stop().await;
}

#[tokio::test]
async fn checks_try_no_refused_credential_early_and_a_corrected_one_at_once() {
    let suite = Suite::new().await;
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "API_wrong").unwrap();
    let file = key.path().to_str().unwrap();
    let process = suite.process(&[("STALWART_API_TOKEN", ""), ("STALWART_API_TOKEN_FILE", file)]);
    let url = format!("http://{}", process.address("http").await);
    eventually("the key is refused", async || suite.stalwart.failed_logins() == 1).await;
    let check = async || {
        let path = format!("{url}/upstreams/stalwart/check");
        http().post(path).send().await.unwrap()
    };
    for _ in 0..20 {
        let answer = check().await;
        assert!(answer.headers().contains_key("retry-after"));
        let problem = crate::api::problem(answer, 429).await;
        assert!(problem["detail"].as_str().unwrap().contains("still the same"), "{problem}");
    }
    assert_eq!(suite.stalwart.failed_logins(), 1);

    let run = async |name: &str| {
        let mut command = Process::command();
        command.args(["upstreams", "check", name]).env("TENANTRY_URL", &url);
        command.output().await.unwrap()
    };
    assert_eq!(run("stalwart").await.status.code(), Some(1));
    suite.stalwart.add_key("API_right", &["authenticate", "sysDomainGet"]);
    std::fs::write(key.path(), "API_right").unwrap();
    let found = json(check().await).await;
    assert_eq!(found["authenticated"], true, "{found}");
    assert_eq!(found["reason"], "Forbidden", "it lacks permissions: {found}");
    let healthy = run("authentik").await;
    assert!(healthy.status.success());
    assert!(String::from_utf8_lossy(&healthy.stdout).starts_with("authentik: healthy"));
    let lacking = run("stalwart").await;
    assert!(String::from_utf8_lossy(&lacking.stderr).contains("lacks"), "{lacking:?}");
    assert_eq!(suite.stalwart.failed_logins(), 1);
    process.stop().await;
}

#[tokio::test]
async fn an_upstream_is_shown_with_how_its_requests_fare() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.upstream_becomes("authentik", "is healthy", |it| it["health"] == "healthy").await;
    world.authentik.faults.add(Fault { delay_ms: 150, ..Fault::default() });
    world.insert("acme").await;
    let busy = |it: &Value| it["pacing"]["underWay"] == 1;
    let shown = served.upstream_becomes("authentik", "has a request under way", busy).await;
    assert_eq!(shown["pacing"]["maxConcurrent"], 64, "{shown}");
    assert_eq!(shown["pacing"]["maxPerMinute"], Value::Null, "{shown}");
    world.active("acme").await;
    let shown = served.upstream("authentik").await;
    assert!(shown["latency"]["requests"].as_u64().unwrap() >= 3, "{shown}");
    let slow = shown["latency"]["p95Seconds"].as_f64().unwrap();
    assert!((0.15..2.0).contains(&slow), "{shown}");
    assert_eq!(shown["pacing"]["underWay"], 0, "{shown}");

    world.authentik.faults.clear();
    let answer = FaultAnswer::Status { status: 429, body: String::new(), retry_after: Some(30) };
    world.authentik.faults.add(Fault { answer, ..Fault::default() });
    world.insert("globex").await;
    let paused = |it: &Value| it["pacing"]["pausedForSeconds"].as_f64().is_some_and(|left| left > 20.0);
    served.upstream_becomes("authentik", "asks for a pause", paused).await;
    let not_configured = served.upstream("ocis").await;
    assert!(not_configured.get("pacing").is_none_or(Value::is_null), "{not_configured}");
    served.stop().await;
}

#[tokio::test]
async fn every_process_shows_how_the_latest_sweep_ended_whichever_swept() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    assert_eq!(served.upstream("authentik").await["lastSweep"], Value::Null);
    world.insert("acme").await;
    world.active("acme").await;
    let sweeps = |settings: &mut tenantry::controller::Settings| {
        settings.sweep_interval = std::time::Duration::from_millis(300);
    };
    let sweeper = world.controller_with(sweeps).await;
    let swept = |it: &Value| it["lastSweep"]["end"] == "ok" && it["lastSweep"]["seen"] == 1;
    let shown = served.upstream_becomes("authentik", "was swept", swept).await;
    let sweep = &shown["lastSweep"];
    assert_eq!((&sweep["expected"], &sweep["differing"]), (&1.into(), &0.into()), "{sweep}");
    assert!(sweep["tookSeconds"].as_f64().is_some() && sweep["comparedAt"].is_string(), "{sweep}");

    let list = |answer| Fault { query: Some("page_size=100".into()), answer, ..Fault::default() };
    world.authentik.faults.add(list(failing("down")));
    let failed = |it: &Value| it["lastSweep"]["end"] == "failed";
    let shown = served.upstream_becomes("authentik", "could not be swept", failed).await;
    assert_eq!(shown["lastSweep"]["seen"], 1, "what was last seen stays: {shown}");
    sweeper.stop().await;
    served.stop().await;

    // It outlives the processes.
    let served = Served::new(&world).await.ready().await;
    served.upstream_becomes("authentik", "still tells of the sweep", failed).await;
    let url = format!("http://{}", served.addresses.http);
    let mut command = Process::command();
    command.arg("upstreams").env("TENANTRY_URL", url);
    let shown = String::from_utf8(command.output().await.unwrap().stdout).unwrap();
    assert!(shown.contains("SWEPT") && shown.contains("failed ") && shown.contains("of 64"), "{shown}");
    served.stop().await;
}
