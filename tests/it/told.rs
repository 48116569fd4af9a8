//! Histories: what happened is told, once, whatever becomes of the database, the process or the document.

use jiff::Timestamp;
use std::time::Duration;

use mongodb::bson::doc;
use tenantry::dev::faults::{Fault, FaultAnswer};
use tenantry::store::{ClaimAnswer, Gone, Holder};
use tenantry::tenant::{Event, EventKind, Subject, TenantId, Upstream};

use crate::support::{ServerFault, World, eventually, holds_for};
use crate::three::{STEPS, Suite};

/// Of a kind after which the driver goes on with the same server.
const TIME_LIMIT_EXCEEDED: i32 = 262;
const HISTORIES: &str = "tenantry_events";

impl Suite {
    async fn told(&self, slug: &str) -> Vec<Event> {
        let mut events = self.world.store.events(&slug.parse().unwrap(), 100).await.unwrap();
        events.reverse();
        events
    }

    /// What a new tenant's history tells, as a whole.
    async fn is_told_from_the_start(&self, slug: &str) {
        eventually(&format!("all of {slug} is told"), async || {
            let events = self.told(slug).await;
            let has = |kind| events.iter().any(|event| event.kind == kind);
            let ok = events.iter().filter(|event| event.message.ends_with("-> ok"));
            has(EventKind::Created) && has(EventKind::Active) && ok.count() == STEPS.len()
        })
        .await;
    }
}

/// Makes the answer say that the majority did not acknowledge what was applied.
async fn unacknowledged(
    world: &World,
    collection: &str,
    command: &str,
    times: i32,
) -> Option<ServerFault> {
    let what =
        doc! { "writeConcernError": { "code": 64, "errmsg": "waiting for replication timed out" } };
    ServerFault::doing(world, collection, &[command], what, Some(times)).await
}

#[tokio::test]
async fn events_wait_for_a_database_that_does_not_take_them() {
    let suite = Suite::new().await;
    let fault =
        ServerFault::on(&suite.world, HISTORIES, &["update"], TIME_LIMIT_EXCEEDED, Some(3)).await;
    let Some(fault) = fault else { return };
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    suite.is_told_from_the_start("acme").await;
    assert_eq!(controller.metrics.events_dropped.get(), 0);
    fault.off().await;
    controller.stop().await;
}

#[tokio::test]
async fn an_event_is_in_the_history_once_however_often_its_write_was_repeated() {
    let suite = Suite::new().await;
    let Some(fault) = unacknowledged(&suite.world, HISTORIES, "update", 3).await else { return };
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    suite.is_told_from_the_start("acme").await;
    // The batch is behind us once another one has been written.
    suite.reconcile("acme").await;
    eventually("the next batch is told", async || {
        suite.told("acme").await.iter().any(|event| event.kind == EventKind::ReconcileRequested)
    })
    .await;
    let events = suite.told("acme").await;
    for kind in [EventKind::Created, EventKind::Active, EventKind::ReconcileRequested] {
        assert_eq!(events.iter().filter(|event| event.kind == kind).count(), 1, "{kind}: {events:?}");
    }
    fault.off().await;
    controller.stop().await;
}

#[tokio::test]
async fn a_write_that_the_majority_did_not_acknowledge_counts_as_unknown() {
    let world = World::new().await;
    let id = TenantId::from_bytes(world.insert("acme").await.bytes());
    let (ttl, holder) = (Duration::from_secs(5), Holder::new("test", 1));
    let Some(fault) = unacknowledged(&world, "tenants", "findAndModify", 1).await else { return };
    let claimed = world.store.claim(id, &holder, ttl, ttl).await;
    assert!(claimed.is_err_and(|error| error.is_unavailable()));
    fault.off().await;
    let claimed = world.store.claim(id, &holder, ttl, ttl).await.unwrap();
    assert!(matches!(claimed, ClaimAnswer::Claimed(_)), "it is ours, and can be taken again");
    let fault = unacknowledged(&world, HISTORIES, "update", 1).await.unwrap();
    let subject = Subject::Tenant { id, slug: Some("acme".parse().unwrap()) };
    let event = (subject, Event::new(Timestamp::now(), EventKind::Created, ""));
    let written = world.store.record_events(&[event]).await;
    assert!(written.is_err_and(|error| error.is_unavailable()), "of a raw command, too");
    fault.off().await;
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_told() {
    let suite = Suite::new().await;
    let controller = suite.controller(|settings| settings.lease_ttl = Duration::from_secs(30)).await;
    suite.world.authentik.faults.add(Fault { delay_ms: 600, times: Some(1), ..Fault::default() });
    suite.forget_requests();
    suite.create("acme").await;
    eventually("it is claimed", async || suite.requests() != [0, 0, 0]).await;
    // The next such command is the commit.
    let fault = unacknowledged(&suite.world, "tenants", "findAndModify", 1).await;
    let Some(fault) = fault else { return };
    suite.settled("acme").await;
    suite.is_told_from_the_start("acme").await;
    fault.off().await;
    controller.stop().await;
}

#[tokio::test]
async fn a_process_that_is_asked_to_end_tells_all_that_it_recorded() {
    let suite = Suite::new().await;
    let process = suite.process(&[("SHUTDOWN_GRACE", "3s"), ("LEASE_TTL", "10s")]);
    process.says("watching for tenants").await;
    suite.files.server.faults.add(Fault { answer: FaultAnswer::Hang, ..Fault::default() });
    suite.create("acme").await;
    eventually("two steps are done", async || {
        suite.world.authentik.count() == 1 && suite.stalwart.count() == 1
    })
    .await;
    process.stop().await;
    for step in ["authentik", "stalwart"] {
        let recorded = suite.world.step_of("acme", step).await;
        assert_eq!(recorded.get_str("state").unwrap(), "ok", "{step} is recorded");
        let events = suite.told("acme").await;
        let told = events.iter().any(|event| {
            event.step.is_some_and(|of| of.name() == step) && event.message.ends_with("-> ok")
        });
        assert!(told, "{step} is told: {events:?}");
    }
}

#[tokio::test]
async fn what_was_recorded_before_a_crash_is_told_by_the_process_that_recorded_it() {
    let suite = Suite::new().await;
    let controller = suite.controller(|settings| settings.lease_ttl = Duration::from_secs(2)).await;
    suite.files.server.faults.add(Fault { answer: FaultAnswer::Hang, ..Fault::default() });
    suite.create("acme").await;
    eventually("progress is told", async || {
        let events = suite.told("acme").await;
        events.iter().filter(|event| event.message.ends_with("-> ok")).count() == 2
    })
    .await;
    controller.kill().await;
    suite.files.server.faults.clear();
    let controller = suite.controller(|_| {}).await;
    suite.settled("acme").await;
    suite.is_told_from_the_start("acme").await;
    controller.stop().await;
}

#[tokio::test]
async fn a_tombstone_that_is_told_again_is_told_once() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    // The document is to go, and its removal fails twice.
    let fault =
        ServerFault::on(&suite.world, "tenants", &["delete"], TIME_LIMIT_EXCEEDED, Some(2)).await;
    let Some(fault) = fault else { return };
    let policy = tenantry::tenant::DeletionPolicy::Delete;
    suite.world.store.request_deletion(&"acme".parse().unwrap(), policy).await.unwrap();
    eventually("it is gone", async || suite.world.tenants.count_documents(doc! {}).await.unwrap() == 0)
        .await;
    for kind in [EventKind::DeletionRequested, EventKind::Deleted] {
        let events = suite.told("acme").await;
        assert_eq!(events.iter().filter(|event| event.kind == kind).count(), 1, "{kind}: {events:?}");
    }
    fault.off().await;
    controller.stop().await;
}

impl Suite {
    /// Waits until the history tells such an event of a step, and returns its message.
    async fn told_of(&self, slug: &str, kind: EventKind, step: &str, said: &str) -> String {
        let mut message = String::new();
        eventually(&format!("{kind} of {step} is told of {slug}, with {said:?}"), async || {
            let events = self.told(slug).await;
            let found = events.iter().find(|event| {
                event.kind == kind
                    && event.step.is_some_and(|of| of.name() == step)
                    && event.message.contains(said)
            });
            message = found.map(|event| event.message.clone()).unwrap_or_default();
            found.is_some()
        })
        .await;
        message
    }

    async fn recorded(&self, slug: &str, step: &str) -> String {
        self.world.step_of(slug, step).await.get_str("externalId").unwrap().to_owned()
    }
}

#[tokio::test]
async fn what_is_done_to_a_resource_is_told_by_its_name_and_id() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    let names = [("authentik", "tenant-acme"), ("stalwart", "acme.test"), ("ocis", "The acme")];
    for (step, name) in names {
        let id = suite.recorded("acme", step).await;
        let created = suite.told_of("acme", EventKind::ResourceCreated, step, name).await;
        assert_eq!(created, format!("{name:?} ({id}) was created"));
    }

    // Gone, and made again: people's data may be lost.
    let lost = suite.recorded("acme", "authentik").await;
    suite.world.authentik.delete_named("tenant-acme");
    suite.reconcile("acme").await;
    let new = suite.recorded("acme", "authentik").await;
    let recreated = suite.told_of("acme", EventKind::ResourceRecreated, "authentik", &lost).await;
    assert!(recreated.contains(&new) && recreated.contains("may be lost"), "{recreated}");

    // Changed, and put back.
    let space = suite.recorded("acme", "ocis").await;
    suite.files.server.change(&space, serde_json::json!({ "quota": { "total": 7 } }));
    suite.reconcile("acme").await;
    let said = "quota from \"7\" to \"1000000000\"";
    let repaired = suite.told_of("acme", EventKind::DriftRepaired, "ocis", said).await;
    assert!(repaired.contains(&space), "{repaired}");

    // Off, and on again.
    for on in [false, true] {
        let mut edit = tenantry::store::Edit::default();
        edit.services[tenantry::tenant::Upstream::Ocis] = Some(on);
        suite.world.store.edit(&"acme".parse().unwrap(), &edit).await.unwrap();
        suite.settled("acme").await;
    }
    suite.told_of("acme", EventKind::ResourceReleased, "ocis", "marked off").await;
    suite.told_of("acme", EventKind::ResourceRestored, "ocis", &space).await;

    let ids = [
        suite.recorded("acme", "authentik").await,
        suite.recorded("acme", "stalwart").await,
        suite.recorded("acme", "ocis").await,
    ];
    let policy = tenantry::tenant::DeletionPolicy::Purge;
    suite.world.store.request_deletion(&"acme".parse().unwrap(), policy).await.unwrap();
    for ((step, name), id) in names.into_iter().zip(ids) {
        let deleted = suite.told_of("acme", EventKind::ResourceDeleted, step, name).await;
        assert_eq!(deleted, format!("{name:?} ({id}) was deleted"));
    }
    use tenantry::tenant::ActKind::{Created, Deleted, Disabled, Recreated};
    let acts = |step, act| controller.metrics.acts.of((step, act)).get();
    assert_eq!([Created, Recreated, Deleted].map(|act| acts(Upstream::Authentik, act)), [1, 1, 1]);
    assert_eq!([Disabled, Deleted].map(|act| acts(Upstream::Ocis, act)), [1, 1]);
    controller.stop().await;
}

#[tokio::test]
async fn a_domain_that_a_tenant_moves_to_is_no_recreation_and_the_former_one_is_told_to_go() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    let former = suite.recorded("acme", "stalwart").await;
    suite.world.set("acme", doc! { "domain": "moved.test" }).await;
    suite.told_of("acme", EventKind::ResourceCreated, "stalwart", "moved.test").await;
    suite.told_of("acme", EventKind::ResourceDeleted, "stalwart", &former).await;
    suite.settled("acme").await;
    let events = suite.told("acme").await;
    let wrong = [EventKind::ResourceRecreated, EventKind::DriftRepaired];
    assert!(!events.iter().any(|event| wrong.contains(&event.kind)), "{events:?}");
    controller.stop().await;
}

#[tokio::test]
async fn an_adoption_is_told_and_is_no_repair_of_drift() {
    let suite = Suite::new().await;
    suite.world.authentik.plant("tenant-acme", serde_json::json!({ "theirs": "kept" }), &[]);
    suite.stalwart.plant("acme.test", serde_json::json!({ "description": "by hand" }));
    suite.create("acme").await;
    suite.world.set("acme", doc! { "adopt": true }).await;
    let controller = suite.controller(|_| {}).await;
    suite.settled("acme").await;
    suite.told_of("acme", EventKind::ResourceAdopted, "authentik", "tenant-acme").await;
    suite.told_of("acme", EventKind::ResourceAdopted, "stalwart", "by hand").await;
    suite.told_of("acme", EventKind::ResourceCreated, "ocis", "The acme").await;
    let events = suite.told("acme").await;
    assert!(!events.iter().any(|event| event.kind == EventKind::DriftRepaired), "{events:?}");
    controller.stop().await;
}

#[tokio::test]
async fn a_second_resource_that_is_put_out_of_use_is_told_and_is_no_repair_of_the_first() {
    let suite = Suite::new().await;
    let controller = suite.controller(|_| {}).await;
    suite.create("acme").await;
    suite.settled("acme").await;
    let id = suite.world.find("acme").await.get_object_id("_id").unwrap().to_hex();
    let attributes = serde_json::json!({
        "tenantry_id": id, "tenantry_slug": "acme", "tenantry_name": "The acme",
    });
    let twin = suite.world.authentik.plant("another-name", attributes, &[]);
    // It is seen when the tenant's own is looked for by its mark.
    suite.world.authentik.delete_named("tenant-acme");
    suite.world.authentik.plant(
        "also-marked",
        serde_json::json!({ "tenantry_id": id, "tenantry_slug": "acme", "tenantry_name": "The acme" }),
        &[],
    );
    suite.reconcile("acme").await;
    let told = suite.told_of("acme", EventKind::TwinDisabled, "authentik", "second one").await;
    assert!(told.contains("was deleted"), "{told} {twin:?}");
    controller.stop().await;
}

#[tokio::test]
async fn a_document_that_comes_back_and_vanishes_again_is_noticed_again() {
    let suite = Suite::new().await;
    // No sweep finds it, in two processes.
    let (first, second) = (suite.controller(|_| {}).await, suite.controller(|_| {}).await);
    suite.create("acme").await;
    suite.settled("acme").await;
    suite.is_told_from_the_start("acme").await;
    let backup = suite.world.find("acme").await;
    for times in 1..=3 {
        suite.world.tenants.delete_one(doc! { "slug": "acme" }).await.unwrap();
        eventually(&format!("it has vanished {times} times"), async || {
            let events = suite.told("acme").await;
            events.iter().filter(|event| event.kind == EventKind::Vanished).count() == times
        })
        .await;
        let counted = async || {
            let vanished = first.metrics.vanished.get() + second.metrics.vanished.get();
            vanished == times as u64
        };
        eventually("it is counted", counted).await;
        // The other of the two may not have come to it yet.
        holds_for(Duration::from_millis(600), "it is told once", counted).await;
        suite.world.tenants.insert_one(&backup).await.unwrap();
    }
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn an_end_is_told_once_for_each_time_that_the_document_went() {
    let world = World::new().await;
    let id = TenantId::from_bytes([7; 12]);
    let subject = Subject::Tenant { id, slug: Some("acme".parse().unwrap()) };
    let note = async |kind| {
        let event = (subject.clone(), Event::new(Timestamp::now(), kind, ""));
        world.store.record_events(&[event]).await.unwrap();
    };
    let now = jiff::Timestamp::now;
    let vanished = async |at| {
        let told = world.store.vanished(&[Gone { id, at }]).await.unwrap();
        assert!(told.iter().all(|(_, slug)| slug.is_some()), "{told:?}");
        told.len()
    };
    note(EventKind::Created).await;
    let went = Some(now());
    assert_eq!([vanished(went).await, vanished(went).await, vanished(None).await], [1, 0, 0]);
    // It came back, and nothing happened to it.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let went = Some(now());
    assert_eq!([vanished(went).await, vanished(went).await, vanished(None).await], [1, 0, 0]);
    // It came back and was worked on, and a sweep found that it had gone again.
    tokio::time::sleep(Duration::from_millis(2)).await;
    note(EventKind::Active).await;
    assert_eq!([vanished(None).await, vanished(None).await], [1, 0]);
    // It was to go.
    tokio::time::sleep(Duration::from_millis(2)).await;
    note(EventKind::Deleted).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!([vanished(Some(now())).await, vanished(None).await], [0, 0]);
}
