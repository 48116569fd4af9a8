//! The cost budget, counted: commands to MongoDB and requests to Authentik.

use std::time::Duration;

use mongodb::bson::{DateTime, doc};
use tenantry::store::NewTenant;
use tenantry::tenant::{Desired, Services};

use crate::support::{DUE_SCAN, World, eventually, holds_for};

fn rarely_polling(settings: &mut tenantry::controller::Settings) {
    settings.poll_interval = Duration::from_secs(600);
}

#[tokio::test]
async fn a_creation_costs_one_insert_two_commands_and_two_requests() {
    let world = World::new().await;
    let controller = world.controller_with(rarely_polling).await;
    eventually("the first due scan is over", async || world.commands.count(DUE_SCAN) > 0).await;
    // A healthy integration has been asked something before.
    world.insert("first").await;
    world.active("first").await;
    eventually("the first is committed", async || controller.reconciles("ok") == 1).await;
    world.commands.rest().await;
    world.commands.take();
    world.authentik.faults.forget_requests();

    let desired = Desired {
        name: "Acme".parse().unwrap(),
        domain: None,
        storage_bytes: None,
        services: Services::default(),
        paused: false,
        adopt: None,
        deletion: None,
    };
    let new = NewTenant { slug: "acme".parse().unwrap(), desired };
    world.store.insert(&new).await.unwrap().expect("the slug is free");
    world.active("acme").await;
    eventually("it is committed", async || controller.reconciles("ok") == 2).await;
    assert_eq!(world.commands.of_reconciles(), ["insert", "findAndModify", "findAndModify"]);
    assert_eq!(world.authentik.faults.total(), 2, "{:?}", world.authentik.faults.requests());
    controller.stop().await;
}

#[tokio::test]
async fn a_re_check_of_a_converged_tenant_costs_two_commands_and_one_request() {
    let world = World::new().await;
    let controller = world.controller_with(rarely_polling).await;
    world.insert("acme").await;
    world.active("acme").await;
    eventually("it is committed", async || controller.reconciles("ok") == 1).await;
    world.commands.rest().await;
    world.commands.take();
    world.authentik.faults.forget_requests();
    let unset = doc! { "$unset": { "nextReconcileAt": 1 } };
    world.tenants.update_one(doc! { "slug": "acme" }, unset).await.unwrap();
    eventually("it is committed again", async || controller.reconciles("ok") == 2).await;
    assert_eq!(world.commands.of_reconciles(), ["findAndModify", "findAndModify"]);
    assert_eq!(world.authentik.faults.total(), 1, "{:?}", world.authentik.faults.requests());
    controller.stop().await;
}

/// Invariant 7.
#[tokio::test]
async fn an_idle_fleet_costs_one_due_scan_per_poll_and_no_request() {
    let world = World::new().await;
    for n in 0..50 {
        world.insert(&format!("t{n}")).await;
    }
    let poll = Duration::from_millis(500);
    let controller = world.controller_with(|settings| settings.poll_interval = poll).await;
    for n in 0..50 {
        world.active(&format!("t{n}")).await;
    }
    eventually("all is committed", async || controller.reconciles("ok") == 50).await;
    let histories = world.mongo.collection::<mongodb::bson::Document>("tenantry_events");
    eventually("the histories are written", async || {
        histories.count_documents(doc! { "events.type": "Active" }).await.unwrap() == 50
    })
    .await;
    world.commands.take();
    world.authentik.faults.forget_requests();
    holds_for(poll * 6, "nothing but due scans", async || {
        world.commands.without_stream().iter().all(|command| command == DUE_SCAN)
    })
    .await;
    let scans = world.commands.count(DUE_SCAN);
    assert!((4..=7).contains(&scans), "{scans} scans in six intervals");
    // The stream is held open by the server: it is not polled.
    assert!(world.commands.count("getMore") <= 1, "{}", world.commands.count("getMore"));
    assert_eq!(world.authentik.faults.total(), 0);
    controller.stop().await;
}

#[tokio::test]
async fn a_backlog_is_worked_off_with_one_scan_per_thousand() {
    const TENANTS: usize = 2_500;
    let world = World::new().await;
    let skipped = (0..TENANTS).map(|n| {
        doc! {
            "slug": format!("t{n}"), "name": "x", "createdAt": DateTime::now(),
            "services": { "authentik": false },
        }
    });
    world.tenants.insert_many(skipped).await.unwrap();
    let controller = world.controller_with(rarely_polling).await;
    eventually("all are active", async || {
        world.tenants.count_documents(doc! { "status": "active" }).await.unwrap() == TENANTS as u64
    })
    .await;
    eventually("all are committed", async || controller.reconciles("ok") == TENANTS as u64).await;
    let scans = world.commands.count(DUE_SCAN);
    assert!(scans <= 10, "{scans} scans");
    let claims = world.commands.count_on_tenants("findAndModify");
    assert!(claims <= TENANTS * 2 + TENANTS / 10, "{claims} commands for {TENANTS} tenants");
    controller.stop().await;
}
