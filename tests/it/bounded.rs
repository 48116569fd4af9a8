//! What a rush of changes by other writers may take: memory, and the time of those who wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mongodb::bson::{DateTime, Document, doc};
use serde_json::json;
use tenantry::dev::faults::{Fault, FaultAnswer};

use crate::api::{Served, json};
use crate::protect::resident;
use crate::support::{DEADLINE, Process, World, eventually, http};

/// Rushes take turns: each keeps the server busy.
static RUSH: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A converged tenant as it is after its reconcile, with or without a group, and with fields of others beside.
fn converged(number: usize, group: bool) -> Document {
    let slug = format!("t{number:05}");
    let desired = doc! {
        "slug": &slug, "name": format!("Tenant {number}"), "domain": format!("{slug}.test"),
        "quota": { "storageBytes": 10_000_000_000_i64 }, "services": { "authentik": group },
    };
    let message = "authentik: ".repeat(20);
    let mut document = doc! {
        "status": "active",
        "provisioningStatus": { "authentik": "skipped", "stalwart": "skipped", "ocis": "skipped" },
        "provisioningErrors": {},
        "steps": { "authentik": { "state": "skipped", "reason": "ServiceDisabled", "message": message } },
        "generation": 1_i64, "observedGeneration": 1_i64, "lease": { "epoch": 1_i64 },
        "nextReconcileAt": DateTime::MAX, "lastHandledDesired": desired.clone(),
        "createdAt": DateTime::now(), "updatedAt": DateTime::now(),
        "notes": "x".repeat(3_000), "contract": { "pages": vec!["y".repeat(200); 10] },
    };
    document.extend(desired);
    document
}

/// Reads the event stream, again after each end of it, until `heard` is said.
async fn watch_until(address: &str, heard: &str) {
    let client = http();
    loop {
        let watching = client.get(format!("http://{address}/tenants/watch")).timeout(DEADLINE * 4);
        let mut answer = watching.send().await.expect("it answers");
        let mut piece = String::new();
        while let Ok(Some(bytes)) = answer.chunk().await {
            // It may be on the border of two pieces.
            let text = piece + &String::from_utf8_lossy(&bytes);
            if text.contains(heard) {
                return;
            }
            piece = String::from_utf8_lossy(&bytes).into_owned();
        }
    }
}

/// Notes the most memory that a process takes, until it is dropped.
struct Peak {
    kib: Arc<AtomicU64>,
    sampling: tokio::task::JoinHandle<()>,
}

impl Peak {
    fn of(process: &Arc<Process>) -> Self {
        let kib = Arc::new(AtomicU64::new(resident(process)));
        let (process, most) = (Arc::clone(process), Arc::clone(&kib));
        let sampling = tokio::spawn(async move {
            loop {
                most.fetch_max(resident(&process), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Self { kib, sampling }
    }

    fn kib(&self) -> u64 {
        self.kib.load(Ordering::Relaxed)
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.sampling.abort();
    }
}

/// Invariant 8. The stream for those who wait and watch, and the controller's own, are read in small parts.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_edits_by_a_shell_take_no_memory_though_a_client_watches_and_one_waits() {
    const TENANTS: usize = 20_000;
    const MOST_KIB: u64 = 32 << 10;
    let _turn = RUSH.lock().await;
    let world = World::new().await;
    for first in (0..TENANTS).step_by(2_000) {
        world.tenants.insert_many((first..first + 2_000).map(|n| converged(n, false))).await.unwrap();
    }
    // A client that waits for this one does so for long.
    world.insert("waited-for").await;
    world.authentik.faults.add(Fault { answer: FaultAnswer::Hang, ..Default::default() });
    let settings =
        [("WORKERS", "4"), ("REQUEST_TIMEOUT", "60s"), ("LOG_LEVEL", "warn,tenantry::run=info")];
    let process = Arc::new(Process::start(&world, &settings));
    let address = process.address("http").await;
    process.says("watching for tenants").await;
    let url = format!("http://{address}/tenants/waited-for/reconcile");
    let waiting = tokio::spawn(async move {
        let client = http();
        loop {
            let wait = client.post(&url).header("prefer", "wait=20").send().await;
            assert!(wait.expect("it answers").status().is_success());
        }
    });
    let edit = async |name: &str, tenants: Document| {
        let watching = tokio::spawn({
            let (address, last) = (address.clone(), format!("\"{name} is over\""));
            async move { watch_until(&address, &last).await }
        });
        let edit = doc! { "$set": { "name": name, "notes": name.repeat(300) } };
        world.tenants.update_many(tenants, edit).await.unwrap();
        eventually("the watcher has heard the last of it", async || {
            let over = doc! { "$set": { "name": format!("{name} is over") } };
            world.tenants.update_one(doc! { "slug": "t00000" }, over).await.unwrap();
            let again = doc! { "$set": { "name": name } };
            world.tenants.update_one(doc! { "slug": "t00000" }, again).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            watching.is_finished()
        })
        .await;
        watching.await.unwrap();
    };
    edit("Warm", doc! { "slug": { "$lt": "t00100" } }).await;
    let before = resident(&process);
    for round in ["First", "Second"] {
        let peak = Peak::of(&process);
        let begun = Instant::now();
        edit(round, doc! { "slug": { "$gte": "t" } }).await;
        eprintln!("{round}: {:?}, from {before} to {} KiB", begun.elapsed(), peak.kib());
        assert!(peak.kib() <= before + MOST_KIB, "{round}: from {before} to {} KiB", peak.kib());
    }
    assert!(!waiting.is_finished(), "a client waited all along");
    waiting.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_a_client_waits_for_comes_before_ten_thousand_edits_by_a_shell() {
    const TENANTS: usize = 10_000;
    let _turn = RUSH.lock().await;
    let world = World::new().await;
    for first in (0..TENANTS).step_by(2_000) {
        world.tenants.insert_many((first..first + 2_000).map(|n| converged(n, true))).await.unwrap();
    }
    let process = Process::start(&world, &[("WORKERS", "8")]);
    let address = process.address("http").await;
    world.insert("mine").await;
    world.active("mine").await;
    // Forty tenants a second: four minutes for all of them.
    world.authentik.faults.add(Fault { delay_ms: 100, ..Default::default() });
    let others = doc! { "slug": { "$ne": "mine" } };
    world.tenants.update_many(others, doc! { "$set": { "name": "Edited" } }).await.unwrap();
    let asked = Instant::now();
    let edit = http()
        .patch(format!("http://{address}/tenants/mine"))
        .header("prefer", "wait=10")
        .header("content-type", "application/json")
        .body(json!({ "name": "Mine" }).to_string());
    let edited = json(edit.send().await.expect("it answers")).await;
    let took = asked.elapsed();
    assert_eq!(edited["conditions"][0]["status"], "True", "{edited}");
    assert_eq!(edited["observedGeneration"], 2, "{edited}");
    // Seen are one or two.
    assert!(took < Duration::from_secs(9), "{took:?}");
    let done = doc! { "lastHandledDesired.name": "Edited" };
    let done = world.tenants.count_documents(done).await.unwrap();
    assert!(done < 500, "{done} were done before");
}

#[tokio::test]
async fn that_a_client_waits_is_noted_until_the_tenant_was_acted_on_and_for_nothing_else() {
    let world = World::new().await;
    let served = Served::new(&world).await.ready().await;
    let send = async |method: reqwest::Method, path: &str, body: &str| {
        let request = http().request(method, format!("http://{}/tenants{path}", served.addresses.http));
        let request = request.header("prefer", "wait=20").header("content-type", "application/json");
        let answer = request.body(body.to_owned()).send().await.expect("it answers");
        assert!(answer.status().is_success(), "{}", answer.status());
    };
    let noted = async || {
        world.tenants.count_documents(doc! { "waitedFor": { "$exists": true } }).await.unwrap() == 1
    };
    world.authentik.faults.add(Fault { delay_ms: 500, ..Default::default() });
    let new = json!({ "slug": "acme", "name": "Acme" }).to_string();
    for (method, path, body) in [
        (reqwest::Method::POST, "", new.as_str()),
        (reqwest::Method::PATCH, "/acme", r#"{"name":"Patched"}"#),
        (reqwest::Method::PUT, "/acme", r#"{"name":"Put"}"#),
        (reqwest::Method::POST, "/acme/reconcile", "{}"),
    ] {
        let what = format!("{method} {path}");
        let noting = eventually("it is noted", async || noted().await);
        tokio::join!(send(method, path, body), noting);
        eventually(&format!("it is noted no longer: {what}"), async || !noted().await).await;
    }
    world.authentik.faults.clear();
    let before = world.find("acme").await;
    send(reqwest::Method::PATCH, "/acme", r#"{"name":"Put"}"#).await;
    assert_eq!(world.find("acme").await, before, "nothing changes, and nothing is waited for");
    served.stop().await;
}
