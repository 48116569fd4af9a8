//! What holds a step back, and that it goes on when that is taken back, however the two meet.

use std::time::{Duration, Instant};

use mongodb::bson::doc;
use tenantry::dev::faults::{Fault, Faults};
use tenantry::store::Scope;
use tenantry::tenant::Upstream;

use crate::support::{ServerFault, eventually, holds_for};
use crate::three::Suite;

/// Longer than it takes to learn of a start, and to act on it.
const SLOW: Duration = Duration::from_millis(1_500);

/// The next request of this kind is slow.
fn slow(faults: &Faults, method: &str, path: &str) {
    faults.add(Fault {
        method: Some(method.into()),
        path: Some(path.into()),
        times: Some(1),
        delay_ms: u64::try_from(SLOW.as_millis()).unwrap(),
        ..Fault::default()
    });
}

const GROUPS: &str = "/api/v3/core/groups";
const SPACES: &str = "/graph/v1.0/drives";

impl Suite {
    /// Waits until such a request has been made since the requests were last forgotten.
    async fn is_asked(&self, faults: &Faults, path: &str) {
        eventually(&format!("{path} is asked for"), async || {
            faults.requests().iter().any(|request| request.contains(path))
        })
        .await;
    }

    async fn made(&self) -> [usize; 3] {
        [self.world.authentik.count(), self.stalwart.count(), self.files.server.count()]
    }

    async fn reason_of(&self, slug: &str, step: &str) -> String {
        let step = self.world.step_of(slug, step).await;
        step.get_str("reason").unwrap_or_default().to_owned()
    }
}

#[tokio::test]
async fn a_start_during_a_reconcile_that_began_under_the_stop_leaves_nothing_held() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    suite.world.store.stop(Scope::Everything).await.unwrap();
    controller.controls.clone().wait_for(|controls| controls.stopped).await.unwrap();
    suite.world.authentik.delete_named("tenant-acme");
    suite.forget_requests();
    slow(&suite.world.authentik.faults, "GET", GROUPS);
    suite.world.store.request_reconcile(&"acme".parse().unwrap()).await.unwrap();
    suite.is_asked(&suite.world.authentik.faults, GROUPS).await;
    // What it looks at is held back by the stop, and not recorded as such yet.
    suite.world.store.start(Scope::Everything).await.unwrap();
    controller.controls.clone().wait_for(|controls| !controls.stopped).await.unwrap();
    suite.settled("acme").await;
    suite.audit("acme").await;
    assert_eq!(suite.world.authentik.count(), 1);
    controller.stop().await;
}

#[tokio::test]
async fn a_start_during_the_commit_of_a_hold_leaves_nothing_held() {
    let suite = Suite::new().await;
    let controller = suite.controller(|settings| settings.lease_ttl = Duration::from_secs(30)).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    suite.world.store.stop(Scope::Everything).await.unwrap();
    controller.controls.clone().wait_for(|controls| controls.stopped).await.unwrap();
    suite.world.authentik.delete_named("tenant-acme");
    suite.forget_requests();
    suite.world.authentik.faults.add(Fault { times: Some(1), delay_ms: 500, ..Fault::default() });
    suite.world.store.request_reconcile(&"acme".parse().unwrap()).await.unwrap();
    suite.is_asked(&suite.world.authentik.faults, GROUPS).await;
    // It is claimed, and the next such command is the commit.
    let commit = ["findAndModify"];
    let fault = ServerFault::delaying(&suite.world, "tenants", &commit, SLOW, Some(1)).await;
    let Some(fault) = fault else { return };
    eventually("its last step has ended", async || {
        let held =
            controller.metrics.step_seconds.of((Upstream::Authentik, tenantry::metrics::StepEnd::Held));
        held.get_sample_count() > 0
    })
    .await;
    suite.world.store.start(Scope::Everything).await.unwrap();
    controller.controls.clone().wait_for(|controls| !controls.stopped).await.unwrap();
    suite.settled("acme").await;
    suite.audit("acme").await;
    fault.off().await;
    controller.stop().await;
}

#[tokio::test]
async fn a_resume_during_a_reconcile_that_saw_the_pause_leaves_nothing_held() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    let slug = "acme".parse().unwrap();
    suite.create("acme").await;
    suite.settled("acme").await;
    suite.world.store.set_paused(&slug, true).await.unwrap().unwrap();
    suite.settled("acme").await;
    suite.world.authentik.delete_named("tenant-acme");
    suite.forget_requests();
    slow(&suite.world.authentik.faults, "GET", GROUPS);
    suite.world.store.request_reconcile(&slug).await.unwrap();
    suite.is_asked(&suite.world.authentik.faults, GROUPS).await;
    suite.world.store.set_paused(&slug, false).await.unwrap().unwrap();
    suite.settled("acme").await;
    suite.audit("acme").await;
    controller.stop().await;
}

#[tokio::test]
async fn a_guard_that_is_lifted_during_a_reconcile_leaves_nothing_held() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    assert!(suite.world.store.trip_guard(Upstream::Authentik, "for a test").await.unwrap());
    let mut controls = controller.controls.clone();
    controls.wait_for(|controls| controls.guards[Upstream::Authentik].is_tripped()).await.unwrap();
    suite.world.authentik.delete_named("tenant-acme");
    suite.forget_requests();
    slow(&suite.world.authentik.faults, "GET", GROUPS);
    suite.world.store.request_reconcile(&"acme".parse().unwrap()).await.unwrap();
    suite.is_asked(&suite.world.authentik.faults, GROUPS).await;
    let hour = Duration::from_secs(3600);
    assert!(suite.world.store.lift_guard(Upstream::Authentik, hour).await.unwrap());
    eventually("it is repaired", async || suite.world.authentik.count() == 1).await;
    suite.settled("acme").await;
    suite.audit("acme").await;
    controller.stop().await;
}

#[tokio::test]
async fn an_upstream_that_recovers_during_a_reconcile_leaves_nothing_parked() {
    let mut suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("first").await;
    suite.settled("first").await;
    suite.world.authentik.server.stop().await;
    // Until it is taken to be down.
    for n in 0..5 {
        suite.create(&format!("t{n}")).await;
    }
    eventually("one waits for it", async || {
        let parked = doc! { "steps.authentik.parked": true };
        suite.world.tenants.count_documents(parked).await.unwrap() > 0
    })
    .await;
    suite.forget_requests();
    // Its step in Authentik waits at once, and the reconcile lasts until after the recovery.
    suite.files.server.faults.add(Fault {
        method: Some("POST".into()),
        path: Some(SPACES.into()),
        times: Some(1),
        delay_ms: 1_900,
        ..Fault::default()
    });
    suite.create("acme").await;
    eventually("its space is being made", async || {
        let requests = suite.files.server.faults.requests();
        requests.iter().any(|request| request.starts_with("POST") && request.contains(SPACES))
    })
    .await;
    suite.world.authentik.server.restart().await.unwrap();
    for slug in ["t0", "t1", "t2", "t3", "t4", "acme"] {
        suite.settled(slug).await;
        suite.audit(slug).await;
    }
    controller.stop().await;
}

#[tokio::test]
async fn nothing_is_done_until_the_stops_have_been_read() {
    let suite = Suite::new().await;
    suite.world.store.stop(Scope::Everything).await.unwrap();
    suite.create("acme").await;
    let reads = ["find", "aggregate"];
    let fault = ServerFault::on(&suite.world, "tenantry_controls", &reads, 96, None).await;
    let Some(fault) = fault else { return };
    let controller = suite.controller(|_| {}).await;
    holds_for(Duration::from_secs(1), "nothing is made", async || suite.made().await == [0, 0, 0]).await;
    fault.off().await;
    for step in ["authentik", "stalwart", "ocis"] {
        eventually(&format!("{step} says why"), async || {
            suite.reason_of("acme", step).await == "Stopped"
        })
        .await;
    }
    assert_eq!(suite.made().await, [0, 0, 0]);
    suite.world.store.start(Scope::Everything).await.unwrap();
    suite.settled("acme").await;
    suite.audit("acme").await;
    controller.stop().await;
}

#[tokio::test]
async fn a_process_that_waits_for_the_stops_ends_when_it_is_asked_to() {
    let suite = Suite::new().await;
    suite.create("acme").await;
    let reads = ["find", "aggregate"];
    let fault = ServerFault::on(&suite.world, "tenantry_controls", &reads, 96, None).await;
    let Some(fault) = fault else { return };
    let controller = suite.controller(|_| {}).await;
    let took = controller.stop().await;
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(suite.made().await, [0, 0, 0]);
    fault.off().await;
}

#[tokio::test]
async fn a_stop_is_known_within_a_second_however_often_its_stream_was_interrupted_before() {
    const INTERRUPTED: i32 = 11601;
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    let mut controls = controller.controls.clone();
    let store = &suite.world.store;
    let ocis = Scope::Upstream(Upstream::Ocis);
    for round in 0..7 {
        let fault =
            ServerFault::on(&suite.world, "tenantry_controls", &["getMore"], INTERRUPTED, Some(1)).await;
        let Some(fault) = fault else { return };
        // The first change ends the wait that is under way, and the next wait fails.
        store.stop(ocis).await.unwrap();
        controls.wait_for(|controls| controls.is_stopped(Upstream::Ocis)).await.unwrap();
        fault.off().await;
        let asked = Instant::now();
        store.start(ocis).await.unwrap();
        controls.wait_for(|controls| !controls.is_stopped(Upstream::Ocis)).await.unwrap();
        // A second, and two for a busy machine; a delay that only grew would be past that by now.
        assert!(asked.elapsed() < Duration::from_secs(3), "round {round}: {:?}", asked.elapsed());
    }
    controller.stop().await;
}
