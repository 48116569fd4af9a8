//! Upstreams that are down, slow, or ask for a pause: what that costs, and whom it holds up.

use std::time::{Duration, Instant};

use mongodb::bson::doc;
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::tenant::Upstream;

use crate::support::{eventually, holds_for};
use crate::three::{KEY, Suite};

pub fn many(tenants: usize, prefix: &str) -> Vec<mongodb::bson::Document> {
    let documents = (0..tenants).map(|n| {
        doc! {
            "slug": format!("{prefix}{n}"), "name": format!("The {prefix}{n}"),
            "domain": format!("{prefix}{n}.test"), "lease": { "epoch": 0_i64 },
        }
    });
    documents.collect()
}

impl Suite {
    pub async fn count(&self, step: &str, state: &str) -> u64 {
        let field = format!("provisioningStatus.{step}");
        self.world.tenants.count_documents(doc! { field: state }).await.unwrap()
    }
}

#[tokio::test]
async fn an_upstream_that_is_down_costs_one_commit_a_tenant_and_a_few_probes_and_recovers_by_itself() {
    const TENANTS: usize = 200;
    let mut suite = Suite::new().await;
    let controller = suite.controller(|settings| settings.workers = 8).await;
    suite.create("first").await;
    suite.settled("first").await;
    suite.files.server.server.stop().await;
    suite.world.tenants.insert_many(many(TENANTS, "t")).await.unwrap();
    for step in ["authentik", "stalwart"] {
        eventually(&format!("{step} is done for all"), async || {
            suite.count(step, "ok").await == TENANTS as u64 + 1
        })
        .await;
    }
    eventually("ocis shows why", async || suite.count("ocis", "error").await == TENANTS as u64).await;
    // A tenant or two met the outage itself, several times; all others wait for its end.
    let parked = suite.world.tenants.count_documents(doc! { "steps.ocis.parked": true }).await.unwrap();
    assert!(parked > TENANTS as u64 - 20, "{parked} wait");
    eventually("all wait", async || {
        let parked = suite.world.tenants.count_documents(doc! { "steps.ocis.parked": true }).await;
        parked.unwrap() == TENANTS as u64
    })
    .await;
    let step = suite.world.step_of("t100", "ocis").await;
    assert_eq!(step.get_str("reason").unwrap(), "Unreachable", "{step}");
    suite.world.commands.take();
    holds_for(Duration::from_secs(1), "no tenant is claimed for it", async || {
        suite.world.commands.count("findAndModify") == 0
    })
    .await;
    assert!(controller.metrics.render().contains("tenantry_upstream_down{upstream=\"ocis\"} 1"));
    suite.files.server.server.restart().await.unwrap();
    eventually("all recover", async || suite.count("ocis", "ok").await == TENANTS as u64 + 1).await;
    assert_eq!(suite.files.server.enabled(), TENANTS + 1, "one each");
    controller.stop().await;
}

fn asks_for_a_pause(status: u16, seconds: u64, times: Option<u32>) -> Fault {
    let answer = FaultAnswer::Status { status, body: String::new(), retry_after: Some(seconds) };
    Fault { times, answer, ..Fault::default() }
}

#[tokio::test]
async fn a_pause_that_an_upstream_asks_for_is_kept_by_all_its_tenants() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("first").await;
    suite.settled("first").await;
    let before = suite.stalwart.faults.total();
    suite.stalwart.faults.add(asks_for_a_pause(429, 2, Some(1)));
    let asked = Instant::now();
    suite.create("acme").await;
    eventually("it is asked for", async || suite.stalwart.faults.total() > before).await;
    suite.stalwart.faults.forget_requests();
    suite.world.tenants.insert_many(many(20, "t")).await.unwrap();
    eventually("the others go on", async || suite.count("authentik", "ok").await > 5).await;
    if asked.elapsed() < Duration::from_millis(1_800) {
        assert_eq!(suite.stalwart.faults.total(), 0, "{:?}", suite.stalwart.faults.requests());
    }
    eventually("all are done", async || suite.count("stalwart", "ok").await == 22).await;
    assert!(asked.elapsed() >= Duration::from_secs(2));
    assert_eq!(controller.reconciles("error"), 0);
    controller.stop().await;
}

#[tokio::test]
async fn pauses_that_an_upstream_asks_for_fail_no_tenant_and_claim_none_twice() {
    const TENANTS: usize = 400;
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("first").await;
    suite.settled("first").await;
    for (status, times) in [(429, 2), (503, 1)] {
        suite.stalwart.faults.add(asks_for_a_pause(status, 1, Some(times)));
    }
    suite.world.tenants.insert_many(many(TENANTS, "t")).await.unwrap();
    eventually("all are done", async || suite.count("stalwart", "ok").await == TENANTS as u64 + 1).await;
    assert_eq!(controller.reconciles("error"), 0);
    assert!(controller.metrics.render().contains("tenantry_upstream_down{upstream=\"stalwart\"} 0"));
    controller.stop().await;
}

#[tokio::test]
async fn a_long_pause_keeps_steps_waiting_their_turn_and_nothing_else() {
    const TENANTS: u64 = 100;
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("first").await;
    suite.settled("first").await;
    suite.stalwart.faults.add(asks_for_a_pause(429, 86_400, None));
    suite.world.tenants.insert_many(many(TENANTS as usize, "t")).await.unwrap();
    let paced = doc! { "steps.stalwart.reason": "RateLimited", "steps.stalwart.state": "pending" };
    eventually("all wait their turn", async || {
        suite.world.tenants.count_documents(paced.clone()).await.unwrap() == TENANTS
    })
    .await;
    for other in ["authentik", "ocis"] {
        assert_eq!(suite.count(other, "ok").await, TENANTS + 1, "{other}");
    }
    assert_eq!(controller.reconciles("error"), 0);
    let step = suite.world.step_of("t7", "stalwart").await;
    assert_eq!(step.get_i32("attempts").unwrap_or_default(), 0, "{step}");
    let next = step.get_datetime("nextAttemptAt").unwrap().timestamp_millis();
    let wait = next - mongodb::bson::DateTime::now().timestamp_millis();
    assert!((800_000..=1_100_000).contains(&wait), "no longer than the longest pause: {wait} ms");
    eventually("all is committed", async || {
        let held = doc! { "lease.holder": { "$exists": true } };
        suite.world.tenants.count_documents(held).await.unwrap() == 0
    })
    .await;
    suite.world.commands.take();
    holds_for(Duration::from_secs(1), "no tenant is claimed for it", async || {
        suite.world.commands.count("findAndModify") == 0
    })
    .await;
    controller.stop().await;
}

#[tokio::test]
async fn a_list_that_is_refused_is_an_outage_as_any_other_request() {
    const TENANTS: u64 = 60;
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("first").await;
    suite.settled("first").await;
    let answer = FaultAnswer::Status { status: 503, body: String::new(), retry_after: None };
    suite.files.server.faults.add(Fault { answer, ..Fault::default() });
    // Of these nothing is known, so that the list is looked into.
    for n in 0..TENANTS {
        suite.world.insert(&format!("t{n}")).await;
    }
    eventually("all wait", async || {
        let parked = suite.world.tenants.count_documents(doc! { "steps.ocis.parked": true }).await;
        parked.unwrap() == TENANTS
    })
    .await;
    assert!(controller.metrics.render().contains("tenantry_upstream_down{upstream=\"ocis\"} 1"));
    let before = suite.files.server.faults.total();
    holds_for(Duration::from_secs(2), "it is left in peace", async || {
        suite.files.server.faults.total() - before <= 4
    })
    .await;
    suite.files.server.faults.clear();
    eventually("all recover", async || suite.count("ocis", "ok").await == TENANTS + 1).await;
    controller.stop().await;
}

#[tokio::test]
async fn an_outage_ends_although_a_permission_is_missing() {
    const TENANTS: u64 = 20;
    let mut suite = Suite::new().await;
    let domains = ["Get", "Query", "Create", "Update", "Destroy"].map(|verb| format!("sysDomain{verb}"));
    let domains = domains.iter().map(String::as_str);
    let permissions: Vec<_> = ["authenticate", "unlimitedRequests"].into_iter().chain(domains).collect();
    suite.stalwart.add_key(KEY, &permissions);
    let controller = suite.controller(|_| {}).await;
    suite.create("first").await;
    suite.settled("first").await;
    suite.stalwart.server.stop().await;
    suite.world.tenants.insert_many(many(TENANTS as usize, "t")).await.unwrap();
    eventually("all wait", async || {
        let parked = doc! { "steps.stalwart.parked": true };
        suite.world.tenants.count_documents(parked).await.unwrap() == TENANTS
    })
    .await;
    suite.stalwart.server.restart().await.unwrap();
    eventually("all recover", async || suite.count("stalwart", "ok").await == TENANTS + 1).await;
    let lacks = "tenantry_integration_missing_permissions{upstream=\"stalwart\"} 2";
    assert!(controller.metrics.render().contains(lacks), "it still lacks them");
    controller.stop().await;
}

#[tokio::test]
async fn recovery_goes_on_until_nothing_waits_though_another_process_does_the_same() {
    const TENANTS: usize = 300;
    let world = crate::support::World::new().await;
    let other = world.other_store().await;
    let waiting = (0..TENANTS).map(|n| {
        doc! { "slug": format!("t{n}"), "name": "x", "steps": { "ocis": { "parked": true } } }
    });
    world.tenants.insert_many(waiting).await.unwrap();
    let parked = doc! { "steps.ocis.parked": true };
    let recover = async |store: &tenantry::store::Store| {
        while store.unpark(Upstream::Ocis, 10).await.unwrap().found > 0 {}
        assert_eq!(world.tenants.count_documents(parked.clone()).await.unwrap(), 0);
    };
    tokio::join!(recover(&world.store), recover(&other));
}

#[tokio::test]
async fn a_file_server_that_boots_is_waited_for_and_not_called_broken() {
    let suite = Suite::new().await;
    let answer = FaultAnswer::Status { status: 500, body: String::new(), retry_after: None };
    suite.files.server.faults.add(Fault { answer, ..Fault::default() });
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    let down = "tenantry_upstream_down{upstream=\"ocis\"} 1";
    eventually("it is down", async || controller.metrics.render().contains(down)).await;
    let well = "tenantry_integration_healthy{upstream=\"ocis\"} 1";
    holds_for(Duration::from_secs(2), "that is no misconfiguration", async || {
        controller.metrics.render().contains(well)
    })
    .await;
    suite.files.server.faults.clear();
    suite.settled("acme").await;
    controller.stop().await;
}

#[tokio::test]
async fn a_storage_that_is_away_is_an_outage_that_is_told_once_and_not_taken_back_by_the_probe() {
    let suite = Suite::new().await;
    let process = suite.process(&[]);
    let well = "the upstream answers and knows us";
    suite.create("first").await;
    suite.settled("first").await;
    suite.files.server.storage_away(true);
    suite.world.tenants.insert_many(many(30, "t")).await.unwrap();
    let known = suite.world.find("first").await.get_object_id("_id").unwrap();
    suite.world.set("first", doc! { "name": "Renamed" }).await;
    process.says("taken to be down").await;
    let before = suite.files.server.faults.total();
    holds_for(Duration::from_secs(3), "it is left in peace", async || {
        suite.files.server.faults.total() - before <= 12
    })
    .await;
    suite.files.server.storage_away(false);
    eventually("all recover", async || suite.count("ocis", "ok").await == 31).await;
    assert_eq!(suite.world.find("first").await.get_object_id("_id").unwrap(), known);
    let log = process.stop().await;
    let of_ocis =
        |text: &str| log.lines().filter(|line| line.contains(text) && line.contains("ocis")).count();
    assert_eq!(of_ocis(well), 1, "{log}");
    assert!(of_ocis("taken to be down") <= 2, "{log}");
}

#[tokio::test]
async fn an_upstream_that_is_unreachable_at_start_is_told_before_a_tenant_needs_it() {
    let mut suite = Suite::new().await;
    suite.stalwart.server.stop().await;
    let process = suite.process(&[]);
    process.says("taken to be down").await;
    let metrics = format!("http://{}/metrics", process.address("telemetry").await);
    let down = |value: u8| format!("tenantry_upstream_down{{upstream=\"stalwart\"}} {value}");
    let text = async || reqwest::get(&metrics).await.unwrap().text().await.unwrap();
    assert!(text().await.contains(&down(1)), "{}", text().await);
    suite.stalwart.server.restart().await.unwrap();
    suite.create("acme").await;
    suite.settled("acme").await;
    assert!(text().await.contains(&down(0)), "{}", text().await);
    process.stop().await;
}

#[tokio::test]
async fn a_persons_request_overtakes_a_long_queue() {
    let suite = Suite::new().await;
    let controller = suite.controller(|settings| settings.workers = 4).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    for faults in [&suite.world.authentik.faults, &suite.stalwart.faults, &suite.files.server.faults] {
        faults.add(Fault { delay_ms: 50, ..Fault::default() });
    }
    suite.world.tenants.insert_many(many(1_500, "t")).await.unwrap();
    eventually("the queue is long", async || suite.count("authentik", "ok").await > 20).await;
    let asked = Instant::now();
    suite.reconcile("acme").await;
    let (took, done) = (asked.elapsed(), suite.count("authentik", "ok").await);
    assert!(done < 1_400, "{done} of 1500 were done before it, in {took:?}");
    assert!(took < Duration::from_secs(3), "it waited for {took:?}");
    controller.stop().await;
}

#[tokio::test]
async fn an_upstream_that_is_back_is_told_as_working_though_no_tenant_needs_it() {
    let suite = Suite::new().await;
    let away = FaultAnswer::Status { status: 503, body: String::new(), retry_after: None };
    suite.faults(Upstream::Authentik).add(Fault { answer: away, ..Fault::default() });
    let controller = suite.controller(|_| {}).await;
    let down = || controller.metrics.upstream_down.of(Upstream::Authentik).get();
    eventually("it is told as down", async || down() == 1).await;
    suite.faults(Upstream::Authentik).clear();
    eventually("it is told as working", async || down() == 0).await;
    controller.stop().await;
}
