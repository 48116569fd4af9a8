//! Which tenants the database says are due, and invalid documents.

use std::time::Duration;

use mongodb::bson::{Bson, DateTime, doc, oid::ObjectId};
use tenantry::store::Relist;
use tenantry::tenant::Urgency;

use crate::support::{World, eventually};

const RETRY: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn missing_and_past_due_times_are_due_missing_ones_first() {
    let world = World::new().await;
    let past = DateTime::from_millis(DateTime::now().timestamp_millis() - 60_000);
    let future = DateTime::from_millis(DateTime::now().timestamp_millis() + 60_000);
    let mut ids = Vec::new();
    for (slug, at) in [("past", Some(past)), ("future", Some(future)), ("missing", None)] {
        ids.push(world.insert(slug).await);
        if let Some(at) = at {
            world
                .set(slug, doc! { "nextReconcileAt": at, "lastHandledDesired": { "slug": slug } })
                .await;
        }
    }
    let scan = world.store.due(10, RETRY).await.unwrap();
    let found: Vec<_> = scan.tenants.iter().map(|due| (due.id.to_string(), due.urgency)).collect();
    let expected = [(ids[2].to_hex(), Urgency::New), (ids[0].to_hex(), Urgency::Resync)];
    assert_eq!(found, expected);
    assert!(!scan.full);
    assert!(world.store.due(1, RETRY).await.unwrap().full);
}

#[tokio::test]
async fn a_due_tenant_that_a_client_waits_for_is_told_from_others() {
    let world = World::new().await;
    world.insert("new").await;
    world.insert("waited-for").await;
    let asked = doc! { "waitedFor": true, "reconcileRequestedAt": DateTime::now() };
    world.set("waited-for", asked).await;
    let scan = world.store.due(10, RETRY).await.unwrap();
    let urgencies: Vec<_> = scan.tenants.iter().map(|due| due.urgency).collect();
    assert_eq!(urgencies, [Urgency::New, Urgency::Waited]);
}

#[tokio::test]
async fn the_due_scan_reads_only_what_is_due() {
    let world = World::new().await;
    let future = DateTime::from_millis(DateTime::now().timestamp_millis() + 3_600_000);
    let documents = (0..500).map(|n| {
        doc! { "slug": format!("t{n}"), "name": "x", "nextReconcileAt": future }
    });
    world.tenants.insert_many(documents).await.unwrap();
    world.insert("due").await;
    world.mongo.run_command(doc! { "profile": 2 }).await.unwrap();
    assert_eq!(world.store.due(100, RETRY).await.unwrap().tenants.len(), 1);
    world.mongo.run_command(doc! { "profile": 0 }).await.unwrap();
    let profile = world.mongo.collection::<mongodb::bson::Document>("system.profile");
    let scan = doc! { "command.find": "tenants", "command.sort.nextReconcileAt": 1 };
    let scan = profile.find_one(scan).await.unwrap().expect("the scan was profiled");
    assert_eq!(scan.get_i32("docsExamined").unwrap(), 1, "{scan}");
}

#[tokio::test]
async fn relisting_goes_over_ids_of_all_types_in_slices() {
    let world = World::new().await;
    let documents = (0..25_000).map(|n| {
        doc! { "slug": format!("t{n}"), "name": "x", "nextReconcileAt": DateTime::MAX }
    });
    world.tenants.insert_many(documents).await.unwrap();
    let odd = doc! { "_id": "text", "slug": "odd", "name": "x", "nextReconcileAt": DateTime::MAX };
    world.tenants.insert_one(odd).await.unwrap();
    world.commands.take();
    assert_eq!(relist(&world).await, 25_001);
    assert_eq!(world.commands.count("update"), 3, "a slice is 10 000 documents");
    let due = doc! { "nextReconcileAt": { "$lte": DateTime::now() } };
    assert_eq!(world.tenants.count_documents(due).await.unwrap(), 25_001);
}

async fn relist(world: &World) -> u64 {
    let mut progress = Relist::default();
    while !world.store.relist(&mut progress).await.expect("mongod answers") {}
    progress.marked
}

#[tokio::test]
async fn relisting_marks_what_no_event_told_and_writes_nothing_else() {
    let world = World::new().await;
    for slug in ["quiet", "renamed", "asked"] {
        world.insert(slug).await;
    }
    let controller = world.controller().await;
    for slug in ["quiet", "renamed", "asked"] {
        world.active(slug).await;
    }
    controller.stop().await;
    assert_eq!(relist(&world).await, 0);
    world.set("renamed", doc! { "name": "Something else" }).await;
    world.set("asked", doc! { "reconcileRequestedAt": DateTime::now() }).await;
    let quiet = world.find("quiet").await;
    assert_eq!(relist(&world).await, 2);
    assert_eq!(relist(&world).await, 0, "they are marked already");
    assert_eq!(world.find("quiet").await, quiet);
    assert_eq!(world.store.due(10, RETRY).await.unwrap().tenants.len(), 2);
}

#[tokio::test]
async fn a_document_that_is_invalid_is_reported_once_stops_no_other_and_heals_when_corrected() {
    let world = World::new().await;
    // As they may have been before there was a validator.
    let broken = [
        doc! { "_id": ObjectId::new(), "name": "No slug" },
        doc! { "_id": ObjectId::new(), "name": "No slug either" },
        doc! { "_id": ObjectId::new(), "slug": "wrong-name", "name": 7 },
        doc! { "_id": ObjectId::new(), "slug": "wrong-domain", "name": "x", "domain": "no domain" },
        doc! { "_id": ObjectId::new(), "slug": "wrong-quota", "name": "x", "quota": 7 },
        doc! { "_id": "text", "slug": "wrong-id", "name": "x" },
        doc! { "_id": ObjectId::new(), "slug": "wrong-due", "name": "x", "nextReconcileAt": "soon" },
    ];
    world.tenants.insert_many(&broken).bypass_document_validation(true).await.unwrap();
    let controller = world.controller().await;
    world.insert("fine").await;
    world.active("fine").await;
    world.active("wrong-due").await;
    let invalid = || controller.metrics.invalid_documents.get();
    eventually("each is reported", async || invalid() == 6).await;
    let condition = |slug: &'static str| {
        let world = &world;
        async move {
            let document = world.find(slug).await;
            let conditions = document.get_array("conditions").unwrap();
            conditions[0].as_document().unwrap().get_str("message").unwrap().to_owned()
        }
    };
    assert_eq!(condition("wrong-name").await, "name: must be a string");
    assert_eq!(condition("wrong-id").await, "_id: must be an ObjectId");

    // Looking again changes nothing and reports nothing.
    let past = DateTime::from_millis(0);
    world
        .tenants
        .update_many(doc! {}, doc! { "$set": { "nextReconcileAt": past } })
        .bypass_document_validation(true)
        .await
        .unwrap();
    eventually("all have been looked at", async || {
        let due = doc! { "nextReconcileAt": past };
        world.tenants.count_documents(due).await.unwrap() == 0
    })
    .await;
    assert_eq!(invalid(), 6);

    world.set("wrong-name", doc! { "name": "Mended" }).await;
    world.active("wrong-name").await;
    let nameless = broken[0].get("_id").cloned().unwrap_or(Bson::Null);
    world
        .tenants
        .update_one(doc! { "_id": nameless }, doc! { "$set": { "slug": "now-with-slug" } })
        .await
        .unwrap();
    world.active("now-with-slug").await;
    controller.stop().await;
}

#[tokio::test]
async fn a_document_that_was_invalid_for_a_while_is_reconciled_to_what_it_says_now() {
    let world = World::new().await;
    world.insert("acme").await;
    let controller = world.controller().await;
    world.active("acme").await;
    world.set("acme", doc! { "name": "Two\nlines" }).await;
    eventually("it is reported", async || controller.metrics.invalid_documents.get() == 1).await;
    world.set("acme", doc! { "name": "One line" }).await;
    eventually("the mended name arrives", async || {
        world.group("tenant-acme")["attributes"]["tenantry_name"] == "One line"
    })
    .await;
    controller.stop().await;
}

/// Documents that the database does not let us write to stop no other tenant.
#[tokio::test]
async fn a_validator_of_others_that_refuses_our_writes_stops_only_what_it_refuses() {
    let world = World::new().await;
    let misfit = doc! { "_id": "text", "slug": "misfit", "name": "x", "frozen": true };
    let frozen = doc! { "slug": "frozen", "name": "x", "frozen": true };
    world.tenants.insert_many([misfit, frozen]).await.unwrap();
    let refuse = doc! { "$or": [{ "frozen": { "$ne": true } }, { "lease": { "$exists": false } }] };
    let untouched =
        doc! { "$or": [{ "frozen": { "$ne": true } }, { "conditions": { "$exists": false } }] };
    world
        .mongo
        .run_command(doc! { "collMod": "tenants", "validator": { "$and": [refuse, untouched] },
        "validationLevel": "strict" })
        .await
        .unwrap();
    let poll = std::time::Duration::from_millis(100);
    let controller = world.controller_with(|settings| settings.poll_interval = poll).await;
    for n in 0..5 {
        world.insert(&format!("fine-{n}")).await;
        world.active(&format!("fine-{n}")).await;
    }
    let refused = || controller.reconciles("refused");
    eventually("the claim was refused", async || refused() >= 1).await;
    crate::support::holds_for(poll * 10, "it is left alone for a while", async || refused() <= 2).await;
    controller.stop().await;
}

/// Invariants 1 and 8: what does not fit into memory is found in the database.
#[tokio::test]
async fn edits_that_did_not_fit_into_the_queue_are_found_again() {
    const TENANTS: usize = 60;
    let world = World::new().await;
    for n in 0..TENANTS {
        world.insert(&format!("t{n}")).await;
    }
    let small = |settings: &mut tenantry::controller::Settings| {
        settings.queue_capacity = 5;
        settings.workers = 1;
    };
    let controller = world.controller_with(small).await;
    for n in 0..TENANTS {
        world.active(&format!("t{n}")).await;
    }
    let renamed = doc! { "$set": { "name": "All of them" } };
    world.tenants.update_many(doc! {}, renamed).await.unwrap();
    eventually("every edit is acted on", async || {
        let groups = world.authentik.groups();
        groups.iter().all(|group| group["attributes"]["tenantry_name"] == "All of them")
    })
    .await;
    assert!(controller.metrics.queue_overflows.get() > 0, "the queue was too small for it");
    controller.stop().await;
}
