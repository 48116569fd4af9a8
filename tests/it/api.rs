//! The HTTP layer, as its clients see it.

use std::time::{Duration, Instant};

use mongodb::bson::{doc, oid::ObjectId};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tenantry::config::Given;
use tenantry::run::{self, Addresses};
use tenantry::tenant::Upstream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{self, TOKEN, World, eventually, http};
use crate::three::{CHECK, Suite};

/// A whole process' worth of tenantry, in this one.
pub struct Served {
    pub addresses: Addresses,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), run::RunError>>,
}

impl Served {
    pub async fn new(world: &World) -> Self {
        Self::with(world, &world.uri, &world.authentik.url()).await
    }

    pub async fn with(world: &World, uri: &str, authentik: &str) -> Self {
        let some = |text: &str| Some(text.to_owned());
        let config = Given {
            mongodb_uri: some(uri),
            mongodb_database: some(&world.database),
            http_addr: some("127.0.0.1:0"),
            telemetry_addr: some("127.0.0.1:0"),
            access: support::without_auth(),
            authentik_api_url: some(authentik),
            authentik_api_token: some(TOKEN),
            request_timeout: some("2s"),
            poll_interval: some("200ms"),
            backoff_initial: some("50ms"),
            shutdown_grace: some("5s"),
            ..Given::default()
        };
        let config = config.check().expect("the settings are right");
        let shutdown = CancellationToken::new();
        let (listening, listens) = oneshot::channel();
        let running = tokio::spawn(run::run(config, shutdown.clone(), Some(listening)));
        let addresses = listens.await.expect("it listens");
        Self { addresses, shutdown, running }
    }

    pub async fn ready(self) -> Self {
        eventually("it is ready", async || self.get("/readyz").await.status() == 200).await;
        self
    }

    pub async fn send(&self, method: Method, path: &str, body: Option<&str>) -> Response {
        let url = format!("http://{}{path}", self.addresses.http);
        let mut request = http().request(method, url);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_owned());
        }
        request.send().await.expect("it answers")
    }

    pub async fn get(&self, path: &str) -> Response {
        self.send(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Response {
        self.send(Method::POST, path, Some(&body.to_string())).await
    }

    async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.addresses.telemetry);
        http().get(url).send().await.unwrap().text().await.unwrap()
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.expect("it does not panic").expect("it ends well");
    }
}

pub async fn json(response: Response) -> Value {
    let text = response.text().await.unwrap();
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}"))
}

/// Checks that an answer is a problem of this status, and returns it.
pub async fn problem(response: Response, status: u16) -> Value {
    assert_eq!(response.status().as_u16(), status);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let problem = json(response).await;
    assert_eq!(problem["status"], status, "{problem}");
    for member in ["type", "title", "detail"] {
        assert!(problem[member].is_string(), "{problem}");
    }
    problem
}

#[tokio::test]
async fn a_tenant_is_created_pending_shown_and_becomes_active() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let body = json!({
        "slug": "acme", "name": "  Acme GmbH ", "domain": "ACME.test",
        "quota": { "storageBytes": 1_000_000 }, "services": { "ocis": false },
    });
    let created = served.post("/tenants", &body).await;
    assert_eq!(created.status(), StatusCode::CREATED);
    assert_eq!(created.headers()["location"], "tenants/acme");
    let tenant = json(created).await;
    assert_eq!(tenant["status"], "pending");
    assert_eq!(tenant["name"], "Acme GmbH");
    assert_eq!(tenant["domain"], "acme.test");
    assert_eq!(tenant["quota"]["storageBytes"], 1_000_000);
    assert_eq!(tenant["services"], json!({ "authentik": true, "stalwart": true, "ocis": false }));
    assert_eq!(tenant["generation"], 1);
    world.active("acme").await;
    let tenant = json(served.get("/tenants/acme").await).await;
    assert_eq!(tenant["status"], "active");
    assert_eq!(tenant["observedGeneration"], 1);
    assert_eq!(
        tenant["provisioningStatus"],
        json!({ "authentik": "ok", "stalwart": "skipped", "ocis": "skipped" })
    );
    assert_eq!(tenant["steps"]["ocis"]["reason"], "ServiceDisabled");
    assert_eq!(tenant["steps"]["authentik"]["externalId"], world.group("tenant-acme")["pk"]);
    let ready = &tenant["conditions"][0];
    assert_eq!((&ready["type"], &ready["status"]), (&json!("Ready"), &json!("True")));
    served.stop().await;
}

#[tokio::test]
async fn mistakes_are_answered_with_problems_that_name_them_and_change_nothing() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let fine = json!({ "slug": "acme", "name": "Acme" });
    assert_eq!(served.post("/tenants", &fine).await.status(), StatusCode::CREATED);
    let taken = problem(served.post("/tenants", &fine).await, 409).await;
    assert!(taken["detail"].as_str().unwrap().contains("acme"));

    let wrong = json!({ "slug": "Not A Slug", "name": "", "domain": "x", "colour": "red" });
    let invalid = problem(served.post("/tenants", &wrong).await, 422).await;
    let fields: Vec<_> =
        invalid["errors"].as_array().unwrap().iter().map(|error| error["field"].clone()).collect();
    assert_eq!(fields, ["slug", "name", "domain", "colour"]);

    for body in ["{", "[]", "null", "\"acme\"", ""] {
        problem(served.send(Method::POST, "/tenants", Some(body)).await, 400).await;
    }
    let form = http().post(format!("http://{}/tenants", served.addresses.http)).body("slug=acme");
    problem(form.send().await.unwrap(), 415).await;
    let long = json!({ "slug": "long", "name": "x".repeat(70_000) });
    problem(served.post("/tenants", &long).await, 413).await;
    problem(served.get("/tenants/nobody").await, 404).await;
    problem(served.get("/tenants/Not%20A%20Slug").await, 404).await;
    problem(served.get("/tenants/%ff").await, 400).await;
    problem(served.send(Method::POST, "/tenants/nobody/reconcile", None).await, 404).await;
    problem(served.get("/nowhere").await, 404).await;
    problem(served.send(Method::DELETE, "/tenants", None).await, 405).await;
    for query in ["status=ready", "limit=0", "limit=501", "limit=x"] {
        problem(served.get(&format!("/tenants?{query}")).await, 422).await;
    }
    problem(served.get("/tenants?colour=red").await, 400).await;
    assert_eq!(world.tenants.count_documents(doc! {}).await.unwrap(), 1);
    served.stop().await;
}

#[tokio::test]
async fn a_reconcile_request_brings_back_what_is_gone_and_its_token_says_when_it_was_handled() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.post("/tenants", &json!({ "slug": "acme", "name": "Acme" })).await;
    world.active("acme").await;
    world.authentik.delete_named("tenant-acme");
    let asked = served.send(Method::POST, "/tenants/acme/reconcile", None).await;
    assert_eq!(asked.status(), StatusCode::ACCEPTED);
    let token = json(asked).await["token"].as_str().unwrap().to_owned();
    eventually("the request is handled", async || {
        json(served.get("/tenants/acme").await).await["lastHandledReconcileAt"] == token.as_str()
    })
    .await;
    world.group("tenant-acme");
    served.stop().await;
}

#[tokio::test]
async fn lists_are_paged_by_slug_and_filtered_by_status() {
    let world = World::new().await;
    world.authentik.faults.add(tenantry::dev::faults::Fault {
        answer: tenantry::dev::faults::FaultAnswer::Status {
            status: 503,
            body: String::new(),
            retry_after: None,
        },
        ..Default::default()
    });
    for n in 0..25 {
        world.insert(&format!("t{n:02}")).await;
    }
    let active = doc! { "$set": { "status": "active" } };
    world.tenants.update_one(doc! { "slug": "t07" }, active).await.unwrap();
    let broken = doc! { "_id": ObjectId::new(), "slug": "t99", "name": 7 };
    world.tenants.insert_one(broken).bypass_document_validation(true).await.unwrap();
    let served = Served::new(&world).await.ready().await;
    let mut seen = Vec::new();
    let mut after = String::new();
    loop {
        let page = json(served.get(&format!("/tenants?limit=10&after={after}")).await).await;
        for tenant in page["items"].as_array().unwrap() {
            seen.push(tenant["slug"].as_str().unwrap().to_owned());
        }
        match page["next"].as_str() {
            Some(next) => next.clone_into(&mut after),
            None => break,
        }
    }
    let mut expected: Vec<_> = (0..25).map(|n| format!("t{n:02}")).collect();
    expected.push("t99".into());
    assert_eq!(seen, expected);
    let active = json(served.get("/tenants?status=active").await).await;
    assert_eq!(active["items"].as_array().unwrap().len(), 1);
    let pending = json(served.get("/tenants?status=pending&limit=500").await).await;
    assert_eq!(pending["items"].as_array().unwrap().len(), 25);
    let invalid = json(served.get("/tenants/t99").await).await;
    assert_eq!(invalid["status"], "invalid");
    assert_eq!(invalid["conditions"][0]["message"], "name: must be a string");
    served.stop().await;
}

/// Invariant 6: between an edit and the reconcile, the API does not claim what is no longer so.
#[tokio::test]
async fn an_edited_tenant_is_shown_pending_until_it_has_been_reconciled() {
    let world = World::new().await;
    let controller = world.controller().await;
    world.insert("acme").await;
    world.active("acme").await;
    controller.stop().await;
    world.set("acme", doc! { "name": "Edited while no process reconciles" }).await;
    // An API in front of a database that no controller serves yet: its own is kept from starting.
    world.authentik.faults.add(tenantry::dev::faults::Fault {
        answer: tenantry::dev::faults::FaultAnswer::Hang,
        ..Default::default()
    });
    let served = Served::new(&world).await;
    let tenant = json(served.get("/tenants/acme").await).await;
    assert_eq!(tenant["status"], "active", "its people are working");
    assert_eq!(tenant["steps"]["authentik"]["state"], "pending");
    assert_eq!(tenant["steps"]["authentik"]["reason"], "DesiredStateChanged");
    assert_eq!(tenant["conditions"][0]["status"], "False");
    served.stop().await;
}

#[tokio::test]
async fn without_a_database_writes_answer_503_in_time_and_leave_nothing() {
    let world = World::new().await;
    // Nothing listens there.
    let nowhere = "mongodb://127.0.0.1:9/?replicaSet=tenantry";
    let served = Served::with(&world, nowhere, &world.authentik.url()).await;
    let asked = Instant::now();
    let answer = served.post("/tenants", &json!({ "slug": "acme", "name": "Acme" })).await;
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    assert_eq!(answer.headers()["retry-after"], "5");
    let told = problem(answer, 503).await.to_string();
    assert!(!told.contains("127.0.0.1"), "no address is told: {told}");
    problem(served.get("/tenants/acme").await, 503).await;
    assert_eq!(served.get("/livez").await.status(), 200);
    let ready = served.get("/readyz").await;
    assert_eq!(ready.status(), 503);
    assert_eq!(json(ready).await["store"], false);
    served.stop().await;
    assert_eq!(world.tenants.count_documents(doc! {}).await.unwrap(), 0);
}

#[tokio::test]
async fn readiness_follows_the_database() {
    let mongod = support::start_mongod(&[]).await;
    let world = World::at(&mongod.uri, tenantry::dev::authentik::Release::R2025_12).await;
    let served = Served::new(&world).await.ready().await;
    mongod.stop().await;
    eventually("it is no longer ready", async || served.get("/readyz").await.status() == 503).await;
    assert_eq!(served.get("/livez").await.status(), 200);
    served.stop().await;
}

#[tokio::test]
async fn metrics_tell_what_happened() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    served.post("/tenants", &json!({ "slug": "acme", "name": "Acme" })).await;
    world.active("acme").await;
    // It is counted after it was committed.
    let counted = "tenantry_reconciles_total{result=\"ok\"} 1";
    eventually("it is counted", async || served.metrics().await.contains(counted)).await;
    let metrics = served.metrics().await;
    for expected in [
        "tenantry_reconcile_duration_seconds_count 1",
        "tenantry_step_duration_seconds_count{outcome=\"ok\",upstream=\"authentik\"} 1",
        "tenantry_upstream_request_duration_seconds_count{operation=\"create_group\",status=\"201\",\
         upstream=\"authentik\"} 1",
        "tenantry_queue_depth{priority=\"requested\"} 0",
        "tenantry_queue_oldest_age_seconds{priority=\"new\"} 0",
        "tenantry_time_to_active_seconds_count 1",
        "tenantry_steps{state=\"ok\",upstream=\"authentik\"} 1",
        "tenantry_steps{state=\"skipped\",upstream=\"ocis\"} 1",
        "tenantry_tenants{status=\"active\"} 1",
        "tenantry_claims_lost_total 0",
        "tenantry_watch_open 1",
        "tenantry_watch_lag_seconds ",
        "tenantry_workers_busy ",
        "tenantry_build_info{version=\"",
        "tenantry_integration_healthy{upstream=\"authentik\"} 1",
        "process_resident_memory_bytes ",
        "process_cpu_seconds_total ",
    ] {
        assert!(metrics.contains(expected), "{expected:?} is not in\n{metrics}");
    }
    let errors = |metrics: &str| {
        let of = "tenantry_step_errors_total{reason=\"UpstreamError\",upstream=\"authentik\"} ";
        metrics.split(of).nth(1).is_some_and(|count| !count.starts_with('0'))
    };
    assert!(!errors(&metrics));
    world.authentik.faults.add(tenantry::dev::faults::Fault {
        answer: tenantry::dev::faults::FaultAnswer::Empty405,
        ..Default::default()
    });
    served.post("/tenants", &json!({ "slug": "globex", "name": "Globex" })).await;
    world.step_becomes("globex", "error").await;
    eventually("what was committed is counted", async || {
        let metrics = served.metrics().await;
        errors(&metrics)
            && !metrics.contains("tenantry_backoff_delay_seconds_count{upstream=\"authentik\"} 0")
    })
    .await;
    assert!(!served.metrics().await.contains(TOKEN), "no secret in a metric");
    served.stop().await;
}

#[tokio::test]
async fn a_reconcile_may_be_asked_for_some_steps_only() {
    let suite = Suite::new().await;
    let controller =
        suite.controller(|settings| settings.poll_interval = Duration::from_secs(600)).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    let slug = "acme".parse().unwrap();
    let asked = async |steps: &[Upstream]| {
        suite.world.store.request_reconcile_of(&slug, steps).await.unwrap().unwrap().at
    };
    let handled = async |token: jiff::Timestamp| {
        eventually("it is handled", async || {
            let tenant = suite.world.find("acme").await;
            let at = tenant.get_datetime("lastHandledReconcileAt");
            at.is_ok_and(|at| at.timestamp_millis() >= token.as_millisecond())
        })
        .await;
    };
    suite.forget_requests();
    handled(asked(&[Upstream::Ocis]).await).await;
    assert_eq!(suite.requests(), [0, 0, 1]);

    // What is asked for before the first is handled adds to it.
    controller.stop().await;
    suite.forget_requests();
    asked(&[Upstream::Ocis]).await;
    let both = asked(&[Upstream::Authentik]).await;
    let controller =
        suite.controller(|settings| settings.poll_interval = Duration::from_secs(600)).await;
    handled(both).await;
    controller.stop().await;
    // Each is checked at start.
    assert_eq!(suite.requests(), [CHECK[0] + 1, CHECK[1], CHECK[2] + 1]);
    suite.forget_requests();
    asked(&Upstream::ALL).await;
    let all = asked(&[Upstream::Ocis]).await;
    let controller = suite.controller(|_| {}).await;
    handled(all).await;
    controller.stop().await;
    assert_eq!(
        suite.requests(),
        CHECK.map(|check| check + 1),
        "a request for all is not narrowed by a later one"
    );

    let served = Served::new(&suite.world).await;
    for body in [
        json!({ "steps": [] }),
        json!({ "steps": ["mail"] }),
        json!({ "steps": "ocis" }),
        json!({ "step": "ocis" }),
    ] {
        let refused = served.post("/tenants/acme/reconcile", &body).await;
        assert_eq!(refused.status(), 422, "{body}");
    }
    let fine = served.post("/tenants/acme/reconcile", &json!({ "steps": ["ocis", "ocis"] })).await;
    assert_eq!(fine.status(), 202);
    served.stop().await;
}
