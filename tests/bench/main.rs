//! Benchmarks, run by `just bench`. They print figures and decide nothing: no test is timed.
//!
//! * `converge`: tenants inserted at once until all are active, beside the ceiling that the database
//!   sets: the same claim and commit commands, sent by the bare driver at the same concurrency.
//! * `single`: one tenant after the other, from creation to active.
//! * `three`: tenants inserted at once on all three upstreams, and how many requests each of them saw at
//!   once.
//! * `memory`: resident memory of an idle controller over fleets of different size.
//! * `sweep`: a sweep of a large converged fleet: requests, writes, memory; then one in a hundred tenants is
//!   damaged in a random way, and found and repaired by the next sweep.
//! * `outage`: new tenants with all upstreams up, and with one of them down for a minute.
//!
//! `BENCH_TENANTS` is the size of the large fleets (100000).

mod outage;
mod suite;
mod sweep;

use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mongodb::bson::{Bson, DateTime, Document, doc, oid::ObjectId};
use mongodb::event::EventHandler;
use mongodb::event::command::CommandEvent;
use mongodb::options::ClientOptions;
use mongodb::{Client, Collection, Database};
use tenantry::dev::authentik::{Release, Simulator};
use tenantry::dev::faults::Fault;
use tenantry::dev::mongod::{self, DataDir, Mongod};
use tenantry::store::{ClaimAnswer, Commit, CommitCandidates, Holder, Store, StoreOptions};
use tenantry::tenant::{
    Backoff, Basis, Jitter, Outcome, Policy, Reason, StepRun, TenantId, Upstream, due_steps, transition,
};
use tokio::process::{Child, Command};

const TOKEN: &str = "bench-token";
const WORKERS: usize = 16;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // For `reqwest::get`; a second installation would be refused, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // `cargo bench` adds `--bench`.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let all = ["converge", "single", "three", "memory", "sweep", "outage"];
    if let Some(unknown) = wanted.iter().find(|name| !all.contains(&name.as_str())) {
        anyhow::bail!("there is no benchmark {unknown}; there are {}", all.join(", "));
    }
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    if runs("converge") {
        for latency in [0, 20] {
            converge(5_000, latency).await?;
        }
    }
    if runs("single") {
        single(100, 20).await?;
    }
    if runs("three") {
        suite::three(10_000, 5).await?;
    }
    if runs("memory") {
        memory(&[1_000, 100_000]).await?;
    }
    let fleet = std::env::var("BENCH_TENANTS").ok().map(|fleet| fleet.parse()).transpose()?;
    let fleet = fleet.unwrap_or(100_000);
    if runs("sweep") {
        sweep::sweep(fleet).await?;
    }
    if runs("outage") {
        outage::outage(fleet / 10).await?;
    }
    Ok(())
}

/// A database server and a simulated Authentik for one benchmark.
struct World {
    mongod: Mongod,
    authentik: Simulator,
    database: Database,
    tenants: Collection<Document>,
    commands: Arc<Mutex<Vec<Document>>>,
}

impl World {
    async fn new(latency_ms: u64) -> anyhow::Result<Self> {
        let binary = mongod::find(None).await?;
        let mongod = Mongod::start(&binary, DataDir::Temporary, &[]).await?;
        let authentik = Simulator::new(0, TOKEN, Release::R2025_12).await?;
        if latency_ms > 0 {
            authentik.faults.add(Fault { delay_ms: latency_ms, ..Fault::default() });
        }
        let commands: Arc<Mutex<Vec<Document>>> = Arc::default();
        let seen = Arc::clone(&commands);
        let mut options = ClientOptions::parse(&mongod.uri).await?;
        options.max_pool_size = Some(2 * WORKERS as u32);
        options.command_event_handler = Some(EventHandler::callback(move |event| {
            if let CommandEvent::Started(started) = event
                && started.command_name == "findAndModify"
            {
                let mut seen = seen.lock().expect("no thread panics holding it");
                if seen.len() < 2 {
                    seen.push(started.command);
                }
            }
        }));
        let database = Client::with_options(options)?.database("bench");
        let tenants = database.collection("tenants");
        Ok(Self { mongod, authentik, database, tenants, commands })
    }

    async fn store(&self) -> anyhow::Result<Store> {
        let options = StoreOptions {
            uri: self.mongod.uri.clone(),
            database: "bench".into(),
            operation_timeout: Duration::from_secs(30),
            max_connections: 4,
            on_command: None,
            on_answer: None,
        };
        let store = Store::new(options).await?;
        store.prepare().await?;
        Ok(store)
    }

    /// Starts a controller in a process of its own; returns its telemetry address too.
    async fn controller(&self) -> anyhow::Result<(Child, String)> {
        let started = self.controller_with(&[]).await?;
        self.warm().await?;
        Ok(started)
    }

    async fn controller_with(&self, settings: &[(&str, &str)]) -> anyhow::Result<(Child, String)> {
        use tokio::io::{AsyncBufReadExt, BufReader};
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenantry"));
        command
            .arg("run")
            .env("MONGODB_URI", &self.mongod.uri)
            .env("MONGODB_DATABASE", "bench")
            .env("AUTHENTIK_API_URL", self.authentik.url())
            .env("AUTHENTIK_API_TOKEN", TOKEN)
            .env("INSECURE_NO_AUTH", "true")
            .env("HTTP_ADDR", "127.0.0.1:0")
            .env("TELEMETRY_ADDR", "127.0.0.1:0")
            .env("WORKERS", WORKERS.to_string())
            .env("LOG_FORMAT", "json")
            .env("LOG_LEVEL", "tenantry::run=info,warn")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let stderr = child.stderr.take().expect("it is piped");
        let mut lines = BufReader::new(stderr).lines();
        let mut telemetry = None;
        while let Some(line) = lines.next_line().await? {
            let line: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if let Some(address) = line["telemetry"].as_str() {
                telemetry = Some(address.to_owned());
            }
            if line["message"] == "watching for tenants" {
                break;
            }
        }
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let telemetry = telemetry.ok_or_else(|| anyhow::anyhow!("the controller did not start"))?;
        Ok((child, telemetry))
    }

    /// The first tenant proves the integration and warms the connections.
    async fn warm(&self) -> anyhow::Result<()> {
        self.tenants.insert_one(doc! { "slug": "warm", "name": "Warm" }).await?;
        self.active(1, Duration::from_secs(30)).await
    }

    async fn active(&self, count: u64, limit: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + limit;
        let active = doc! { "status": "active" };
        while self.tenants.count_documents(active.clone()).await? < count {
            anyhow::ensure!(Instant::now() < until, "not all tenants became active");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    async fn stop(self, controller: Child) -> anyhow::Result<()> {
        end(controller).await?;
        self.mongod.stop().await;
        Ok(())
    }
}

/// Asks a controller to end, and waits until it has.
async fn end(mut controller: Child) -> anyhow::Result<()> {
    let pid = controller.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    }
    controller.wait().await?;
    Ok(())
}

async fn converge(tenants: usize, latency_ms: u64) -> anyhow::Result<()> {
    let world = World::new(latency_ms).await?;
    let store = world.store().await?;
    let ceiling = ceiling(&world, tenants).await?;
    world.tenants.delete_many(doc! {}).await?;
    store.prepare().await?;
    let (controller, telemetry) = world.controller().await?;

    let now = DateTime::now();
    let documents = (0..tenants).map(|n| {
        doc! { "slug": format!("t{n}"), "name": format!("Tenant {n}"), "status": "pending", "createdAt": now }
    });
    let started = Instant::now();
    world.tenants.insert_many(documents).await?;
    let inserted = started.elapsed();
    world.active(tenants as u64 + 1, Duration::from_secs(600)).await?;
    let took = started.elapsed();
    let mut waits = Vec::new();
    let mut cursor = world.tenants.find(doc! { "slug": { "$ne": "warm" } }).await?;
    while cursor.advance().await? {
        let tenant: Document = cursor.deserialize_current()?;
        let ready = tenant.get_array("conditions")?[0].as_document().expect("a condition");
        let at = ready.get_datetime("lastTransitionTime")?.timestamp_millis();
        waits.push(at - now.timestamp_millis());
    }
    waits.sort_unstable();
    let rate = tenants as f64 / took.as_secs_f64();
    println!("converge: {tenants} tenants at once, {WORKERS} workers, upstream latency {latency_ms} ms");
    println!("  ceiling (bare claim + commit)  {ceiling:8.0} tenants/s");
    println!(
        "  tenantry                       {rate:8.0} tenants/s   {:.0} % of the ceiling",
        100.0 * rate / ceiling
    );
    println!(
        "  creation to active             p50 {} ms, p99 {} ms (of {} ms for all; inserting took {} ms)",
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100],
        took.as_millis(),
        inserted.as_millis()
    );
    if latency_ms > 0 {
        let bound = WORKERS as f64 * 1000.0 / (2 * latency_ms) as f64;
        println!(
            "  bound of latency and workers   {bound:8.0} tenants/s   {:.0} % of it",
            100.0 * rate / bound
        );
    }
    let text = scrape(&telemetry).await?;
    let mean = |name: &str| {
        let count = reading(&text, &format!("{name}_count"));
        1000.0 * reading(&text, &format!("{name}_sum")) / count
    };
    println!(
        "  mean times                     reconcile {:.1} ms, of it the step {:.1} ms",
        mean("tenantry_reconcile_duration_seconds"),
        mean("tenantry_step_duration_seconds"),
    );
    println!(
        "  upstream requests              {:.3} per tenant",
        world.authentik.faults.total() as f64 / (tenants + 1) as f64
    );
    world.stop(controller).await
}

/// Tenants per second that the database can claim and commit, sent by the bare driver.
async fn ceiling(world: &World, tenants: usize) -> anyhow::Result<f64> {
    let (claim, commit) = record_commands(world).await?;
    world.tenants.delete_many(doc! {}).await?;
    let mut ids = Vec::with_capacity(tenants);
    let documents: Vec<Document> = (0..tenants)
        .map(|n| {
            let id = ObjectId::new();
            ids.push(id);
            doc! { "_id": id, "slug": format!("c{n}"), "name": format!("Tenant {n}"), "status": "pending", "createdAt": DateTime::now() }
        })
        .collect();
    world.tenants.insert_many(documents).await?;
    let (ids, next) = (Arc::new(ids), Arc::new(AtomicUsize::new(0)));
    let started = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..WORKERS {
        let (ids, next, database) = (Arc::clone(&ids), Arc::clone(&next), world.database.clone());
        let (mut claim, mut commit) = (claim.clone(), commit.clone());
        workers.spawn(async move {
            while let Some(id) = ids.get(next.fetch_add(1, Ordering::Relaxed)) {
                for command in [&mut claim, &mut commit] {
                    command.get_document_mut("query")?.insert("_id", *id);
                    let reply = database.run_command(command.clone()).await?;
                    anyhow::ensure!(reply.get("value") != Some(&Bson::Null), "nothing was modified");
                }
            }
            Ok(())
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    Ok(tenants as f64 / started.elapsed().as_secs_f64())
}

/// The claim and the commit of a new tenant, as the store sends them.
async fn record_commands(world: &World) -> anyhow::Result<(Document, Document)> {
    let policy = Policy {
        backoff: Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(300) },
        resync: Duration::from_secs(600),
    };
    let seen: Arc<Mutex<Vec<Document>>> = Arc::clone(&world.commands);
    let id = ObjectId::new();
    world.tenants.insert_one(doc! { "_id": id, "slug": "recorded", "name": "Recorded" }).await?;
    // The store's own client does not show its commands whole, so the same ones are sent through one
    // that does.
    let store = Store::over(world.database.clone(), Duration::from_secs(30));
    let holder = Holder::new("bench", 1);
    let id = TenantId::from_bytes(id.bytes());
    let ttl = Duration::from_secs(30);
    let ClaimAnswer::Claimed(claim) = store.claim(id, &holder, ttl, ttl).await? else {
        anyhow::bail!("a new tenant is due");
    };
    let due = due_steps(&claim.tenant, claim.now(), &policy);
    let run = |step: &Upstream| StepRun {
        step: *step,
        outcome: match step {
            Upstream::Authentik => Outcome::ok(&format!("{:036}", 0)),
            Upstream::Stalwart | Upstream::Ocis => Outcome::Skipped(Reason::NotConfigured),
        },
        at: claim.now(),
        jitter: Jitter::NONE,
    };
    let runs: Vec<_> = due.iter().map(run).collect();
    let plan = |basis| transition(&claim.tenant, &due, &runs, basis, claim.now(), &policy, Jitter::NONE);
    let plans = CommitCandidates {
        current: plan(Basis::Current),
        superseded: plan(Basis::Superseded),
        ran: due.clone(),
        looked: Vec::new(),
    };
    let done = store.commit(&claim, &plans).await?;
    anyhow::ensure!(matches!(done, Commit::Done { .. }), "no other process holds it");
    let recorded = std::mem::take(&mut *seen.lock().expect("no thread panics holding it"));
    // Replayed commands must not be sent as retries of these.
    let bare = |mut command: Document| {
        for field in ["lsid", "txnNumber", "$db", "$clusterTime", "$readPreference"] {
            command.remove(field);
        }
        command
    };
    match <[Document; 2]>::try_from(recorded) {
        Ok([claim, commit]) => Ok((bare(claim), bare(commit))),
        Err(other) => anyhow::bail!("{} commands were recorded", other.len()),
    }
}

async fn single(rounds: usize, latency_ms: u64) -> anyhow::Result<()> {
    let world = World::new(latency_ms).await?;
    world.store().await?;
    let (controller, _) = world.controller().await?;
    let mut waits = Vec::with_capacity(rounds);
    for n in 0..rounds {
        let slug = format!("s{n}");
        let started = Instant::now();
        world.tenants.insert_one(doc! { "slug": &slug, "name": "Single" }).await?;
        loop {
            let tenant = world.tenants.find_one(doc! { "slug": &slug }).await?.unwrap_or_default();
            if tenant.get_str("status").is_ok_and(|status| status == "active") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        waits.push(started.elapsed());
    }
    waits.sort_unstable();
    let upstream = Duration::from_millis(2 * latency_ms);
    let p50 = waits[rounds / 2];
    println!("single: {rounds} tenants one after the other, upstream latency {latency_ms} ms");
    println!("  creation to active             p50 {p50:.1?}, max {:.1?}", waits[rounds - 1]);
    println!(
        "  upstream time (two requests)   {upstream:.1?}; p50 is {:.2} times that",
        p50.as_secs_f64() / upstream.as_secs_f64()
    );
    world.stop(controller).await
}

async fn memory(fleets: &[usize]) -> anyhow::Result<()> {
    let world = World::new(0).await?;
    world.store().await?;
    let (controller, _) = world.controller().await?;
    let mut sample = world.tenants.find_one(doc! { "slug": "warm" }).await?.unwrap_or_default();
    end(controller).await?;
    println!("memory: resident memory of an idle controller");
    let tomorrow = DateTime::from_millis(DateTime::now().timestamp_millis() + 86_400_000);
    sample.insert("nextReconcileAt", tomorrow);
    let mut stored = 0;
    let mut readings = Vec::new();
    for fleet in fleets {
        while stored < *fleet {
            let batch = (stored..(*fleet).min(stored + 5_000)).map(|n| {
                let mut tenant = sample.clone();
                let slug = format!("m{n}");
                tenant.insert("_id", ObjectId::new());
                tenant.insert("slug", &slug);
                if let Ok(handled) = tenant.get_document_mut("lastHandledDesired") {
                    handled.insert("slug", slug);
                }
                tenant
            });
            let batch: Vec<Document> = batch.collect();
            stored += batch.len();
            world.tenants.insert_many(batch).await?;
        }
        world.tenants.delete_one(doc! { "slug": "warm" }).await?;
        world.authentik.faults.forget_requests();
        world.authentik.delete_named("tenant-warm");
        let (child, telemetry) = world.controller().await?;
        // Ten due scans, and a few scrapes with the census that they take.
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(5)).await;
            scrape(&telemetry).await?;
        }
        let text = scrape(&telemetry).await?;
        let mib = reading(&text, "process_resident_memory_bytes") / f64::from(1 << 20);
        println!(
            "  {fleet:7} converged tenants   {mib:6.1} MiB   ({} requests to the upstream, all by the one new tenant)",
            world.authentik.faults.total()
        );
        readings.push(mib);
        end(child).await?;
    }
    if let [first, .., last] = readings[..] {
        println!("  the largest fleet takes {:.2} times what the smallest does", last / first);
    }
    world.mongod.stop().await;
    Ok(())
}

async fn scrape(telemetry: &str) -> anyhow::Result<String> {
    Ok(reqwest::get(format!("http://{telemetry}/metrics")).await?.text().await?)
}

/// A metric's value; of a labelled one, that of the first line, which is Authentik's successes.
fn reading(metrics: &str, name: &str) -> f64 {
    let line = metrics
        .lines()
        .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.unwrap_or(f64::NAN)
}
