//! Upstreams that are down, slow, or ask for a pause: what that costs, and whom it holds up.

use std::time::{Duration, Instant};

use mongodb::bson::doc;
use tenantry::dev::faults::{Fault, FaultAnswer};

use crate::support::{eventually, holds_for};
use crate::three::Suite;

fn many(tenants: usize, prefix: &str) -> Vec<mongodb::bson::Document> {
    let documents = (0..tenants).map(|n| {
        doc! {
            "slug": format!("{prefix}{n}"), "name": format!("The {prefix}{n}"),
            "domain": format!("{prefix}{n}.test"), "lease": { "epoch": 0_i64 },
        }
    });
    documents.collect()
}

impl Suite {
    async fn count(&self, step: &str, state: &str) -> u64 {
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
    holds_for(Duration::from_secs(1), "nobody is claimed for it", async || {
        suite.world.commands.count("findAndModify") == 0
    })
    .await;
    assert!(controller.metrics.render().contains("tenantry_upstream_down{upstream=\"ocis\"} 1"));
    suite.files.server.server.restart().await.unwrap();
    eventually("all recover", async || suite.count("ocis", "ok").await == TENANTS as u64 + 1).await;
    assert_eq!(suite.files.server.enabled(), TENANTS + 1, "one each");
    controller.stop().await;
}

#[tokio::test]
async fn a_pause_that_an_upstream_asks_for_is_kept_by_all_its_tenants() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("first").await;
    suite.settled("first").await;
    let answer = FaultAnswer::Status { status: 429, body: String::new(), retry_after: Some(2) };
    suite.stalwart.faults.add(Fault { times: Some(1), answer, ..Fault::default() });
    let asked = Instant::now();
    suite.create("acme").await;
    eventually("it is asked for", async || suite.count("stalwart", "error").await == 1).await;
    suite.stalwart.faults.forget_requests();
    suite.world.tenants.insert_many(many(20, "t")).await.unwrap();
    eventually("the others go on", async || suite.count("authentik", "ok").await == 22).await;
    if asked.elapsed() < Duration::from_millis(1_800) {
        assert_eq!(suite.stalwart.faults.total(), 0, "{:?}", suite.stalwart.faults.requests());
    }
    eventually("all are done", async || suite.count("stalwart", "ok").await == 22).await;
    assert!(asked.elapsed() >= Duration::from_secs(2));
    controller.stop().await;
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
