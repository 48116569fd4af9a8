//! Waiting for a tenant to settle, and watching what becomes of tenants.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use mongodb::bson::doc;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::api::{Served, json};
use crate::support::{DEADLINE, Process, World, eventually, http};

async fn ask(served: &Served, method: Method, path: &str, wait: &str, body: Option<&Value>) -> Response {
    let url = format!("http://{}{path}", served.addresses.http);
    let mut request = http().request(method, url).header("prefer", format!("wait={wait}"));
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body.to_string());
    }
    request.send().await.expect("it answers")
}

pub fn outage() -> tenantry::dev::faults::Fault {
    tenantry::dev::faults::Fault {
        answer: tenantry::dev::faults::FaultAnswer::Status {
            status: 503,
            body: String::new(),
            retry_after: None,
        },
        ..Default::default()
    }
}

#[tokio::test]
async fn create_edit_put_and_reconcile_answer_when_the_tenant_has_settled() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let body = json!({ "slug": "acme", "name": "Acme" });
    let created = ask(&served, Method::POST, "/tenants", "20", Some(&body)).await;
    assert_eq!(created.status(), 201);
    assert_eq!(created.headers()["preference-applied"], "wait=20");
    let tenant = json(created).await;
    assert_eq!((&tenant["status"], &tenant["observedGeneration"]), (&json!("active"), &json!(1)));

    let name = json!({ "name": "Edited" });
    for (method, generation) in [(Method::PATCH, 2), (Method::PUT, 2)] {
        let asked = Instant::now();
        let edited = ask(&served, method, "/tenants/acme", "20", Some(&name)).await;
        assert_eq!(edited.status(), 200);
        assert!(edited.headers().contains_key("preference-applied"));
        let tenant = json(edited).await;
        assert_eq!(tenant["observedGeneration"], generation);
        assert_eq!(tenant["conditions"][0]["status"], "True");
        assert!(asked.elapsed() < Duration::from_secs(15), "it does not wait for its time to pass");
    }

    world.authentik.delete_named("tenant-acme");
    let reconciled = ask(&served, Method::POST, "/tenants/acme/reconcile", "20", None).await;
    assert_eq!(reconciled.status(), 200);
    assert_eq!(json(reconciled).await["slug"], "acme");
    world.group("tenant-acme");

    world.authentik.faults.add(outage());
    let failed =
        ask(&served, Method::PATCH, "/tenants/acme", "20", Some(&json!({ "name": "No" }))).await;
    assert_eq!(json(failed).await["steps"]["authentik"]["state"], "error", "an error is an answer too");
    world.authentik.faults.clear();

    let asked = Instant::now();
    let paused = json!({ "slug": "globex", "name": "Globex", "paused": true });
    let paused = json(ask(&served, Method::POST, "/tenants", "20", Some(&paused)).await).await;
    assert_eq!(paused["steps"]["authentik"]["reason"], "Paused", "what is held back has been acted on");
    assert!(asked.elapsed() < Duration::from_secs(15), "it does not wait for its time to pass");
    served.stop().await;
}

#[tokio::test]
async fn a_caller_who_waits_in_vain_is_told_in_time_what_there_is() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    world.authentik.faults.add(tenantry::dev::faults::Fault {
        answer: tenantry::dev::faults::FaultAnswer::Hang,
        ..Default::default()
    });
    let asked = Instant::now();
    let body = json!({ "slug": "acme", "name": "Acme" });
    let created = ask(&served, Method::POST, "/tenants", "1", Some(&body)).await;
    assert_eq!(created.status(), 201);
    assert_eq!(created.headers()["preference-applied"], "wait=1");
    assert!(asked.elapsed() >= Duration::from_secs(1) && asked.elapsed() < Duration::from_secs(10));
    assert_eq!(json(created).await["status"], "pending");
    let reconcile = ask(&served, Method::POST, "/tenants/acme/reconcile", "1", None).await;
    assert_eq!(reconcile.status(), 202);
    assert!(json(reconcile).await["token"].is_string());
    served.stop().await;
}

#[tokio::test]
async fn waiting_costs_no_command_beside_the_stream() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let create = async |slug: &str| {
        let body = json!({ "slug": slug, "name": "x" });
        let created = ask(&served, Method::POST, "/tenants", "20", Some(&body)).await;
        assert_eq!(json(created).await["status"], "active");
    };
    let counted = async || {
        let metrics = http().get(format!("http://{}/metrics", served.addresses.telemetry));
        let metrics = metrics.send().await.unwrap().text().await.unwrap();
        // What the controller does beside is its own affair.
        ["insert", "aggregate"].map(|command| {
            let line = format!("tenantry_mongodb_commands_total{{command=\"{command}\"}} ");
            let count = metrics.lines().find_map(|found| found.strip_prefix(&line)?.parse::<u64>().ok());
            count.unwrap_or_default()
        })
    };
    // Opens the stream, and takes the census that a scrape begins.
    create("first").await;
    counted().await;
    let before = counted().await;
    create("second").await;
    let after = counted().await;
    let cost: Vec<_> = before.iter().zip(after).map(|(before, after)| after - before).collect();
    assert_eq!(cost, [1, 0], "the insert, and no stream of its own");
    served.stop().await;
}

#[tokio::test]
async fn a_thousand_wait_at_once_and_each_gets_an_answer() {
    const WAITERS: usize = 1_000;
    let world = World::new().await;
    // A thousand writes of one document take their time.
    let process = Process::start(&world, &[("REQUEST_TIMEOUT", "30s")]);
    let address = process.address("http").await;
    process.says("watching for tenants").await;
    world.insert("acme").await;
    world.active("acme").await;
    let client = http();
    let url = format!("http://{address}/tenants/acme/reconcile");
    let waiters = (0..WAITERS).map(|_| {
        let request = client.post(&url).header("prefer", "wait=20");
        async move { request.send().await.expect("it answers").status().as_u16() }
    });
    let statuses = futures_util::future::join_all(waiters).await;
    let done = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(done, WAITERS, "{:?}", statuses.iter().find(|status| **status != 200));
    process.stop().await;
}

/// A connection to the event stream, and what it said so far.
struct Events {
    body: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    text: String,
}

impl Events {
    async fn open(served: &Served, query: &str, last: Option<&str>) -> Self {
        let mut request = http().get(format!("http://{}/tenants/watch{query}", served.addresses.http));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let mut events = Self { body: Box::pin(answer.bytes_stream()), text: String::new() };
        events.until(": watching").await;
        events
    }

    /// Reads until it has said something.
    async fn until(&mut self, what: &str) {
        let reading = async {
            while !self.text.contains(what) {
                let bytes = self.body.next().await.expect("it goes on").expect("it can be read");
                self.text.push_str(&String::from_utf8_lossy(&bytes));
            }
        };
        let read = tokio::time::timeout(DEADLINE, reading).await;
        assert!(read.is_ok(), "it does not say {what:?}; it said {}", self.text);
    }

    /// Ids of the events so far.
    fn ids(&self) -> Vec<String> {
        self.text.lines().filter_map(|line| Some(line.strip_prefix("id: ")?.to_owned())).collect()
    }
}

#[tokio::test]
async fn a_watcher_hears_what_becomes_of_tenants_and_goes_on_where_it_was() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let mut all = Events::open(&served, "", None).await;
    let mut one = Events::open(&served, "?slug=globex", None).await;
    served.post("/tenants", &json!({ "slug": "acme", "name": "Acme" })).await;
    served.post("/tenants", &json!({ "slug": "globex", "name": "Globex" })).await;
    world.active("acme").await;
    world.active("globex").await;
    one.until("\"status\":\"active\"").await;
    assert!(!one.text.contains("acme"), "{}", one.text);
    assert!(one.text.contains("event: tenant"), "{}", one.text);
    // Each is told twice: created, and converged.
    eventually("all four are told", async || {
        all.until("globex").await;
        if all.ids().len() < 4 {
            all.text.push_str(&String::from_utf8_lossy(&all.body.next().await.unwrap().unwrap()));
        }
        all.ids().len() == 4
    })
    .await;
    let ids = all.ids();
    drop(all);
    world.tenants.delete_one(doc! { "slug": "globex" }).await.unwrap();
    one.until("event: gone").await;

    let mut again = Events::open(&served, "", Some(&ids[1])).await;
    again.until("event: gone").await;
    assert_eq!(again.ids()[..2], ids[2..], "nothing twice, nothing missing");
    assert!(!again.text.contains("event: gap"));
    let mut lost = Events::open(&served, "", Some("8200")).await;
    lost.until("event: gap").await;
    let wrong = served.get("/tenants/watch?status=ready").await;
    assert_eq!(wrong.status(), 422);
    served.stop().await;
}

#[tokio::test]
async fn a_hundred_watchers_beside_waiters_hear_the_same_and_leave_no_memory_behind() {
    const WATCHERS: usize = 100;
    const WAITERS: usize = 200;
    const MIB: u64 = 1 << 10;
    let world = World::new().await;
    let process = Process::start(&world, &[("REQUEST_TIMEOUT", "30s")]);
    let address = process.address("http").await;
    process.says("watching for tenants").await;
    world.insert("acme").await;
    world.active("acme").await;
    let client = http();
    let url = format!("http://{address}/tenants");
    let round = async |n: usize| {
        let name = format!("Round {n}");
        let watchers = (0..WATCHERS).map(|_| {
            let (open, name) = (client.get(format!("{url}/watch")).send(), name.clone());
            async move {
                let mut body = open.await.expect("it answers").bytes_stream();
                let mut heard = String::new();
                let reading = async {
                    while !heard.contains(&name) {
                        let more = body.next().await.expect("it goes on").expect("it is whole");
                        heard.push_str(&String::from_utf8_lossy(&more));
                    }
                };
                tokio::time::timeout(DEADLINE, reading).await.expect("it is told in time");
            }
        });
        let watching = tokio::spawn(futures_util::future::join_all(watchers));
        let edits = (0..WAITERS).map(|_| {
            let edit = client
                .patch(format!("{url}/acme"))
                .header("prefer", "wait=20")
                .header("content-type", "application/json")
                .body(json!({ "name": name }).to_string());
            async move { edit.send().await.expect("it answers").status().as_u16() }
        });
        // Repeated for those watchers that came late: a change that changes nothing tells nothing.
        let statuses = futures_util::future::join_all(edits).await;
        assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
        eventually("all watchers have heard", async || {
            if !watching.is_finished() {
                world.store.request_reconcile(&"acme".parse().unwrap()).await.unwrap();
            }
            watching.is_finished()
        })
        .await;
        watching.await.unwrap();
    };
    round(1).await;
    let warm = crate::protect::resident(&process);
    round(2).await;
    round(3).await;
    let now = crate::protect::resident(&process);
    assert!(now <= warm + 16 * MIB, "{warm} KiB after a round, and {now} after three");
    process.stop().await;
}

/// A process that ends does not wait for those who wait.
#[tokio::test]
async fn waiters_and_watchers_are_let_go_when_the_process_ends() {
    let world = World::new().await;
    let process = Process::start(&world, &[]);
    let address = process.address("http").await;
    process.says("watching for tenants").await;
    let mut events = http().get(format!("http://{address}/tenants/watch")).send().await.unwrap();
    events.chunk().await.unwrap().expect("it has begun");
    world.authentik.faults.add(tenantry::dev::faults::Fault {
        answer: tenantry::dev::faults::FaultAnswer::Hang,
        ..Default::default()
    });
    let create = http()
        .post(format!("http://{address}/tenants"))
        .header("prefer", "wait=50")
        .header("content-type", "application/json")
        .body(json!({ "slug": "acme", "name": "Acme" }).to_string());
    let created = tokio::spawn(create.send());
    eventually("it waits", async || {
        world.tenants.count_documents(doc! { "slug": "acme" }).await.unwrap() == 1
    })
    .await;
    process.stop().await;
    assert_eq!(created.await.unwrap().expect("it is answered").status(), 201);
    while let Some(_more) = events.chunk().await.expect("the stream ends in order") {}
}

#[tokio::test]
async fn who_waits_for_a_tenant_that_is_being_deleted_is_answered_when_it_is_gone() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    for slug in ["acme", "globex", "initech"] {
        served.post("/tenants", &json!({ "slug": slug, "name": slug })).await;
        world.active(slug).await;
    }
    let asked = Instant::now();
    let gone = ask(&served, Method::DELETE, "/tenants/acme", "60", None).await;
    assert_eq!(gone.status(), 204);
    assert_eq!(gone.headers()["preference-applied"], "wait=60");
    assert_eq!(served.get("/tenants/acme").await.status(), 404);

    // A request that came while it was going.
    world.authentik.faults.add(tenantry::dev::faults::Fault {
        method: Some("PATCH".into()),
        delay_ms: 500,
        ..Default::default()
    });
    let (deleted, reconciled) =
        tokio::join!(ask(&served, Method::DELETE, "/tenants/globex", "60", None), async {
            let leaving = async || world.find("globex").await.contains_key("deletionRequestedAt");
            eventually("it is being deleted", leaving).await;
            ask(&served, Method::POST, "/tenants/globex/reconcile", "60", None).await
        });
    assert_eq!((deleted.status().as_u16(), reconciled.status().as_u16()), (204, 404));
    world.authentik.faults.clear();

    // One that cannot go yet is an answer, too.
    world.authentik.faults.add(outage());
    let kept = ask(&served, Method::DELETE, "/tenants/initech", "60", None).await;
    assert_eq!(kept.status(), 202);
    let kept = json(kept).await;
    assert_eq!(
        (&kept["status"], &kept["steps"]["authentik"]["state"]),
        (&json!("deleting"), &json!("error"))
    );
    assert!(asked.elapsed() < Duration::from_secs(40), "it does not wait for its time to pass");
    served.stop().await;
}
