//! What always holds: the design's ten invariants, each as far as one controller and Authentik reach.
//! (The fourth, and more of the first and sixth, are in `lease`; the kills of real processes in
//! `crash`; the eighth also in the queue's own tests.)

use std::time::{Duration, Instant};

use jiff::Timestamp;
use mongodb::bson::{DateTime, doc, oid::ObjectId};
use serde_json::json;
use tenantry::dev::authentik::Release;
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::integration::{Mode, Target};
use tenantry::metrics::Metrics;
use tenantry::store::WorkEvent;
use tenantry::tenant::{Desired, MayAdopt, Services, TenantId, Upstream};

use crate::support::{self, World, converge, date, eventually, holds_for, settings};

fn writes(method: &str) -> Fault {
    Fault { method: Some(method.into()), times: Some(1), ..Fault::default() }
}

fn outage() -> Fault {
    let answer = FaultAnswer::Status { status: 503, body: "{}".into(), retry_after: None };
    Fault { answer, ..Fault::default() }
}

/// 1. Nothing is lost.
#[tokio::test]
async fn what_was_written_while_no_controller_ran_is_acted_on_at_start() {
    let world = World::new().await;
    world.insert("acme").await;
    world.insert("globex").await;
    let controller = world.controller().await;
    world.active("acme").await;
    world.active("globex").await;
    controller.stop().await;

    world.set("acme", doc! { "name": "Acme, renamed by a shell" }).await;
    world.set("globex", doc! { "reconcileRequestedAt": DateTime::now() }).await;
    world.authentik.delete_named("tenant-globex");
    world.insert("initech").await;
    let controller = world.controller().await;
    world.active("initech").await;
    eventually("the new name arrives", async || {
        world.group("tenant-acme")["attributes"]["tenantry_name"] == "Acme, renamed by a shell"
    })
    .await;
    eventually("the request is acted on", async || world.groups_named("tenant-globex").len() == 1).await;
    controller.stop().await;
}

/// 1. Nothing is lost.
#[tokio::test]
async fn a_tenant_whose_controller_died_in_the_middle_is_taken_over_after_the_lease() {
    let world = World::new().await;
    world.authentik.faults.add(Fault { answer: FaultAnswer::Hang, ..Fault::default() });
    world.insert("acme").await;
    let controller = world.controller().await;
    eventually("it is being reconciled", async || world.authentik.faults.total() > 0).await;
    controller.kill().await;
    world.authentik.faults.clear();
    let controller = world.controller().await;
    world.active("acme").await;
    assert_eq!(world.authentik.count(), 1);
    controller.stop().await;
}

/// 2. Nothing is made twice.
#[tokio::test]
async fn a_create_that_was_applied_but_not_answered_is_found_and_not_repeated() {
    for (name, answer) in [
        ("405", FaultAnswer::Empty405),
        ("drop", FaultAnswer::Drop),
        ("hang", FaultAnswer::Hang),
        ("502", FaultAnswer::Status { status: 502, body: String::new(), retry_after: None }),
    ] {
        let world = World::new().await;
        world.authentik.faults.add(Fault { apply: true, answer, ..writes("POST") });
        world.insert("acme").await;
        let controller = world.controller().await;
        world.active("acme").await;
        controller.stop().await;
        let posts = world.authentik.faults.requests();
        let posts = posts.iter().filter(|request| request.starts_with("POST")).count();
        assert_eq!(posts, 1, "{name}: looking was enough");
        world.group("tenant-acme");
    }
}

/// 2. Nothing is made twice.
#[tokio::test]
async fn a_create_that_failed_is_repeated_once_it_is_known_to_have_failed() {
    for answer in [FaultAnswer::Empty405, FaultAnswer::Drop] {
        let world = World::new().await;
        world.authentik.faults.add(Fault { answer, ..writes("POST") });
        world.insert("acme").await;
        let controller = world.controller().await;
        world.active("acme").await;
        controller.stop().await;
        world.group("tenant-acme");
    }
}

/// 2. Nothing is made twice.
#[tokio::test]
async fn a_create_that_is_applied_late_ends_with_one_group() {
    let world = World::new().await;
    // Longer than the client waits, so that the first try ends before the group is there.
    world.authentik.faults.add(Fault { delay_ms: 2_500, ..writes("POST") });
    world.insert("acme").await;
    let controller = world.controller().await;
    world.active("acme").await;
    eventually("the late create has been answered", async || world.authentik.count() >= 1).await;
    holds_for(Duration::from_secs(1), "there is one group", async || world.authentik.count() == 1).await;
    controller.stop().await;
}

/// 2. Nothing is made twice.
#[tokio::test]
async fn controllers_that_race_end_with_one_group_on_either_release() {
    for release in [Release::R2025_12, Release::R2025_8] {
        let world = World::with_release(release).await;
        let metrics = std::sync::Arc::new(Metrics::new());
        for round in 0..30 {
            let target = target(&format!("acme-{round}"));
            let connect = || {
                let timeout = Duration::from_secs(5);
                support::authentik(&world.authentik.url(), support::TOKEN, timeout, &metrics)
            };
            let (a, b, c) = (connect(), connect(), connect());
            // The lease makes this rare; nothing but looking makes it harmless.
            let (a, b, c) =
                tokio::join!(converge(&a, &target), converge(&b, &target), converge(&c, &target));
            let settled: Vec<_> = [a, b, c].into_iter().flatten().collect();
            assert!(!settled.is_empty(), "{release:?}: one wins");
            // Already now, before the one that lost looks again.
            let group = world.group(&format!("tenant-acme-{round}"));
            let last = converge(&connect(), &target).await.expect("by now it is settled");
            assert_eq!(group["pk"], last.external_id, "{release:?}");
        }
    }
}

fn target(slug: &str) -> Target {
    let desired = Desired {
        name: "Acme".parse().unwrap(),
        domain: None,
        storage_bytes: None,
        services: Services::default(),
        paused: false,
        adopt: None,
        deletion: None,
    };
    Target {
        id: TenantId::from_bytes(ObjectId::new().bytes()),
        slug: slug.parse().unwrap(),
        desired: desired.for_step(Upstream::Authentik),
        observed: None,
        left: None,
        recorded: None,
        settled: false,
        search: false,
        may_exist: false,
        intent: None,
        mode: Mode::Apply,
        fleet: crate::fleet::FLEET,
        known: true,
        may_adopt: MayAdopt::default(),
        adopted: Vec::new(),
        given_quota: None,
    }
}

/// 3. Nothing is hijacked.
#[tokio::test]
async fn a_group_of_another_tenant_is_left_alone_and_the_step_says_conflict() {
    let world = World::new().await;
    let other = ObjectId::new().to_hex();
    world.authentik.plant("tenant-acme", json!({ "tenantry_id": other, "keep": 1 }), &[]);
    let before = world.group("tenant-acme");
    world.insert("acme").await;
    let controller = world.controller().await;
    let step = world.step_becomes("acme", "error").await;
    assert_eq!(step.get_str("reason").unwrap(), "Conflict");
    assert!(step.get_str("message").unwrap().contains(&other), "{step}");
    assert_eq!(world.group("tenant-acme"), before);
    assert!(!world.is_active("acme").await);
    controller.stop().await;
}

/// 3. Nothing is hijacked.
#[tokio::test]
async fn a_group_that_is_adopted_is_marked_and_foreign_attributes_stay_as_they_are() {
    let world = World::new().await;
    let foreign =
        json!({ "ratio": 1.0, "big": 18446744073709551615u64, "list": [1, "a"], "b": { "c": null } });
    world.authentik.plant("tenant-acme", foreign.clone(), &[1, 2]);
    world.authentik.plant("tenant-acme-2", json!({}), &[]);
    let id = world.insert("acme").await;
    world.set("acme", doc! { "adopt": true }).await;
    let controller = world.controller().await;
    world.active("acme").await;
    controller.stop().await;
    let group = world.group("tenant-acme");
    let attributes = &group["attributes"];
    assert_eq!(attributes["tenantry_id"], id.to_hex());
    assert_eq!(attributes["tenantry_slug"], "acme");
    for (key, value) in foreign.as_object().unwrap() {
        assert_eq!(&attributes[key], value);
    }
    assert_eq!(group["users"], json!([1, 2]), "members stay");
    assert_eq!(world.group("tenant-acme-2")["attributes"], json!({}), "a longer name is another");
}

/// 5. Steps are independent.
#[tokio::test]
async fn a_step_that_hangs_does_not_keep_the_others_from_being_recorded() {
    let world = World::new().await;
    world.authentik.faults.add(Fault { answer: FaultAnswer::Hang, ..Fault::default() });
    world.insert("acme").await;
    let metrics = std::sync::Arc::new(Metrics::new());
    let patient = world.integrations_with(&metrics, Duration::from_secs(60));
    let controller = support::Running::start(world.store.clone(), patient, metrics, settings()).await;
    eventually("the other steps are recorded while it hangs", async || {
        let tenant = world.find("acme").await;
        let states = tenant.get_document("provisioningStatus").cloned().unwrap_or_default();
        states == doc! { "authentik": "pending", "stalwart": "skipped", "ocis": "skipped" }
    })
    .await;
    assert!(world.find("acme").await.get_document("lease").unwrap().contains_key("holder"));
    // And the lease is renewed for as long as it takes: no other process takes the tenant.
    let ttl = settings().lease_ttl;
    let id = TenantId::from_bytes(world.find("acme").await.get_object_id("_id").unwrap().bytes());
    let thief = tenantry::store::Holder::new("thief", 2);
    holds_for(ttl * 2, "no other process can claim it", async || {
        let answer = world.store.claim(id, &thief, ttl, ttl).await.unwrap();
        matches!(answer, tenantry::store::ClaimAnswer::NotDue)
    })
    .await;
    controller.stop().await;
}

/// 5. Steps are independent.
#[tokio::test]
async fn a_failing_step_is_retried_without_repeating_the_settled_ones() {
    let world = World::new().await;
    world.authentik.faults.add(garbled());
    world.insert("acme").await;
    let controller = world.controller().await;
    world.step_becomes("acme", "error").await;
    let settled = async || {
        let tenant = world.find("acme").await;
        let steps = tenant.get_document("steps").unwrap();
        // Spread anew by every run.
        date(steps.get_document("stalwart").unwrap(), "nextAttemptAt")
    };
    let first = settled().await;
    eventually("it is retried a few times", async || {
        world.step("acme").await.get_i64("attempts").unwrap_or(0) >= 4
    })
    .await;
    assert_eq!(settled().await, first);
    controller.stop().await;
}

/// 6. Status does not lie.
#[tokio::test]
async fn an_active_tenant_stays_active_while_a_repair_fails_and_ready_says_so() {
    let world = World::new().await;
    world.insert("acme").await;
    let controller = world.controller().await;
    world.active("acme").await;
    world.authentik.faults.add(outage());
    let slug = "acme".parse().unwrap();
    world.store.request_reconcile(&slug).await.unwrap();
    world.step_becomes("acme", "error").await;
    let tenant = world.find("acme").await;
    assert_eq!(tenant.get_str("status").unwrap(), "active");
    let ready = tenant.get_array("conditions").unwrap()[0].as_document().unwrap().clone();
    assert_eq!(ready.get_str("status").unwrap(), "False");
    assert_eq!(ready.get_str("reason").unwrap(), "UpstreamError");
    let errors = tenant.get_document("provisioningErrors").unwrap();
    assert!(errors.get_str("authentik").unwrap().contains("503"), "{errors}");
    world.authentik.faults.clear();
    world.step_becomes("acme", "ok").await;
    let tenant = world.find("acme").await;
    assert_eq!(tenant.get_document("provisioningErrors").unwrap(), &doc! {});
    controller.stop().await;
}

/// 6. Status does not lie.
#[tokio::test]
async fn a_change_while_a_step_runs_ends_in_the_last_state() {
    let world = World::new().await;
    world.authentik.faults.add(Fault { delay_ms: 300, ..writes("POST") });
    world.insert("acme").await;
    let controller = world.controller().await;
    eventually("the create is under way", async || {
        world.authentik.faults.requests().iter().any(|request| request.starts_with("POST"))
    })
    .await;
    world.set("acme", doc! { "name": "Changed meanwhile" }).await;
    world.active("acme").await;
    let group = world.group("tenant-acme");
    assert_eq!(group["attributes"]["tenantry_name"], "Changed meanwhile", "active means this name");
    controller.stop().await;
}

/// 7. Quiet when converged.
#[tokio::test]
async fn the_controllers_own_writes_produce_no_event() {
    let world = World::new().await;
    let mut watch = world.store.watch(None).await.expect("a stream can be opened");
    let controller = world.controller().await;
    // As small as documents get: the server records their growth as a replacement.
    let id = ObjectId::new();
    world.tenants.insert_one(doc! { "_id": id, "slug": "a", "name": "A" }).await.unwrap();
    world.active("a").await;
    world.authentik.faults.add(outage());
    world.store.request_reconcile(&"a".parse().unwrap()).await.unwrap();
    world.step_becomes("a", "error").await;
    world.authentik.faults.clear();
    world.step_becomes("a", "ok").await;
    controller.stop().await;
    // A last foreign change marks the end of what to read.
    world.set("a", doc! { "name": "End" }).await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(watch.next().await.expect("the stream is open"));
    }
    // Were there more, they would stand before the last one.
    assert_eq!(seen.len(), 3, "insert, request, rename: {seen:?}");
    assert!(seen.iter().all(|change| matches!(change, WorkEvent::Tenant { .. })));
    watch.close().await;
}

/// 8. Everything is bounded.
#[tokio::test]
async fn an_answer_without_end_is_cut_off_and_the_step_says_so() {
    let world = World::new().await;
    let body = "x".repeat(9 << 20);
    let answer = FaultAnswer::Status { status: 200, body, retry_after: None };
    world.authentik.faults.add(Fault { answer, ..Fault::default() });
    world.insert("acme").await;
    let controller = world.controller().await;
    let step = world.step_becomes("acme", "error").await;
    assert!(step.get_str("message").unwrap().contains("longer than"), "{step}");
    controller.stop().await;
}

/// 9. Backoff is honest.
#[tokio::test]
async fn backoff_grows_survives_a_restart_and_ends_by_request() {
    let world = World::new().await;
    world.authentik.faults.add(garbled());
    world.insert("acme").await;
    let slow = |settings: &mut tenantry::controller::Settings| {
        settings.policy.backoff.initial = Duration::from_millis(100);
        settings.policy.backoff.max = Duration::from_secs(60);
    };
    let controller = world.controller_with(slow).await;
    eventually("it has failed five times", async || {
        world.step("acme").await.get_i64("attempts").unwrap_or(0) >= 5
    })
    .await;
    controller.stop().await;
    let before = world.step("acme").await;
    let next = date(&before, "nextAttemptAt");
    let wait = next.timestamp_millis() - date(&before, "lastAttemptAt").timestamp_millis();
    assert!(wait >= 800, "100 ms doubled four times, less the spread: {wait} ms");

    let asked = world.asked();
    let controller = world.controller_with(slow).await;
    let quiet_until = next.timestamp_millis() - 100 - DateTime::now().timestamp_millis();
    if let Ok(quiet) = u64::try_from(quiet_until) {
        holds_for(Duration::from_millis(quiet), "a restart does not hurry", async || {
            world.asked() == asked
        })
        .await;
    }
    // A change that is not about the step does not hurry it either.
    world.set("acme", doc! { "quota": { "storageBytes": 5_i64 } }).await;
    eventually("the change is noticed", async || {
        world.find("acme").await.get_document("lastHandledDesired").unwrap().contains_key("quota")
    })
    .await;
    let attempts = world.step("acme").await.get_i64("attempts").unwrap();
    assert!((5..=6).contains(&attempts), "{attempts}");

    world.authentik.faults.clear();
    let asked_at = Instant::now();
    world.store.request_reconcile(&"acme".parse().unwrap()).await.unwrap();
    let step = world.step_becomes("acme", "ok").await;
    assert!(asked_at.elapsed() < Duration::from_secs(2), "a person's request does not wait");
    assert_eq!(step.get_i64("attempts").unwrap(), 0);
    controller.stop().await;
}

/// 9. Backoff is honest.
#[tokio::test]
async fn an_upstreams_retry_after_is_obeyed() {
    let world = World::new().await;
    let answer = FaultAnswer::Status { status: 429, body: "{}".into(), retry_after: Some(2) };
    let query = Some("name=".to_owned());
    world.authentik.faults.add(Fault { answer, query, times: Some(1), ..Fault::default() });
    world.insert("acme").await;
    let started = Instant::now();
    let controller = world.controller().await;
    world.active("acme").await;
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
    // To wait for one's turn is no failure.
    assert_eq!(controller.reconciles("error"), 0);
    controller.stop().await;
}

/// 10. Shutdown is clean.
#[tokio::test]
async fn work_that_outlasts_the_grace_period_is_abandoned_with_its_lease_released() {
    // The first time some steps have ended, the second time only the hanging one is due.
    for retry in [false, true] {
        let world = World::new().await;
        world.insert("acme").await;
        if retry {
            world.authentik.faults.add(garbled());
            let controller = world.controller().await;
            world.step_becomes("acme", "error").await;
            controller.stop().await;
            world.authentik.faults.clear();
        }
        world.authentik.faults.add(Fault { answer: FaultAnswer::Hang, ..Fault::default() });
        let metrics = std::sync::Arc::new(Metrics::new());
        let patient = world.integrations_with(&metrics, Duration::from_secs(60));
        let grace = Duration::from_secs(2);
        let mut settings = settings();
        settings.shutdown_grace = grace;
        settings.lease_ttl = Duration::from_secs(60);
        let store = world.store.clone();
        let controller = support::Running::start(store, patient, metrics, settings).await;
        // Not by the requests to the upstream: the check at start asks too, and belongs to no reconcile.
        eventually("it is being reconciled", async || {
            let tenant = world.find("acme").await;
            tenant.get_document("lease").is_ok_and(|lease| lease.contains_key("holder"))
        })
        .await;
        let took = controller.stop().await;
        assert!(took <= grace + Duration::from_millis(500), "{took:?}");
        let tenant = world.find("acme").await;
        let lease = tenant.get_document("lease").unwrap();
        assert!(!lease.contains_key("expiresAt"), "retry {retry}: {tenant}");
        world.authentik.faults.clear();
        let controller = world.controller().await;
        world.active("acme").await;
        controller.stop().await;
    }
}

/// An answer to the search for a group that is a failure of this step, and no sign of an outage: those are
/// probed by checks, and the step would wait for them.
fn garbled() -> Fault {
    let answer = FaultAnswer::Status { status: 200, body: "no list".into(), retry_after: None };
    Fault { answer, query: Some("name=".to_owned()), ..Fault::default() }
}

/// 10. Shutdown is clean.
#[tokio::test]
async fn a_second_start_on_the_same_data_repairs_nothing() {
    let world = World::new().await;
    for n in 0..20 {
        world.insert(&format!("t{n}")).await;
    }
    let controller = world.controller().await;
    for n in 0..20 {
        world.active(&format!("t{n}")).await;
    }
    controller.stop().await;
    let all = async || {
        let found = world.tenants.find(doc! {}).sort(doc! { "_id": 1 }).await.unwrap();
        futures_util::TryStreamExt::try_collect::<Vec<_>>(found).await.unwrap()
    };
    let before = all().await;
    let requests = world.asked();
    let controller = world.controller().await;
    holds_for(Duration::from_secs(1), "nothing is asked of Authentik", async || {
        world.asked() == requests
    })
    .await;
    controller.stop().await;
    assert_eq!(all().await, before);
}

#[tokio::test]
async fn drift_is_repaired_by_the_routine_re_check() {
    let world = World::new().await;
    world.insert("acme").await;
    let controller =
        world.controller_with(|settings| settings.policy.resync = Duration::from_secs(1)).await;
    world.active("acme").await;
    assert_eq!(world.authentik.delete_named("tenant-acme"), 1);
    eventually("the group comes back", async || world.groups_named("tenant-acme").len() == 1).await;
    let created = Timestamp::now();
    eventually("it goes on being checked", async || {
        let last = date(&world.step("acme").await, "lastAttemptAt").timestamp_millis();
        last > created.as_millisecond()
    })
    .await;
    controller.stop().await;
}
